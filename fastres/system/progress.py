"""A progress bar on standard error; nothing where that is no terminal."""

from __future__ import annotations

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar


class Progress:
    """One bar for the whole run. A context manager; the bar is gone when it ends."""

    def __init__(self) -> None:
        self._bar = Bar(
            TimeElapsedColumn(),
            BarColumn(bar_width=20),
            TextColumn("{task.description}"),
            console=Console(stderr=True),
            transient=True,
            disable=sys.stderr is None or not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task("starting", total=1.0)

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def show(self, text: str, fraction: float | None = None) -> None:
        """Show what is being done and, where it is known, the fraction that is done, 0 to 1."""
        self._bar.update(self._task, description=text, completed=fraction or 0.0)
