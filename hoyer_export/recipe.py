"""A recipe: TOML in, one frozen record a table out; whatever is wrong is said in one line that names the key.

Nothing unknown is ignored: an unknown key, a value of the wrong kind and a choice made twice are errors. Values are
not converted (``epochs = "3"`` is a string, and wrong).
"""

import json
import os
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from math import ceil
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from hoyer_export.choices import WITHOUT_BUDGET, Alignment, Method, Norms
from hoyer_export.errors import RecipeError

BUDGETS = ("macs", "params", "threshold", "max_drop", "max_change")
"""The keys of [cut] of which exactly one is set."""
RANDOM = "random"
"""In the place of a file with weights: nothing is loaded. MACs and sizes are right then, outputs mean nothing."""

PATHS = (("data", "root"), ("dense", "weights"))
"""The keys that are a file's or a folder's."""

Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(min_length=1)]
# A TOML array arrives as a list, which a strict tuple refuses.
PerChannel = Annotated[tuple[float, ...], Field(strict=False, min_length=1)]
Deviations = Annotated[tuple[Positive, ...], Field(strict=False, min_length=1)]
BatchSizes = Annotated[tuple[Count, ...], Field(strict=False, min_length=1)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Network(_Table):
    """[network]: ``in_channels`` and ``classes`` default to what the data has, ``input`` (C, H, W) likewise.

    ``rules``: ``package.module:RULES``, rules of one's own.
    """

    name: Name
    rules: Name | None = None
    in_channels: Count | None = None
    classes: Count | None = None
    input: Annotated[tuple[Count, Count, Count], Field(strict=False)] | None = None


class Data(_Table):
    """[data]: a relative ``root`` is looked up from the working directory; ``mean``, ``std``: one number a channel.

    ``seed`` decides which images are held out, the recipe's own if it is not set: several seeds then train on the same.
    """

    name: Name
    root: Name | None = None
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.15
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    mean: PerChannel | None = None
    std: Deviations | None = None
    augment: bool | None = None
    image_size: Count | None = None
    workers: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _mean_beside_std(self) -> "Data":
        if (self.mean is None) != (self.std is None) or len(self.mean or ()) != len(self.std or ()):
            raise PydanticCustomError("rule", "mean and std belong together, one number a channel each")
        return self


class Phase(_Table):
    """What the three phases of training have in common; learning rates follow half a cosine to 0."""

    epochs: Annotated[int, Field(ge=0)]
    lr: Positive
    batch_size: Count = 128
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: NotNegative = 5e-4
    warmup: NotNegative = 0.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    precision: Literal["float32", "bfloat16"] = "float32"

    @model_validator(mode="after")
    def _warm_before_the_end(self) -> "Phase":
        if self.warmup >= self.epochs > 0:
            raise PydanticCustomError("rule", "warmup must be shorter than epochs")
        return self


class Dense(Phase):
    """[dense]: ``weights`` is a .safetensors file of the dense network to start from, or "random"."""

    epochs: Annotated[int, Field(ge=0)] = 30
    lr: Positive = 0.1
    weights: Name | None = None

    @property
    def file(self) -> Path | None:
        """Where the weights to start from are; None where they are random."""
        return None if self.weights in (None, RANDOM) else Path(self.weights)


_OF_NORMS: dict[Any, dict[str, Any]] = {
    "weights": {"strength": 1e-3, "scale": "relative", "max_rate": None},
    "function": {"ramp": 0.2, "macs_power": 1.0},
}
"""Norms → the keys of [sparse] that belong to them, with their defaults."""


class Sparse(Phase):
    """[sparse]: ``norms`` says what Group-HS acts on, and with which of the keys below.

    "weights": a penalty on all channels; with ``scale = "relative"`` its ``strength`` has the unit of weight
    decay. "function": only channels that the budget in [cut] dooms fade, over ``ramp`` of the way there each; the
    line is drawn on what a channel brings over its MACs to the power ``macs_power``.
    """

    epochs: Annotated[int, Field(ge=0)] = 30
    lr: Positive = 0.05
    regulariser: Literal["group-hs"] = "group-hs"
    norms: Norms = "weights"
    strength: NotNegative | None = None
    scale: Literal["relative", "paper"] | None = None
    max_rate: Positive | None = None
    ramp: Annotated[float, Field(ge=0, lt=1)] | None = None
    macs_power: NotNegative | None = None

    @model_validator(mode="before")
    @classmethod
    def _keys_of_its_norms(cls, table: Any) -> Any:
        """Give the keys of the chosen norms their defaults, and refuse those of the others."""
        norms = table.get("norms", "weights") if isinstance(table, dict) else None
        if not (isinstance(norms, str) and norms in _OF_NORMS):
            return table
        for other, defaults in _OF_NORMS.items():
            for key in defaults:
                if other != norms and table.get(key) is not None:
                    raise PydanticCustomError(
                        "rule", '{key} does not belong to norms = "{norms}"; leave it out', {"key": key, "norms": norms}
                    )
        return _OF_NORMS[norms] | {key: value for key, value in table.items() if value is not None}

    @property
    def to_budget(self) -> bool:
        """Whether this phase decides what goes: afterwards it is exactly zero."""
        return self.norms == "function" and self.epochs > 0

    def options(self) -> dict[str, str | float]:
        """Return what is set of the regulariser's own keys."""
        return {key: getattr(self, key) for key in _OF_NORMS[self.norms] if getattr(self, key) is not None}


class Cut(_Table):
    """[cut]: one of ``macs`` and ``params`` (shares of dense), ``threshold`` (of the scores; "natural" for Group-HS),
    ``max_drop`` (points of validation accuracy) and ``max_change`` (mean relative change of the outputs).

    ``method`` says how channels are scored; "dead" takes what never fires on ``calibration`` training images, and
    nothing else, and "zero" what is zero already, so that they need no budget. ``dead_first`` takes that before any
    other method chooses, ``dead_blocks`` makes residual blocks whose branch is exactly zero their shortcuts, ``fold``
    moves what a zeroed channel leaves behind as a constant into the layers that read it, and the linear layers in
    ``gather`` read only the input features on which their weights are not zero. ``align`` is 16 unless set, and 1 for
    "dead" and "zero".

    ``refit`` gives what reads the channels that went new weights, by least squares on ``calibration`` images without
    labels; with ``method = "function"`` it goes down in steps of ``step`` of the MACs and chooses again after each.
    The smallest network within ``max_drop`` or ``max_change`` is found on the way. ``calibration`` is 5000 unless set,
    and 1024 for a refit.
    """

    macs: Share | None = None
    params: Share | None = None
    threshold: Literal["natural"] | NotNegative | None = None
    align: Alignment | None = None
    method: Method = "group-hs"
    max_drop: NotNegative | None = None
    max_change: Positive | None = None
    refit: bool = False
    step: Share = 0.05
    dead_first: bool = False
    dead_blocks: bool = False
    fold: bool = True
    gather: Annotated[tuple[Name, ...], Field(strict=False)] = ()
    calibration: Count | None = None

    @model_validator(mode="after")
    def _exactly_one_budget(self) -> "Cut":
        given = [key for key in BUDGETS if getattr(self, key) is not None]
        if self.method in WITHOUT_BUDGET and given:
            raise PydanticCustomError(
                "rule",
                'method = "{method}" takes no {key}: it removes {what}, nothing else',
                {"method": self.method, "key": given[0], "what": WITHOUT_BUDGET[self.method]},
            )
        if self.method not in WITHOUT_BUDGET and len(given) != 1:
            raise PydanticCustomError(
                "rule",
                "needs exactly one of macs, params, threshold, max_drop and max_change, got {given}",
                {"given": _listed(given) or "none"},
            )
        if not self.in_steps and (self.max_drop is not None or self.max_change is not None):
            raise PydanticCustomError(
                "rule", '{key} needs method = "function" and refit = true, which go down in steps', {"key": given[0]}
            )
        return self

    @property
    def in_steps(self) -> bool:
        """Whether channels go in steps, each refitted, and are chosen again after each."""
        return self.refit and self.method == "function" and self.params is None and self.threshold is None

    @property
    def images(self) -> int:
        """How many calibration images are looked at."""
        return self.calibration or (1024 if self.refit else 5000)

    @property
    def alignment(self) -> int:
        """The multiple in force."""
        return self.align or (1 if self.method in WITHOUT_BUDGET else 16)

    @property
    def looks_at_images(self) -> bool:
        """Whether the choice hangs on calibration images."""
        return self.method in ("dead", "function") or self.dead_first or self.refit

    def asked(self) -> dict[str, float | str]:
        """Return the one budget that is set, e.g. ``{"macs": 0.5}``."""
        return {key: getattr(self, key) for key in BUDGETS if getattr(self, key) is not None}


class Finetune(Phase):
    """[finetune]: training of the slim network."""

    epochs: Annotated[int, Field(ge=0)] = 15
    lr: Positive = 0.05


class Train(Phase):
    """[train]: sparse phase and fine-tuning in one schedule, one warm-up and one cosine, with the cut at ``cut_at``.

    It decides what [sparse] and [finetune] have in common: their epochs (those before ``cut_at`` of all, rounded up,
    are sparse), rates, batches and precision. With norms = "function" what goes is zero at ``cut_at`` itself, and cut
    when that epoch is over. Momenta go on through the cut.
    """

    epochs: Count
    lr: Positive = 0.05
    cut_at: Annotated[float, Field(ge=0, lt=1)] = 0.25

    @model_validator(mode="after")
    def _trains_after_the_cut(self) -> "Train":
        if self.phases()["finetune"]["epochs"] == 0:
            raise PydanticCustomError("rule", "cut_at leaves no epoch after the cut; lower it, or raise epochs", {})
        return self

    def phases(self) -> dict[str, dict[str, Any]]:
        """Return what it decides of either phase."""
        sparse = ceil(self.cut_at * self.epochs - 1e-9)
        shared = {key: getattr(self, key) for key in Phase.model_fields} | {"warmup": 0.0}
        return {"sparse": shared | {"epochs": sparse}, "finetune": shared | {"epochs": self.epochs - sparse}}


class Distill(_Table):
    """[distill]: the sparse phase and fine-tuning also learn from the dense network's outputs; weight 0: they do not.

    loss = (1 − weight) · cross-entropy + weight · temperature² · KL(dense ‖ student), both softened by the temperature.
    """

    weight: Annotated[float, Field(ge=0, le=1)] = 0.0
    temperature: Positive = 4.0


class Export(_Table):
    """[export]"""

    opset: Annotated[int, Field(ge=18, le=20)] = 20


class Verify(_Table):
    """[verify]: the batch sizes that onnxruntime and torch are compared at."""

    batches: BatchSizes = (1, 2, 3, 8)


class Bench(_Table):
    """[bench]: one onnxruntime thread and batch 1 unless asked; ``min_seconds`` of measuring, 0: none at all."""

    threads: Count = 1
    batch_size: Count = 1
    min_seconds: NotNegative = 5.0


class Recipe(_Table):
    """A whole recipe: what the file leaves out has its default; ``resolved`` fills in those of machine and data.

    ``threads`` is torch's own on a CPU (its default: one a core): with 1, a run can be repeated to the last bit on the
    same machine with the same versions, and on a shared machine a small network trains many times faster, because no
    thread waits for another that has no core. ``device`` is where training runs (its default: a GPU that torch sees).
    """

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    threads: Count | None = None
    device: Literal["cpu", "cuda"] | None = None
    network: Network
    data: Data | None = None
    dense: Dense = Dense()
    train: Train | None = None
    sparse: Sparse = Sparse()
    cut: Cut
    finetune: Finetune = Finetune()
    distill: Distill = Distill()
    export: Export = Export()
    verify: Verify = Verify()
    bench: Bench = Bench()

    @property
    def trains(self) -> bool:
        """Whether any phase has an epoch."""
        return any(phase.epochs for phase in (self.dense, self.sparse, self.finetune))

    @model_validator(mode="before")
    @classmethod
    def _in_one_schedule(cls, tables: Any) -> Any:
        """Give [sparse] and [finetune] what [train] decides."""
        if not isinstance(tables, dict) or tables.get("train") is None:
            return tables
        try:
            train = Train.model_validate(tables["train"])
        except ValidationError:  # said once more, with its place, when the table itself is validated
            return tables
        tables = dict(tables)
        for name, decided in train.phases().items():
            given = tables.get(name, {})
            if isinstance(given, dict):
                for key in given.keys() & decided:
                    if (type(given[key]), given[key]) != (type(decided[key]), decided[key]):
                        raise PydanticCustomError(
                            "rule", "{key} is decided by [train]; leave one of the two out", {"key": f"{name}.{key}"}
                        )
                tables[name] = given | decided
        return tables

    @model_validator(mode="after")
    def _starts_somewhere(self) -> "Recipe":
        scratch = self.train is not None and self.distill.weight == 0  # there is nothing dense to learn from
        if self.dense.epochs == 0 and self.dense.weights is None and not scratch:
            raise PydanticCustomError("rule", 'dense: epochs = 0 needs weights = "FILE.safetensors" to start from', {})
        return self

    @model_validator(mode="after")
    def _zeroes_to_a_budget(self) -> "Recipe":
        if self.sparse.to_budget and (self.cut.method != "group-hs" or not (self.cut.macs or self.cut.params)):
            raise PydanticCustomError(
                "rule",
                'norms = "function" decides in [sparse] what goes: [cut] needs macs or params, and no method',
                {},
            )
        return self

    @model_validator(mode="after")
    def _has_data_where_it_needs_them(self) -> "Recipe":
        if self.data is None and (self.trains or self.cut.looks_at_images):
            what = "training" if self.trains else "what channels do"
            raise PydanticCustomError("rule", "the table [data] is needed: {what} needs images", {"what": what})
        return self


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply overrides.

    Args:
        path: a TOML file.
        overrides: each ``section.key=value`` (or ``seed=value``); the value is read as TOML, and as a string where it
            is none. Setting one of [cut]'s budgets unsets the others.

    Returns:
        The recipe. Its paths are whole, so that it means the same wherever it is written and read again: those of the
        file are relative to its folder, those of ``overrides`` to the working directory.

    Raises:
        RecipeError: the file cannot be read, or a key or value is wrong; one line that names the culprit.
    """
    path = Path(path)
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"cannot read the recipe {path}: {error.strerror}; give the path of a TOML file") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8 text, so it is no TOML recipe") from error
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path} is not TOML: {_one_line(str(error))}") from error
    set_by = {_apply(override, tables): override for override in overrides}
    _make_whole(tables, path.parent, set_by)
    return _resolve(tables, str(path), set_by)


def make_recipe(tables: Mapping[str, Any], source: str = "the recipe") -> Recipe:
    """Return the recipe of tables that are not read from a file; None leaves a value out, paths are relative to here.

    Raises:
        RecipeError: a key or value is wrong.
    """
    given = {
        key: {name: it for name, it in table.items() if it is not None} if isinstance(table, Mapping) else table
        for key, table in tables.items()
        if table is not None
    }
    _make_whole(given, Path(), {})
    return _resolve(given, source, {})


def _make_whole(tables: dict[str, Any], folder: Path, set_by: Mapping[tuple[str, ...], str]) -> None:
    """Make paths in ``tables`` whole: relative ones are of ``folder``, those of overrides of the working directory."""
    for section, key in PATHS:
        table = tables.get(section)
        given = table.get(key) if isinstance(table, dict) else None
        if isinstance(table, dict) and isinstance(given, str) and given not in ("", RANDOM):
            table[key] = os.path.abspath(given if (section, key) in set_by else folder / given)


def dump_recipe(recipe: Recipe) -> str:
    """Return the recipe as TOML that ``load_recipe`` reads back to the same."""
    tables = recipe.model_dump(mode="json", exclude_none=True)
    if recipe.train is not None:
        for name, decided in recipe.train.phases().items():
            tables[name] = {key: value for key, value in tables[name].items() if key not in decided}
    return tomli_w.dumps(tables)


def resolved(recipe: Recipe, found: Mapping[str, Any]) -> Recipe:
    """Return the recipe with what it leaves open settled, so that it alone says how the run was made.

    Args:
        recipe: as it was given.
        found: ``section.key`` or ``key`` → the value in force; what the recipe sets itself stays.
    """
    tables = recipe.model_dump()
    for key in left_open(recipe, found):
        section, _, name = key.rpartition(".")
        (tables[section] if section else tables)[name] = found[key]
    return Recipe.model_validate(tables)


def left_open(recipe: Recipe, keys: Iterable[str]) -> list[str]:
    """Return those of the keys, each ``section.key`` or ``key``, that the recipe does not set."""
    given = _flat(recipe.model_dump())
    return [key for key in keys if given.get(key) is None]


def reopened(recipe: Recipe, begun: Recipe, settled: Iterable[str]) -> Recipe:
    """Return a recipe to go on with: what it leaves open is as it was settled when the run was begun.

    Args:
        recipe: as given now.
        begun: of the run, resolved.
        settled: keys of it that ``resolved`` gave a value.
    """
    before = _flat(begun.model_dump())
    return resolved(recipe, {key: before[key] for key in settled if before.get(key) is not None})


def _flat(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tables.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _apply(override: str, tables: dict[str, Any]) -> tuple[str, ...]:
    """Set one value in ``tables`` and return its key."""
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or len(parts) > 2 or not all(parts):
        raise RecipeError(f"`overrides` {override}: expected section.key=value, e.g. sparse.strength=2e-3")
    value = _toml_value(text.strip())
    if len(parts) == 1:
        tables[parts[0]] = value
        return (parts[0],)
    section, name = parts
    table = tables.setdefault(section, {})
    if not isinstance(table, dict):
        raise RecipeError(f"`overrides` {override}: {section} is {_show(table)} in the recipe, not a table")
    if (section, name) == ("sparse", "norms"):
        for key in (key for norms, keys in _OF_NORMS.items() if norms != value for key in keys):
            table.pop(key, None)
    if section == "cut" and name in BUDGETS:
        for other in BUDGETS:
            table.pop(other, None)
    table[name] = value
    return section, name


def _toml_value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if parsed.keys() == {"value"} else text


def _resolve(tables: dict[str, Any], path: str, set_by: Mapping[tuple[str, ...], str]) -> Recipe:
    try:
        return Recipe.model_validate(tables)
    except ValidationError as error:
        # The branches of a union each complain about the same key; an unknown key explains a missing one (nmae for
        # name), so it comes first.
        details = {_key(detail): detail for detail in reversed(error.errors(include_url=False))}
        key = min(reversed(details), key=lambda key: details[key]["type"] != "extra_forbidden")
        more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
        source = f"`overrides` {set_by[key]}" if key in set_by else path
        raise RecipeError(f"{source}: {_explain(details[key], key)}{more}") from None


def _key(detail: ErrorDetails) -> tuple[str, ...]:
    """Return the place of an error without the names of union branches, e.g. ("cut", "threshold", "float")."""
    if detail["type"] == "extra_forbidden":
        return tuple(str(part) for part in detail["loc"])
    return tuple(str(part) for part in detail["loc"] if isinstance(part, int) or part in _known_words())


def _explain(detail: ErrorDetails, path: tuple[str, ...]) -> str:
    if detail["type"] == "extra_forbidden":
        return _unknown_key(path)
    key = ".".join(path) or "the recipe"
    if detail["type"] == "rule":
        return f"{key}: {detail['msg']}"
    if detail["type"] == "missing":
        return f"{key} is missing: {'the table [' + key + '] is needed' if len(path) == 1 else 'expected a value'}"
    return f"{key}: expected {_expected(detail, path)}, got {_show(detail['input'])}{_closest(detail)}"


def _known_words() -> set[str]:
    tables = {name: _table_class(name) for name in Recipe.model_fields}
    return set(tables) | {key for table in tables.values() if table is not None for key in table.model_fields}


def _table_class(name: str) -> type[BaseModel] | None:
    annotation = Recipe.model_fields[name].annotation
    kinds = (annotation, *get_args(annotation))  # a table that may be left out is a union
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _unknown_key(path: tuple[str, ...]) -> str:
    section = ".".join(path[:-1])
    table = _table_class(path[0]) if len(path) > 1 and path[0] in Recipe.model_fields else Recipe
    valid = list(table.model_fields) if table is not None else []
    close = get_close_matches(path[-1], valid, n=1, cutoff=0.6)
    where = f"[{section}] has" if section else "a recipe has"
    hint = f"did you mean {close[0]}?" if close else f"it has {_listed(valid)}"
    return f"{'.'.join(path)}: {where} no key {path[-1]!r}; {hint}"


_KINDS = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "a string",
    "string_too_short": "a string that is not empty",
    "bool_type": "true or false",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "dict_type": "a table",
    "tuple_type": "a list of numbers",
    "too_short": "a list that is not empty",
}


def _expected(detail: ErrorDetails, path: tuple[str, ...]) -> str:
    if path == ("cut", "threshold"):
        return 'a number of at least 0, or "natural"'
    context = detail.get("ctx", {})
    bounds = {"greater_than": "above", "greater_than_equal": "of at least", "less_than": "below"}
    if detail["type"] in bounds:
        return f"a number {bounds[detail['type']]} {next(iter(context.values())):g}"
    if detail["type"] == "less_than_equal":
        return f"a number of at most {context['le']:g}"
    if detail["type"] == "literal_error":
        return str(context["expected"]).replace("'", '"')
    return _KINDS.get(detail["type"], _one_line(detail["msg"]))


def _closest(detail: ErrorDetails) -> str:
    if detail["type"] != "literal_error" or not isinstance(detail["input"], str):
        return ""
    choices = [part.strip("'") for part in str(detail.get("ctx", {})["expected"]).replace(" or ", ", ").split(", ")]
    close = get_close_matches(detail["input"], choices, n=1)
    return f'; did you mean "{close[0]}"?' if close else ""


def _show(value: object) -> str:
    if isinstance(value, dict):
        text = f"a table with {_listed(value) or 'nothing in it'}"
    else:
        text = _one_line(json.dumps(value, ensure_ascii=False, default=str))
    return text if len(text) <= 80 else text[:77] + "..."


def _one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
