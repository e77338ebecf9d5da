"""Faults put into a stage on purpose, to see that the page shows them.

``wrong``: a result is spoilt where it is compared, or marked where nothing is. ``exception``: a
result raises. ``time``: the stage hangs until it is killed, which is not waited for longer than it
takes to be seen.
"""

from __future__ import annotations

import time
from pathlib import Path

from torch import Tensor

KINDS = ("wrong", "exception", "time")

_LEFT: list[str] = []


class SeededFault(Exception):
    """Raised on purpose."""


def seed(kinds: str) -> None:
    """Put faults into this process: kinds with commas between them, in the order they strike."""
    _LEFT[:] = [kind for kind in kinds.split(",") if kind]


def left() -> list[str]:
    """Those that have not struck yet."""
    return list(_LEFT)


def strikes(kind: str) -> bool:
    """Whether that fault is next; then it has struck."""
    if _LEFT[:1] != [kind]:
        return False
    _LEFT.pop(0)
    return True


def spoilt(output: Tensor) -> Tensor:
    """An answer, or half as much again of it where it is to be wrong."""
    return output * 1.5 if strikes("wrong") else output


def hang(folder: Path, stage: str) -> None:
    """Do not come back."""
    _marker(folder, stage).touch()
    time.sleep(3600)


def hangs(folder: Path, stage: str) -> bool:
    """Whether a stage hangs on purpose."""
    return _marker(folder, stage).exists()


def unmark(folder: Path, stage: str) -> None:
    """Forget that it did."""
    _marker(folder, stage).unlink(missing_ok=True)


def _marker(folder: Path, stage: str) -> Path:
    return folder / f".{stage}.hangs"
