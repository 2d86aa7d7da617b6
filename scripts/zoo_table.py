"""Cut every network of the zoo at random and write what happened to docs/zoo.md.

    python scripts/zoo_table.py [--only REGEX] [--slow] [--parts cut onnx rival] [--again]

Every part of a row gets its own process and time limit, so that a crash or a hang is an entry and not the end. Rows
are kept in ``--results`` (JSON lines) and reused; ``--again`` makes the parts anew.
"""

import argparse
import importlib.metadata
import json
import multiprocessing
import re
import tempfile
import time
import traceback
import warnings
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import timm
import torch
import torchvision
import zoo_models
import zoo_rival
from torch import Tensor, nn

from hoyer_export.channels.channel_map import ChannelMap
from hoyer_export.channels.trace import trace_channels
from hoyer_export.deploy.export import export_onnx
from hoyer_export.errors import CutRefused, NetworkError
from hoyer_export.surgery.cut import cut
from hoyer_export.surgery.perturb import perturb_
from hoyer_export.surgery.self_test import random_keep
from hoyer_export.surgery.zero import zero_

ROOT = Path(__file__).parent.parent
SEED = 0
OUTPUT, INPUT = "the model's output", "meets the model's input or a tensor of fixed size"
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="regular expression that names must contain")
    parser.add_argument("--slow", action="store_true", help="also the two largest networks")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--again", action="store_true", help="make the parts anew that --only and --parts name")
    parser.add_argument("--limit", type=float, default=300, help="seconds for each part of a row")
    parser.add_argument("--results", type=Path, default=ROOT / "build" / "zoo.jsonl")
    parser.add_argument("--table", type=Path, default=ROOT / "docs" / "zoo.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # a process is forked for each part, which does not go with threads
    rows = read(arguments.results)
    for name in zoo_models.NAMES:
        if re.search(arguments.only, name) and (arguments.slow or name not in zoo_models.SLOW):
            row = rows.setdefault(name, {})
            missing = [part for part in arguments.parts if arguments.again or part not in row]
            for part in missing:
                row[part] = in_own_process(PARTS[part], name, arguments.limit)
            if missing:
                write_line(arguments.results, name, row)
                print(name, json.dumps(row), flush=True)
    arguments.table.write_text(page({name: rows[name] for name in zoo_models.NAMES if name in rows}))


def in_own_process(work: Any, name: str, limit_seconds: float) -> Row:
    """Return what ``work(name)`` returns, or why it did not."""
    context = multiprocessing.get_context("fork")  # torch is imported once
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(work, name, theirs))
    process.start()
    theirs.close()
    try:
        if not ours.poll(limit_seconds):
            return {"failed": f"did not finish in {limit_seconds:.0f} s"}
        row: Row = ours.recv()
        return row
    except EOFError:
        return {"failed": "the process died"}
    finally:
        process.kill()
        process.join()


def _answer(work: Any, name: str, answer: Connection) -> None:
    warnings.simplefilter("ignore")
    try:
        answer.send(work(name))
    except Exception as error:
        message = " ".join(str(error).split())
        tail = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)]
        answer.send({"failed": f"{type(error).__name__}: {message}", "traceback": tail[-6:]})


def cut_at_random(name: str) -> Row:
    """Trace and cut; times are CPU seconds of one thread."""
    model, images = prepared(name)
    start = time.process_time()
    channels = trace_channels(model, images)
    row: Row = {
        "side": images.shape[-1],
        "trace_seconds": time.process_time() - start,
        "channels": sum(group.width for group in channels.groups),
        "groups": len(channels.groups),
        "unprunable": unprunable(channels),
        "params": parameters(model),
    }
    if not channels.groups:
        return row
    try:
        row |= _cut(model, channels, images)
    except CutRefused as error:
        row["refused"] = str(error)
    return row


