"""Names that files say other files have: which of them lead to a plain file inside of a folder.

Manifests, checkpoints and model folders may come from others. A name in them is joined to a folder only by `inside`. Before mads
writes into such a folder, `refuse_links` looks whether it could be led elsewhere.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]*")  # what mads itself writes; no separator, no "..", no control character


class UnsafeNameError(ValueError):
    """A name leads out of its folder, or to something that is no plain file. The message says why."""


def is_plain(name: object) -> bool:
    """Whether `name` can be one part of a path that mads wrote: letters, digits, and `_ . @ + -` behind the first."""
    return isinstance(name, str) and _PART.fullmatch(name) is not None


def inside(folder: str | os.PathLike, name: object) -> Path:
    """Path of `name`, relative and with "/", below `folder`. The file need not be there.

    Only the folder itself may be, or lie behind, a symbolic link: a link below it could lead anywhere.

    Raises:
        UnsafeNameError: the name is absolute, climbs with "..", is no plain name, passes a symbolic link, or is a device, pipe
            or folder.
    """
    if not isinstance(name, str) or not all(is_plain(part) for part in name.split("/")):
        raise UnsafeNameError(f"{name!r} is no name of a file inside of its folder")
    path = Path(folder)
    for part in name.split("/"):
        path = path / part
        if path.is_symlink():
            raise UnsafeNameError(
                f"{path} is a symbolic link, which could lead anywhere; put the file itself there (the folder as a whole may be "
                "a link)"
            )
    try:
        mode = os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return path
    if not stat.S_ISREG(mode):
        raise UnsafeNameError(f"{path} is no plain file")
    return path


def refuse_links(paths: Iterable[Path], remedy: str) -> None:
    """Nothing is to be written, or removed, through these paths if one of them is a symbolic link.

    Raises:
        UnsafeNameError: naming the first link, and the remedy.
    """
    for path in paths:
        if path.is_symlink():
            raise UnsafeNameError(f"{path} is a symbolic link, and mads would write where it leads; {remedy}")


def everything_in(folder: str | os.PathLike) -> Iterable[Path]:
    """Every file and folder below `folder`, links among them, which are not followed."""
    for place, folders, files in os.walk(folder):
        yield from (Path(place) / name for name in (*folders, *files))


def no_follow(path: str, flags: int) -> int:
    """For `open(..., opener=no_follow)`: an OSError where the last part of the path is a symbolic link."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)
