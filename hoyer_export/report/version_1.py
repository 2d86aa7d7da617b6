"""Reports of format hoyer-export-report/1, which had one dense and one slim file, as reports of today's format."""

from typing import Any

FORMAT = "hoyer-export-report/1"


def upgraded(old: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON of a report/1 as that of a report/2.

    Raises:
        KeyError, TypeError, AttributeError: a section is missing, or no table.
    """
    seconds, latency, verify = old["seconds"], old["latency"] or {}, old["verify"]
    data, shown = old.get("data") or {}, old.get("input") or {}
    recipe = {key: table for key, table in old["recipe"].items() if table is not None}
    if old.get("network") and "network" not in recipe:
        recipe["network"] = {"name": old["network"]}
    steps = {"dense": ([], []), "slim": (verify["checks"], verify["onnx"])}
    return {
        "format": "hoyer-export-report/2",
        "created": old.get("created"),
        "tool": old.get("tool"),
        "recipe": recipe,
        "inputs": {"data": data.get("name"), "classes": data.get("classes"), "images": data.get("images")}
        | {"validation": old.get("validation")}
        | shown,
        "training": {
            "dense": {"seconds": seconds["dense"]},
            "sparse": {"seconds": seconds["sparse"], "effective_macs": old["sparse"]["effective_width"]},
            "finetune": {"seconds": seconds["finetune"]},
        },
        "cut": {"seconds": seconds["cut"], "align": old.get("align"), "widths": old["widths"]}
        | {"tolerance": 1e-9}
        | verify["cut"],
        "export": {
            "seconds": seconds["export"],
            "budget": old["budget"],
            "artifacts": [
                {"name": name, "file": f"{name}.onnx", "kind": "onnx", "size_bytes": old[name]["onnx_bytes"]}
                | {"sha256": old[name].get("onnx_sha256")}
                | {key: old[name][key] for key in ("params", "macs", "flops")}
                for name in steps
            ],
        },
        "verify": {
            "seconds": seconds["verify"],
            "passed": verify["passed"],
            "sparse_accuracy": old["sparse"]["accuracy"],
            "artifacts": [
                {"name": name, "passed": verify["passed"] or name == "dense", "checks": checks, "onnx": onnx}
                | {key: old[name].get(key) for key in ("accuracy", "onnx_accuracy")}
                for name, (checks, onnx) in steps.items()
            ],
        },
        "bench": {
            "seconds": seconds["bench"],
            "environment": old["environment"],
            "threads": latency.get("threads", 1),
            "batch_size": latency.get("batch_size", 1),
            "block": latency.get("block"),
            "noise": latency.get("noise"),
            "artifacts": [
                {"name": name, "blocked_convs": latency["blocked_convs"][name]}
                | latency[f"{name}_ms"]
                | ({} if name == "dense" else {"speedup": latency["speedup"]})
                for name in (steps if latency else ())
            ],
        },
    }
