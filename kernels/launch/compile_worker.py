"""A process that compiles launches into Triton's cache: ``python -m`` and this module's name.

It reads jobs from standard input and answers each on standard output, as pickles: the two ends are
one program, started by :mod:`fastres.kernels.launch.compile_pool` and by nobody else. What kernels
print goes to standard error.
"""

from __future__ import annotations

import importlib
import pickle
import sys
from typing import Any

from fastres.errors import FastresError
from fastres.kernels.inspection.compiling import compiled
from fastres.kernels.launch.call import KernelCall
from fastres.kernels.tuning.gpus import Architecture


def described(call: KernelCall, architecture: Architecture) -> dict[str, Any]:
    """A job: a launch on tensors without memory, its kernel by name."""
    function = call.kernel.fn
    return {
        "kernel": (function.__module__, function.__name__),
        "arguments": dict(call.arguments),
        "constants": dict(call.constants),
        "num_warps": call.num_warps,
        "num_stages": call.num_stages,
        "chained": call.chained,
        "rounds_each": call.rounds_each,
        "architecture": architecture,
    }


def work(job: dict[str, Any]) -> str | None:
    """Compile one; None, or why it cannot be."""
    module, name = job.pop("kernel")
    architecture = job.pop("architecture")
    kernel = getattr(importlib.import_module(module), name)
    try:
        compiled(KernelCall(kernel, (1, 1, 1), **job), architecture)
    except FastresError as error:
        return str(error)
    return None


def main() -> int:
    """Work until there are no more jobs."""
    jobs, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr
    while True:
        try:
            job = pickle.load(jobs)
        except EOFError:
            return 0
        pickle.dump(work(job), answers)
        answers.flush()


if __name__ == "__main__":
    sys.exit(main())
