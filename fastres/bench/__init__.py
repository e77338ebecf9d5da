"""The bench: one model, several ways to run it, side by side. ``python -m fastres.bench --help``.

Every peer's answers are compared with the model in float64 before it is timed, peers take
turns call by call, and a record keeps every single time with the whole environment.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the bench's command line.

    Args:
        argv: arguments without the program's name; None takes them from ``sys.argv``.

    Returns:
        The exit status: 0, or 1 if fastres itself failed its check, or 2 for an option that
        cannot be.

    Raises:
        SystemExit: for ``--help`` (0) and for what the parser rejects (2).
    """
    from fastres.bench.command import run

    return run(argv)