def _cut(model: nn.Module, channels: ChannelMap, images: Tensor) -> Row:
    keep = random_keep(channels, torch.Generator().manual_seed(SEED))
    with torch.no_grad():
        before = model(images)
        zero_(model, channels, keep)
        moved = (model(images) - before).abs().max() / before.abs().max()
    slim = cut(model, channels, keep, images)
    return {"moved": float(moved), "error": slim.max_rel_error, "slim_params": parameters(slim.model)}


def export_slim(name: str) -> Row:
    """Cut, export, and compare onnxruntime with torch: max |Δ| / max(1, max |y|), float32."""
    model, images = prepared(name)
    channels = trace_channels(model, images)
    keep = random_keep(channels, torch.Generator().manual_seed(SEED))
    zero_(model, channels, keep)
    slim = cut(model, channels, keep, images).model.eval()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        file = Path(folder) / "slim.onnx"
        try:
            export_onnx(slim, images, file)
        except NetworkError as error:
            if can_be_exported(model, images, file):
                raise
            return {"failed": f"the dense network cannot be exported either: {error}"}
        found = onnxruntime.InferenceSession(file).run(None, {"input": images.numpy()})[0]
        expected = slim(images).numpy()
    return {"error": float(np.abs(found - expected).max() / max(1, np.abs(expected).max()))}


def can_be_exported(model: nn.Module, images: Tensor, file: Path) -> bool:
    try:
        export_onnx(model, images, file)
    except NetworkError:
        return False
    return True


def ask_rival(name: str) -> Row:
    """Let torch-pruning prune the same network."""
    model, images = prepared(name)
    outputs = {
        found.parameter.rpartition(".")[0]
        for found in trace_channels(model, images).unprunable
        if found.reason == OUTPUT and found.dim == 0
    }
    return {"error": zoo_rival.prune_at_random(model, images, outputs, SEED)}


def prepared(name: str) -> tuple[nn.Module, Tensor]:
    """Return a network no removal from which could hide behind parameters of zero or one, and images."""
    model, images = zoo_models.build(name)
    # Small and of either sign, for the sake of onnxruntime's layer norms.
    perturb_(model, torch.Generator().manual_seed(SEED), 0.4, either_sign=True)
    return model, images


def unprunable(channels: ChannelMap) -> dict[str, int]:
    """Return how many indices each reason keeps, the most frequent first."""
    count: Counter[str] = Counter()
    for found in channels.unprunable:
        count[found.reason] += len(found.indices)
    return dict(count.most_common())


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def read(results: Path) -> dict[str, Row]:
    """Return the rows made so far; of two for one network the later one."""
    if not results.exists():
        return {}
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    return {line["name"]: line["row"] for line in lines}


def write_line(results: Path, name: str, row: Row) -> None:
    results.parent.mkdir(parents=True, exist_ok=True)
    with results.open("a") as file:
        file.write(json.dumps({"name": name, "row": row}) + "\n")


PARTS = {"cut": cut_at_random, "onnx": export_slim, "rival": ask_rival}


