"""A float32 ONNX file in int8, by onnxruntime's static quantisation, with options that suit every processor:

    form         QDQ: quantised and dequantised values around float operators, which every runtime fuses its own way
    activations  uint8 with a zero point, one scale a tensor, from the smallest to the largest value that was seen
    weights      int8, symmetric, one scale an output channel, of seven bits: two products of eight overflow the 16-bit
                 sums of x86 processors without VNNI, where the same file would answer otherwise

Source: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
"""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx

from hoyer_export.call import Call
from hoyer_export.deploy.onnx_file import fed_inputs, first_line, read_onnx
from hoyer_export.deploy.runtime.protocol import Arrays
from hoyer_export.errors import NetworkError
from hoyer_export.run_folder import write_whole


def write_int8(path: Path, int8: Path, calibration: Iterable[Call]) -> None:
    """Write the ONNX file ``path`` in int8 to ``int8``; the same images give the same bytes.

    Args:
        path: of the float32 file.
        int8: the file to be written.
        calibration: batches of real inputs; the range of every activation is what it has on them.

    Raises:
        FileError: ``path`` is missing or damaged, ``int8`` cannot be written.
        NetworkError: onnxruntime cannot quantise it.
    """
    from onnxruntime import quantization  # most of a second

    model = read_onnx(path)
    names = [value.name for value in fed_inputs(model.graph)]
    with TemporaryDirectory() as folder:
        written = Path(folder) / int8.name
        try:
            with _silent():
                quantization.quantize_static(
                    path,
                    written,
                    _reader(names, calibration, quantization.CalibrationDataReader),
                    quant_format=quantization.QuantFormat.QDQ,
                    activation_type=quantization.QuantType.QUInt8,
                    weight_type=quantization.QuantType.QInt8,
                    per_channel=True,
                    reduce_range=True,
                    calibrate_method=quantization.CalibrationMethod.MinMax,
                )
            model = onnx.load(written)
            onnx.checker.check_model(model)
        except Exception as error:  # it has no error of its own
            raise NetworkError(
                f"onnxruntime cannot quantise {path.name} ({first_line(error)}); leave export.int8 out"
            ) from error
    facts = {prop.key: prop.value for prop in model.metadata_props}
    facts.pop("onnx.infer", None)  # a note of the quantiser to itself
    onnx.helper.set_model_props(model, facts)
    write_whole(int8, model.SerializeToString(deterministic=True))


def _reader(names: list[str], calls: Iterable[Call], base: type) -> object:
    """Return what the quantiser takes its inputs from: None after the last."""
    feeds: Iterator[Arrays] = (
        dict(zip(names, (tensor.numpy() for tensor in call.tensors), strict=True)) for call in calls
    )
    return type("Reader", (base,), {"get_next": lambda self: next(feeds, None)})()


@contextmanager
def _silent() -> Iterator[None]:
    """Silence the quantiser's advice, which is for files that other exporters wrote: norms are folded here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
