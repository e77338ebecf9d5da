"""A stage's file of results: one JSON object a line, flushed at once, so that nothing is lost.

Lines with a ``key`` are results; the last of a key counts. Others say how many results are
``planned`` and how the process ``ended``. A result that is wrong has ``"ok": false``; one that
raised has ``failed``; either has what reproduces it: seed, arguments, and where it raised.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
import traceback
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_day import faults
from fastres.bench.record import anonymous_record

Record = dict[str, Any]

REPOSITORY = Path(__file__).resolve().parent.parent.parent
_OURS = ("fastres", "kernels", "export")

DEVICE_IS_GONE = 75
"""Exit status after an error that CUDA keeps returning: in a fresh process the rest can go on."""


class DeviceIsGone(Exception):
    """Every further call to CUDA in this process returns the same error."""


@dataclass(frozen=True)
class Job:
    """What makes one result.

    Attributes:
        key: its name, unique in its stage.
        work: makes it.
        arguments: what reproduces it, beside the key and the seed that is made from the key.
    """

    key: str
    work: Callable[[], Record] = field(repr=False)
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def seed(self) -> int:
        """Of torch's generators while it works, so that it can be repeated alone."""
        return zlib.crc32(self.key.encode())


class Results:
    """The file, and what it holds.

    Args:
        folder: where the file is.
        stage: its name.
        earlier: a folder of an earlier run, whose file is copied if there is none here.

    Attributes:
        records: results by key.
        planned: how many there should be; None where the file does not say.
        ended: how each process that wrote here ended.
    """

    def __init__(self, folder: Path, stage: str, earlier: Path | None = None) -> None:
        self.folder, self.stage = folder, stage
        self.path = folder / f"{stage}.jsonl"
        self._now = folder / f".{stage}.now"
        if earlier and (earlier / self.path.name).exists() and not self.path.exists():
            shutil.copy(earlier / self.path.name, self.path)
        self.records: dict[str, Record] = {}
        self.planned: int | None = None
        self.ended: list[str] = []
        for line in self._lines():
            with contextlib.suppress(ValueError):  # what was being written when it was killed
                self._take(json.loads(line))

    @property
    def wrong(self) -> list[Record]:
        """What raised or is not right."""
        return [record for record in self.records.values() if is_wrong(record)]

    def done(self, key: str) -> bool:
        """Whether there is a result that need not be made again."""
        record = self.records.get(key)
        return record is not None and not is_wrong(record) and "skipped" not in record

    def plan(self, count: int) -> None:
        """Say how many results there should be."""
        self._put({"planned": count})

    def put(self, key: str, record: Record) -> None:
        """Add a result."""
        self._put({"key": key, **record})

    def end(self, how: str) -> None:
        """Say how the process ended, and what it was at if it did not say so itself."""
        if self._now.exists():
            how += f", in: {self._now.read_text()}"
            self._now.unlink()
        self._put({"ended": how})

    def begun(self) -> str | None:
        """The key of the result that is being made."""
        return self._now.read_text() if self._now.exists() else None

    def attempt(self, job: Job) -> None:
        """Make a result; what goes wrong is one, too.

        Raises:
            DeviceIsGone: nothing more can come of this process.
        """
        self._now.write_text(job.key)
        torch.manual_seed(job.seed)
        began = time.perf_counter()
        reproduced_by = {"seed": job.seed, "arguments": dict(job.arguments)}
        try:
            if faults.strikes("exception"):
                raise faults.SeededFault("put in on purpose")
            spoils = faults.left()[:1] == ["wrong"]
            result = job.work()
            if spoils and faults.strikes("wrong"):  # nothing was compared
                result |= {"ok": False, "why": "a fault put in on purpose"}
            if faults.strikes("time"):
                faults.hang(self.folder, self.stage)
            result["seconds"] = round(time.perf_counter() - began, 3)
            self.put(job.key, result | (reproduced_by if result.get("ok") is False else {}))
        except Exception as error:  # one result must not stop the others
            message = f"{type(error).__name__}: {str(error)[:600]}"
            self.put(job.key, {"failed": message, "at": innermost(error), **reproduced_by})
            if "CUDA error" in message or "illegal memory" in message:
                raise DeviceIsGone(message) from error
        self._now.unlink(missing_ok=True)

    def run(self, jobs: Sequence[Job], again: bool = False) -> None:
        """Make all results that are not there; ``again``: and were not tried in this run."""
        if not again:
            self.plan(len(jobs))
        for job in jobs:
            if not (self.done(job.key) or (again and job.key in self.records)):
                self.attempt(job)
        for kind in faults.left():  # of a stage with fewer results than faults
            self.attempt(Job(f"a fault of the kind {kind}", dict))

    def _lines(self) -> list[str]:
        if not self.path.exists():
            return []
        text = self.path.read_text(encoding="utf-8")
        if text and not text.endswith("\n"):
            with self.path.open("a", encoding="utf-8") as file:
                file.write("\n")
        return text.splitlines()

    def _take(self, record: Record) -> None:
        if "key" in record:
            self.records[record["key"]] = record
        elif "planned" in record:
            self.planned = record["planned"]
        elif "ended" in record:
            self.ended.append(record["ended"])

    def _put(self, record: Record) -> None:
        self._take(record)
        append(self.path, record)


def append(path: Path, record: Record) -> None:
    """One line at the end of a file, without absolute paths, on the disk before this returns."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(anonymous_record(record)) + "\n")
        file.flush()
        os.fsync(file.fileno())


def is_wrong(record: Record) -> bool:
    """Whether a result raised or is not right."""
    return "failed" in record or record.get("ok") is False


def innermost(error: BaseException) -> str:
    """The innermost line of fastres that an exception passed through, else of anything."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if _is_ours(Path(frame.filename))]
    if not frames:
        return ""
    frame = (ours or list(frames))[-1]
    path = Path(frame.filename).resolve()
    name = path.relative_to(REPOSITORY) if path.is_relative_to(REPOSITORY) else path.name
    return f"{name}:{frame.lineno} in {frame.name}: {frame.line}"


def _is_ours(path: Path) -> bool:
    path = path.resolve()
    return path.is_relative_to(REPOSITORY) and path.relative_to(REPOSITORY).parts[0] in _OURS
