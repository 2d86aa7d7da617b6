"""Where the images of a folder are and which split each belongs to: train/, val/ and test/, or what is held out.

What is hidden is neither a class nor an image, nor is what file managers, notebooks and archives leave there.
"""

import os
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from hoyer_export.data.splits import hold_out, the_first
from hoyer_export.errors import DataError, one_line

LAYOUT = "train/CLASS/*.jpg and test/CLASS/*.jpg (or val/)"
_FLAT = ", or CLASS/*.jpg alone"
_PARTS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
_SUFFIXES = (
    *(".apng", ".avif", ".bmp", ".dib", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"),
    *(".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
)
"""Those of pictures that Pillow opens; what it merely knows of (.pdf, .mpg, .h5) is none."""
_LEFT_BEHIND = frozenset({"__macosx", "@eadir", "thumbs.db", "desktop.ini", "lost+found", "$recycle.bin"})
_TEST_SHARE = 0.15
_TEST_SEED = 0  # its own, so that the test images are the same whatever the recipe's seed

Samples = list[tuple[str, int]]
"""(path, class) of every image."""


@dataclass(frozen=True)
class Layout:
    """What was found in a folder.

    Args:
        splits: images of training, validation and test.
        class_names: in the order of the classes' numbers; None: there are no labels.
        notes: how the images were split, and what is not read.
        left_out: images that cannot be read, each with the reason.
    """

    splits: tuple[Samples, Samples, Samples]
    class_names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    def without(self, paths: Collection[str], left_out: tuple[str, ...]) -> "Layout":
        """Return the layout without the images at ``paths``, which are said as ``left_out``.

        Raises:
            DataError: a split has none left of a class that it had.
        """
        train, validation, test = ([it for it in split if it[0] not in paths] for split in self.splits)
        for before, after in zip(self.splits, (train, validation, test), strict=True):
            if gone := {label for _, label in before} - {label for _, label in after}:
                whose = f" of the class {self.class_names[min(gone)]!r}" if self.class_names else ""
                raise DataError(f"cannot read any image{whose} in one of the splits: {the_first(left_out)}; add some")
        count = "1 unreadable image is" if len(left_out) == 1 else f"{len(left_out):,} unreadable images are"
        notes = (*self.notes, f"{count} left out: {the_first(left_out)}")
        return replace(self, splits=(train, validation, test), notes=notes, left_out=left_out)

    def in_order_of(self, class_names: tuple[str, ...] | None) -> "Layout":
        """Return the layout with these names: they order the classes if they are theirs, else they rename them.

        Raises:
            DataError: there are more or fewer of them than classes.
        """
        known, names = self.class_names, renamed(class_names, self.class_names)
        if names is None or known is None or set(names) != set(known):
            return replace(self, class_names=names)
        place = [names.index(name) for name in known]
        train, validation, test = ([(path, place[label]) for path, label in split] for split in self.splits)
        return replace(self, splits=(train, validation, test), class_names=names)


def renamed(given: tuple[str, ...] | None, known: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """Return the class names that are given, else those that are known.

    Raises:
        DataError: they are not as many, not different, or there are no classes.
    """
    if given is not None and (len(given) != len(known or ()) or len(set(given)) != len(given)):
        raise DataError(f"class_names is {list(given)}; expected {len(known or ())} different names, one a class")
    return known if given is None else given


def visible_files(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder and those in it, sorted folder by folder, but for what is hidden or left behind."""
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(filter(_is_visible, folders))
        yield from (Path(place, name) for name in sorted(files) if _is_visible(name))


def is_image(path: Path) -> bool:
    """Whether a file is a picture by its name."""
    return path.suffix.lower() in _SUFFIXES


def as_text(name: str) -> str:
    """Return the name of a file as text that can be written: its bytes may be no UTF-8."""
    return os.fsencode(name).decode("utf-8", "replace")


def _is_visible(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in _LEFT_BEHIND


def find_labelled(root: Path, validation: float, seed: int) -> Layout:
    """Find the images of a folder with one folder a class, under train/ and the like or at its top.

    With train, val and test each is what its name says, and ``validation`` is not used. With train and only one of
    the two others, that one is the test set, and the validation images are held out of train. With none of them the
    test images are held out first, with a seed of their own. Names like ``Train`` or ``valid`` mean the same.

    Args:
        root: the folder.
        validation: share of the training images that is held out, the same of every class.
        seed: decides which.

    Raises:
        DataError: a folder is missing, has no classes or images, or has other classes than train.
    """
    parts = _parts(root)
    if parts and "train" not in parts:
        raise DataError(f"no folder {root / 'train'}; expected {LAYOUT} there{_FLAT}")
    others: Counter[str] = Counter()
    found = {name: _images(folder, others) for name, folder in (parts or {"train": root}).items()}
    classes, train = found.pop("train")
    for name, (its_classes, _) in found.items():
        if odd := sorted(set(classes) ^ set(its_classes)):
            where = parts["train" if odd[0] in classes else name].name
            both = f"{parts['train'].name} and {parts[name].name}"
            raise DataError(f"{root}: the class {odd[0]!r} is in {where} only; {both} need the same classes")
    if len(classes) < 2:
        raise DataError(
            f"{parts.get('train', root)} holds the class {classes[0]!r} only, so there is nothing to tell apart;"
            " expected two folders or more, one a class"
        )
    notes = []
    if others:
        listed = ", ".join(f"{count} × {suffix or 'no suffix'}" for suffix, count in sorted(others.items()))
        notes.append(f"files that are no pictures by their names are not read: {listed}")
    if len(found) == 2:
        return Layout((train, found["val"][1], found["test"][1]), tuple(classes), tuple(notes))
    share = f"{100 * validation:g} %"
    if found:
        (name, (_, test)) = found.popitem()
        notes.append(f"test images: {parts[name].name}; validation images: {share} of {parts['train'].name}")
    else:
        train, test = _held_out(train, _TEST_SHARE, _TEST_SEED, classes)
        notes.append(
            f"there is no folder val or test: {100 * _TEST_SHARE:g} % of every class are held out as test images (seed"
            f" {_TEST_SEED}), then {share} of the rest for validation"
        )
    train, held_out = _held_out(train, validation, seed, classes)
    return Layout((train, held_out, test), tuple(classes), tuple(notes))


def _held_out(samples: Samples, share: float, seed: int, classes: list[str]) -> tuple[Samples, Samples]:
    rest, chosen = hold_out([label for _, label in samples], share, seed, classes)
    return [samples[i] for i in rest.tolist()], [samples[i] for i in chosen.tolist()]


def _parts(root: Path) -> dict[str, Path]:
    """Return train, val and test → their folders; a folder that holds pictures itself is a class, whatever its name.

    Raises:
        DataError: there is no such folder, or there are two of one part.
    """
    if not root.is_dir():
        raise DataError(f"no folder {root}; expected {LAYOUT} there{_FLAT}")
    found: dict[str, Path] = {}
    for folder in _folders(root):
        names = [part for part, names in _PARTS.items() if folder.name.lower() in names]
        if not names or any(is_image(entry) and _is_visible(entry.name) for entry in folder.iterdir()):
            continue
        if other := found.get(names[0]):
            raise DataError(f"{root} has {other.name} and {folder.name}; expected one folder for the same images")
        found[names[0]] = folder
    return found


def _folders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and _is_visible(entry.name))


def _images(folder: Path, others: Counter[str]) -> tuple[list[str], Samples]:
    """Return the classes and images of a folder with one folder a class, and count what are no images.

    Raises:
        DataError: there is no class, or one without images.
    """
    expected = "expected one folder a class, each with at least one image"
    try:
        folders = _folders(folder)
        names = [as_text(it.name) for it in folders]
        if not {name.lower() for name in names} - {name for part in _PARTS.values() for name in part}:
            raise DataError(f"{folder}: it holds {'no folder' if not names else ' and '.join(names)}; {expected}")
        samples: Samples = []
        for number, place in enumerate(folders):
            before = len(samples)
            for path in visible_files(place):
                if is_image(path):
                    samples.append((str(path), number))
                else:
                    others[path.suffix.lower()] += 1
            if len(samples) == before:
                held = f" (but {', '.join(sorted(others))})" if others else ""
                raise DataError(f"{folder}: no image in the class {place.name!r}{held}; {expected}")
    except OSError as error:
        raise DataError(f"{folder}: {one_line(error)}; {expected}") from error
    return names, samples
