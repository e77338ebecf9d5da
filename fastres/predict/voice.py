"""Standard output and standard error, which may be closed, or close while work goes on."""

from __future__ import annotations

import os
from typing import Any, TextIO

from rich.console import Console


class OutputStream:
    """Prints on a stream until that is closed, and then prints nothing.

    Attributes:
        is_open: whether every write so far succeeded.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self.is_open = stream is not None  # None: closed before the process began
        self._stream = stream
        self._console = _Console(file=stream, highlight=False, soft_wrap=True, markup=False)

    def print(self, what: Any) -> None:
        """Print a line, or nothing once the stream is closed."""
        if not self.is_open or self._stream is None:
            return
        try:
            self._console.print(what)
            self._stream.flush()
        except OSError:
            self.is_open = False
            # What is still buffered is written when the process ends.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Raise what rich would end the process for."""
        raise
