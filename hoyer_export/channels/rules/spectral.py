"""Fourier transforms: frequencies instead of pixels, each channel apart."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hoyer_export.channels.rules.names import getters, named
from hoyer_export.channels.tracer import Rule, Tracer


def spectrum(
    tracer: Tracer, output: Tensor, input: Tensor, s: Any = None, dim: Any = None, norm: str | None = None
) -> None:
    """A transform along some axes: channels along one of them are mixed, those along others stay apart, 0 stays 0."""
    axes = dict(tracer.axes(input))
    transformed = range(input.ndim) if dim is None else [dim] if isinstance(dim, int) else list(dim)
    for axis in {position % input.ndim for position in transformed} & axes.keys():
        tracer.fix(axes.pop(axis), "a Fourier transform over the channels")
    tracer.put(output, {axis: side.mixed() for axis, side in axes.items()})


def over_last(axes: int) -> Rule:
    """Return the rule of a transform along the last ``axes`` axes, where the code does not say which."""

    def rule(tracer: Tracer, output: Tensor, input: Tensor, s: Any = None, dim: Any = None, norm: Any = None) -> None:
        spectrum(tracer, output, input, s, tuple(range(-axes, 0)) if dim is None else dim, norm)

    return rule


def part(tracer: Tracer, output: Tensor, input: Tensor) -> None:
    """The real or imaginary part."""
    tracer.note_view(output, input)
    tracer.put(output, tracer.axes(input))


def as_complex(tracer: Tracer, output: Tensor, input: Tensor) -> None:
    """Pairs along the last axis become complex numbers."""
    tracer.fix_later(input, [input.ndim - 1], "pairs of a complex number")
    tracer.put(output, {axis: side for axis, side in tracer.axes(input).items() if axis < output.ndim})


def as_real(tracer: Tracer, output: Tensor, input: Tensor) -> None:
    """Complex numbers become pairs along a new last axis."""
    tracer.put(output, tracer.axes(input))


RULES: dict[Callable[..., Any], Rule] = {
    **named("fft ifft rfft irfft hfft ihfft", over_last(1), spaces=(torch.fft,)),
    **named("fft2 ifft2 rfft2 irfft2", over_last(2), spaces=(torch.fft,)),
    **named("fftn ifftn rfftn irfftn", spectrum, spaces=(torch.fft,)),
    **getters("real imag", part),
    **named("view_as_complex", as_complex),
    **named("view_as_real", as_real),
}
