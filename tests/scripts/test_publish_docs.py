"""docs/schemas holds the schemas of today's records, and what the verbs print fits them."""

import json
import runpy
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from onnx import TensorProto, helper, save

from hoyer_export.report.files import read_report

HOME = Path(__file__).parents[2]
SCHEMAS = HOME / "docs" / "schemas"


def complaints(name: str, written: str) -> list[str]:
    schema = json.loads((SCHEMAS / f"{name}.json").read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    return [error.message for error in Draft202012Validator(schema).iter_errors(json.loads(written))]


def test_what_is_committed_is_what_would_be_generated(tmp_path: Path) -> None:
    runpy.run_path(str(HOME / "scripts" / "publish_schemas.py"))["publish"](tmp_path)
    found = [
        {file.name: file.read_text(encoding="utf-8") for file in folder.iterdir()} for folder in (SCHEMAS, tmp_path)
    ]
    assert found[0] == found[1], "run python scripts/publish_schemas.py"


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
