"""What lies in the place of a file that never came: Git LFS' pointer to it, or a web page that says why not."""

from pathlib import Path

from hoyer_export.errors import FileError

_POINTER = b"version https://git-lfs.github.com/spec/"
_PAGE = (b"<!doctype", b"<html", b"<?xml", b"<!--")  # a lone "<" may begin the sizes of a right file


def refuse_placeholder(path: Path) -> None:
    """Refuse a file that only stands for another; whatever else is wrong with it is for its reader to say.

    Raises:
        FileError: it is a pointer or a page.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(_POINTER) + 16).lstrip(b"\xef\xbb\xbf \t\r\n")
    except OSError:
        return
    if start.startswith(_POINTER):
        raise FileError(f"{path} is a pointer of Git LFS, not the file itself; fetch that: git lfs pull")
    if start.lower().startswith(_PAGE):
        raise FileError(
            f"{path} is a web page (HTML or XML), not the file itself: the download failed, or asked to sign in; "
            "download it again"
        )
