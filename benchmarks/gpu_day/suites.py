"""The stages that are other programs: the tests on the GPU, and the CPU engine on AMX beside it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu_day import faults
from benchmarks.gpu_day.report_tests import FILE, done_beside
from benchmarks.gpu_day.results import REPOSITORY, Job, Record, Results
from benchmarks.gpu_day.settings import REHEARSED

CPUINFO = Path("/proc/cpuinfo")

PYTEST = (
    sys.executable,
    "-m",
    "pytest",
    "-q",
    "--tb=short",
    "-p",
    "no:benchmark",
    "-p",
    "no:cacheprovider",
    "-p",
    "benchmarks.gpu_day.report_tests",
    "-W",
    "ignore::FutureWarning",
)

FAULTY = "def test_put_in_on_purpose() -> None:\n    assert 1 == 2\n"


def tests(folder: Path) -> list[Job]:
    """The kernels' and the engine's, each a result of its own, and one for the whole."""
    which = ["tests/kernels", "-m", "gpu", "-n", "8", "-k", "not tuning_is_measured"]
    if REHEARSED:
        which = ["tests/kernels/test_elementwise_kernel.py", "-k", "add_relu", "-n", "1"]
    return [_pytest(folder, "tests", which)]


def amx(folder: Path) -> list[Job]:
    """Of the CPU engine, if the processor has AMX."""
    names = ("test_tiles", "test_amx_network", "test_amx_emulated", "test_native_convolutions")
    if not _has_amx():
        return [Job("the whole", _no_amx)]
    files = [f"tests/native/{name}.py" for name in names]
    return [_pytest(folder, "amx", [*files, "-m", "", "-n", "3"])]


def amx_layers(folder: Path) -> list[Job]:
    """ResNet-50 on the processor's AMX, beside what other engines reach."""
    command = [sys.executable, "-m", "benchmarks.layers", "--precision", "bf16", "--threads", "4"]
    command += ["--seconds", "15", "--json", str(folder / "layers_cpu_amx.json")]
    work = (lambda: _summary(command)) if _has_amx() else _no_amx
    return [Job("the whole", work)]


def _pytest(folder: Path, stage: str, which: list[str]) -> Job:
    def work() -> Record:
        results = Results(folder, stage)
        done = sorted(key for key in results.records if results.done(key))
        done_beside(results.path).write_text("".join(f"{key}\n" for key in done))
        command = [*PYTEST, *which]
        if faults.strikes("wrong"):
            faulty = folder / "test_faulty.py"
            faulty.write_text(FAULTY)
            command = [*PYTEST, "--rootdir", str(folder), str(faulty)]
        try:
            return _summary(command, **{FILE: str(results.path)})
        finally:
            done_beside(results.path).unlink()
            (folder / "test_faulty.py").unlink(missing_ok=True)

    return Job("the whole", work, {"command": " ".join(["pytest", *which])})


def _has_amx() -> bool:
    return CPUINFO.exists() and "amx_bf16" in CPUINFO.read_text()


def _no_amx() -> Record:
    return {"skipped": "no AMX on this processor"}


def _summary(command: list[str], **environment: str) -> Record:
    """What a program said last, and whether it was content."""
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        check=False,
    )
    text = (done.stdout + done.stderr)[-3000:]
    return {"ok": done.returncode == 0, "code": done.returncode, "text": text}
