"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A context with a temporary file beside ``path``, which takes its place at the end.

    The file exists and is empty at first. Where the block raises, the temporary file is removed and
    ``path`` is as it was. Otherwise it is on the disk, under its name, when the context is left. A
    symbolic link keeps pointing where it does; what it points at is replaced.

    Raises:
        OSError: the folder is missing or must not be written to, ``path`` is a folder or a device,
            and such.
    """
    target = Path(os.path.realpath(path))
    refuse_special(target)
    temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(6)}.tmp")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    mode = stat.S_IMODE(temporary.stat().st_mode)
    try:
        yield temporary
        temporary.chmod(mode)  # a library may have put a private file in its place
        _flush(temporary)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _flush(target.parent)


def refuse_special(path: Path) -> None:
    """Raise an OSError for what is there and must not be replaced by a file.

    Raises:
        IsADirectoryError: ``path`` is a folder.
        OSError: it is a device, a pipe or a socket, ``/dev/null`` for one.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory")
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is no regular file, and is not replaced by one")


def _flush(path: Path) -> None:
    """Have a file, or a folder's list of names, written to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
