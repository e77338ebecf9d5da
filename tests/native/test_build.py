"""The library that ``pip install`` builds: of what, for which processors, and where it cannot."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import pytest

from fastres.runtime.native import library as native_library
from tests.support import ROOT
from tests.support.cxx import (
    COMPILER,
    SOURCES,
    needs_compiler,
    settings,
    shared_library,
    tool,
)

NAME = "_native.abi3.so"


def text(path: Path) -> str:
    """A file's C++ code, without comments and attributes."""
    return re.sub(r"//.*|__attribute__\(\(.*?\)\)", "", path.read_text(encoding="utf-8"))


def in_sources(pattern: str) -> set[str]:
    """All matches in the C++ code."""
    files = sorted([*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h")])
    return {match for path in files for match in re.findall(pattern, text(path))}


def run(*command: str | Path, cwd: Path = ROOT, variables: Mapping[str, str] | None = None) -> str:
    """The output of a command that has to succeed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**kept, **(variables or {})},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def install(folder: Path, **variables: str) -> Path:
    """Install a copy of the repository into a folder of its own, as ``pip install .`` does."""
    ignored = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info", "*.so")
    copy, target = folder / "copy", folder / "target"
    shutil.copytree(ROOT, copy, symlinks=True, ignore=ignored)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    pip = [sys.executable, "-m", "pip", "install", *options, "--target"]
    run(*pip, target, copy, variables=variables)
    return target


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if COMPILER is None:
        pytest.skip("needs a C++ compiler")
    return install(tmp_path_factory.mktemp("installed"))


@pytest.fixture(scope="module")
def library(installed: Path) -> Path:
    path = installed / "fastres" / "kernels" / "cpu" / NAME
    if not path.exists():
        shared_library(installed / NAME)  # fails with what the compiler has to say
    assert path.exists()
    return path


def test_all_files_take_part() -> None:
    here = {path.name: f"kernels/cpu/{path.name}" for path in SOURCES.iterdir() if path.is_file()}
    sources = {path for name, path in here.items() if name.endswith(".cpp")}
    others = {path for name, path in here.items() if name.endswith((".h", ".map"))}
    assert sorted(settings()["sources"]) == sorted(sources)
    assert sorted(settings()["depends"]) == sorted(others)  # else a change rebuilds nothing


def test_no_flag_is_for_one_processor() -> None:
    flags = [*settings()["extra-compile-args"], *settings()["extra-link-args"]]
    assert [flag for flag in flags if flag.startswith("-m")] == []


def loaded(path: Path, *functions: str) -> list[int]:
    """What functions of a library without arguments return, asked in another process."""
    code = (
        "import ctypes, sys\n"
        "library = ctypes.CDLL(sys.argv[1])\n"
        "for name in sys.argv[2:]:\n"
        "    function = getattr(library, name)\n"
        "    function.restype = ctypes.c_int64\n"
        "    print(function())\n"
    )
    return [int(line) for line in run(sys.executable, "-c", code, path, *functions).split()]


@pytest.mark.campaign
def test_the_installed_library_answers(library: Path) -> None:
    from fastres.runtime.native.abi import ABI, COp

    (written,) = in_sources(r"#define FR_ABI (\d+)")
    assert int(written) == ABI
    assert loaded(library, "fr_abi", "fr_op_bytes") == [ABI, ctypes.sizeof(COp)]


@pytest.mark.campaign
@pytest.mark.skipif(sys.platform != "linux", reason="ELF")
def test_it_shows_its_interface_and_nothing_else(library: Path) -> None:
    lines = run(tool("nm"), "--dynamic", "--defined-only", library).splitlines()
    assert sorted(line.split()[-1] for line in lines) == sorted(in_sources(r"FR_API .*?(fr_\w+)\("))


@pytest.mark.campaign
@pytest.mark.skipif(sys.platform != "linux", reason="ELF")
def test_it_needs_what_every_system_with_torch_has(library: Path) -> None:
    needed = re.findall(r"NEEDED\s+(\S+)", run(tool("objdump"), "-p", library))
    usual = r"libstdc\+\+\.so\.6|lib(gcc_s|c|m|pthread)\.so\.\d|ld-linux\S*"
    assert "libc.so.6" in needed
    assert [name for name in needed if not re.fullmatch(usual, name)] == []


@pytest.mark.campaign
@pytest.mark.skipif(sys.platform != "linux", reason="ELF")
def test_it_is_hardened(library: Path) -> None:
    """Guarded stacks, no writable table of functions, no executable stack."""
    undefined = run(tool("nm"), "--dynamic", "--undefined-only", library)
    assert "__stack_chk_fail" in undefined
    headers = run(tool("objdump"), "-p", library)
    assert "RELRO" in headers
    assert re.search(r"(BIND_NOW|FLAGS +0x0*8)", headers)
    stack = re.search(r"STACK off.*\n.*flags (\S+)", headers)
    assert stack and stack[1] == "rw-"


def wide_functions(library: Path, registers: str) -> set[str]:
    """The functions, by bare name, whose machine code names a register of that kind."""
    found: dict[str, bool] = defaultdict(bool)
    function = ""
    code = run(tool("objdump"), "-d", "-C", "--no-show-raw-insn", library)
    for line in code.splitlines():
        if begin := re.match(r"[0-9a-f]+ <(.*)>:$", line):
            function = begin[1]
        elif re.search(registers, line):
            found[function] = True
    return {bare(name) for name in found}


def bare(name: str) -> str:
    """``tile`` of ``void fastres::(anonymous namespace)::tile<A, 3>(fastres::Tile const&)``."""
    name = re.sub(
        r" \[clone .*\]|\(anonymous namespace\)::|\.(cold|part|constprop|isra).*", "", name
    )
    while "<" in name:
        name, before = re.sub(r"<[^<>]*>", "", name), name
        if name == before:
            break
    return name.split("(")[0].split("::")[-1].split()[-1]


def with_headers(path: Path) -> str:
    """A file's text with that of our headers in it, each as often as it is named."""
    return re.sub(
        r'^#include "(.*)"$', lambda name: with_headers(SOURCES / name[1]), text(path), flags=re.M
    )


def asked(sets: str) -> set[str]:
    """The functions that ask for instruction sets, by a macro of ``target.h`` or one made of it."""
    made = in_sources(rf"#define (\w+) FR_WITH_(?:{sets})\b")
    both = "|".join([f"FR_WITH_(?:{sets})", *made])
    names = in_sources(rf"(?<!define )\b(?:{both})\b[^(;{{]*?(\w+)\s*\(")
    # Functions that a macro makes, which is given what they ask for and their name.
    endings = ["", *in_sources(r"\bTARGET\s[^(;{]*?NAME##(\w+)\(")]
    for name in in_sources(rf"\b[A-Z_]+\(\s*(?:{both})\s*,\s*(\w+)"):
        names.update(name + ending for ending in endings)
    for path in SOURCES.glob("*.cpp"):  # the functions of a part of a file
        code = with_headers(path)
        for part in re.findall(rf"^FR_BEGIN_(?:{sets})$(.*?)^FR_END$", code, re.M | re.S):
            names.update(re.findall(r"(\w+)\s*\([^;(){}]*\)\s*\{", part))
    return names


AMX = "AMX"
AVX512 = f"AVX512|AVX512_ANY|AVX512_VNNI|AVX512_BF16|{AMX}"
AVX2 = f"AVX2|AVX_VNNI|{AVX512}"


@pytest.mark.campaign
@pytest.mark.parametrize(
    ("registers", "sets", "endings"),
    [
        ("%tmm|\\t(ld|st)tilecfg|\\ttilerelease", AMX, ("_amx",)),
        ("%zmm|%k[0-7]", AVX512, ("_avx512", "_amx")),
        (
            "%ymm|\\tv[a-z]",
            AVX2,
            ("_avx2", "_avx512", "_amx"),
        ),  # every instruction with a VEX prefix
    ],
    ids=["amx", "avx512", "avx2"],
)
def test_instructions_are_only_where_they_were_asked_for(
    library: Path, registers: str, sets: str, endings: tuple[str, ...]
) -> None:
    found = wide_functions(library, registers)
    wanted = asked(sets)
    assert found or not wanted  # else the machine code was not understood
    assert [name for name in sorted(found - wanted) if not name.endswith(endings)] == []


@pytest.mark.campaign
@needs_compiler
def test_where_there_are_no_kernels_it_says_so(tmp_path: Path) -> None:
    library = shared_library(tmp_path / NAME, "-O0", "-DFR_NO_KERNELS")
    assert loaded(library, "fr_isas") == [0]
    functions = ctypes.CDLL(str(library))
    assert all(hasattr(functions, name) for name in in_sources(r"FR_API .*?(fr_\w+)\("))


def test_where_it_cannot_be_built_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_library, "find", lambda: None)
    said = {"linux": "no C++ compiler", "darwin": "is for Linux, this is darwin"}
    for platform, sentence in said.items():
        monkeypatch.setattr(sys, "platform", platform)
        reason = native_library.load.__wrapped__()
        assert isinstance(reason, str)
        assert sentence in reason


@pytest.mark.campaign
def test_without_a_compiler_it_is_installed_without_the_library(tmp_path: Path) -> None:
    target = install(tmp_path, CC="/bin/false", CXX="/bin/false")
    assert (target / "fastres" / "kernels" / "cpu" / "__init__.py").exists()
    assert list(target.rglob("*.so")) == []
    code = "from fastres.runtime.native.library import load; print(load())"
    assert "not built" in run(sys.executable, "-c", code, cwd=target)
