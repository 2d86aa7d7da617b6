"""What keeps the house one that a stranger can read: how long a function, how wide a signature, and no bag of facts."""

import ast
import re
from functools import cache
from pathlib import Path

import hoyer_export

HOME = Path(hoyer_export.__file__).parent
BODY, PARAMETERS = 60, 10
BAGS = [f"{kind}[str, {of}]" for kind in ("dict", "Mapping") for of in ("Any", "object")]
AS_WRITTEN = {  # they read or write the command line, TOML or JSON
    *(
        "cli/arguments.py",
        "cli/options.py",
        "cli/program.py",
        "deploy/runtime/fresh.py",
        "in_python.py",
        "recipe/reading.py",
        "recipe/tables.py",
        "report/summary.py",
        "report/version_1.py",
        "run/channel_file.py",
    ),
    "surgery/plan.py",
}

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def functions() -> tuple[tuple[str, Function], ...]:
    return tuple(
        (file.relative_to(HOME).as_posix(), node)
        for file in sorted(HOME.rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, Function)
    )


def lines(function: Function) -> int:
    body = function.body[ast.get_docstring(function) is not None :]
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def arguments(function: Function) -> list[ast.arg]:
    given = function.args
    more = [it for it in (given.vararg, given.kwarg) if it is not None]
    return [*given.posonlyargs, *given.args, *given.kwonlyargs, *more]


def takes_a_bag(function: Function) -> bool:
    """Whether there is a dict of anything in the signature, but for the keywords of a call."""
    annotations = [it.annotation for it in arguments(function) if it.arg != "kwargs"] + [function.returns]
    words = [ast.unparse(it) for it in annotations if it is not None]
    return any(bag in word for word in words for bag in BAGS)


def test_a_body_fits_a_screen_and_a_signature_a_head() -> None:
    found = functions()
    assert len(found) > 500
    assert [(file, it.name, lines(it)) for file, it in found if lines(it) > BODY] == []
    wide = [(file, it.name) for file, it in found if len(arguments(it)) > PARAMETERS]
    assert [(file, name) for file, name in wide if not file.startswith("cli/")] == []


def test_a_number_has_the_minus_of_the_keyboard_wherever_people_read_it() -> None:
    root = Path(__file__).parents[1]
    read = [root / "README.md", root / "CHANGELOG.md", *(root / "docs").rglob("*.*"), *(root / "models").rglob("*.*")]
    texts = [it for it in (*read, *HOME.rglob("*.*")) if it.suffix in (".py", ".md", ".html", ".json", ".css")]
    assert len(texts) > 150
    assert [
        it.name for it in texts if re.search("\u2212[0-9]|[\"'(]\u2212[\"')]", it.read_text(encoding="utf-8"))
    ] == []


def test_facts_travel_as_records() -> None:
    bags = {(file, it.name) for file, it in functions() if takes_a_bag(it)}
    assert {(file, name) for file, name in bags if file not in AS_WRITTEN} == set()
    assert AS_WRITTEN - {file for file, _ in bags} == set()


def test_every_link_in_the_documentation_leads_somewhere() -> None:
    root = Path(__file__).parents[1]
    pages = [*root.glob("*.md"), *(root / "docs").glob("*.md")]
    assert len(pages) > 15
    for page in pages:
        for link in re.findall(r"\]\((?!http)([^)\s]+)\)", page.read_text(encoding="utf-8")):
            name, _, anchor = link.partition("#")
            to = page.parent / name if name else page
            assert to.exists(), f"{page.name}: {link}"
            if anchor:
                heads = re.findall(r"^#+ (.+)$", to.read_text(encoding="utf-8"), re.MULTILINE)
                anchors = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
                assert anchor in anchors, f"{page.name}: {link}"
