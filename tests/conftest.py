"""Fixtures that many tests share."""

import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

from hoyer_export import cli
from hoyer_export.deploy import export

Call = Callable[..., tuple[int, str, str]]

if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores
    torch.set_num_threads(1)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Return a function that runs the command line in this process: arguments → (exit code, stdout, stderr)."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hoyer-export", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], Path]]:
    """Return a function that puts a user's module into the working directory: name, source → the directory."""
    written = []

    def write(name: str, source: str) -> Path:
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(tmp_path)
        written.append(name)
        return tmp_path

    yield write
    for name in written:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def exported_once() -> Iterator[dict[str, bytes]]:
    """Let torch.onnx, which takes a second or more, write each network once a module; yield what it wrote so far.

    The same code and weights give the same file: tests/deploy/test_export.py.
    """
    written: dict[str, bytes] = {}
    real = export._exported

    def once(model: nn.Module, call: Any, returned: Any, *how: Any) -> onnx.ModelProto:
        codes = [type(module).forward.__code__ for module in model.modules()]
        facts = [how, repr(model), call.shapes, [(it.co_code, it.co_names) for it in codes]]
        key = hashlib.sha256(repr(facts).encode())
        for name, tensor in model.state_dict().items():
            key.update(name.encode() + tensor.float().numpy().tobytes())
        if key.hexdigest() not in written:
            written[key.hexdigest()] = real(model, call, returned, *how).SerializeToString()
        return onnx.ModelProto.FromString(written[key.hexdigest()])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "_exported", once)
        yield written
