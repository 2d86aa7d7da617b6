"""Reports as runs make them: one that went well, and every way in which one can go less well."""

import math
import random
from datetime import UTC, datetime
from typing import Any

from hoyer_export.report.record import Report, assemble_report
from hoyer_export.sparsify.phase import EpochRecord

HOSTILE = "<script>alert('x')</script> & \"q\" `code` | **bold** </style> [a](javascript:b)"
"""Markup of every language that the page and the card are written in."""


def example_arguments() -> dict[str, Any]:
    """Return the arguments of a run of ResNet-20 on CIFAR-10 at half the MACs, all well."""
    return {
        "network": "cifar_resnet20",
        "data": {"name": "cifar10", "classes": 10, "images": {"train": 45000, "validation": 5000, "test": 10000}},
        "input": {"shape": (3, 32, 32), "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
        "validation": None,
        "recipe": {
            "seed": 3,
            "network": {"name": "cifar_resnet20", "in_channels": 3, "classes": 10},
            "data": {"name": "cifar10", "root": "/home/jane/data/cifar", "validation": 0.1, "mean": [0.485, 0.456]},
            "dense": {"epochs": 30, "lr": 0.1, "batch_size": 128, "optimizer": "sgd", "weight_decay": 0.0005},
            "sparse": {"epochs": 30, "lr": 0.05, "regulariser": "group-hs", "strength": 0.002, "scale": "relative"},
            "cut": {"macs": 0.5, "align": 8, "params": None},
            "finetune": {"epochs": 15, "lr": 0.05},
            "bench": {"threads": 1, "batch_size": 1, "min_seconds": 5.0},
        },
        "environment": {
            "cpu": "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz",
            "flags": ("avx2", "avx512f", "avx512_vnni", "avx512_bf16"),
            "cores": 8,
            "threads": 2,
            "versions": {"torch": "2.14.0", "onnxruntime": "1.32.0", "onnx": "1.23.0", "numpy": "2.4.1"},
            "load": (0.42, 0.51, 0.6),
            "os": "Linux 6.1.0 x86_64",
            "python": "3.11.9",
        },
        "seconds": {
            "dense": 2310.4,
            "sparse": 2506.1,
            "cut": 0.81,
            "finetune": 733.7,
            "export": 6.24,
            "verify": 21.9,
            "bench": 5.93,
        },
        "dense": {"accuracy": 91.73, "params": 272474, "macs": 40551808, "onnx_bytes": 1104218},
        "sparse": {"accuracy": 88.61, "effective_width": 0.463},
        "slim": {
            "accuracy": 91.3,
            "onnx_accuracy": 91.31,
            "params": 161290,
            "macs": 20133632,
            "onnx_bytes": 659884,
            "onnx_sha256": "9f2c" * 16,
        },
        "align": 8,
        "widths": example_widths(),
        "cut": {"dtype": "float64", "max_rel_error": 3.1e-15},
        "verify": example_verification(),
        "latency": example_latency(),
        "budget_asked": {"macs": 0.5},
        "tool_version": "0.1.0",
        "created": datetime(2026, 1, 31, 12, 30, 5, tzinfo=UTC),
    }


def example_widths() -> list[dict[str, Any]]:
    """Return 12 groups: whole, filled to a block, cut below the alive ones, and nearly gone."""
    alive = [14, 9, 16, 3, 22, 30, 17, 32, 61, 64, 40, 64]
    slim = [16, 16, 16, 8, 24, 32, 24, 32, 64, 56, 40, 64]
    names = ["conv1", *(f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in range(3)), "layer2", "layer3"]
    dense = [16, 16, 16, 16, 32, 32, 32, 32, 64, 64, 64, 64]
    return [
        {"group": name, "dense": k, "alive": a, "slim": s}
        for name, k, a, s in zip(names, dense, alive, slim, strict=True)
    ]


def example_verification() -> dict[str, Any]:
    """Return a ladder of 6 checks and 32 comparisons, all passed."""
    draw = random.Random(1)
    comparisons = [
        {
            "batch": batch,
            "inputs": inputs,
            "optimization": optimization,
            "max_abs_error": 0.0 if inputs == "zeros" and batch == 1 else 10 ** draw.uniform(-7.4, -5.6),
            "tolerance": 1.37e-4 if inputs == "noise" else 1e-5 * 9.2,
        }
        for optimization in ("disabled", "all")
        for inputs in ("real", "zeros", "ones", "noise")
        for batch in (1, 2, 3, 8)
    ]
    checks = [
        {"name": "interface", "value": 0, "tolerance": 0, "passed": True},
        {"name": "outputs, optimisations disabled", "value": 3.1e-7, "tolerance": 1e-5, "passed": True},
        {"name": "rows of a batch", "value": 2.4e-7, "tolerance": 1e-5, "passed": True},
        {"name": "weight sizes", "value": 0, "tolerance": 0, "passed": True},
        {"name": "subnormal weights", "value": 0, "tolerance": 0, "passed": True},
        {"name": "top-1", "value": 0, "tolerance": 0, "passed": True},
    ]
    return {"passed": True, "checks": checks, "onnx": comparisons, "torch_accuracy": 91.3}


def example_latency(runs: int = 900, spread: float = 0.0) -> dict[str, Any]:
    """Return two skewed distributions around 4.2 and 1.9 ms."""
    draw = random.Random(2)

    def measured(median: float) -> dict[str, Any]:
        skewed = [median * (0.97 + 0.02 * draw.gammavariate(2.0, 1.0)) for _ in range(runs)]
        samples = [sample * draw.lognormvariate(0, spread) for sample in skewed]
        ordered = sorted(samples)
        return {
            "p50": ordered[runs // 2],
            "p90": ordered[runs * 9 // 10],
            "p99": ordered[runs * 99 // 100],
            "min": ordered[0],
            "n": runs,
            "cpu_p50": median * 1.01,
            "samples": samples,
        }

    return {
        "threads": 1,
        "batch_size": 1,
        "dense_ms": measured(4.2),
        "slim_ms": measured(1.9),
        "speedup": {"median": 2.21, "ci95": (2.19, 2.24)},
        "blocked_convs": {"dense": {"blocked": 21, "total": 21}, "slim": {"blocked": 20, "total": 21}},
        "block": 16,
        "noise": None,
    }


def passed() -> Report:
    """Return a report of a run that went well."""
    return assemble_report(**example_arguments())


def failed() -> Report:
    """Return a report with three failed steps, one of them not finite, and a missed budget."""
    arguments = example_arguments()
    arguments["verify"]["passed"] = False
    arguments["verify"]["onnx"][5]["max_abs_error"] = 0.0713
    arguments["verify"]["onnx"][9]["max_abs_error"] = math.inf
    arguments["verify"]["checks"][5] |= {"value": 17, "passed": False}
    arguments["budget_asked"] = {"macs": 0.45}
    return assemble_report(**arguments)


def noisy() -> Report:
    """Return a report of a machine that was too busy, where slim is not measurably faster."""
    arguments = example_arguments()
    arguments["latency"] = example_latency(spread=0.5) | {
        "speedup": {"median": 1.08, "ci95": (0.91, 1.33)},
        "noise": "too noisy to say: times spread by 41% of their median (limit 10%); measure again on an idle machine",
    }
    return assemble_report(**arguments)


def unmeasured() -> Report:
    """Return a report without [bench], without a sparse phase and without a load average."""
    arguments = example_arguments()
    arguments |= {
        "latency": None,
        "sparse": {"accuracy": None, "effective_width": None},
        "validation": "seen in training",
    }
    arguments["seconds"] = {"dense": 0.0, "cut": 0.2, "finetune": 12.0, "export": 1.0, "verify": 2.0}
    arguments["environment"]["load"] = None
    return assemble_report(**arguments)


def given() -> Report:
    """Return a report of given weights, cut and not trained at all."""
    arguments = example_arguments()
    arguments["recipe"]["dense"] |= {"epochs": 0, "weights": "resnet20.safetensors"}
    for phase in ("sparse", "finetune"):
        arguments["recipe"][phase]["epochs"] = 0
    arguments["seconds"] |= {"dense": 0.0, "sparse": 0.0, "finetune": 0.0}
    arguments |= {
        "sparse": {"accuracy": 91.73, "effective_width": 0.87},
        "validation": "may have been seen in training",
    }
    return assemble_report(**arguments)


def whole() -> Report:
    """Return a report of a run with a budget of all MACs: nothing was cut, and Group-HS changed nothing."""
    arguments = example_arguments() | {"budget_asked": {"macs": 1.0}}
    arguments["widths"] = [group | {"alive": group["dense"], "slim": group["dense"]} for group in example_widths()]
    arguments["slim"] |= {key: arguments["dense"][key] for key in ("params", "macs", "onnx_bytes")}
    arguments["sparse"]["effective_width"] = 0.999
    arguments["latency"]["speedup"] = {"median": 1.001, "ci95": (0.998, 1.003)}
    return assemble_report(**arguments)


def many_groups() -> Report:
    """Return a report of a network with 69 groups as wide as 2048, cut to a threshold."""
    arguments = example_arguments()
    draw = random.Random(4)
    widths = []
    for stage, (blocks, width) in enumerate([(8, 64), (14, 128), (40, 256), (7, 512)], start=1):
        for block in range(blocks):
            dense = width * (4 if block == 0 else 1)
            alive = draw.randint(1, dense)
            slim = min(dense, max(8, 16 * math.ceil(alive / 16)))
            widths.append(
                {"group": f"backbone.layer{stage}.{block}.downsample.0", "dense": dense, "alive": alive, "slim": slim}
            )
    arguments |= {"widths": widths, "align": 16, "budget_asked": {"threshold": "natural"}}
    return assemble_report(**arguments)


def hostile() -> Report:
    """Return a report with markup in every string that a recipe, a file or a machine can bring."""
    arguments = example_arguments()
    arguments |= {"network": HOSTILE, "validation": HOSTILE}
    arguments["data"] = {"name": HOSTILE, "classes": 10, "images": {"train": 8, "validation": 2, "test": 10}}
    arguments["recipe"] = {"seed": HOSTILE, HOSTILE: {HOSTILE: HOSTILE}, "data": {"root": [HOSTILE]}}
    arguments["environment"] |= {"cpu": HOSTILE, "flags": (HOSTILE,), "versions": {HOSTILE: HOSTILE}, "os": HOSTILE}
    arguments["widths"][0]["group"] = HOSTILE
    arguments["latency"]["noise"] = HOSTILE
    arguments["slim"]["onnx_sha256"] = HOSTILE
    arguments["verify"]["checks"][0] |= {"name": HOSTILE, "value": HOSTILE}
    arguments["verify"]["onnx"][0] |= {"inputs": HOSTILE, "optimization": HOSTILE, "max_abs_error": 1.0}
    arguments["cut"] = {"dtype": HOSTILE, "max_rel_error": 0.0}
    arguments["budget_asked"] = {"threshold": HOSTILE}
    arguments["tool_version"] = HOSTILE
    return assemble_report(**arguments)


def example_metrics(dense: int = 30, sparse: int = 30, finetune: int = 15) -> tuple[EpochRecord, ...]:
    """Return curves as such a run draws them."""
    draw = random.Random(5)
    epochs = []
    for phase, count, low, high in (
        ("dense", dense, 31, 92),
        ("sparse", sparse, 91, 88.4),
        ("finetune", finetune, 71, 91.4),
    ):
        for epoch in range(count):
            part = 1 - math.exp(-4 * (epoch + 1) / count)
            accuracy = low + (high - low) * part + draw.uniform(-0.8, 0.8)
            shrinking = phase == "sparse"
            epochs.append(
                EpochRecord(
                    phase=phase,
                    epoch=epoch,
                    seconds=77 + draw.uniform(-2, 2),
                    learning_rate=0.05 * (1 + math.cos(math.pi * epoch / count)),
                    loss=1.9 * math.exp(-accuracy / 40) + draw.uniform(0, 0.02),
                    penalty=412.0 - 6 * epoch if shrinking else None,
                    train_accuracy=min(100.0, accuracy + 3 * part),
                    validation_accuracy=accuracy,
                    effective_macs=0.9 - 0.44 * part if shrinking else None,
                    alive_macs=1 - 0.4 * part**3 if shrinking else None,
                )
            )
    return tuple(epochs)
