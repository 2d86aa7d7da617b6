"""A search for recipes that are accurate and cheap: Optuna proposes trials, each a run of the sweep.

The two objectives are validation accuracy and the share of the dense file's latency that is left (by paired runs, so
that machines can be compared), or of its MACs where no latency is measured. Nothing is pruned early: Optuna has no
pruner for two objectives. While a trial runs, a heartbeat is written to the study; where that stays out, the next
worker fails the trial and does it again, in the same folder, from its last whole epoch.
"""

import re
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from hoyer_export.errors import FileError, HoyerExportError, RecipeError, one_line
from hoyer_export.recipe.reading import load_recipe
from hoyer_export.recipe.tables import Recipe
from hoyer_export.report.sweep import SweepRecord
from hoyer_export.run.grid import Cell, budget_key, hash_of, method_of
from hoyer_export.run.sweep import OF_ALL, Sweep, look

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

HEARTBEAT_SECONDS = 10
"""Between two signs of life of a trial; a worker that gave none for three times as long counts as dead."""
MOST_RETRIES = 3
"""A trial whose worker dies more often than that is given up: it may be what kills them."""


@dataclass(frozen=True)
class Range:
    """What a key of the recipe may be: a number between two, a whole one maybe, or one of several choices."""

    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False
    choices: tuple[str, ...] = ()

    @property
    def ends(self) -> tuple[str, ...]:
        """The choices, or the two ends, as TOML."""
        return self.choices or tuple(f"{end:.0f}" if self.whole else f"{end:g}" for end in (self.low, self.high))

    def suggested(self, trial: "Trial", key: str) -> str:
        """Return what a trial takes, as TOML."""
        if self.choices:
            return str(trial.suggest_categorical(key, self.choices))
        if self.whole:
            return str(trial.suggest_int(key, int(self.low), int(self.high), log=self.log))
        return f"{trial.suggest_float(key, self.low, self.high, log=self.log):.4g}"  # people read it


def _read(text: str) -> tuple[str, Range]:
    """Return a key and what it may be; a range over a factor of five or more is logarithmic."""
    key, _, may_be = text.partition("=")
    low, colon, high = may_be.partition(":")
    try:
        if colon:
            whole = low.isdecimal() and high.isdecimal()
            found = Range(float(low), float(high), 0 < 5 * float(low) <= float(high), whole)
            fits = found.low <= found.high < float("inf")
        else:
            found = Range(choices=tuple(dict.fromkeys(may_be.split(","))))
            fits = len(found.choices) > 1 and all(found.choices)
    except ValueError:
        fits = False
    if not key or not fits:
        raise RecipeError(f"`search` {text}: expected KEY=LOW:HIGH or KEY=A,B,C, e.g. train.lr=0.01:0.1")
    return key, found


def usual_keys(recipe: Recipe) -> tuple[str, ...]:
    """Return what is searched beside the budget where nobody says what."""
    strength = recipe.sparse.strength if recipe.sparse.epochs else None
    rates = {
        "train.lr" if recipe.train else "finetune.lr": (recipe.train or recipe.finetune).lr,
        "sparse.strength": strength,
    }
    found = [f"{key}={rate / 3:.3g}:{rate * 3:.3g}" for key, rate in rates.items() if rate]
    last = 1 - 1 / recipe.train.epochs if recipe.train and recipe.sparse.epochs else 0  # an epoch follows the cut
    return (*found, *([f"train.cut_at=0.1:{min(0.6, last):.3g}"] if last > 0.1 else []))


@dataclass(frozen=True)
class Search:
    """What is searched, and where it is kept.

    Args:
        path: of the recipe.
        overrides: what is set in it for all trials.
        budgets: the least and the largest share.
        keys: each ``section.key=LOW:HIGH`` or ``section.key=A,B,C``; without any, ``usual_keys``.
        storage: URL of a database; None: ``sweep.db`` in the folder of the sweep.
    """

    path: Path
    overrides: Sequence[str]
    budgets: tuple[float, float]
    keys: Sequence[str] = ()
    storage: str | None = None


class _Failed(Exception):
    """A trial without values."""


def search(sweep: Sweep, asked: Search, trials: int) -> SweepRecord:
    """Do trials until there are so many, those of all workers on the same study together.

    Workers share a study by the database, the name of the sweep's folder, the recipe and the ranges.

    Raises:
        HoyerExportError: Optuna is missing, the database cannot be used, or a range does not fit the recipe.
        CannotWrite, DataError, NetworkError: as for ``Sweep.do``; whoever comes next takes the trial up again.
    """
    recipe, ranges = _checked(asked)
    sweep.begin(recipe)
    out = sweep.out.resolve()
    name = f"{out.name}-{hash_of(recipe, search={key: [*it.ends] for key, it in ranges.items()})}"
    with _database(asked.storage), _study(asked.storage or out / "sweep.db", name) as study:
        sweep.progress.headline(f"{trials} trials of {', '.join(ranges)}; study {name}")

        def objective(trial: "Trial") -> tuple[float, float]:
            return _tried(sweep, asked, ranges, study, trial)

        while (left := _left(study, trials)) != "nothing":
            if left == "others":
                time.sleep(HEARTBEAT_SECONDS / 4)
                continue
            try:
                study.optimize(objective, n_trials=1, catch=(_Failed,))
            except ValueError as error:
                if "Cannot tell" not in str(error):
                    raise
                sweep.progress.note("this process stood still for so long that its trial was given to another")
    return look(sweep.out)


