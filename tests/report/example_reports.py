"""Reports as runs make them: one that went well, and every way in which one can go less well."""

import json
import math
import random
from typing import Any

from hoyer_export.report.report import Report, Tool
from hoyer_export.report.stage_records import (
    BlockedConvs,
    BudgetRecord,
    Check,
    ClassTally,
    CutRecord,
    Environment,
    ExportsRecord,
    FileLatency,
    FileRecord,
    FileVerification,
    GroupWidth,
    Images,
    InputsRecord,
    MeasuredRecord,
    Moved,
    OnnxComparison,
    PhaseRecord,
    Speedup,
    VerifiedRecord,
)
from hoyer_export.sparsify.phase import EpochRecord

HOSTILE = "<script>alert('x')</script> & \"q\" `code` | **bold** </style> [a](javascript:b)"
"""Markup of every language that the page and the card are written in."""
EXAMPLES = (
    *("passed", "failed", "noisy", "unmeasured", "given", "whole", "many_groups", "hostile"),
    *("without_data", "three_artifacts", "without_macs"),
)

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CORRECT = {  # of 1,000 images a class
    "dense": (930, 960, 880, 830, 920, 870, 945, 940, 955, 943),
    "slim": (932, 958, 872, 808, 918, 862, 944, 941, 953, 942),
}


def passed() -> Report:
    """Return the report of a run of ResNet-20 on CIFAR-10 at half the MACs that went well."""
    return Report(
        created="2026-01-31T12:30:05Z",
        tool=Tool(name="hoyer_export", version="0.1.0"),
        recipe={
            "seed": 3,
            "network": {"name": "cifar_resnet20", "in_channels": 3, "classes": 10},
            "data": {"name": "cifar10", "root": "cifar", "validation": 0.1, "mean": [0.485, 0.456, 0.406]},
            "dense": {"epochs": 30, "lr": 0.1, "batch_size": 128, "optimizer": "sgd", "weight_decay": 0.0005},
            "sparse": {"epochs": 30, "lr": 0.05, "regulariser": "group-hs", "strength": 0.002, "scale": "relative"},
            "cut": {"macs": 0.5, "align": 8},
            "finetune": {"epochs": 15, "lr": 0.05},
            "bench": {"threads": 1, "batch_size": 1, "min_seconds": 5.0},
        },
        inputs=InputsRecord(
            data="cifar10",
            classes=10,
            images=Images(train=45000, validation=5000, test=10000),
            shape=(3, 32, 32),
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            class_names=CLASSES,
        ),
        training={
            "dense": PhaseRecord(seconds=2310.4),
            "sparse": PhaseRecord(seconds=2506.1, effective_macs=0.463),
            "finetune": PhaseRecord(seconds=733.7),
        },
        cut=CutRecord(
            seconds=0.81, dtype="float64", max_rel_error=3.1e-15, tolerance=1e-9, align=8, widths=example_widths()
        ),
        export=ExportsRecord(
            seconds=6.24,
            artifacts=(
                example_file("dense", 272474, 40551808, 1104218),
                example_file("slim", 161290, 20133632, 659884),
            ),
            budget=BudgetRecord(asked={"macs": 0.5}, met=True, reached={"macs": 20133632 / 40551808}),
        ),
        verify=VerifiedRecord(
            seconds=21.9,
            passed=True,
            artifacts=(example_verification("dense", 91.73, 91.73), example_verification("slim", 91.3, 91.31)),
            sparse_accuracy=88.61,
        ),
        bench=MeasuredRecord(
            seconds=5.93,
            environment=Environment(
                cpu="Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz",
                flags=("avx2", "avx512f", "avx512_vnni", "avx512_bf16"),
                cores=8,
                threads=2,
                versions={"torch": "2.14.0", "onnxruntime": "1.32.0", "onnx": "1.23.0", "numpy": "2.4.1"},
                load=(0.42, 0.51, 0.6),
                os="Linux 6.1.0 x86_64",
                python="3.11.9",
            ),
            threads=1,
            batch_size=1,
            artifacts=(
                example_latency("dense", 4.2, 21),
                example_latency("slim", 1.9, 20, Speedup(median=2.21, ci95=(2.19, 2.24))),
            ),
            block=16,
        ),
    )


