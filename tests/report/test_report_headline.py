"""The pictures for slides stand alone, say what the headline says, and nothing in them runs into another."""

import struct
from xml.etree import ElementTree

import example_reports
import pytest

from hoyer_export.report.headline import HEIGHT, LETTER, WIDTH, Bar, Words, as_png, as_svg, shapes
from hoyer_export.report.tiles import tiles


def drawn(name: str) -> tuple[Bar | Words, ...]:
    report = getattr(example_reports, name)()
    return shapes(report, tiles(report))


@pytest.mark.parametrize("name", example_reports.EXAMPLES)
def test_a_picture_is_well_formed_and_everything_in_it_lies_inside(name: str) -> None:
    found = drawn(name)
    root = ElementTree.fromstring(as_svg(found, "what it says"))
    assert root[0].text == "what it says"
    assert "href" not in as_svg(found, "")
    for shape in found:
        width = shape.width if isinstance(shape, Bar) else LETTER * shape.size * len(shape.text)
        left = shape.x - width if isinstance(shape, Words) and shape.anchor == "end" else shape.x
        assert left >= 0
        assert left + width <= WIDTH
        assert 0 <= shape.y <= HEIGHT


@pytest.mark.parametrize("name", ["passed", "noisy", "unmeasured"])
def test_no_two_texts_of_a_line_meet(name: str) -> None:
    words = [it for it in drawn(name) if isinstance(it, Words)]
    ends = [(it.y, it.x - LETTER * it.size * len(it.text)) for it in words if it.anchor == "end"]
    for y, start in ends:
        assert all(it.x + LETTER * it.size * len(it.text) < start for it in words if it.y == y and it.anchor == "start")


def test_a_bar_is_as_long_as_its_figure() -> None:
    bars = [it for it in drawn("passed") if isinstance(it, Bar)]
    slim, dense = bars[2:4]  # MACs come second
    assert slim.width / dense.width == pytest.approx(20133632 / 40551808, abs=0.001)


def test_both_say_the_same_and_the_pixels_are_an_image_of_that_size() -> None:
    found = drawn("passed")
    svg = as_svg(found, "")
    assert "cifar_resnet20 on cifar10" in svg
    assert ">91.30 %<" in svg
    assert ">dense 91.73 %<" in svg
    png = as_png(found)
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", png[16:24]) == (WIDTH, HEIGHT)
    assert as_png(found) == png
    assert as_png(found[1:]) != png


def test_a_failed_file_is_called_so() -> None:
    assert "slim.onnx VERIFICATION FAILED" in as_svg(drawn("failed"), "")
