"""Say which sizes the inputs of an ONNX file have: its own, the batch's, and what the caller gives for the others.

The batch is the axis that is called so, else the first. Axes of one name have one size.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from hoyer_export.deploy.onnx_file import fed_inputs
from hoyer_export.errors import FileError

Shape = tuple[int, ...]
Shapes = Mapping[str, Sequence[int]]
Axes = tuple[int | str, ...]  # sizes; a dynamic one by its name, "" where it has none


@dataclass(frozen=True)
class InputSizes:
    """The sizes of one file's inputs.

    Args:
        shapes: input that is fed → sizes.
        symbols: dynamic axis → its size.
        batch: images a run.
    """

    shapes: dict[str, Shape]
    symbols: dict[str, int]
    batch: int


def input_sizes(
    graph: onnx.GraphProto, path: str | Path, shapes: Shapes | None = None, batch: int | None = None
) -> InputSizes:
    """Return the sizes of everything that is fed.

    Args:
        graph: of the file ``path``.
        path: for messages.
        shapes: input → sizes, where the file leaves them open; those of other files' inputs change nothing.
        batch: images a run; None: what the file fixes, else 1.

    Raises:
        FileError: sizes or a batch that the file does not take, or sizes that nobody gives.
    """
    given, axes = dict(shapes or {}), {value.name: _axes(value, path) for value in fed_inputs(graph)}
    fixed = fixed_batch(graph, path, given)
    if batch is not None and fixed is not None and batch != fixed:
        raise FileError(f"{path} takes a batch of {fixed}, not of {batch}; give the batch size that it has")
    batch = fixed or batch or 1
    named = defaultdict(set)
    for name, dims in axes.items():
        if name in given and dims is not None:
            _check_fits(path, name, dims, given[name])
        for axis, dim in enumerate(dims or ()):
            if isinstance(dim, str) and name in given:
                named[dim].add(given[name][axis])
            elif isinstance(dim, str) and axis == _batch_axis(dims or ()) and (dims or ()).count(dim) == 1:
                named[dim].add(batch)
    # Some writers give all axes one name; and "" is none.
    symbols = {dim: sizes.pop() for dim, sizes in named.items() if dim and len(sizes) == 1}
    known = {name: given.get(name) or (dims and _with_sizes(dims, symbols, batch)) for name, dims in axes.items()}
    missing = {name: dims for name, dims in known.items() if dims is None or any(isinstance(d, str) for d in dims)}
    if missing:
        raise FileError(f"{path}: {_missing_words(missing)}")
    return InputSizes({name: tuple(map(int, dims or ())) for name, dims in known.items()}, symbols, batch)


def fixed_batch(graph: onnx.GraphProto, path: str | Path, shapes: Shapes | None = None) -> int | None:
    """Return how many images the file, or ``shapes``, fixes for a run; None where any number goes."""
    batches = []
    for value in fed_inputs(graph):
        dims, given = _axes(value, path), (shapes or {}).get(value.name)
        axis = _batch_axis(dims or ())
        if given and (dims is None or (axis < min(len(dims), len(given)) and isinstance(dims[axis], str))):
            return given[axis]
        batches += [dims[axis]] if dims else []
    if not batches or any(isinstance(batch, str) for batch in batches):
        return None
    return int(batches[0])  # of several inputs the first: others may be tables, or scales


def check_names(graphs: Mapping[str, onnx.GraphProto], shapes: Shapes | None) -> None:
    """Raise FileError where ``shapes`` names an input that none of the files has.

    Args:
        graphs: path → graph.
        shapes: input → sizes.
    """
    names = sorted({value.name for graph in graphs.values() for value in fed_inputs(graph)})
    for name in shapes or {}:
        if name not in names:
            raise FileError(f"no input {name!r} in {', '.join(graphs)}; there {_are(names)}")


def fix_sizes_(graph: onnx.GraphProto, sizes: InputSizes) -> None:
    """Write the sizes into the graph, wherever an axis of that name stands, and forget what else depended on them."""
    for value in fed_inputs(graph):
        shape = value.type.tensor_type.shape
        del shape.dim[:]
        shape.SetInParent()
        shape.dim.extend(onnx.TensorShapeProto.Dimension(dim_value=size) for size in sizes.shapes[value.name])
    for value in (*graph.value_info, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in sizes.symbols:
                dim.dim_value = sizes.symbols[dim.dim_param]  # clears dim_param, which shares its place
            elif dim.HasField("dim_param"):  # 49*batch and the like: inferred anew
                dim.Clear()


def _axes(value: onnx.ValueInfoProto, path: str | Path) -> Axes | None:
    """Return the sizes that the file gives an input; None where it does not even say how many axes there are."""
    if not value.type.HasField("tensor_type"):
        raise FileError(f"{path}: input {value.name!r} is a {value.type.WhichOneof('value')}, expected a tensor")
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in tensor.shape.dim)


def _batch_axis(dims: Sequence[int | str]) -> int:
    named = [axis for axis, dim in enumerate(dims) if isinstance(dim, str) and "batch" in dim.lower()]
    return named[0] if named else 0


def _with_sizes(dims: Axes, symbols: Mapping[str, int], batch: int) -> Axes:
    found: list[int | str] = [symbols.get(dim, dim) if isinstance(dim, str) else dim for dim in dims]
    if dims and isinstance(found[_batch_axis(dims)], str):
        found[_batch_axis(dims)] = batch
    return tuple(found)


def _check_fits(path: str | Path, name: str, dims: Axes, given: Sequence[int]) -> None:
    fits = len(dims) == len(given) and all(isinstance(d, str) or d == size for d, size in zip(dims, given, strict=True))
    if not fits:
        raise FileError(f"{path}: input {name!r} is {_shape_words(dims)}, got sizes {_shape_words(given)}")


def _missing_words(missing: Mapping[str, Sequence[int | str] | None]) -> str:
    """Return which axes of which inputs are open, and how to give their sizes."""
    told, sizes = [], []
    for name, dims in missing.items():
        if dims is None:
            told.append(f"input {name!r} has no shape")
            dims = (1, 3, "H", "W")
        else:
            axes = [f"{i} ({dim or '?'})" for i, dim in enumerate(dims) if isinstance(dim, str)]
            are = "axis {} of the input {!r} is" if len(axes) == 1 else "axes {} of the input {!r} are"
            told.append(f"{are.format(' and '.join(axes), name)} dynamic")
        sizes.append(f'`shapes={{"{name}": ({", ".join(str(dim).upper() or "?" for dim in dims)})}}`')
    return f"{'; '.join(told)}; give sizes: {' '.join(sizes)}"


def _shape_words(shape: Sequence[int | str]) -> str:
    return f"[{', '.join('?' if size == '' else str(size) for size in shape)}]"


def _are(names: Sequence[str]) -> str:
    return f"{'is' if len(names) == 1 else 'are'} {', '.join(map(repr, names)) or 'none'}"
