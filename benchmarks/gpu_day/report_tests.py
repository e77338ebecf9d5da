"""A plugin for pytest that appends every test's outcome to a file of results as it comes.

``-p benchmarks.gpu_day.report_tests``, with the file in ``FASTRES_GPU_DAY_TESTS``. What was over
when pytest is killed is known, failures with the last lines of their tracebacks; tests named in the
file beside it (``.done``) are not run again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

FILE = "FASTRES_GPU_DAY_TESTS"
LINES = 30
"""Of a traceback: its end says what happened."""


def done_beside(path: Path) -> Path:
    """The file with the names of tests that need not run again."""
    return path.with_suffix(".done")


class Report:
    """One process's part: with ``-n`` the controller writes, and workers leave out what is done."""

    def __init__(self, path: Path, is_worker: bool) -> None:
        self.path, self.is_worker = path, is_worker
        beside = done_beside(path)
        self.done = set(beside.read_text().splitlines()) if beside.exists() else set[str]()
        self.planned = False

    def write(self, record: dict[str, Any]) -> None:
        """A line, on the disk before this returns."""
        if not self.is_worker:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """Leave out what is done."""
        again = [item for item in items if item.nodeid in self.done]
        if again:
            items[:] = [item for item in items if item.nodeid not in self.done]
            config.hook.pytest_deselected(items=again)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: Any, ids: Sequence[str]) -> None:
        """What will run, as the first worker tells it."""
        self._plan(len(ids))

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """What will run, without workers."""
        if session.items:
            self._plan(len(session.items))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """An outcome: of the call, or of what failed or was skipped around it."""
        if report.when != "call" and report.passed:
            return
        record: dict[str, Any] = {"key": report.nodeid, "seconds": round(report.duration, 3)}
        if report.failed:
            record |= {"ok": False, "text": "\n".join(report.longreprtext.splitlines()[-LINES:])}
        elif report.skipped:
            record["skipped"] = report.longreprtext.splitlines()[-1][-200:]
        else:
            record["ok"] = True
        self.write(record)

    def _plan(self, count: int) -> None:
        if not self.planned:
            self.planned = True
            self.write({"planned": count + len(self.done) + 1})  # and the whole


def pytest_configure(config: pytest.Config) -> None:
    """Write where the environment says, if it does."""
    if FILE in os.environ:
        report = Report(Path(os.environ[FILE]), hasattr(config, "workerinput"))
        config.pluginmanager.register(report, "fastres-gpu-day")
