"""Atomic writes: a file is there with all of its content, or as it was before."""

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
    """A caller's argument as a path.

    Raises:
        OptionError: it is neither str, bytes nor os.PathLike.
    """
    if not isinstance(value, (str, bytes, os.PathLike)):
        raise OptionError(
            f"path={value!r}: expected the name of a file, a str or an os.PathLike such as "
            "pathlib.Path"
        )
    return Path(os.fsdecode(value))


@contextmanager
def atomic_write(path: str | os.PathLike[str], mode: int = 0o666) -> Iterator[Path]:
    """A context with a temporary file, which replaces ``path`` at the end.

    The file exists and is empty at first. Where the block raises, it is removed and ``path`` is as
    it was. Otherwise it is on the disk, under its name and with the permissions of what was there,
    when the context is left. A symbolic link keeps pointing where it does; what it points at is
    replaced. Temporary folders of processes that were killed are removed.

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
    with temporary_folder(target) as folder:
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
    """Raise an OSError where ``path`` is something that must not be replaced by a file.

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
def temporary_folder(target: Path) -> Iterator[Path]:
    """A hidden folder next to ``target``, removed afterwards, as are those of dead processes.

    Raises:
        OSError: the folder that both lie in is missing or must not be written to.
    """
    prefix = f".{target.name[:100]}."
    for leftover in target.parent.glob(f"{_escape_glob(prefix)}*{_SUFFIX}"):
        with _locked(leftover) as free:
            if free:
                shutil.rmtree(leftover, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(_SUFFIX, prefix, target.parent))
    try:
        with _locked(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


_SUFFIX = ".tmp"


def _escape_glob(text: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in text)


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Lock a folder, until this process ends at the latest; False if another process has it."""
    if fcntl is None:
        yield False
        return
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:  # no folder, or gone by now
        yield False
        return
    try:
        locked = False
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked = True
        yield locked
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
