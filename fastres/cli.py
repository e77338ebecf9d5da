"""The console script ``fastres``: ``fastres bench ...`` is ``python -m fastres.bench ...``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from fastres import __version__

_USAGE = """\
usage: fastres COMMAND [ARGUMENT ...]

commands:
  bench     time a model in fastres and elsewhere, side by side
  export    write a model as an ONNX file of standard operators, if its answers agree
  inspect   compile a model's kernels for GPUs that need not be here, and read the machine code
  predict   classify image files
  roofline  what a GPU allows for a model, and the modelled time of each kernel, without a GPU
  verify    compare an optimised model's answers with the model's own in float64

fastres COMMAND --help tells more; fastres --version prints the version.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand.

    Args:
        argv: arguments without the program's name; None takes them from ``sys.argv``.

    Returns:
        The subcommand's exit status; 2 where there is no such command.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    if not given or given[0] in ("-h", "--help"):
        print(_USAGE, end="")
        return 0 if given else 2
    if given[0] == "--version":
        print(f"fastres {__version__}")
        return 0
    command = _COMMANDS.get(given[0])
    if command is None:
        print(f"fastres: there is no command {given[0]!r}\n{_USAGE}", end="", file=sys.stderr)
        return 2
    return command(given[1:])


def _bench(argv: Sequence[str]) -> int:
    from fastres.bench import main as bench

    return bench(argv)


def _inspect(argv: Sequence[str]) -> int:
    from fastres.inspect import main as inspect

    return inspect(argv)


def _export(argv: Sequence[str]) -> int:
    from fastres.export_command import main as export

    return export(argv)


def _predict(argv: Sequence[str]) -> int:
    from fastres.predict import main as predict

    return predict(argv)


def _roofline(argv: Sequence[str]) -> int:
    from fastres.roofline import main as roofline

    return roofline(argv)


def _verify(argv: Sequence[str]) -> int:
    from fastres.verify_command import main as verify

    return verify(argv)


_COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "bench": _bench,
    "export": _export,
    "inspect": _inspect,
    "predict": _predict,
    "roofline": _roofline,
    "verify": _verify,
}
