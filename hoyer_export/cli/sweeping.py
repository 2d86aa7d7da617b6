"""The verb for many runs: a grid, or a search."""

from pathlib import Path
from typing import Annotated

import typer

from hoyer_export.cli import arguments
from hoyer_export.cli.options import AllowImport, Json, Overrides
from hoyer_export.cli.program import loading, print_json, verb
from hoyer_export.errors import CannotWrite
from hoyer_export.stopping import interrupted


@verb("hoyer-export sweep recipe.toml --budgets 0.7,0.5,0.35 --seeds 3 --out runs/sweep")
def sweep(
    context: typer.Context,
    target: Annotated[
        Path,
        typer.Argument(metavar="RECIPE|DIR", help="A TOML file; DIR of a sweep with --status.", show_default=False),
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Absent or empty; the same command again goes on.")
    ] = None,
    budgets: Annotated[
        str | None, typer.Option(metavar="SHARES", help="0.7,0.5,0.35; of a search the ends, else 0.2,0.8.")
    ] = None,
    seeds: Annotated[
        int, typer.Option(metavar="N", min=1, max=1000, help="Runs a budget, from the recipe's seed on.")
    ] = 1,
    methods: Annotated[
        str | None, typer.Option(metavar="NAMES", help="group-hs,function,magnitude; else the recipe's own.")
    ] = None,
    trials: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Search: so many, of all workers together.")
    ] = None,
    search_in: Annotated[
        list[str],
        typer.Option("--search", metavar="KEY=LOW:HIGH", help="Or KEY=A,B,C, to be searched; may be repeated."),
    ] = [],  # noqa: B006
    storage: Annotated[
        str | None,
        typer.Option(metavar="URL", envvar="HOYER_EXPORT_STORAGE", help="Of a database; else DIR/sweep.db."),
    ] = None,
    overrides: Overrides = [],  # noqa: B006
    status: Annotated[bool, typer.Option("--status", help="Only say how far it is.")] = False,
    allow_import: AllowImport = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Do many runs of one recipe, a grid or a search, and draw them on one page."""
    if status:
        folder = target if out is None else out
        loading("torch")
        from hoyer_export.console.sweeps import print_sweep
        from hoyer_export.run.sweep import look

        record = look(folder)
        print_json(record.model_dump(mode="json")) if as_json else print_sweep(record)
        return
    if target.is_dir():
        raise typer.BadParameter(f"{target} is a folder; give a recipe, or --status to see how far it is")
    if out is None:
        raise typer.BadParameter("give the folder of the sweep", param_hint="--out")
    if trials is None:
        arguments.refuse(context, {"search_in", "storage"}, "only together with --trials")
    else:
        arguments.refuse(context, {"methods", "seeds"}, "only without --trials")
    if budgets is None and trials is None:
        raise typer.BadParameter("give shares that may stay, e.g. 0.7,0.5,0.35", param_hint="--budgets")
    shares = arguments.numbers("--budgets", "0.2,0.8" if budgets is None else budgets)
    for share in shares:
        arguments.check_share("--budgets", share)
    loading("torch")
    from hoyer_export.console.sweeps import print_sweep
    from hoyer_export.live import progress
    from hoyer_export.recipe.reading import load_recipe
    from hoyer_export.run.grid import grid, split_methods
    from hoyer_export.run.search import Search, search
    from hoyer_export.run.sweep import Sweep, do_grid

    recipe = load_recipe(target, overrides)
    try:
        with progress() as shown:
            made = Sweep(out, shown, allow_import)
            if trials is None:
                numbers = range(recipe.seed, recipe.seed + seeds)
                names = split_methods(methods or "")
                cells = tuple(grid(target, overrides, methods=names, budgets=shares, seeds=numbers))
                made.begin(recipe)
                record = do_grid(made, cells)
            else:
                asked = Search(target, overrides, (min(shares), max(shares)), search_in, storage)
                record = search(made, asked, trials)
    except (KeyboardInterrupt, CannotWrite) as error:
        if isinstance(error, CannotWrite):
            raise CannotWrite(f"{error}; then go on with the same command") from error
        raise interrupted(error, f"; go on in {out} with the same command") from None
    print_json(record.model_dump(mode="json")) if as_json else print_sweep(record)
    if not as_json:
        print(f"page: {out / 'sweep.html'}")
    if record.count("failed"):
        raise typer.Exit(3)
