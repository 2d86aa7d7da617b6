"""What a verb imports is what a user waits for: checked by the modules that are loaded, not by a clock."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

HEAVY = ("torch", "onnxruntime", "onnx", "numpy", "scipy", "sklearn", "pydantic", "jinja2", "lightning_fabric")
SCRIPT = """
import sys
sys.argv = ["hoyer-export", *sys.argv[1:]]
from hoyer_export.cli import main
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
print("LOADED", *sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""


def loaded_by(*arguments: str) -> set[str]:
    """Run the command line in a process of its own, and return the top-level modules that it loaded."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.splitlines()[-1].split()[1:])


@pytest.fixture
def product_file(tmp_path: Path) -> str:
    """An ONNX file [batch, 3] → [batch, 2]."""
    weight = onnx.numpy_helper.from_array(np.ones((3, 2), np.float32), "weight")
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size]) for name, size in (("x", 3), ("y", 2))
    ]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weight"], ["y"])], "g", values[:1], values[1:], [weight]
    )
    path = tmp_path / "product.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return str(path)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["run", "--help"], ["bench", "--help"]])
def test_help_and_version_load_nothing_heavy(arguments: list[str]) -> None:
    loaded = loaded_by(*arguments)
    assert "typer" in loaded
    # typer itself may use pydantic
    assert loaded.isdisjoint(set(HEAVY) - {"pydantic"})


def test_macs_and_bench_do_not_wait_for_torch(product_file: str) -> None:
    macs = loaded_by("macs", product_file)
    bench = loaded_by("bench", product_file, product_file, "--min-seconds", "0.1")
    assert "onnx" in macs
    assert "onnxruntime" in bench
    for loaded in (macs, bench):
        assert loaded.isdisjoint({"torch", "torchvision", "sklearn", "lightning_fabric"})


def test_the_check_sees_torch_where_it_is_loaded() -> None:
    assert "torch" in loaded_by("inspect", "--network", "lenet5", "--json")
