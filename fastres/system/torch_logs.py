"""Silence torch's log of errors that it also raises, and of what is no concern of the user's."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_LOGGERS = (
    "torch._subclasses.fake_tensor",
    "torch.fx.experimental.symbolic_shapes",
    "torch._export.non_strict_utils",
    "torch.utils.flop_counter",
)


_silent = threading.local()


def _is_enabled(record: logging.LogRecord) -> bool:
    return not getattr(_silent, "depth", 0)


@contextmanager
def silence_torch_logs() -> Iterator[None]:
    """A context in which torch's shape functions and capture log nothing, in this thread."""
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_is_enabled)  # adding a filter twice has no effect
    _silent.depth = getattr(_silent, "depth", 0) + 1
    try:
        yield
    finally:
        _silent.depth -= 1
