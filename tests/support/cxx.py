"""The C++ compiler, and builds of ``kernels/cpu`` with it."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SOURCES = ROOT / "kernels" / "cpu"


def _compiler() -> str | None:
    """The one that setuptools takes, or None."""
    command = os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++"
    return shutil.which(shlex.split(str(command))[0])


COMPILER = _compiler()

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")


def settings() -> dict[str, Any]:
    """How ``pip install`` builds the library, from pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (module,) = project["tool"]["setuptools"]["ext-modules"]
    return dict(module)


def compile_all(output: Path, *flags: str | Path, compiler: str | None = COMPILER) -> Path:
    """Compile all of the library's sources, as ``pip install`` does, into one file.

    Args:
        output: the file.
        flags: of the compiler, behind those of pyproject.toml: ``-shared``, or further sources.
        compiler: another one, as for other processors.
    """
    assert compiler
    module = settings()
    command = [
        *(compiler, "-fPIC", *module["extra-compile-args"], *map(str, flags)),
        *(str(ROOT / source) for source in module["sources"]),
        *("-o", str(output)),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return output


def shared_library(output: Path, *flags: str, compiler: str | None = COMPILER) -> Path:
    """The library with further flags of the compiler."""
    link = settings()["extra-link-args"]
    return compile_all(output, "-shared", *flags, *link, compiler=compiler)


def tool(name: str) -> str:
    """The path of a program that comes with the compiler; skips the test where it is missing."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"needs {name}")
    return path
