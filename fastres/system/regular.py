"""Open regular files only, without blocking on a pipe or reading a device for ever."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """The file, opened for reading.

    Raises:
        OSError: there is no such file, it may not be read, or it is no regular file.
    """
    name = Path(path)
    if "\0" in str(name):
        raise OSError("a file's name cannot hold a null character")
    mode = name.stat().st_mode
    for is_kind, what in _KINDS:
        if is_kind(mode):
            raise OSError(f"it is {what}; expected a regular file")
    # Between stat and open the path may have become another file: O_NONBLOCK, and look again.
    file = os.fdopen(os.open(name, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _BINARY), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError("it is no regular file")
    return file


_BINARY = getattr(os, "O_BINARY", 0)


def read_text(path: str | os.PathLike[str], encoding: str = "utf-8") -> str:
    """The text of a file.

    Raises:
        OSError: as :func:`open_regular`.
        UnicodeDecodeError: it is no such text.
    """
    with open_regular(path) as file:
        return file.read().decode(encoding).replace("\r\n", "\n")
