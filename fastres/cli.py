"""The console script ``fastres``: ``fastres bench ...`` is ``python -m fastres.bench ...``."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence

from fastres.version import __version__

_COMMANDS = ("bench", "export", "inspect", "predict", "roofline", "verify")

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
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE, end="")
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"fastres {__version__}")
        return 0
    if arguments[0] not in _COMMANDS:
        print(f"fastres: there is no command {arguments[0]!r}\n{_USAGE}", end="", file=sys.stderr)
        return 2
    kept = sys.argv
    sys.argv = [f"fastres {arguments[0]}", *arguments[1:]]
    try:
        runpy.run_module(f"fastres.{arguments[0]}", run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.argv = kept
    return 0
