"""The library under the compiler's sanitizers: addresses, undefined behaviour, threads.

Once from many threads, by a program of C++ alone (``threads.cpp``), as one of them wants it;
and once more all other tests in this folder, with a library that checks every access.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastres.runtime.native.abi import ISAS
from tests.support import ROOT
from tests.support.cxx import COMPILER, SOURCES, shared_library

pytestmark = [
    pytest.mark.campaign,
    pytest.mark.skipif(sys.platform != "linux", reason="written for Linux"),
]

ADDRESS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
THREAD = ["-fsanitize=thread"]
READABLE = ["-O1", "-g", "-fno-omit-frame-pointer"]

NOT_ON_THIS_PROCESSOR = 77

# What leaves torch and Python alone: they keep memory to the end, and mix allocators on purpose.
OPTIONS = "detect_leaks=0:alloc_dealloc_mismatch=0:detect_odr_violation=0:abort_on_error=0"


def runtime(name: str) -> Path:
    """The file of a sanitizer's runtime; skips the test where there is none."""
    if COMPILER is None:
        pytest.skip("needs a C++ compiler")
    command = [COMPILER, f"-print-file-name={name}"]
    path = Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    if not path.is_absolute():  # the compiler repeats what it does not find
        pytest.skip(f"needs {name}")
    return path.resolve()


def library(folder: Path, flags: list[str]) -> Path:
    return shared_library(folder / "native.so", *READABLE, *flags)


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that checks addresses and what the language leaves undefined."""
    runtime("libasan.so")
    return library(tmp_path_factory.mktemp("checked"), ADDRESS)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that watches for accesses that no lock or barrier separates."""
    runtime("libtsan.so")
    return library(tmp_path_factory.mktemp("watched"), THREAD)


def run_program(native: Path, flags: list[str], isa: int) -> None:
    """``threads.cpp`` with a library and the sanitizer that the library was built with."""
    assert COMPILER
    program = native.with_name("threads")
    if not program.exists():
        command = [
            *(COMPILER, "-std=c++17", *READABLE, *flags, "-pthread", f"-I{SOURCES}"),
            *(str(Path(__file__).with_name("threads.cpp")), str(native)),
            *(f"-Wl,-rpath,{native.parent}", "-o", str(program)),
        ]
        built = subprocess.run(command, capture_output=True, text=True)
        assert built.returncode == 0, built.stderr
    done = subprocess.run([program, str(isa), "4"], capture_output=True, text=True)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("the thread sanitizer does not know this kernel's layout of the address space")
    if done.returncode == NOT_ON_THIS_PROCESSOR:
        pytest.skip(f"needs {ISAS[isa]}")
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


@pytest.mark.parametrize("isa", ["avx2", "avx512"])
def test_many_threads_touch_nothing_of_each_other(watched: Path, isa: str) -> None:
    run_program(watched, THREAD, ISAS.index(isa))


@pytest.mark.parametrize("isa", ["avx2", "avx512"])
def test_many_threads_stay_in_their_memory(checked: Path, isa: str) -> None:
    run_program(checked, ADDRESS, ISAS.index(isa))


def under_address_sanitizer(native: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with a library that was built with that sanitizer."""
    # The C++ library comes along because the sanitizer looks for it before Python has loaded it.
    preloaded = [str(runtime(name)) for name in ("libasan.so", "libstdc++.so.6")]
    variables = {
        "LD_PRELOAD": " ".join(preloaded),
        "ASAN_OPTIONS": f"{OPTIONS}:log_path={native.with_name('report')}",
        "UBSAN_OPTIONS": f"print_stacktrace=1:log_path={native.with_name('report')}",
        "PYTHONMALLOC": "malloc",  # one that the sanitizer knows
        "FASTRES_NATIVE_LIBRARY": str(native),
        "OMP_NUM_THREADS": "1",
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=kept | variables, capture_output=True, text=True
    )


def reports(native: Path) -> str:
    """What the sanitizer had to say, which it then forgets."""
    found = ""
    for path in sorted(native.parent.glob("report.*")):
        found += path.read_text(encoding="utf-8")
        path.unlink()
    return found


def test_the_address_sanitizer_notices(checked: Path) -> None:
    code = (
        "from fastres.runtime.native.abi import COp, CPhase\n"
        "from fastres.runtime.native.library import load\n"
        "ops, phases = (COp * 2)(), (CPhase * 1)()\n"
        "load().plan_create(ops, 3, phases, 0, 1, 4096, None, 0)\n"  # one more than there are
    )
    done = under_address_sanitizer(checked, "-c", code)
    assert done.returncode != 0
    assert "heap-buffer-overflow" in reports(checked)


@pytest.mark.parametrize(("many", "lane"), [(False, ""), (True, "not campaign")])
def test_the_tests_of_the_engine_under_the_address_sanitizer(
    many: bool, lane: str, checked: Path
) -> None:
    """With their campaigns, but those of uint8 and of operators, which are more than a thousand."""
    tests = Path(__file__).parent
    # Tests that read machine code mean the ordinary build's; those of faults and of another
    # processor build others.
    named = {tests / name for name in ("test_build.py", "test_aarch64.py")}
    others = {Path(__file__), *named, *tests.glob("*_mutations.py")}
    files = [
        str(path)
        for path in sorted(tests.glob("test_*.py"))
        if path not in others and ("uint8" in path.name or "operators" in path.name) == many
    ]
    options = ["-q", "-p", "no:cacheprovider", "-m", lane, "-k", "not main_loop"]
    done = under_address_sanitizer(checked, "-m", "pytest", *options, *files)
    assert done.returncode == 0, reports(checked) + done.stdout + done.stderr
    assert " passed" in done.stdout
