"""What every table and line of the verbs is printed with."""

import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

PLAIN_WIDTH = 80  # of a table that no terminal limits
TOP_ROWS = 20  # of a table that would not fit on a screen


def terminal() -> Console:
    """Return stdout; where it is no terminal, no terminal's width cuts a table."""
    # my_package:two: is no emoji
    return Console(emoji=False) if sys.stdout.isatty() else Console(width=PLAIN_WIDTH, emoji=False)


def plain(text: str) -> Text:
    """Return text that is printed as it is: brackets of a name are no markup."""
    return Text(text)


def outcome(passed: bool) -> str:
    return "[green]passed[/]" if passed else "[bold red]FAILED[/]"


def print_rows(
    console: Console,
    columns: list[str],
    rows: list[dict[str, str]],
    *,
    left: list[str],
    least: list[str],
    no_wrap: bool = False,
) -> None:
    """Print a table without those of the columns ``least``, asked for least, that there is no room for."""
    wide = console.options.update(max_width=10_000)
    for dropped in range(len(least) + 1):
        shown = [column for column in columns if column not in least[:dropped]]
        table = Table()
        for column in shown:
            table.add_column(column, justify="left" if column in left else "right", overflow="fold", no_wrap=no_wrap)
        for row in rows:
            table.add_row(*(row.get(column, "") for column in shown))
        if console.measure(table, options=wide).maximum <= console.width:
            break
    console.print(table)
