"""Bring a picture to its size with Pillow alone, as the client of the shipped file does it, to the last bit."""

from PIL import Image, ImageOps

from hoyer_export.preprocessing import Preprocessing


def resized(image: Image.Image, how: Preprocessing) -> Image.Image:
    """Return the image in the size of ``how.shape``, as ``how.resize`` says."""
    height, width = how.shape[1:]
    filter_ = _filter(how)
    if how.resize == "pad":
        return ImageOps.pad(image, (width, height), filter_)
    if how.resize == "squash":
        return image.resize((width, height), filter_)
    short, (least, most) = how.short_side or min(height, width), sorted(image.size)
    wide, high = (short if side == least else int(short * most / least) for side in image.size)
    image = image.resize((wide, high), filter_)
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def squared(image: Image.Image, how: Preprocessing) -> Image.Image:
    """Return what a random crop is taken from: the image with the proportions that ``resized`` gives it."""
    side = max(image.size)
    if how.resize == "pad":
        return ImageOps.pad(image, (side, side), _filter(how))
    return image.resize((side, side), _filter(how)) if how.resize == "squash" else image


def _filter(how: Preprocessing) -> Image.Resampling:
    return Image.Resampling[(how.interpolation or "bilinear").upper()]
