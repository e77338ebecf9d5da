"""A run: each stage in a process of its own, ended when its time is over, with all it started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from benchmarks.gpu_day import compiling, faults
from benchmarks.gpu_day.page import page
from benchmarks.gpu_day.results import DEVICE_IS_GONE, REPOSITORY, Results
from benchmarks.gpu_day.settings import INDUCTOR, REHEARSAL, TRITON
from benchmarks.gpu_day.stages import SANITIZER_FOUND, STAGES, Options

MINUTES = 8.0
"""That the stages' seconds are meant for; another length scales them."""

FOR_THE_PAGE = 10.0
RESTARTS = 3
AFTER_A_HANG = 1.0
"""Seconds that are waited for a stage that hangs on purpose."""


@dataclass(frozen=True)
class Day:
    """What is to be run.

    Attributes:
        options: for every stage.
        minutes: in all.
        stages: names.
        rehearse: without a GPU.
        archive: kernels that were compiled before.
        seeded: by stage, kinds of faults.
        seconds: by stage, where its time is not the usual.
    """

    options: Options
    minutes: float = MINUTES
    stages: Sequence[str] = tuple(STAGES)
    rehearse: bool = False
    archive: Path | None = None
    seeded: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    def budget(self, stage: str) -> float:
        """Seconds of a stage."""
        return self.seconds.get(stage, STAGES[stage].seconds * self.minutes / MINUTES)


class Running:
    """A stage's process."""

    def __init__(self, name: str, day: Day, log: IO[str], left: float) -> None:
        self.name, self.day, self.log = name, day, log
        self.until = time.monotonic() + min(day.budget(name), left)
        self.restarts = 0
        self.over = False
        self.process = self._start(day.options)

    def watch(self) -> None:
        """Start it anew if it lost the device, end it when its time is over, note how it ended."""
        if self.over:
            return
        code, folder = self.process.poll(), self.day.options.folder
        if faults.hangs(folder, self.name):
            faults.unmark(folder, self.name)
            self.until = min(self.until, time.monotonic() + AFTER_A_HANG)
        late = time.monotonic() >= self.until
        if code is None and not late:
            return
        end_group(self.process)  # also what it left behind
        results = Results(folder, self.name)
        begun = results.begun()
        if code is None:
            self.over = True
            results.end("its time was over")
            return
        if code == SANITIZER_FOUND:
            results.put("compute-sanitizer", {"ok": False, "why": "found errors: see log.txt"})
        elif code not in (0, DEVICE_IS_GONE) and begun is not None:
            results.put(begun, {"failed": f"the process ended in it: {_status(code)}"})
        goes_on = code == DEVICE_IS_GONE or (code != 0 and begun is not None)
        self.over = not goes_on or late or self.restarts == RESTARTS
        results.end(_status(code))
        if not self.over:
            self.restarts += 1
            self.process = self._start(replace(self.day.options, again=True))

    def _start(self, options: Options) -> subprocess.Popen[bytes]:
        stage, rehearse = STAGES[self.name], self.day.rehearse
        command = [sys.executable, "-m", "benchmarks.gpu_day", "stage", self.name]
        command += ["--out", str(options.folder)]
        command += ["--earlier", str(options.earlier)] if options.earlier else []
        command += ["--at-most", str(options.most)] if options.most is not None else []
        command += ["--autotune"] if options.autotune else []
        command += ["--again"] if options.again else []
        if not options.again and self.name in self.day.seeded:
            command += ["--fault", self.day.seeded[self.name]]
        if not rehearse:
            command = [*stage.prefix, *command]
        if stage.niceness:
            command = ["nice", "-n", str(stage.niceness), *command]
        return subprocess.Popen(
            command,
            stdout=self.log,
            stderr=self.log,
            cwd=REPOSITORY,
            env=self._environment(),
            start_new_session=True,
        )

    def _environment(self) -> dict[str, str]:
        stage, rehearse = STAGES[self.name], self.day.rehearse
        variables = {**os.environ, "TRITON_CACHE_DIR": str(TRITON), "PYTHONUNBUFFERED": "1"}
        variables |= {"TORCHINDUCTOR_CACHE_DIR": str(INDUCTOR), "TORCHINDUCTOR_FX_GRAPH_CACHE": "1"}
        variables.pop("TRITON_INTERPRET", None)
        concurrent = sum(other.group == stage.group for other in STAGES.values())
        if concurrent > 1:  # or each would use all cores, and wait for the others
            variables["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // concurrent))
        if rehearse:
            variables |= {REHEARSAL: "1", "CUDA_VISIBLE_DEVICES": ""}
            if stage.interpreted:
                variables["TRITON_INTERPRET"] = "1"
            return variables
        return {**variables, **stage.environment}


def run(day: Day) -> list[str]:
    """All stages, and the page."""
    began, folder = time.monotonic(), day.options.folder
    folder.mkdir(parents=True, exist_ok=True)
    if day.archive is not None:
        compiling.unpack(day.archive)

    def left() -> float:
        return day.minutes * 60 - FOR_THE_PAGE - (time.monotonic() - began)

    with (folder / "log.txt").open("a", encoding="utf-8") as log:
        for names in _groups(day.stages):
            if left() <= 5:
                break
            running = [Running(name, day, log, left()) for name in names]
            try:
                _watch(running, log, began, folder)
            finally:
                for each in running:
                    end_group(each.process)
    lines = page(folder)
    (folder / "page.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    packed(folder)
    return lines


def _watch(running: list[Running], log: IO[str], began: float, folder: Path) -> None:
    open_ones = list(running)
    while open_ones:
        for each in list(open_ones):
            each.watch()
            if each.over:
                open_ones.remove(each)
                results = Results(folder, each.name)
                text = (
                    f"[{time.monotonic() - began:5.0f} s] {each.name}: "
                    f"{results.ended[-1] if results.ended else ''}; "
                    f"{len(results.records)} results, {len(results.wrong)} wrong"
                )
                print(text, flush=True)
                log.write(text + "\n")
                log.flush()
        time.sleep(0.1)


def _groups(names: Iterable[str]) -> list[list[str]]:
    groups: dict[int, list[str]] = {}
    for name in sorted(names, key=list(STAGES).index):
        groups.setdefault(STAGES[name].group, []).append(name)
    return list(groups.values())


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process and all of its group, whether or not it is over itself."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _status(code: int) -> str:
    if code < 0:
        return f"signal {-code}"
    if code == DEVICE_IS_GONE:
        return "the device was lost"
    if code == SANITIZER_FOUND:
        return "compute-sanitizer found errors"
    return f"exit {code}"


def packed(folder: Path) -> Path:
    """All of it as one file beside it, since few files come back from a lent machine."""
    archive = folder.with_name(f"{folder.name}.tar.gz")
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    return archive
