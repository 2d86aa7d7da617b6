"""What the stages of a run share: the recipe, the folder, and what is made from them when a stage asks for it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from hoyer_export import parallel
from hoyer_export.call import Call, ExampleInputs
from hoyer_export.channels.channel_map import ChannelMap
from hoyer_export.channels.rules import Rules
from hoyer_export.data import DataSplits, ImageOptions, load_data
from hoyer_export.environment import EnvironmentRecord, environment_record
from hoyer_export.errors import DataError, NetworkError, RecipeError
from hoyer_export.metric import ACCURACY, Metric
from hoyer_export.networks import build_network, default_input_shape, is_function_name
from hoyer_export.recipe.tables import Recipe
from hoyer_export.rules import load_rules
from hoyer_export.run.channel_file import read_channels
from hoyer_export.run.own import Own, needs_own
from hoyer_export.run.progress import Progress
from hoyer_export.run_folder import RunFolder
from hoyer_export.sparsify.epoch import Loss
from hoyer_export.store.slim_file import is_slim_file, load_slim
from hoyer_export.surgery.extras.gather import with_input_features
from hoyer_export.surgery.plan import PruningPlan, with_plan
from hoyer_export.surgery.step import SlimModel
from hoyer_export.tensors import examples_in, rows_of
from hoyer_export.weights import LoadedWeights, load_weights


@dataclass
class Job:
    """One run. Every call of ``network``, ``dense``, ``sparse`` and ``slim`` returns a model of its own.

    Args:
        recipe: what is asked for; resolved once the inputs have been looked at.
        folder: where the files are.
        progress: is told what happens.
        allow_import: packages that may be imported for a network or rules ``package.module:NAME``.
        environment: the machine as the run found it.
        trusts_files: the weights in a file need not be compared where it is, to the byte, what the export wrote.
        own: what was passed in Python, in the place of the recipe's names.

    Raises:
        RecipeError: the recipe is of something that was passed, and nothing is.
    """

    recipe: Recipe
    folder: RunFolder
    progress: Progress
    allow_import: Sequence[str] = ()
    environment: EnvironmentRecord = field(default_factory=environment_record)
    trusts_files: bool = True
    own: Own | None = None

    def __post_init__(self) -> None:
        if self.own is None and needs_own(self.recipe):
            raise RecipeError(
                f"{self.recipe.network.name} was passed in Python, so its recipe alone cannot be done: call hx.run or"
                " hx.ship again, with the same arguments"
            )

    @property
    def has_data(self) -> bool:
        """Whether there are images."""
        return self.recipe.data is not None

    @property
    def has_labels(self) -> bool:
        """Whether there are test images, and what should come out of them is known."""
        return self.has_data and self.data.has_targets and len(self.data.test) > 0

    @property
    def metric(self) -> Metric:
        """What a network is judged by on validation and test images."""
        return ACCURACY if self.own is None else self.own.metric

    @property
    def loss(self) -> Loss | None:
        """What training minimises; cross-entropy where None."""
        return None if self.own is None else self.own.loss

    @cached_property
    def data(self) -> DataSplits:
        """The three splits; DataError where they are missing, damaged, or do not fit the network."""
        table = self.recipe.data
        if table is None:
            raise DataError("there is no data set; name one in the table [data]")
        if self.own is not None and self.own.data is not None:
            return self.own.data
        data = load_data(
            table.name,
            root=None if table.root is None else Path(table.root),
            validation=table.validation,
            seed=self.recipe.seed if table.seed is None else table.seed,
            mean=table.mean,
            std=table.std,
            augment=table.augment,
            image_size=table.image_size,
            workers=table.workers,
            options=ImageOptions(**{field.name: getattr(table, field.name) for field in fields(ImageOptions)}),
        )
        data = replace(data, train=data.train.in_order_of(self.recipe.seed))
        told = self.recipe.network
        if told.input not in (None, data.input_shape):
            raise DataError(
                f"network.input is {_by(told.input)}, but the images of {data.name} are {_by(data.input_shape)}; leave "
                "it out"
            )
        if told.in_channels not in (None, data.input_shape[0]):
            raise DataError(
                f"network.in_channels is {told.in_channels}, but the images of {data.name} have {data.input_shape[0]};"
                " leave the key out"
            )
        if told.classes is not None and told.classes < (data.classes or 0):
            raise DataError(
                f"network.classes is {told.classes}, but {data.name} has {data.classes} classes; leave the key out"
            )
        return data

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of one image: the data's, else what is told or what the network is meant for."""
        told = self.recipe.network
        shape = self.data.input_shape if self.has_data else told.input or default_input_shape(told.name)
        if shape is None:
            self.network()  # a name that nobody knows is said first
            raise NetworkError(
                f"the input of {told.name} is not known; give `input_shape=(3, 224, 224)` (network.input)"
            )
        return shape

    @cached_property
    def example(self) -> ExampleInputs:
        """Two validation images, or noise: with one alone, a batch could not be told from a constant.

        Raises:
            DataError: there is a single image.
        """
        if not self.has_data:
            return torch.randn((2, *self.shape), generator=torch.Generator().manual_seed(self.recipe.seed))
        images: ExampleInputs = next(iter(self.data.validation.batches(2)))[0]
        if self.own is not None and self.data.own:  # every stage has to call the network as training does
            images = Call.of(self.own.network, rows_of(images, 2), collated=True)
        if examples_in(images) < 2:
            name = self.data.name
            raise DataError(f"the validation split of {name} holds a single image; expected at least 2: give it more")
        return images

    @property
    def is_own_network(self) -> bool:
        """Whether it is built by code of the user's own, which may not take channels or classes."""
        return self.own is not None or is_function_name(self.recipe.network.name)

    @property
    def in_channels(self) -> int | None:
        """What the network is built with; None where it is not told, for a user's own function may not take it."""
        told = self.recipe.network
        usual = default_input_shape(told.name)
        if self.is_own_network or not (self.has_data or (told.input and usual and told.input[0] != usual[0])):
            return told.in_channels
        return self.shape[0]

    @property
    def classes(self) -> int | None:
        """What the network is built with; None where it is not told."""
        told = self.recipe.network
        return told.classes if self.is_own_network or not self.has_data else told.classes or self.data.classes

    @property
    def device(self) -> torch.device:
        """Where training runs."""
        kind = self.recipe.device or ("cuda" if torch.cuda.is_available() else "cpu")
        return (
            torch.device(kind, parallel.local_rank()) if kind == "cuda" and parallel.size() > 1 else torch.device(kind)
        )

    @cached_property
    def channels(self) -> ChannelMap:
        """What lives or dies together in the network, as far as the self-test did not refute it."""
        return self.with_gathered(read_channels(self.folder.channels))

    def with_gathered(self, channels: ChannelMap) -> ChannelMap:
        """Return a channel map with the input features that [cut] gathers, which are chosen like channels."""
        return with_input_features(channels, self.recipe.cut.gather)

    @cached_property
    def rules(self) -> Rules | None:
        """Rules of the user's own for tracing."""
        text = self.recipe.network.rules
        if self.own is not None and self.own.rules is not None:
            return self.own.rules
        return None if text is None else load_rules(text, self.allow_import)

    def network(self) -> nn.Module:
        """Return the untrained dense network, whose weights the recipe's seed decides; or a copy of the given one."""
        if self.own is not None:
            return with_plan(self.own.network, PruningPlan()).cpu()
        torch.manual_seed(self.recipe.seed)
        name, packages = self.recipe.network.name, self.allow_import
        return build_network(name, in_channels=self.in_channels, classes=self.classes, allow_import=packages)

    def given(self) -> tuple[nn.Module, LoadedWeights | None]:
        """Return the dense network that training starts from, and the recipe's weights in it where it names a file."""
        network, table = self.network(), self.recipe.dense
        if table.file is None:
            return network, None
        found = load_weights(network, table.file, key=table.weights_key, new_head=bool(table.new_head))
        return network, found

    def dense(self) -> nn.Module:
        """Return the trained dense network."""
        return self._with(self.folder.dense_weights)

    def sparse(self) -> nn.Module:
        """Return the network as it goes into the cut."""
        return self._with(self.folder.sparse_weights if self.recipe.sparse.epochs else self.folder.dense_weights)

    def slim(self, path: Path | None = None) -> SlimModel:
        """Return the slim network: of slim.safetensors, or of another file with a plan."""
        return load_slim(path or self.folder.slim_weights, into=self.network())

    def finetuned(self, cut: Path) -> tuple[SlimModel, LoadedWeights | None]:
        """Return the slim network in the file ``cut``, and in it the weights of a checkpoint that the recipe names.

        Raises:
            FileError, NetworkError: these weights cannot be read, or are not those of that slim network.
        """
        slim, weights = self.slim(cut), self.recipe.finetune.file
        if weights is None:
            return slim, None
        if is_slim_file(weights):
            trained = self.slim(weights)
            if trained.plan != slim.plan:
                raise NetworkError(
                    f"{weights} was cut otherwise than {cut.parent}; give what was trained from its own slim network"
                )
            return trained, None
        return slim, load_weights(slim.model, weights, key=self.recipe.finetune.weights_key)

    def _with(self, weights: Path) -> nn.Module:
        network = self.network()
        load_weights(network, weights)
        return network


def _by(shape: tuple[int, ...] | None) -> str:
    return "x".join(map(str, shape or ()))
