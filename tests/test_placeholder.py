"""What lies in the place of a file that never came is said for what it is, whoever reads it."""

import struct
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from onnx import helper

import hoyer_export as hx

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
PAGES = {
    "html": b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>\n",
    "bare": b"\n  <html lang=en>404",
    "xml": b"\xef\xbb\xbf<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
}
READERS: dict[str, Callable[[Path], object]] = {
    "w.pth": lambda path: hx.load_weights(torch.nn.Linear(2, 2), path),
    "w.safetensors": lambda path: hx.load_weights(torch.nn.Linear(2, 2), path),
    "slim.safetensors": hx.load_slim,
    "f.onnx": hx.count_macs,
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("kind", ["pointer", *PAGES])
def test_a_pointer_and_a_page_are_said_with_the_way_out(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / name).write_bytes(PAGES.get(kind, POINTER))
    said = rf"{name} is a pointer of Git LFS.*git lfs pull" if kind == "pointer" else rf"{name} is a web page.*again"
    with pytest.raises(hx.FileError, match=said) as caught:
        READERS[name](tmp_path / name)
    assert len(str(caught.value).splitlines()) == 1


def test_a_pointer_beside_an_onnx_file_is_said_too(tmp_path: Path) -> None:
    ends = [helper.make_tensor_value_info(name, 1, [1, 300]) for name in "xy"]
    weight = onnx.numpy_helper.from_array(torch.zeros(300).numpy(), "w")
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, tmp_path / "f.onnx", save_as_external_data=True, location="f.data", size_threshold=0)
    (tmp_path / "f.data").write_bytes(POINTER)
    with pytest.raises(hx.FileError, match=r"f\.data is a pointer"):
        hx.count_macs(tmp_path / "f.onnx")


def test_a_right_file_may_begin_as_a_page_does(tmp_path: Path) -> None:
    """Before the header stands its size: 316 = 256 + 60, and 60 is the code of "<"."""
    header = b'{"weight":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]}}'
    header = header.ljust(256 + 60)
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + struct.pack("<f", 3.0))
    assert (tmp_path / "w.safetensors").read_bytes()[:1] == b"<"
    model = torch.nn.Linear(1, 1, bias=False)
    hx.load_weights(model, tmp_path / "w.safetensors")
    assert model.weight.item() == 3
