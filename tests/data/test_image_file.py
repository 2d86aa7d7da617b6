"""Each of Pillow's modes is read by its own range: the same picture comes out, whatever it was saved as."""

import io
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hoyer_export.data.image_file import read_image, why_unreadable
from hoyer_export.errors import DataError

RAMP = np.tile(np.linspace(0, 1, 16), (8, 1))  # a grey picture, values in 0..1


def picture(mode: str) -> Image.Image:
    """Return the ramp as an image of a mode, made from the mode's own range."""
    bytes_ = (RAMP * 255).round().astype(np.uint8)
    if mode.startswith("I;16"):
        return Image.fromarray((RAMP * 65_535).round().astype(">u2" if mode.endswith("B") else "<u2"))
    if mode == "I":
        return Image.fromarray((RAMP * 65_535).round().astype(np.int32))
    if mode == "F":
        return Image.fromarray(RAMP.astype(np.float32))
    if mode == "P":
        image = Image.fromarray(np.tile(np.arange(16, dtype=np.uint8), (8, 1)), mode="L").convert("P")
        image.putpalette([level for level in bytes_[0] for _ in range(3)])
        return image
    return Image.fromarray(bytes_).convert(mode, dither=Image.Dither.NONE)


MODES = {
    **dict.fromkeys(
        ["L.png", "L.jpg", "L.tiff", "LA.png", "RGB.png", "RGB.jpg", "RGB.webp", "RGB.bmp", "RGBA.png"], 2.5
    ),
    **dict.fromkeys(["P.png", "P.bmp", "CMYK.jpg", "CMYK.tiff", "YCbCr.jpg", "RGBA.webp", "RGBA.tiff"], 2.5),
    **dict.fromkeys(["I;16.png", "I;16.tiff", "I;16B.tiff", "I.tiff", "I;16.pgm", "F.tiff"], 0.001),
    **dict.fromkeys(["RGBX.tiff", "YCbCr.tiff", "LAB.tiff"], 3.5),
    "1.png": 127.5,
}


@pytest.mark.parametrize("case", MODES)
def test_a_picture_is_the_same_in_every_mode(case: str, tmp_path: Path) -> None:
    mode, _, suffix = case.rpartition(".")
    path = tmp_path / f"a.{suffix}"
    options = {"quality": 100} if suffix in ("jpg", "webp") else {}
    picture(mode).save(path, **options)
    image = read_image(path)
    values = np.asarray(image, np.float64) / (1 if image.mode == "F" else 255)
    assert image.mode == ("F" if mode[0] in "IF" else "RGB")
    assert np.abs(values - (RAMP if image.mode == "F" else RAMP[..., None])).max() <= MODES[case] / 255 + 1e-9
    assert why_unreadable(path) is None


def test_transparency_is_dropped_without_a_word(tmp_path: Path) -> None:
    colours = np.zeros((4, 4, 4), np.uint8)
    colours[..., 0] = 200  # red, and nothing of it to be seen
    Image.fromarray(colours).save(tmp_path / "rgba.png")
    palette = Image.fromarray(colours[..., :3]).quantize(2)
    palette.save(tmp_path / "palette.png", transparency=bytes(256))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("rgba.png", "palette.png"):
            assert np.abs(np.asarray(read_image(tmp_path / name), int) - [200, 0, 0]).max() <= 2


def test_grey_images_of_twelve_bits_are_read_over_4095(tmp_path: Path) -> None:
    values = (RAMP * 4095).round().astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "stated.tiff", tiffinfo={281: 4095})
    first, second = values[:, ::2].astype(int), values[:, 1::2].astype(int)
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], -1).astype(np.uint8)
    Image.fromarray(values).save(tmp_path / "packed.tiff", strip_size=2**20)
    content = (tmp_path / "packed.tiff").read_bytes()
    for tag, kind, before, after in ((258, 3, 16, 12), (279, 4, values.nbytes, packed.nbytes)):
        entry = struct.pack("<HHI", tag, kind, 1)
        assert content.count(entry + struct.pack("<I", before)) == 1
        content = content.replace(entry + struct.pack("<I", before), entry + struct.pack("<I", after))
    assert content.count(values.tobytes()) == 1
    (tmp_path / "packed.tiff").write_bytes(content.replace(values.tobytes(), packed.tobytes()))
    for name in ("stated.tiff", "packed.tiff"):
        assert np.abs(np.asarray(read_image(tmp_path / name)) - values / 4095).max() < 1e-6
    # The largest value of one image says nothing.
    Image.fromarray(values).save(tmp_path / "largest.tiff", tiffinfo={281: 4000})
    assert np.abs(np.asarray(read_image(tmp_path / "largest.tiff")) - values / 65_535).max() < 1e-6


def test_where_white_is_zero_white_comes_out(tmp_path: Path) -> None:
    Image.fromarray((RAMP * 65_535).round().astype(np.uint16)).save(tmp_path / "a.tiff", tiffinfo={262: 0})
    assert np.abs(np.asarray(read_image(tmp_path / "a.tiff")) - (1 - RAMP)).max() < 1e-4


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.array([[0, 255]], np.float32), "its values go from 0 to 255; expected 0 to 1 in mode F"),
        (np.array([[-1, 1]], np.float32), "its values go from -1 to 1; expected 0 to 1 in mode F"),
        (np.array([[np.nan, 1]], np.float32), "its values go from nan to nan; expected 0 to 1 in mode F"),
        (np.array([[0, 65_536]], np.int32), "its values go from 0 to 65536; expected 0 to 65,535 in mode I"),
        (np.array([[-5, 7]], np.int32), "its values go from -5 to 7; expected 0 to 65,535 in mode I"),
    ],
)
def test_numbers_whose_range_nobody_knows_are_refused_in_one_line(values, said: str, tmp_path: Path) -> None:
    Image.fromarray(values).save(tmp_path / "a.tiff")
    with pytest.raises(DataError) as caught:
        read_image(tmp_path / "a.tiff")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert said in (why_unreadable(tmp_path / "a.tiff") or "")


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about what is damaged
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tiff", "ppm", "bmp"])
def test_the_quick_look_says_what_reading_says_wherever_a_file_is_cut_off_or_a_bit_is_wrong(
    suffix: str, tmp_path: Path
) -> None:
    generator = np.random.default_rng(0)
    whole = io.BytesIO()
    noise = Image.fromarray(generator.integers(0, 256, (20, 24, 3), dtype=np.uint8))
    noise.save(whole, {"jpg": "jpeg"}.get(suffix, suffix))
    content = whole.getvalue()
    damaged = [content[:length] for length in (*range(0, len(content), 50), *range(len(content) - 20, len(content)))]
    places = generator.integers(0, len(content), 30)
    damaged += [content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :] for place in places]
    verdicts = set()
    for number, damage in enumerate([content, *damaged]):
        path = tmp_path / f"{number}.{suffix}"
        path.write_bytes(damage)
        try:
            read_image(path)
            readable = True
        except DataError:
            readable = False
        assert (why_unreadable(path) is None) == readable, number
        verdicts.add(readable)
    assert verdicts == {True, False}