def example_widths() -> tuple[GroupWidth, ...]:
    """Return 12 groups: whole, filled to a block, cut below the alive ones, and nearly gone."""
    alive = [14, 9, 16, 3, 22, 30, 17, 32, 61, 64, 40, 64]
    slim = [16, 16, 16, 8, 24, 32, 24, 32, 64, 56, 40, 64]
    names = ["conv1", *(f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in range(3)), "layer2", "layer3"]
    dense = [16, 16, 16, 16, 32, 32, 32, 32, 64, 64, 64, 64]
    return tuple(
        GroupWidth(group=name, dense=k, alive=a, slim=s)
        for name, k, a, s in zip(names, dense, alive, slim, strict=True)
    )


def example_file(name: str, params: int, macs: int, size_bytes: int) -> FileRecord:
    """Return a file of that name, with these figures."""
    return FileRecord(
        name=name,
        file=f"{name}.onnx",
        kind="onnx",
        params=params,
        macs=macs,
        flops=2 * macs,
        size_bytes=size_bytes,
        sha256="9f2c" * 16,
    )


def example_verification(name: str, accuracy: float | None, onnx_accuracy: float | None) -> FileVerification:
    """Return a ladder of 6 checks and 32 comparisons, all passed."""
    draw = random.Random(1)
    comparisons = tuple(
        OnnxComparison(
            batch=batch,
            inputs=inputs,
            optimization=optimization,
            max_abs_error=0.0 if inputs == "zeros" and batch == 1 else 10 ** draw.uniform(-7.4, -5.6),
            tolerance=1.37e-4 if inputs == "noise" else 1e-5 * 9.2,
        )
        for optimization in ("disabled", "all")
        for inputs in ("real", "zeros", "ones", "noise")
        for batch in (1, 2, 3, 8)
    )
    checks = (
        Check(name="interface", value=0.0, tolerance=0.0, passed=True),
        Check(name="outputs, optimisations disabled", value=3.1e-7, tolerance=1e-5, passed=True),
        Check(name="rows of a batch", value=2.4e-7, tolerance=1e-5, passed=True),
        Check(name="weight sizes", value=0.0, tolerance=0.0, passed=True),
        Check(name="subnormal weights", value=0.0, tolerance=0.0, passed=True),
        Check(name="top-1", value=0.0, tolerance=0.0, passed=True),
    )
    return FileVerification(
        name=name,
        passed=True,
        checks=checks,
        onnx=comparisons,
        accuracy=accuracy,
        onnx_accuracy=onnx_accuracy,
        by_class=tuple(ClassTally(images=1000, correct=correct) for correct in CORRECT.get(name, ())),
    )


def example_latency(
    name: str, median: float, blocked: int, speedup: Speedup | None = None, spread: float = 0.0
) -> FileLatency:
    """Return 900 runs whose times are skewed around a median, in milliseconds."""
    draw = random.Random(2 if name == "dense" else 3)
    skewed = [median * (0.97 + 0.02 * draw.gammavariate(2.0, 1.0)) for _ in range(900)]
    ordered = sorted(time * draw.lognormvariate(0, spread) for time in skewed)
    return FileLatency(
        name=name,
        p50=ordered[450],
        p90=ordered[810],
        p99=ordered[891],
        min=ordered[0],
        n=900,
        cpu_p50=median * 1.01,
        samples=(*ordered[:-1:5], ordered[-1]),
        blocked_convs=BlockedConvs(blocked=blocked, total=21),
        speedup=speedup,
    )


def example_json() -> dict[str, Any]:
    """Return the report that went well as report.json holds it."""
    found: dict[str, Any] = json.loads(passed().model_dump_json())
    return found


def put(found: Any, values: dict[str, Any]) -> None:
    """Change values of a report's JSON, each at its place, e.g. ``cut.widths.0.group``."""
    for place, value in values.items():
        *path, last = (int(part) if part.isdigit() else part for part in place.split("."))
        parent = found
        for part in path:
            parent = parent[part]
        parent[last] = value


