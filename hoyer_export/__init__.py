"""Train it sparse, cut it exactly, ship it fast.

``import hoyer_export as hx``: plain functions over plain records. The names below are the whole public interface;
each is imported when it is first used, so that ``hx.count_macs`` does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hoyer_export import rules as rules
    from hoyer_export.call import Call
    from hoyer_export.channels.channel_map import ChannelGroup, ChannelMap, Member, Unprunable
    from hoyer_export.channels.trace import trace_channels
    from hoyer_export.deploy.benchmark import BenchmarkRecord, benchmark
    from hoyer_export.deploy.checks import VerifyRecord
    from hoyer_export.deploy.explain import Explanation, explain
    from hoyer_export.deploy.export import ExportRecord, export_onnx
    from hoyer_export.deploy.info import FileInfo, file_info
    from hoyer_export.deploy.macs import MacsRecord, count_macs
    from hoyer_export.deploy.verify import verify_onnx
    from hoyer_export.deploy.verify_files import verify_files
    from hoyer_export.errors import (
        CannotWrite,
        CutRefused,
        DataError,
        FileError,
        HoyerExportError,
        InUse,
        NetworkError,
        RecipeError,
        TrainingError,
        VerificationFailed,
    )
    from hoyer_export.in_python import run, ship
    from hoyer_export.metric import Metric
    from hoyer_export.select.budget import BYTES, MACS, PARAMS, Budget
    from hoyer_export.select.choose import Selection, select_channels
    from hoyer_export.select.cut_and_refit import Shrunk, cut_and_refit
    from hoyer_export.select.latency import Latency, measured_latency
    from hoyer_export.select.loss import accuracy_drop, output_change
    from hoyer_export.sparsify.function_hs import FunctionHS
    from hoyer_export.sparsify.group_hs import GroupHS
    from hoyer_export.sparsify.weight_penalty import WeightPenalty, hold_zeros_
    from hoyer_export.store.slim_file import load_slim, save_slim
    from hoyer_export.store.widths_file import build_slim
    from hoyer_export.surgery.cut import cut
    from hoyer_export.surgery.extras.dead_blocks import remove_dead_blocks
    from hoyer_export.surgery.extras.dense_outputs import DenseOutputs
    from hoyer_export.surgery.extras.folding import Folding, fold_constants
    from hoyer_export.surgery.extras.gather import gather_inputs, with_input_features
    from hoyer_export.surgery.extras.refit import Refit, refit_
    from hoyer_export.surgery.optimizer_state import slice_optimizer
    from hoyer_export.surgery.self_test import SelfTest, Verdict, self_test
    from hoyer_export.surgery.step import SlimModel
    from hoyer_export.surgery.zero import zero_
    from hoyer_export.weights import LoadedWeights, load_weights

__all__ = [
    "BYTES", "MACS", "PARAMS", "BenchmarkRecord", "Budget", "Call", "CannotWrite", "ChannelGroup", "ChannelMap",
    "CutRefused", "DataError", "DenseOutputs", "Explanation", "ExportRecord", "FileError", "FileInfo", "Folding",
    "FunctionHS", "GroupHS", "HoyerExportError", "InUse", "Latency", "LoadedWeights", "MacsRecord", "Member", "Metric",
    "NetworkError", "RecipeError", "Refit", "Selection", "SelfTest", "Shrunk", "SlimModel", "TrainingError",
    "Unprunable", "Verdict", "VerificationFailed", "VerifyRecord", "WeightPenalty", "accuracy_drop", "benchmark",
    "build_slim", "count_macs", "cut", "cut_and_refit", "explain", "export_onnx", "file_info", "fold_constants",
    "gather_inputs", "hold_zeros_", "load_slim", "load_weights", "measured_latency", "output_change", "refit_",
    "remove_dead_blocks", "rules", "run", "save_slim", "select_channels", "self_test", "ship", "slice_optimizer",
    "trace_channels", "verify_files", "verify_onnx", "with_input_features", "zero_",
]  # fmt: skip

_HOME = {
    name: home
    for home, names in {
        "call": "Call",
        "channels.channel_map": "ChannelGroup ChannelMap Member Unprunable",
        "channels.trace": "trace_channels",
        "deploy.benchmark": "BenchmarkRecord benchmark",
        "deploy.explain": "Explanation explain",
        "deploy.export": "ExportRecord export_onnx",
        "deploy.info": "FileInfo file_info",
        "deploy.macs": "MacsRecord count_macs",
        "deploy.checks": "VerifyRecord",
        "deploy.verify": "verify_onnx",
        "deploy.verify_files": "verify_files",
        "errors": (
            "CannotWrite CutRefused DataError FileError HoyerExportError InUse NetworkError RecipeError TrainingError"
            " VerificationFailed"
        ),
        "in_python": "ship",
        "run": "run",
        "metric": "Metric",
        "rules": "rules",
        "select.budget": "BYTES Budget MACS PARAMS",
        "select.choose": "Selection select_channels",
        "select.cut_and_refit": "Shrunk cut_and_refit",
        "select.latency": "Latency measured_latency",
        "select.loss": "accuracy_drop output_change",
        "sparsify.function_hs": "FunctionHS",
        "sparsify.group_hs": "GroupHS",
        "sparsify.weight_penalty": "WeightPenalty hold_zeros_",
        "store.slim_file": "load_slim save_slim",
        "store.widths_file": "build_slim",
        "surgery.cut": "cut",
        "surgery.extras.dead_blocks": "remove_dead_blocks",
        "surgery.extras.folding": "Folding fold_constants",
        "surgery.extras.gather": "gather_inputs with_input_features",
        "surgery.extras.dense_outputs": "DenseOutputs",
        "surgery.extras.refit": "Refit refit_",
        "surgery.optimizer_state": "slice_optimizer",
        "surgery.self_test": "SelfTest Verdict self_test",
        "surgery.step": "SlimModel",
        "surgery.zero": "zero_",
        "weights": "LoadedWeights load_weights",
    }.items()
    for name in names.split()
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("hoyer_export.environment").own_version()
    if name not in _HOME:
        raise AttributeError(f"module 'hoyer_export' has no attribute {name!r}")
    home = import_module(f"hoyer_export.{_HOME[name]}")
    return home if _HOME[name] == name else getattr(home, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
