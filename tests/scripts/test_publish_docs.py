"""docs/ has the schemas of today's records and the keys of today's recipe; what the verbs print fits its schema."""

import json
import runpy
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from onnx import TensorProto, helper, save

from hoyer_export.recipe.keys import table_class
from hoyer_export.recipe.tables import Recipe
from hoyer_export.report.files import read_report

HOME = Path(__file__).parents[2]
SCHEMAS = HOME / "docs" / "schemas"


def complaints(name: str, written: str) -> list[str]:
    schema = json.loads((SCHEMAS / f"{name}.json").read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    return [error.message for error in Draft202012Validator(schema).iter_errors(json.loads(written))]


def test_what_is_committed_is_what_would_be_generated(tmp_path: Path) -> None:
    runpy.run_path(str(HOME / "scripts" / "publish_docs.py"))["publish"](tmp_path)
    made = {file.relative_to(tmp_path): file for file in tmp_path.rglob("*.*")}
    assert {it.name for it in made} >= {"recipe.md", *(file.name for file in SCHEMAS.iterdir())}
    stale = [str(name) for name, file in made.items() if file.read_bytes() != (HOME / "docs" / name).read_bytes()]
    assert stale == [], "run python scripts/publish_docs.py"
    zoo = runpy.run_path(str(HOME / "scripts" / "publish_docs.py"))["zoo"](HOME / "models")
    assert zoo == (HOME / "models" / "README.md").read_text(encoding="utf-8"), "run python scripts/publish_docs.py"


def test_every_key_of_a_recipe_has_a_row_that_says_what_it_means() -> None:
    text = (HOME / "docs" / "recipe.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    assert all(len(row) == 4 and all(row) for row in rows)
    tables = [it for it in map(table_class, Recipe.model_fields) if it is not None]
    keys = {name for table in tables for name in table.model_fields}
    assert {row[0].strip("`") for row in rows} == keys | {"seed", "threads", "device", "track"}
    by_name = {row[0]: row for row in rows}
    assert by_name["`macs`"][1:3] == ["number above 0, of at most 1", "unset"]
    assert by_name["`optimizer`"][1:3] == ['"sgd", "adam" or "adamw"', '`"sgd"`']
    assert by_name["`batches`"][1:3] == ["list: whole number of at least 1", "`[1, 2, 3, 8]`"]


def test_a_report_and_its_stages_fit_their_schemas_with_more_keys_too() -> None:
    report = read_report(HOME / "models" / "resnet20-digits")
    for name, record in {"report": report, "export": report.export, "verify": report.verify}.items():
        assert complaints(name, record.model_dump_json()) == []
        later = record.model_dump(mode="json") | {"later": 1}
        assert complaints(name, json.dumps(later)) == []
    assert complaints("export", report.verify.model_dump_json()) != []


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("onnx") / "f.onnx"
    image = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, 4, 4])
    sums = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3, 4, 4])
    graph = helper.make_graph([helper.make_node("MatMul", ["input", "input"], ["logits"])], "squares", [image], [sums])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


@pytest.mark.parametrize(
    "command",
    ["inspect --network lenet5 --macs 0.5 --prove --cross-check", "macs FILE", "bench FILE FILE --min-seconds 0.1"],
)
def test_what_a_verb_prints_fits_its_schema(call, command: str, file: Path) -> None:
    words = [str(file) if word == "FILE" else word for word in command.split()]
    code, out, err = call(*words, "--json")
    assert code == 0, err
    assert complaints(words[0], out) == []