def changed(values: dict[str, Any]) -> Report:
    """Return the report that went well, with other values at these places."""
    found = example_json()
    put(found, values)
    return Report.model_validate_json(json.dumps(found))


def failed() -> Report:
    """Return a report with three failed steps, one of them not finite, and a missed budget."""
    slim = "verify.artifacts.1"
    return changed(
        {
            "verify.passed": False,
            f"{slim}.passed": False,
            f"{slim}.onnx.5.max_abs_error": 0.0713,
            f"{slim}.onnx.9.max_abs_error": None,
            f"{slim}.checks.5.value": 17,
            f"{slim}.checks.5.passed": False,
            "export.budget.asked": {"macs": 0.45},
            "export.budget.met": False,
        }
    )


def noisy() -> Report:
    """Return a report of a machine that was too busy, where slim is not measurably faster."""
    speedup = Speedup(median=1.08, ci95=None)
    files = example_latency("dense", 4.2, 21, spread=0.5), example_latency("slim", 1.9, 20, speedup, spread=0.5)
    return changed(
        {
            "bench.artifacts": [file.model_dump() for file in files],
            "bench.noise": "too noisy to say: times spread by 41% of their median (limit 10%); measure again on an "
            "idle machine",
        }
    )


def unmeasured() -> Report:
    """Return a report without latency, without a sparse phase and without a load average."""
    return changed(
        {
            "bench.artifacts": [],
            "bench.block": None,
            "bench.environment.load": None,
            "verify.sparse_accuracy": None,
            "training.dense.seconds": 0.0,
            "training.sparse": {"seconds": 0.0},
            "recipe.sparse.epochs": 0,
            "inputs.validation": "seen in training",
        }
    )


def given() -> Report:
    """Return a report of given weights, cut and not trained at all."""
    return changed(
        {f"recipe.{phase}.epochs": 0 for phase in ("dense", "sparse", "finetune")}
        | {f"training.{phase}.seconds": 0.0 for phase in ("dense", "sparse", "finetune")}
        | {
            "recipe.dense.weights": "resnet20.safetensors",
            "training.sparse.effective_macs": 0.87,
            "verify.sparse_accuracy": 91.73,
            "inputs.validation": "may have been seen in training",
        }
    )


def whole() -> Report:
    """Return a report of a run with a budget of all MACs: nothing was cut, and Group-HS changed nothing."""
    dense = passed().dense.file
    widths = [group.model_dump() | {"alive": group.dense, "slim": group.dense} for group in example_widths()]
    return changed(
        {
            "export.budget": {"asked": {"macs": 1.0}, "met": True, "reached": {"macs": 1.0}},
            "export.artifacts.1": example_file("slim", dense.params, dense.macs, dense.size_bytes).model_dump(),
            "cut.widths": widths,
            "training.sparse.effective_macs": 0.999,
            "bench.artifacts.1.speedup": {"median": 1.001, "ci95": [0.998, 1.003]},
        }
    )


def many_groups() -> Report:
    """Return a report of a network with 69 groups as wide as 2048, cut to a threshold."""
    draw = random.Random(4)
    widths = []
    for stage, (blocks, width) in enumerate([(8, 64), (14, 128), (40, 256), (7, 512)], start=1):
        for block in range(blocks):
            dense = width * (4 if block == 0 else 1)
            alive = draw.randint(1, dense)
            slim = min(dense, max(8, 16 * math.ceil(alive / 16)))
            name = f"backbone.layer{stage}.{block}.downsample.0"
            widths.append({"group": name, "dense": dense, "alive": alive, "slim": slim})
    budget = {"asked": {"threshold": "natural"}, "met": True}
    return changed({"cut.widths": widths, "cut.align": 16, "export.budget": budget})


