"""The tasks of this repository: ``nox`` lints and tests, ``nox --list`` names them all.

They run in the environment that is active, with what ``pip install -e ".[dev]"`` puts there, and
install nothing. Arguments behind ``--`` go to the command: ``nox -s test -- tests/passes``.
"""

from __future__ import annotations

import nox

nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "test"]


@nox.session
def test(session: nox.Session) -> None:
    """What to run before a commit: all tests but the campaigns, in minutes."""
    session.run("pytest", "-n", "2", *session.posargs)


@nox.session(name="all-tests")
def all_tests(session: nox.Session) -> None:
    """The campaigns, too: fuzzing, seeded faults, sanitizers, whole networks, wheels."""
    session.run("pytest", "-n", "2", "-m", "", "--durations=20", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Style, format and types, of Python and of C++."""
    session.run("pre-commit", "run", "--all-files", "--show-diff-on-failure", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """ResNet-50 beside its peers, and the guard that the CPU engine is no slower than oneDNN's."""
    session.run("python", "-m", "fastres.bench", *(session.posargs or ["--depth", "50"]))
    session.run("python", "-m", "benchmarks.guard")


@nox.session
def docs(session: nox.Session) -> None:
    """Draw the import graph, and hold what the documents say to what is true."""
    session.run("python", "docs/import_graph.py")
    pages = ("tests/test_readme.py", "tests/test_docs.py", "tests/test_layers.py")
    session.run("pytest", "-m", "", *pages, *session.posargs)
