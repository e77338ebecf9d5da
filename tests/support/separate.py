"""Python code in a process of its own, for what must not or may not come back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from tests.support import ROOT

TIMEOUT = 120

not_under_sanitizers = pytest.mark.skipif(
    "libasan" in os.environ.get("LD_PRELOAD", ""), reason="programs of their own are slow there"
)


def separately(code: str, **variables: str) -> str:
    """What a program prints.

    Args:
        code: imports the tests' modules as the tests do.
        variables: of its environment, beside this process's.

    Raises:
        AssertionError: it ends with an error or by a signal, or not within two minutes.
    """
    places = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    program = subprocess.Popen(
        [sys.executable, "-W", "ignore::UserWarning", "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": places, **variables},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = program.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        os.killpg(program.pid, signal.SIGKILL)  # its children, too, which hold the pipes
        output, errors = program.communicate()
        raise AssertionError(
            f"still running after {TIMEOUT} s behind\n{output}\n{errors}"
        ) from None
    assert program.returncode == 0, (
        f"the process ended with {program.returncode} (negative: by a signal) behind\n{output}\n"
        f"{errors}"
    )
    return output
