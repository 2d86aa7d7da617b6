"""A budget of time: asked for until what is measured is what was asked, judged on the files, and said by the verb."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hoyer_export.deploy import layer_times
from hoyer_export.deploy.benchmark import BenchmarkRecord, LatencyRecord, Speedup
from hoyer_export.deploy.layers import Layer
from hoyer_export.errors import HoyerExportError
from hoyer_export.run import time_budget
from hoyer_export.run.time_budget import Reached, meet_in_time, reached

Call = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("it", "asked", "met"),
    [
        (Reached(0.52, 0.51), 0.5, True),  # within 5 %
        (Reached(0.53, 0.51), 0.5, False),
        (Reached(0.60, 0.49), 0.5, True),  # within the interval
        (Reached(0.3, 0.3), 0.5, True),
        (Reached(4.3, 4.1), 4.0, False),
    ],
)
def test_a_budget_of_time_is_met_within_five_percent_or_the_interval(it: Reached, asked: float, met: bool) -> None:
    assert it.meets(asked) is met


@pytest.mark.parametrize(("threads", "ms"), [(1, 8.0), (2, 10.0)])
def test_what_is_reached_is_the_paired_ratio_on_one_thread_of_cpu_time(threads: int, ms: float) -> None:
    dense, slim = (
        LatencyRecord(name, p50, 0, 0, 0, 9, cpu, None, ()) for name, p50, cpu in (("d", 10, 8), ("s", 6, 3))
    )
    found = BenchmarkRecord((dense, slim), (), threads, 1, "noisy", (), (Speedup(2.0, (1.6, 2.5)),))
    assert reached(found, "latency") == Reached(0.5, 0.4)
    assert reached(found, "latency_ms") == Reached(ms / 2, ms / 2.5)


def test_the_table_is_asked_again_until_the_measured_time_is_right() -> None:
    aims: list[float] = []

    def choose(aim: float) -> float:  # a network is what the table expects of it
        aims.append(aim)
        return round(aim, 3)

    found = meet_in_time(0.5, choose, lambda it: it, lambda it: 0.2 + 0.8 * it)
    assert 0.2 + 0.8 * found == pytest.approx(0.5, rel=0.02)
    assert 2 <= len(aims) <= 4
    assert aims[0] == 0.5


def test_of_what_was_tried_the_closest_within_the_budget_is_taken_or_else_the_fastest() -> None:
    measured = {0.5: 0.6, 0.4: 0.45, 0.44: 0.56, 0.39: 0.4}
    steps = iter(measured)
    assert meet_in_time(0.5, lambda _: next(steps), lambda it: it, measured.__getitem__) == 0.4
    assert meet_in_time(0.5, lambda aim: 0.7, lambda it: it, lambda it: 0.9) == 0.7  # always the same: once is enough

    def runs_out(aim: float) -> float:
        if aim < 0.5:
            raise HoyerExportError("the least is 0.5")
        return aim

    assert meet_in_time(0.5, runs_out, lambda it: it, lambda it: 0.9) == 0.5
    with pytest.raises(HoyerExportError, match="the least"):
        meet_in_time(0.4, runs_out, lambda it: it, lambda it: 0.9)


@pytest.fixture
def known_times(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Layers take a microsecond for a thousand MACs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(layer_times, "_measured", lambda layer, *_: layer.macs * 1e-6)


SMALL = ("cut", "--network", "lenet5", "--min-seconds", "0.1")


@pytest.mark.usefixtures("known_times", "exported_once")
@pytest.mark.parametrize(
    ("option", "value", "least", "code", "said"),
    [
        ("--latency", 0.51, 0.5, 0, "at most 50.0 % of the dense latency asked, 51.0 % reached"),
        ("--latency", 0.7, 0.6, 3, "at most 50.0 % of the dense latency asked, 70.0 % reached"),
        ("--latency-ms", 0.7, 0.6, 3, "at most 0.500 ms a run asked, 0.700 ms reached"),
    ],
)
def test_cut_ends_with_what_was_reached_and_3_where_that_is_too_much(
    monkeypatch: pytest.MonkeyPatch, call: Call, option: str, value: float, least: float, code: int, said: str
) -> None:
    monkeypatch.setattr(time_budget, "reached", lambda found, key: Reached(value, least))
    done, out, err = call(*SMALL, option, "0.5", "--out", "cut")
    assert done == code, err
    assert said in out.replace("\n", " ")
    assert f"{option[2:].replace('-', '_')} = 0.5 can be reached" in err
    assert Path("cut/slim.onnx").exists()
    report = json.loads(Path("cut/report.json").read_text(encoding="utf-8"))
    assert report["bench"]["budget"]["met"] is (code == 0)
    assert "chosen by measured time" in Path("cut/card.md").read_text(encoding="utf-8").replace("\n", " ")


@pytest.mark.usefixtures("known_times", "exported_once")
def test_align_auto_meets_a_budget_of_macs_with_the_table(call: Call) -> None:
    code, out, err = call(*SMALL, "--macs", "0.5", "--align", "auto", "--out", "cut")
    assert code == 0, err
    assert "times of layers to be measured" in err
    assert "align = auto" in err
    code, out, err = call(*SMALL, "--macs", "0.5", "--align", "auto", "--out", "again", "--json")
    assert "times of layers" not in err
    widths = [group["slim"] for group in json.loads(out)["cut"]["widths"]]
    assert widths != [20, 50, 500]


@pytest.mark.usefixtures("known_times")
@pytest.mark.parametrize(
    ("given", "code", "message"),
    [
        (("--latency", "0.001"), 1, "cut.latency = 0.001 cannot be reached: lenet5 at its narrowest with align = 16"),
        (("--latency-ms", "0.001"), 1, "takes 0."),
        (("--latency", "1.5"), 2, "expected a share above 0"),
        (("--latency-ms", "0"), 2, "expected a number above 0"),
        (("--latency", "0.5", "--macs", "0.5"), 2, "got --macs and --latency"),
        (("--latency", "0.5", "--min-seconds", "0"), 2, "judged by measuring"),
        (("--macs", "0.5", "--align", "fast"), 2, "expected 1, 4, 8, 16, 32, 64 or auto"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_cut(
    call: Call, given: tuple[str, ...], code: int, message: str
) -> None:
    done, _, err = call(*SMALL, *given, "--out", "cut")
    assert (done, Path("cut").exists()) == (code, False)
    assert message in " ".join(err.replace("│", " ").split())


@pytest.mark.usefixtures("known_times")
def test_the_verb_prints_what_the_table_says(call: Call) -> None:
    code, out, err = call("time-table", "--network", "lenet5")
    assert code == 0, err
    layers = [Layer(1, 20, (1, 28, 28), (5, 5), (1, 1), (0, 0, 0, 0), (1, 1)), Layer(800, 500, (1,))]
    assert "20 → 50" in out
    assert "off the grid the table is off by 0.0 %" in " ".join(out.split())
    found = json.loads(call("time-table", "--network", "lenet5", "--json")[1])
    by_layer = {it["layer"]: it["ms"] for it in found["layers"]}
    assert [by_layer[str(it)] for it in layers] == pytest.approx([it.macs * 1e-6 for it in layers])
    assert found["ms"] == pytest.approx(2.293)
