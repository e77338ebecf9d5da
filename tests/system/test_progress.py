"""What is said on a terminal while something takes long."""

from __future__ import annotations

import io
import sys
import time

import pytest

from fastres.system import progress
from fastres.system.progress import Progress, shown_if_slow


class Terminal(io.StringIO):
    def __init__(self, is_one: bool) -> None:
        super().__init__()
        self.is_one = is_one

    def isatty(self) -> bool:
        return self.is_one


def written(
    monkeypatch: pytest.MonkeyPatch,
    is_terminal: bool = True,
    seconds: float = 0.6,
    slow: float = 0.1,
) -> str:
    terminal = Terminal(is_terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(progress, "SLOW", slow)
    with shown_if_slow("ResNet: capture"):
        time.sleep(seconds)
    return terminal.getvalue()


def test_what_takes_long_is_told_and_wiped_off(monkeypatch: pytest.MonkeyPatch) -> None:
    text = written(monkeypatch)
    assert "ResNet: capture" in text
    assert text.rstrip().endswith("\x1b[2K")  # the line is erased


def test_what_is_quick_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert written(monkeypatch, seconds=0.0, slow=60.0) == ""


def test_nothing_is_written_where_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert written(monkeypatch, is_terminal=False) == ""


def test_a_bar_has_the_terminal_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal(False))
    with Progress():
        assert written(monkeypatch) == ""
    assert "ResNet: capture" in written(monkeypatch)  # and has given it back


def test_an_error_passes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal(True))
    with pytest.raises(KeyError), shown_if_slow("ResNet: capture"):
        raise KeyError
