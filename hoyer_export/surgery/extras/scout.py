"""One run of a network: which layers run, in which order, what the cut changed for them, what takes a constant up."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.weak import WeakIdKeyDictionary

from hoyer_export.call import Call
from hoyer_export.channels.reading import Key, LayerCall, Watch
from hoyer_export.surgery.extras.calibration import run_each
from hoyer_export.surgery.extras.sums import Sums
from hoyer_export.tensors import tensors_in


class Scout:
    """Runs a network once, and finds its layers, what they are used for, and what is behind them.

    Args:
        network: as it is to run.
        example: its arguments.
        cut: names of tensors of which a part is gone.
        follow: whether what comes after them is changed, too.
    """

    def __init__(
        self, network: nn.Module, example: Call, cut: Mapping[str, Collection[int]] | None = None, follow: bool = True
    ) -> None:
        self.calls: dict[Key, tuple[int, ...]] = {}  # in the order in which they run → [N, O, *S] of their outputs
        self.changed: set[str] = set()  # weights that may read something else than before the cut
        self.otherwise: set[str] = set()  # tensors that are used in another way, too
        self._cut, self._follow, self._is_changed = cut or {}, follow, False
        self._made: Any = WeakIdKeyDictionary()
        self._users: dict[str, set[str]] = {}  # weight → running means that its outputs go to, "" for anything else
        self._sources: dict[str, set[str]] = {}  # running mean → weights
        self._biases: dict[str, set[str]] = {}
        self._sums = Sums()
        self._along_the_end: set[str] = set()  # weights whose outputs have their channels on the last of many axes
        watch = Watch(network, after=self._after, other=self._other)
        self.names = watch.names
        for outputs in run_each(network, [example], watch):
            self._use(tensors_in(outputs), "")
            self._sums.use(outputs)
        self.sums = self._sums.found()
        del self._sums  # it holds what the network made

    def _use(self, tensors: Iterable[Tensor], by: str) -> None:
        for tensor in tensors:
            if source := self._made.get(tensor):
                self._users.setdefault(source, set()).add(by)

    def _after(self, key: Key, call: LayerCall, output: Tensor) -> None:
        name = key[0]
        self.calls[key] = tuple(call.spread(output).shape)
        if self._is_changed or call.reading_dim in self._cut.get(name, ()):
            self.changed.add(name)
        self._is_changed |= self._follow and name in self._cut
        self._use([call.input], "")
        self._made[output] = name
        if call.weight.ndim == 2 and output.ndim > 2:
            self._along_the_end.add(name)
        self._sums.layer(key, call, output)
        if call.bias is not None:
            self._biases.setdefault(self.names.get(id(call.bias), ""), set()).add(name)

    def _other(self, func: Any, args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
        self._sums.other(func, args, kwargs, output)
        if not any(True for _ in tensors_in(output)):
            return  # asking for a shape uses nothing
        tensors = list(tensors_in((args, kwargs)))
        named = {self.names[id(tensor)] for tensor in tensors if id(tensor) in self.names}
        self.otherwise |= named
        self._is_changed |= self._follow and not named.isdisjoint(self._cut)
        of_channels = func is F.batch_norm and self._made.get(tensors[0]) not in self._along_the_end
        mean = (args[1:2] or (kwargs.get("running_mean"),))[0] if of_channels else None
        behind = self.names.get(id(mean), "")
        self._use(tensors, behind)
        if behind:
            self._sources.setdefault(behind, set()).add(self._made.get(tensors[0], ""))

    def shift_of(self, name: str, call: LayerCall) -> str | None:
        """Return what takes up a constant: the layer's own bias, or the mean of the batch norm behind it alone."""
        bias = self.names.get(id(call.bias), "")
        if call.bias is not None:
            return bias if bias and bias not in self.otherwise and self._biases[bias] == {name} else None
        users = self._users.get(name, set())
        (mean,) = users if len(users) == 1 else ("",)
        return mean if mean and self._sources[mean] == {name} else None
