"""Fourier transforms: frequencies instead of pixels, each channel apart."""

from typing import Any

from torch import Tensor

from hoyer_export.channels.labels import Tracer
from hoyer_export.channels.rule import rule


@rule("fft ifft rfft irfft hfft ihfft fft2 ifft2 rfft2 irfft2 fftn ifftn rfftn irfftn")
def spectrum(tracer: Tracer, output: Tensor, input: Tensor, *arguments: Any, **options: Any) -> None:
    """A transform along some axes: channels along one of them are mixed, those along others stay apart, 0 stays 0."""
    axes = dict(tracer.axes(input))
    dim: Any = options.get("dim", arguments[1] if len(arguments) > 1 else None)
    if dim is None:  # as many of the last axes as the name says
        dim = {"2": (-2, -1), "n": range(input.ndim)}.get(tracer.operation.__name__[-1], -1)
    for axis in {position % input.ndim for position in ([dim] if isinstance(dim, int) else dim)} & axes.keys():
        tracer.fix(axes.pop(axis), "a Fourier transform over the channels")
    tracer.put(output, {axis: side.mixed() for axis, side in axes.items()})


@rule("real imag")
def part(tracer: Tracer, output: Tensor, input: Tensor) -> None:
    """The real or imaginary part."""
    tracer.note_view(output, input)
    tracer.put(output, tracer.axes(input))


@rule("view_as_complex")
def as_complex(tracer: Tracer, output: Tensor, input: Tensor) -> None:
    """Pairs along the last axis become complex numbers."""
    tracer.fix(input, "pairs of a complex number", dims=[-1])
    tracer.put(output, {axis: side for axis, side in tracer.axes(input).items() if axis < output.ndim})


@rule("view_as_real")
def as_real(tracer: Tracer, output: Tensor, input: Tensor) -> None:
    """Complex numbers become pairs along a new last axis."""
    tracer.put(output, tracer.axes(input))