def without_data() -> Report:
    """Return a report of a network cut at random weights, on no data, that was not trained: no accuracy anywhere."""
    untrained = {"epochs": 0}
    moved = Moved(images="noise", count=2, max_change=0.31, max_output=1.7).model_dump()
    return changed(
        {
            "recipe": {
                "seed": 0,
                "network": {"name": "cifar_resnet20"},
                "dense": untrained | {"weights": "random"},
                "sparse": untrained,
                "cut": {"macs": 0.5, "align": 8},
                "finetune": untrained,
            },
            "inputs": {"shape": [3, 32, 32]},
            "training": {"dense": {"seconds": 0.0}, "sparse": {"seconds": 0.0}, "finetune": {"seconds": 0.0}},
            "cut.moved": [moved],
            "verify.sparse_accuracy": None,
        }
        | {f"verify.artifacts.{index}.{key}": None for index in (0, 1) for key in ("accuracy", "onnx_accuracy")}
        | {f"verify.artifacts.{index}.by_class": [] for index in (0, 1)}
    )


def three_artifacts() -> Report:
    """Return a report of a run that also ships an int8 file, one check of which failed."""
    found = example_json()
    speedup = Speedup(median=2.9, ci95=(2.87, 2.94))
    verified = example_verification("slim-int8", 90.9, 90.88).model_dump(mode="json") | {"passed": False}
    verified["checks"][5] |= {"value": 3, "passed": False}
    found["export"]["artifacts"].append(example_file("slim-int8", 161290, 20133632, 201118).model_dump(mode="json"))
    found["verify"]["artifacts"].append(verified)
    found["verify"]["passed"] = False
    found["bench"]["artifacts"].append(example_latency("slim-int8", 1.45, 0, speedup).model_dump(mode="json"))
    return Report.model_validate_json(json.dumps(found))


def every_artifact() -> Report:
    """Return a report of a run that ships every file there is; one is not measured."""
    found = example_json()
    for name in ("slim-fp16", "slim-int8", "slim-preprocess", "slim-pt2"):
        found["export"]["artifacts"].append(example_file(name, 161290, 20133632, 201118).model_dump(mode="json"))
        found["verify"]["artifacts"].append(example_verification(name, 90.9, 90.88).model_dump(mode="json"))
        if name != "slim-pt2":
            latency = example_latency(name, 1.45, 0, Speedup(median=2.9, ci95=(2.87, 2.94)))
            found["bench"]["artifacts"].append(latency.model_dump(mode="json"))
    return Report.model_validate_json(json.dumps(found))


def without_macs() -> Report:
    """Return a report of a network without anything that is counted: no MACs, no parameters."""
    nothing = {f"export.artifacts.{index}.{key}": 0 for index in (0, 1) for key in ("macs", "flops", "params")}
    return changed(nothing | {"export.budget": {"asked": {"threshold": 0.5}, "met": True}})


def hostile() -> Report:
    """Return a report with markup in every string that a recipe, a file or a machine can bring."""
    slim = "verify.artifacts.1"
    return changed(
        {
            "inputs.data": HOSTILE,
            "inputs.validation": HOSTILE,
            "inputs.notes": [HOSTILE],
            "inputs.class_names.3": HOSTILE,
            "recipe": {
                "seed": HOSTILE,
                "network": {"name": HOSTILE, HOSTILE: HOSTILE},
                HOSTILE: {HOSTILE: HOSTILE},
                "data": {"root": [HOSTILE]},
                "dense": {"epochs": 1, "weights": HOSTILE},
            },
            "bench.environment.cpu": HOSTILE,
            "bench.environment.flags": [HOSTILE],
            "bench.environment.versions": {HOSTILE: HOSTILE},
            "bench.environment.os": HOSTILE,
            "bench.noise": HOSTILE,
            "cut.widths.0.group": HOSTILE,
            "cut.dtype": HOSTILE,
            "cut.warning": HOSTILE,
            "export.artifacts.0.uncounted": {HOSTILE: 1},
            "export.artifacts.0.file": HOSTILE,
            "export.artifacts.1.file": HOSTILE,
            "export.artifacts.1.sha256": HOSTILE,
            "export.budget.asked": {"threshold": HOSTILE},
            f"{slim}.checks.0.name": HOSTILE,
            f"{slim}.checks.0.value": HOSTILE,
            f"{slim}.onnx.0.inputs": HOSTILE,
            f"{slim}.onnx.0.optimization": HOSTILE,
            f"{slim}.onnx.0.max_abs_error": 1.0,
            "tool.version": HOSTILE,
        }
    )


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
