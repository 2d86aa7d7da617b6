"""Which images a folder holds and which split each belongs to, however people lay such folders out."""

import os
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest

from hoyer_export.data.folder_layout import Layout, find_labelled
from hoyer_export.errors import DataError


def classes(folder: Path, *names: str, count: int = 20, suffix: str = "png") -> None:
    """Write so many images of every class."""
    for name in names:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            (folder / name / f"{number}.{suffix}").touch()


def counts(layout: Layout) -> list[dict[str, int]]:
    """Return how many images of every class each split has."""
    assert layout.class_names is not None
    return [dict(sorted(Counter(layout.class_names[label] for _, label in split).items())) for split in layout.splits]


@pytest.mark.parametrize("under", ["train", "Train", "training", "."])
def test_without_a_second_folder_test_images_are_held_out_first_the_same_whatever_the_seed(
    under: str, tmp_path: Path
) -> None:
    classes(tmp_path / under, "ant", "bee", count=40)
    first, second = find_labelled(tmp_path, 0.5, seed=1), find_labelled(tmp_path, 0.5, seed=2)
    assert counts(first) == [{"ant": n, "bee": n} for n in (17, 17, 6)]  # 0.15 · 40 and 0.5 · 34
    assert len({path for split in first.splits for path, _ in split}) == 80
    assert first.splits[2] == second.splits[2]
    assert first.splits[1] != second.splits[1]
    (note,) = first.notes
    assert "15 % of every class are held out as test images (seed 0), then 50 % of the rest for validation" in note


@pytest.mark.parametrize("name", ["val", "Val", "valid", "validation", "test", "TEST"])
def test_the_only_other_folder_is_the_test_set_whatever_it_is_called(name: str, tmp_path: Path) -> None:
    classes(tmp_path / "train", "ant", "bee")
    classes(tmp_path / name, "ant", "bee", count=2)
    layout = find_labelled(tmp_path, 0.2, seed=0)
    assert counts(layout) == [{"ant": 16, "bee": 16}, {"ant": 4, "bee": 4}, {"ant": 2, "bee": 2}]
    assert layout.notes == (f"test images: {name}; validation images: 20 % of train",)


def test_three_folders_are_what_they_say(tmp_path: Path) -> None:
    for part, count in (("train", 5), ("valid", 3), ("test", 2)):
        classes(tmp_path / part, "ant", "bee", count=count)
    layout = find_labelled(tmp_path, 0.2, seed=0)
    assert counts(layout) == [{"ant": n, "bee": n} for n in (5, 3, 2)]
    assert layout.notes == ()


def test_a_folder_of_pictures_is_a_class_even_if_it_is_called_train(tmp_path: Path) -> None:
    classes(tmp_path, "train", "bus", "car")
    assert find_labelled(tmp_path, 0.2, 0).class_names == ("bus", "car", "train")


def test_test_pictures_without_classes_are_no_test_set(tmp_path: Path) -> None:
    classes(tmp_path / "train", "ant", "bee")
    classes(tmp_path, "test")
    assert counts(find_labelled(tmp_path, 0.2, 0))[2] == {"ant": 3, "bee": 3}


def test_names_are_kept_and_suffixes_may_be_large(tmp_path: Path) -> None:
    names = ("grüne Äpfel", "l'été, 2024", "狗 dog", "A & B")
    for name, suffix in zip(names, ("JPG", "Png", "webp", "gif"), strict=True):
        classes(tmp_path, name, suffix=suffix)
    assert find_labelled(tmp_path, 0.2, 0).class_names == tuple(sorted(names))


@pytest.mark.skipif(sys.platform != "linux", reason="file names are text elsewhere")
def test_a_name_that_is_no_text_is_written_as_one(tmp_path: Path) -> None:
    classes(tmp_path, "ant", os.fsdecode("grün".encode("latin-1")))
    layout = find_labelled(tmp_path, 0.2, 0)
    assert layout.class_names == ("ant", "gr\ufffdn")
    assert all(Path(path).is_file() for split in layout.splits for path, _ in split)


def test_what_programs_leave_behind_is_no_class_and_other_files_are_counted(tmp_path: Path) -> None:
    classes(tmp_path, "ant", "bee")
    expected = find_labelled(tmp_path, 0.2, 0)
    for name in (".ipynb_checkpoints", "__MACOSX", "@eaDir", "ant/.thumbnails", "bee/@eaDir", "__MACOSX/ant"):
        shutil.copytree(tmp_path / "ant", tmp_path / name, ignore=shutil.ignore_patterns(".*", "@*"))
    for name in ("Thumbs.db", "ant/Thumbs.db", "ant/desktop.ini", "bee/.DS_Store", "bee/._0.png"):
        (tmp_path / name).touch()
    assert find_labelled(tmp_path, 0.2, 0) == expected
    for name in ("ant/notes.txt", "bee/a.HEIC", "bee/b.heic"):
        (tmp_path / name).touch()
    found = find_labelled(tmp_path, 0.2, 0)
    assert found.splits == expected.splits
    assert found.notes[0] == "files that are no pictures by their names are not read: 2 × .heic, 1 × .txt"


def test_names_that_are_given_order_the_classes_or_rename_them(tmp_path: Path) -> None:
    classes(tmp_path, "ant", "bee", "cat")
    layout = find_labelled(tmp_path, 0.2, 0)
    ordered, renamed = layout.in_order_of(("cat", "ant", "bee")), layout.in_order_of(("Ameise", "Biene", "Katze"))
    for given, before, after in zip(layout.splits, ordered.splits, renamed.splits, strict=True):
        assert [path for path, _ in given] == [path for path, _ in before]
        assert [label for _, label in before] == [[1, 2, 0][label] for _, label in given]
        assert after == given
    assert (ordered.class_names, renamed.class_names) == (("cat", "ant", "bee"), ("Ameise", "Biene", "Katze"))
    with pytest.raises(DataError, match=r"class_names is \['a', 'b'\]; expected 3 different names, one a class"):
        layout.in_order_of(("a", "b"))


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["train/ant", "train/bee", "val/ant", "val/bee", "valid/ant"], "has val and valid; expected one folder"),
        (["train", "val"], "it holds train and val; expected one folder a class"),
        (["ant"], "holds the class 'ant' only, so there is nothing to tell apart"),
        (["val/ant", "val/bee"], "no folder {root}/train; expected train/CLASS/*.jpg and test/CLASS/*.jpg"),
        ([], "it holds no folder; expected one folder a class"),
        (["train/ant", "train/bee", "Val/ant"], "the class 'bee' is in train only; train and Val need the same"),
    ],
)
def test_a_layout_that_is_none_is_explained_in_one_line(folders: list[str], message: str, tmp_path: Path) -> None:
    classes(tmp_path, *folders)
    with pytest.raises(DataError) as caught:
        find_labelled(tmp_path, 0.2, 0)
    assert message.format(root=tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
