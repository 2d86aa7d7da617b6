"""The headline's figures as one picture for slides: headline.svg, and headline.png of the same shapes and words.

Both stand alone on white, 1600 × 900; the page's light colours, written out, because no style sheet goes with them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Literal

from markupsafe import Markup

from hoyer_export.report.report import Report
from hoyer_export.report.summary import headline, title
from hoyer_export.report.tiles import Tile

WIDTH, HEIGHT, MARGIN = 1600, 900, 100
BAR_FROM, BAR_WIDTH = 380, 480
LETTER = 0.56
"""Width of a character in units of its size, about: what a long name has to shrink by."""
PAPER, INK, MUTED = "#ffffff", "#1a1e23", "#59636e"
SLIM, DENSE = "#0a66c2", "#a3acb6"
COLOURS = {"saving": "#0a5cb0", "loss": "#b3261e", "same": MUTED, "care": "#7d5200"}


@dataclass(frozen=True)
class Bar:
    """A filled rectangle, in pixels."""

    x: float
    y: float
    width: float
    height: float
    colour: str


@dataclass(frozen=True)
class Words:
    """One line of text that stands on ``y``, in pixels."""

    x: float
    y: float
    size: float
    text: str
    colour: str
    bold: bool = False
    anchor: Literal["start", "end"] = "start"


Shape = Bar | Words


def shapes(report: Report, tiles: Sequence[Tile]) -> tuple[Shape, ...]:
    """Return what the picture is made of."""
    return tuple(_shapes(report, tiles))


def _shapes(report: Report, tiles: Sequence[Tile]) -> Iterator[Shape]:
    network, data = title(report)
    room = WIDTH - 2 * MARGIN
    yield _fitted(130, 56, f"{network} on {data}" if data else network, room, INK, bold=True)
    yield _fitted(190, 30, headline(report), room)
    step = (HEIGHT - 240 - 110) / max(len(tiles), 1)
    for index, tile in enumerate(tiles):
        middle = 240 + step * (index + 0.5)
        yield _fitted(middle + 10, 30, tile.name, BAR_FROM - MARGIN - 10)
        yield Bar(BAR_FROM, middle - 28, max(BAR_WIDTH * tile.slim_length / 100, 2), 34, SLIM)
        yield Bar(BAR_FROM, middle + 12, max(BAR_WIDTH * tile.dense_length / 100, 2), 14, DENSE)
        yield Words(BAR_FROM + BAR_WIDTH + 40, middle - 1, 38, tile.slim, INK, bold=True)
        yield Words(WIDTH - MARGIN, middle - 1, 26, tile.change, COLOURS[tile.kind], bold=True, anchor="end")
        yield Words(BAR_FROM + BAR_WIDTH + 40, middle + 30, 24, f"dense {tile.dense}", MUTED)
    good = "verified" if report.passed else "VERIFICATION FAILED"
    runtime = report.environment.versions.get("onnxruntime", "")
    measured = f", onnxruntime {runtime} on {report.environment.cpu}" if report.bench.artifacts else ""
    made = f", {report.created[:10]}" if report.created else ""
    yield _fitted(HEIGHT - 50, 22, f"slim.onnx {good}{measured}{made}", room)


def _fitted(y: float, size: float, text: str, room: float, colour: str = MUTED, bold: bool = False) -> Words:
    words = " ".join(text.split())
    return Words(MARGIN, y, round(min(size, room / (LETTER * max(len(words), 1))), 1), words, colour, bold)


def as_svg(found: Sequence[Shape], name: str) -> str:
    """Return the picture as a file of its own.

    Args:
        found: from ``shapes``.
        name: of the picture, for those who cannot see it.
    """
    drawn = Markup("").join(_svg(shape) for shape in found)
    return Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w} {h}" width="{w}" height="{h}" role="img" '
        'font-family="system-ui, -apple-system, Segoe UI, Roboto, Helvetica Neue, Arial, sans-serif">'
        '<title>{name}</title><rect width="{w}" height="{h}" fill="{paper}"/>{drawn}</svg>\n'
    ).format(w=WIDTH, h=HEIGHT, name=name, paper=PAPER, drawn=drawn)


def _svg(shape: Shape) -> Markup:
    if isinstance(shape, Bar):
        return Markup('<rect x="{}" y="{:.1f}" width="{:.1f}" height="{}" rx="3" fill="{}"/>').format(
            shape.x, shape.y, shape.width, shape.height, shape.colour
        )
    return Markup(
        '<text x="{}" y="{:.1f}" font-size="{}" font-weight="{}" text-anchor="{}" fill="{}">{}</text>'
    ).format(shape.x, shape.y, shape.size, 650 if shape.bold else 400, shape.anchor, shape.colour, shape.text)


def as_png(found: Sequence[Shape]) -> bytes:
    """Return the picture as PNG, the same everywhere: in the font that Pillow brings, which knows ASCII alone."""
    from PIL import Image, ImageDraw, ImageFont  # nothing else in a report needs them

    image = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    draw = ImageDraw.Draw(image)
    for shape in found:
        if isinstance(shape, Bar):
            box = (shape.x, shape.y, shape.x + shape.width, shape.y + shape.height)
            draw.rounded_rectangle(box, 3, fill=shape.colour)
        else:
            text = shape.text.translate(_ASCII).encode("ascii", "replace").decode()
            draw.text(
                (shape.x, shape.y),
                text,
                shape.colour,
                ImageFont.load_default(shape.size),
                "ls" if shape.anchor == "start" else "rs",
                stroke_width=round(shape.size / 40) if shape.bold else 0,
            )
    content = BytesIO()
    image.save(content, "PNG", optimize=True)
    return content.getvalue()


_ASCII = str.maketrans({"×": "x", "–": "-", "±": "+/-", "·": "-", "÷": "/"})
