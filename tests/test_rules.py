"""Rules of one's own by their name: for the command line and a recipe, and only from a package that was allowed."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import hoyer_export as hx
from hoyer_export.errors import HoyerExportError, RecipeError
from hoyer_export.rules import load_rules


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "my_rules.py").write_text(
        "from pathlib import Path\n"
        "Path(__file__).with_suffix('.imported').touch()\n"
        "import hoyer_export as hx\n"
        "def soften(x): return x * 0.5\n"
        "RULES = {soften: hx.rules.elementwise}\n"
        "WRONG = {soften: 7}\n"
        "_HIDDEN = 1\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("my_rules", None)


def test_the_named_rules_are_those_that_the_tracer_takes(package: Path) -> None:
    rules = load_rules("my_rules:RULES", ["my_rules"])
    assert list(rules.values()) == [hx.rules.elementwise]  # type: ignore[union-attr]
    (operation,) = rules
    torch.manual_seed(0)

    class Soft(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(operation(self.a(x))).mean((2, 3))

    channels = hx.trace_channels(Soft(), torch.randn(2, 1, 8, 8), rules=rules)
    assert [group.name for group in channels.groups] == ["a"]


@pytest.mark.parametrize("allowed", [[], ["my"], ["os"], ["*"]])
def test_a_package_that_is_not_allowed_is_not_imported(package: Path, allowed: list[str]) -> None:
    with pytest.raises(RecipeError, match=r"allow it with `allow_import=\["):
        load_rules("my_rules:RULES", allowed)
    assert not (package / "my_rules.imported").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("my_rules", "expected package.module:name"),
        ("my_rules:RULE", "my_rules has no RULE; it has RULES"),
        ("my_rules:WRONG", "rules: expected {operation: rule}, got"),
        ("my_rules:Path", "rules: expected {operation: rule}, or rules that are decorated"),
        ("my_rules.deep:RULES", "cannot import my_rules.deep: ModuleNotFoundError"),
    ],
)
def test_what_names_no_rules_is_one_line(package: Path, text: str, said: str) -> None:
    with pytest.raises(HoyerExportError) as caught:
        load_rules(text, ["my_rules"])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
