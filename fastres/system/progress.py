"""Progress on standard error, if that is a terminal: a bar, or a line for what takes long."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

SLOW = 3.0
"""Seconds after which a line says what is being waited for."""

_shown = threading.Semaphore(1)
"""Taken by whoever has the terminal: two that redraw themselves would overwrite each other."""


def is_terminal() -> bool:
    """Whether somebody may be looking at standard error."""
    return sys.stderr is not None and sys.stderr.isatty()


class Progress:
    """One bar for the whole run. A context manager; the bar is gone when it ends."""

    def __init__(self) -> None:
        from rich.console import Console  # not when fastres is imported: it takes its time
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        self._bar = Bar(
            TimeElapsedColumn(),
            BarColumn(bar_width=20),
            TextColumn("{task.description}"),
            console=Console(stderr=True),
            transient=True,
            disable=not is_terminal(),
        )
        self._task = self._bar.add_task("starting", total=1.0)
        self._has_terminal = False

    def __enter__(self) -> Progress:
        self._has_terminal = _shown.acquire(blocking=False)
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()
        if self._has_terminal:
            _shown.release()

    def show(self, text: str, fraction: float | None = None) -> None:
        """Show what is being done and, where it is known, the fraction that is done, 0 to 1."""
        self._bar.update(self._task, description=text, completed=fraction or 0.0)


@contextmanager
def shown_if_slow(text: str) -> Iterator[None]:
    """Say on a terminal what is being done, and for how long, once it has taken `SLOW` seconds.

    Nothing is shown where a bar is. The line is gone when the context ends.
    """
    if not is_terminal():
        yield
        return
    ended = threading.Event()
    thread = threading.Thread(target=_show_late, args=(text, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _show_late(text: str, ended: threading.Event) -> None:
    if ended.wait(SLOW) or not _shown.acquire(blocking=False):
        return
    try:
        from rich.console import Console
        from rich.progress import Progress as Line
        from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = SpinnerColumn(), TimeElapsedColumn(), TextColumn("{task.description}")
        with Line(*columns, console=Console(stderr=True), transient=True) as line:
            line.add_task(text, total=None)
            ended.wait()
    finally:
        _shown.release()
