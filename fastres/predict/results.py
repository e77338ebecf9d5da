"""The classes of an image, or why there are none, and their text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.text import Text


@dataclass(frozen=True)
class Choice:
    """One class that an image may belong to."""

    index: int
    label: str | None
    probability: float

    @property
    def name(self) -> str:
        """The label, or the number where there are no labels."""
        return f"class {self.index}" if self.label is None else self.label


@dataclass(frozen=True)
class Result:
    """One image file: the likeliest classes, the likeliest first, or why there are none."""

    path: Path
    choices: tuple[Choice, ...] = ()
    error: str | None = None

    @property
    def image(self) -> str:
        """The file's name as text; bytes that are no UTF-8 are written ``\\xff``."""
        return as_text(str(self.path))

    def lines(self) -> Text:
        """The result for a terminal: the file, and a line for each class."""
        text = Text(printable(self.image), style="bold")
        for choice in self.choices:
            text.append(
                f"\n  {choice.probability:8.2%}  {printable(choice.name)}", style="not bold"
            )
        return text


def as_text(name: str) -> str:
    """Text that may hold a file's name, with bytes that are no UTF-8 escaped as ``\\xff``."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def printable(text: str) -> str:
    """The text without characters that would move a terminal's cursor."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def summary(results: Sequence[Result], seconds: float) -> str:
    """``198 images in 4.1 s, 48.3 a second; 2 could not be read``."""
    failed = sum(result.error is not None for result in results)
    done = len(results) - failed
    sentence = f"{done} image{'' if done == 1 else 's'} in {seconds:.1f} s"
    if done and seconds > 0:
        sentence += f", {done / seconds:.1f} a second"
    return sentence if not failed else f"{sentence}; {failed} could not be classified"
