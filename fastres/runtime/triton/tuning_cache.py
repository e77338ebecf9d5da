"""What tuning measured, kept between processes: one JSON file per GPU, driver, Triton and kernels.

The folder is ``FASTRES_CACHE_DIR``, else ``fastres`` in ``XDG_CACHE_HOME``, else
``~/.cache/fastres``; it is made for its owner alone. A file is replaced whole, by a rename, under a
lock, and what other processes have added meanwhile is kept. A file that cannot be read as what it
should be is ignored with a warning and overwritten by the next result. Where nothing can be
written, results live as long as the process, and :attr:`TuningCache.note` says so.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
import threading
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastres.errors import FastresWarning
from fastres.system.files import atomic_write

try:
    import fcntl
except ImportError:  # no such locks on Windows; renames alone keep files whole there
    fcntl = None  # type: ignore[assignment]

FORMAT = 1
"""Version of the file's layout."""


@dataclass(frozen=True)
class Identity:
    """What a measured time depends on beside the layer itself.

    Attributes:
        gpu: the device's name as its driver tells it.
        driver: the driver's version.
        triton: Triton's version.
        library: the version of cuDNN or MIOpen, whose kernels are among the tactics.
        kernels: hash of the kernels' sources.
    """

    gpu: str
    driver: str
    triton: str
    library: str
    kernels: str

    @property
    def file_name(self) -> str:
        """The GPU's name to be found by, and a hash of everything."""
        readable = re.sub(r"[^a-z0-9]+", "-", self.gpu.lower()).strip("-")[:40]
        text = json.dumps(asdict(self), sort_keys=True)
        return f"tactics-{readable}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def source_hash(folders: Iterator[Path] | list[Path]) -> str:
    """Hash of all Python files in some folders, by name and content."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            digest.update(f"{path.relative_to(folder).as_posix()}\0".encode())
            digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def default_folder(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Where the cache lives, by the environment; None without a home."""
    named = environment.get("FASTRES_CACHE_DIR")
    if named:
        return Path(named)
    base = environment.get("XDG_CACHE_HOME")
    if base and Path(base).is_absolute():
        return Path(base) / "fastres"
    try:
        return Path.home() / ".cache" / "fastres"
    except RuntimeError:
        return None


class TuningCache:
    """Results by layer; safe for threads and for processes that share the file.

    Attributes:
        note: why results are not kept beyond this process, None while they are.
    """

    def __init__(self, identity: Identity, folder: Path | None) -> None:
        self.identity = identity
        self.note: str | None = None
        self._lock = threading.Lock()
        self._path: Path | None = None
        self._entries: dict[str, dict[str, Any]] = {}
        if folder is None:
            self.note = "tuning results are kept in memory only: there is no home directory"
        else:
            self._open(folder)

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str) -> dict[str, Any] | None:
        """The result stored for a layer."""
        return self._entries.get(key)

    def put(self, key: str, result: dict[str, Any]) -> None:
        """Store a layer's result, at once also in the file."""
        with self._lock:
            self._entries[key] = result
            if self._path is None:
                return
            try:
                with _locked(self._path):
                    # Somebody else's results for other layers stay; for this one the last counts.
                    self._entries = {**self._read(), **self._entries}
                    self._write(self._path)
            except OSError as error:
                self._keep_in_memory(error)

    def _open(self, folder: Path) -> None:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _refuse_foreign(folder)
            self._path = folder / self.identity.file_name
            self._entries = self._read()
        except OSError as error:
            self._keep_in_memory(error)

    def _keep_in_memory(self, error: OSError) -> None:
        self._path = None
        self.note = f"tuning results are kept in memory only: {error}"

    def _read(self) -> dict[str, dict[str, Any]]:
        """The file's entries; none where there is no file or it is not ours."""
        assert self._path is not None
        try:
            text = self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return {}
        except UnicodeDecodeError:
            return self._ignore("it is not text")
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            return self._ignore("it is not JSON")
        expected = {"format": FORMAT, **asdict(self.identity)}
        if not isinstance(content, dict) or not isinstance(content.get("entries"), dict):
            return self._ignore("it has no entries")
        for name, value in expected.items():
            if content.get(name) != value:
                return self._ignore(f"it is for {name} {content.get(name)!r}, this is {value!r}")
        entries = content["entries"]
        if not all(isinstance(entry, dict) and "tactic" in entry for entry in entries.values()):
            return self._ignore("an entry has no tactic")
        return dict(entries)

    def _ignore(self, reason: str) -> dict[str, dict[str, Any]]:
        warnings.warn(
            f"the tuning cache {self._path} is ignored: {reason}; it is overwritten by the next "
            "result, or delete it",
            FastresWarning,
            stacklevel=4,
        )
        return {}

    def _write(self, path: Path) -> None:
        content = {"format": FORMAT, **asdict(self.identity), "entries": self._entries}
        with (
            atomic_write(path, mode=0o600) as temporary,
            temporary.open("w", encoding="utf-8") as file,
        ):
            json.dump(content, file, indent=1, sort_keys=True)


def _refuse_foreign(folder: Path) -> None:
    """Others could put into our file what we would then run.

    Raises:
        PermissionError: the folder belongs to somebody else or others may write into it.
    """
    status = folder.stat()
    if hasattr(os, "getuid") and status.st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user; set FASTRES_CACHE_DIR")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"others may write into {folder}; chmod 700, or FASTRES_CACHE_DIR")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock beside ``path``; it is released when the process dies."""
    if fcntl is None:
        yield
        return
    handle = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
