"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastres.errors import OptionError

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]


def as_path(value: object) -> Path:
    """What a caller gave as the name of a file.

    Raises:
        OptionError: it is no name.
    """
    if not isinstance(value, (str, bytes, os.PathLike)):
        raise OptionError(
            f"path={value!r}: expected the name of a file, a str or an os.PathLike such as "
            "pathlib.Path"
        )
    return Path(os.fsdecode(value))


@contextmanager
def replacing(path: str | os.PathLike[str], mode: int = 0o666) -> Iterator[Path]:
    """A context with a temporary file, which takes the place of ``path`` at the end.

    The file exists and is empty at first. Where the block raises, it is removed and ``path`` is as
    it was. Otherwise it is on the disk, under its name and with the permissions of what was there,
    when the context is left. A symbolic link keeps pointing where it does; what it points at is
    replaced. What a process that was killed has left behind goes with the next one that writes
    there.

    Args:
        path: of the file.
        mode: the permissions of a new file, less those that the process's umask withholds.

    Raises:
        OSError: the folder is missing or must not be written to, ``path`` is a folder or a device,
            and such.
    """
    refuse_null(Path(path))
    target = Path(os.path.realpath(path))
    refuse_special(target)
    with folder_beside(target) as folder:
        temporary = folder / target.name
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
        old = target if target.exists() else temporary
        permissions = stat.S_IMODE(old.stat().st_mode)
        yield temporary
        temporary.chmod(permissions)  # a library may have put a private file in its place
        flush(temporary)
        temporary.replace(target)
    flush(target.parent)


def refuse_special(path: Path) -> None:
    """Raise an OSError for what is there and must not be replaced by a file.

    Raises:
        IsADirectoryError: ``path`` is a folder.
        OSError: it is a device, a pipe or a socket, ``/dev/null`` for one, or no file can be called
            so.
    """
    refuse_null(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory")
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is no regular file, and is not replaced by one")


def refuse_null(path: Path) -> None:
    """Raise an OSError for a name that no system takes, where Python raises a ValueError.

    Raises:
        OSError: there is a null byte in it.
    """
    if "\0" in str(path):
        raise OSError(f"{str(path)!a} holds a null byte")


@contextmanager
def folder_beside(target: Path) -> Iterator[Path]:
    """A hidden folder next to ``target``, gone afterwards; others of dead processes go, too.

    Raises:
        OSError: the folder that both lie in is missing or must not be written to.
    """
    prefix = f".{target.name[:100]}."
    for left in target.parent.glob(f"{_literal(prefix)}*{_SUFFIX}"):
        with _held(left) as free:
            if free:
                shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(_SUFFIX, prefix, target.parent))
    try:
        with _held(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


_SUFFIX = ".tmp"


def _literal(text: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in text)


@contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Lock a folder until its process ends at the latest; False where another one has it."""
    if fcntl is None:
        yield False
        return
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:  # no folder, or gone by now
        yield False
        return
    try:
        taken = False
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            taken = True
        yield taken
    finally:
        os.close(handle)


def flush(path: Path) -> None:
    """Have a file, or a folder's list of names, written to the disk."""
    with contextlib.suppress(PermissionError):  # Windows opens no folder
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