def _checked(asked: Search) -> tuple[Recipe, dict[str, Range]]:
    """Return the recipe and all that is searched; what cannot be is said before anything is trained."""
    recipe = load_recipe(asked.path, asked.overrides)
    if not recipe.trains:
        raise RecipeError("a search goes by validation accuracy after training, and this recipe trains nothing")
    low, high = asked.budgets
    budget = f"cut.{budget_key(recipe)}={low}:{high}"
    ranges = dict(map(_read, (budget, *(asked.keys or usual_keys(recipe)))))
    for end in (0, -1):
        settings = (f"{key}={it.ends[end]}" for key, it in ranges.items())
        load_recipe(asked.path, [*asked.overrides, *settings])
    return recipe, ranges


def _tried(
    sweep: Sweep, asked: Search, ranges: Mapping[str, Range], study: "Study", trial: "Trial"
) -> tuple[float, float]:
    """Do one trial, in the folder of the one that it retries, and return accuracy and cost."""
    frozen = study.trials[trial.number]
    settings = tuple(f"{key}={it.suggested(trial, key)}" for key, it in ranges.items())
    try:
        told = load_recipe(asked.path, [*asked.overrides, *settings])
        cell = Cell(f"trial-{study.study_name[-6:]}-{_first(frozen):04}", f"{method_of(told)}, search", settings, told)
        sweep.progress.headline(f"trial {_first(frozen)}: {' '.join(settings)}")
        run = sweep.do(cell, wait=True)
    except (KeyboardInterrupt, *OF_ALL):
        _retry(study, study.trials[trial.number])
        raise
    except HoyerExportError as error:  # values that do not go together
        raise _Failed from error
    slim = run.file("slim")
    cost = None if slim is None else slim.latency_share if told.bench.min_seconds else slim.macs_share
    if run.state != "done" or run.validation_accuracy is None or cost is None:
        raise _Failed
    return run.validation_accuracy, cost


def _first(trial: "FrozenTrial") -> int:
    """Return the number of a trial, or of the first one that it retries."""
    number: int = trial.system_attrs.get("failed_trial", trial.number)
    return number


@contextmanager
def _database(url: str | None) -> Iterator[None]:
    """Say in one line, without the password of its URL, what is wrong with a database."""
    try:
        from optuna.exceptions import ExperimentalWarning, StorageInternalError
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError:
        raise RecipeError("a search needs Optuna; install it: pip install 'hoyer-export[sweep]'") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            yield
    except (SQLAlchemyError, StorageInternalError) as error:
        way_out = "start it, or mend `storage`, e.g. postgresql://USER@HOST/DATABASE with PGPASSWORD set"
        why = f"cannot use the database {url or 'sweep.db'}: {one_line(getattr(error, 'orig', None) or error)}"
        for found in re.findall(r"://[^:/@]*:(.*)@|[?&]password=([^&]*)", url or ""):
            for secret in filter(None, found):
                why = why.replace(secret, "***").replace(unquote(secret), "***")
        raise FileError(f"{why[:500]}; {way_out}") from None


def _left(study: "Study", trials: int) -> str:
    """Return what there is to do: ``nothing``, a ``trial``, or to wait for ``others``, who may die over theirs."""
    from optuna.storages import fail_stale_trials
    from optuna.trial import TrialState

    fail_stale_trials(study)
    latest = {_first(it): it.state for it in study.get_trials(deepcopy=False)}
    if len(latest) < trials or TrialState.WAITING in latest.values():
        return "trial"
    return "others" if TrialState.RUNNING in latest.values() else "nothing"


@contextmanager
def _study(where: str | Path, name: str) -> Iterator["Study"]:
    """Yield the study in the database of a URL, or in a file, which SQLAlchemy quotes as its version reads it."""
    import optuna
    from sqlalchemy.engine import URL
    from sqlalchemy.exc import ArgumentError

    optuna.logging.set_verbosity(optuna.logging.CRITICAL)  # what fails is told as that of any run
    url = where if isinstance(where, str) else URL.create("sqlite", database=str(where)).render_as_string()
    url = re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", url)
    try:
        storage = optuna.storages.RDBStorage(
            url.replace("{", "{{").replace("}", "}}"),  # Optuna takes it for a template
            engine_kwargs={"pool_pre_ping": True},
            heartbeat_interval=HEARTBEAT_SECONDS,
            grace_period=3 * HEARTBEAT_SECONDS,
            heartbeat_stale_trial_callback=lambda study, trial: _retry(study, trial, MOST_RETRIES),
        )
    except ImportError as error:
        driver = one_line(error.__cause__ or error)
        raise FileError(
            f"{driver}; that database needs it; for PostgreSQL: pip install 'hoyer-export[postgresql]'"
        ) from None
    except (TypeError, ValueError) as error:  # a port that is no number, say
        raise ArgumentError(str(error)) from error
    try:
        yield optuna.create_study(
            study_name=name,
            storage=storage,
            sampler=optuna.samplers.TPESampler(constant_liar=True),  # workers must not all try the same
            directions=["maximize", "minimize"],
            load_if_exists=True,
        )
    finally:
        storage.engine.dispose()


def _retry(study: "Study", trial: "FrozenTrial", most: int | None = None) -> None:
    """Queue a trial whose worker is gone once more."""
    from optuna.storages import RetryHeartbeatStaleTrialCallback

    RetryHeartbeatStaleTrialCallback(max_retry=most)(study, trial)