def page(rows: dict[str, Row]) -> str:
    """Return docs/zoo.md."""
    cuts = [row["cut"] for row in rows.values() if "error" in row.get("cut", {})]
    ours = Counter(outcome(row["cut"], 1e-9) for row in rows.values() if row.get("cut", {}).get("channels") != 0)
    theirs = Counter(outcome(row["rival"], 1e-9).partition(" by ")[0] for row in rows.values() if "rival" in row)
    exported = Counter(outcome(row["onnx"], 1e-5) for row in rows.values() if "onnx" in row)
    untouched = [name for name, row in rows.items() if row.get("cut", {}).get("channels") == 0]
    versions = {module.__name__: module.__version__ for module in (torch, torchvision, timm, onnxruntime)}
    return "\n".join(
        [
            "# The zoo",
            "",
            "Made by `python scripts/zoo_table.py`; do not edit. "
            + ", ".join(f"{name} {version}" for name, version in versions.items())
            + f", torch_pruning {importlib.metadata.version('torch_pruning')}.",
            "",
            "Every network is untrained; parameters that start at zero or one are moved away from it, so that nothing"
            " hides behind them. A share of channels is drawn for each group (seed 0), zeroed and cut."
            " The columns:",
            "",
            "* **side**: of the images, the smallest that the network takes, from 64.",
            "* **channels**: that can be removed, and in how many groups.",
            "* **unprunable**: indices of parameters that stay, and why (but for the network's own input and output).",
            "* **params**: millions, before → after the cut.",
            "* **error**: largest difference between the zeroed and the cut network, float64, relative to the largest"
            " output. Zeroing itself always moved the output.",
            "* **ONNX**: the cut network in onnxruntime against torch, float32, max |Δ| / max(1, max |y|).",
            "* **trace**: CPU seconds on one thread of a shared machine.",
            "* **torch-pruning**: its own random pruner on the same network, a share drawn for each layer, compared in"
            " the same way (what it removed is zeroed in the dense network); *exact* is at most 1e-9.",
            "",
            f"{len(rows)} networks; cut: {_tally(ours)}; nothing that could be removed: {len(untouched)}"
            f" ({', '.join(untouched) or 'none'}); worst error {max((cut['error'] for cut in cuts), default=0):.0e}."
            f" Equal in onnxruntime (1e-5): {_tally(exported)}. torch-pruning: {_tally(theirs)}.",
            "",
            "| network | side | channels | unprunable | params, M | error | ONNX | trace, s | torch-pruning |",
            "|---|---:|---:|---|---:|---:|---:|---:|---|",
            *(line(name, row) for name, row in rows.items()),
            "",
        ]
    )


def _tally(outcomes: Counter[str]) -> str:
    return ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())


def outcome(part: Row, tolerance: float) -> str:
    """Return what came out in a few words."""
    if "failed" in part:
        if part["failed"].startswith("did not finish"):
            return str(part["failed"])
        dense_too = "the dense network cannot be exported either"
        return dense_too if part["failed"].startswith(dense_too) else "fails"
    if "refused" in part:
        return "refused"
    if "moved" in part and not part["moved"] > 1e-6:
        return "vacuous"
    if part.get("error") is None:
        return "–"
    return "exact" if part["error"] <= tolerance else f"changes the output by {part['error']:.0e}"


def line(name: str, row: Row) -> str:
    """Return a network's line of the table."""
    cut, onnx, rival = row.get("cut", {}), row.get("onnx", {}), row.get("rival", {})
    params = f"{cut.get('params', 0) / 1e6:.1f}"
    cells = [
        name,
        cut.get("side", ""),
        f"{cut.get('channels', 0):,} in {cut.get('groups', 0)}",
        _reasons(cut.get("unprunable", {})),
        f"{params} → {cut['slim_params'] / 1e6:.1f}" if "slim_params" in cut else params,
        f"{cut['error']:.0e}" if outcome(cut, 1e-9) == "exact" else outcome(cut, 1e-9),
        f"{onnx['error']:.0e}" if outcome(onnx, 1e-5) == "exact" else outcome(onnx, 1e-5),
        f"{cut['trace_seconds']:.2f}" if "trace_seconds" in cut else "",
        f"{outcome(rival, 1e-9)}: {rival['failed'].partition(':')[0]}"
        if outcome(rival, 1e-9) == "fails"
        else outcome(rival, 1e-9),
    ]
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _reasons(counts: dict[str, int], shown: int = 3) -> str:
    """Return the most frequent reasons, the rest summed."""
    own = sorted(((n, reason) for reason, n in counts.items() if reason not in (OUTPUT, INPUT)), reverse=True)
    texts = [f"{reason} {n:,}" for n, reason in own[:shown]]
    if rest := sum(n for n, _ in own[shown:]):
        texts.append(f"other reasons {rest:,}")
    return "; ".join(texts).replace("|", "\\|")


if __name__ == "__main__":
    main()
