"""What target says of this machine and of made-up ones: Intel, Arm, a container, no /proc."""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from fastres.system import target

INTEL = """processor	: 0
vendor_id	: GenuineIntel
model name	: Intel(R) Xeon(R) Platinum
physical id	: 0
core id		: 0
flags		: fpu sse4_2 fma avx avx2 avx512f amx_bf16 avx512_bf16 amx_tile amx_int8 hypervisor

processor	: 1
vendor_id	: GenuineIntel
model name	: Intel(R) Xeon(R) Platinum
physical id	: 0
core id		: 1
flags		: fpu

processor	: 2
physical id	: 0
core id		: 1
flags		: fpu
"""

ARM = """processor	: 0
BogoMIPS	: 2100.00
Features	: fp asimd asimdhp asimddp sve bf16 i8mm
CPU implementer	: 0x41
CPU part	: 0xd4f

processor	: 1
"""


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What torch tells of the processor; empty unless a test fills it."""
    told: dict[str, Any] = {}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told)
    return told


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def limit(root: Path, quota: str) -> None:
    """One version 2 group, holding everything, with this in its cpu.max."""
    mount = "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
    write(root, "proc/self/mountinfo", mount)
    write(root, "proc/self/cgroup", "0::/\n")
    write(root, "sys/fs/cgroup/cpu.max", quota)


def allow(monkeypatch: pytest.MonkeyPatch, processors: int) -> None:
    mask = set(range(processors))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: mask, raising=False)


@pytest.mark.parametrize(
    ("affinity", "quota", "threads"),
    [
        (8, "max 100000", 8),
        (8, "200000 100000", 2),
        (8, "150000 100000", 2),
        (8, "10000 100000", 1),
        (2, "800000 100000", 2),
        (1, "max 100000", 1),
    ],
)
def test_threads_are_affinity_or_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, affinity: int, quota: str, threads: int
) -> None:
    allow(monkeypatch, affinity)
    limit(tmp_path, quota)
    assert target.cpu_threads(tmp_path) == threads


def test_threads_without_an_affinity_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert target.cpu_threads(tmp_path) == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert target.cpu_threads(tmp_path) == 1


def test_threads_of_this_process() -> None:
    assert 1 <= target.cpu_threads() <= (os.cpu_count() or 1)


def test_intel(tmp_path: Path, told: dict[str, Any]) -> None:
    write(tmp_path, "proc/cpuinfo", INTEL)
    write(tmp_path, "proc/meminfo", "MemTotal:       1024 kB\nMemAvailable:    512 kB\n")
    for index, (level, kind, size) in enumerate(
        [("1", "Data", "48K"), ("1", "Instruction", "32K"), ("2", "Unified", "2M")]
    ):
        for name, text in (("level", level), ("type", kind), ("size", size)):
            write(tmp_path, f"sys/devices/system/cpu/cpu0/cache/index{index}/{name}", text + "\n")
    cpu = target.cpu(tmp_path)
    assert cpu.vendor == "GenuineIntel"
    assert cpu.model == "Intel(R) Xeon(R) Platinum"
    assert cpu.architecture == platform.machine()
    assert cpu.isa == (
        *("sse4_2", "avx", "fma", "avx2", "avx512f", "avx512_bf16"),
        *("amx_tile", "amx_int8", "amx_bf16"),
    )
    assert cpu.cores == 2
    assert (cpu.l1d_bytes, cpu.l2_bytes, cpu.l3_bytes) == (48 << 10, 2 << 20, None)
    assert cpu.memory_bytes == 1 << 20
    assert target.available_memory(tmp_path) == 512 << 10


def test_arm(tmp_path: Path, told: dict[str, Any]) -> None:
    told.update(cpu_name="Neoverse-V2", num_physical_cores=2, l2_cache_size=1 << 20)
    write(tmp_path, "proc/cpuinfo", ARM)
    cpu = target.cpu(tmp_path)
    assert (cpu.vendor, cpu.model, cpu.cores) == ("Arm", "Neoverse-V2", 2)
    assert cpu.isa == ("asimd", "asimdhp", "asimddp", "bf16", "i8mm", "sve")
    assert (cpu.l1d_bytes, cpu.l2_bytes) == (None, 1 << 20)


def test_extensions_as_torch_tells_them(tmp_path: Path, told: dict[str, Any]) -> None:
    told.update(avx2=True, fma3=True, avx512_f=True, avx512_bf16=False, l1d_cache_size=49152)
    cpu = target.cpu(tmp_path)
    assert cpu.isa == ("fma", "avx2", "avx512f")
    assert cpu.l1d_bytes == 49152


def test_torch_and_linux_agree_on_this_processor(tmp_path: Path) -> None:
    """Both sources name the extensions alike, so that one can stand in for the other."""
    listed = target.cpu().isa
    assert target.cpu(tmp_path).isa == listed


def test_a_system_that_tells_nothing(
    tmp_path: Path, told: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Like Windows: neither /proc nor what POSIX has; torch knows only the architecture."""
    for name in ("sched_getaffinity", "getloadavg", "sysconf"):
        monkeypatch.delattr(os, name, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    cpu = target.cpu(tmp_path)
    assert (cpu.vendor, cpu.model, cpu.cores, cpu.memory_bytes) == (None, None, None, None)
    assert (cpu.l1d_bytes, cpu.l2_bytes, cpu.l3_bytes, cpu.isa) == (None, None, None, ())
    assert cpu.threads == 4
    assert target.available_memory(tmp_path) == sys.maxsize
    record = target.environment(tmp_path)
    assert record["load_average"] is None
    assert record["cpu_threads"] == 4


def test_available_memory_is_what_the_group_leaves(tmp_path: Path) -> None:
    limit(tmp_path, "max 100000")
    write(tmp_path, "proc/meminfo", "MemTotal: 1024 kB\nMemAvailable: 512 kB\n")
    write(tmp_path, "sys/fs/cgroup/memory.max", "300000\n")
    write(tmp_path, "sys/fs/cgroup/memory.current", "100000\n")
    assert target.available_memory(tmp_path) == 200000


def test_memory_of_this_machine() -> None:
    total = target.cpu().memory_bytes
    assert total is not None
    assert 0 < target.available_memory() <= total


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_supported_dtype_runs_in_onednn(dtype: torch.dtype) -> None:
    if not target.onednn_supports(dtype):
        assert dtype != torch.float32 or not torch.backends.mkldnn.is_available()
        return
    x, weight = torch.ones(1, 16, 4, 4, dtype=dtype), torch.ones(16, 16, 1, 1, dtype=dtype)
    y = torch.ops.mkldnn._convolution_pointwise(
        x, weight, None, [0, 0], [1, 1], [1, 1], 1, "none", [], ""
    )
    assert y.dtype == dtype
    assert torch.equal(y, torch.full_like(y, 16))


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8, torch.complex64])
def test_other_dtypes_are_not_supported(dtype: torch.dtype) -> None:
    assert not target.onednn_supports(dtype)


def test_without_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.setattr(torch.__config__, "show", lambda: "PyTorch built with:\n  - GCC 13.3")
    assert not any(map(target.onednn_supports, (torch.float32, torch.bfloat16, torch.float16)))
    assert target.onednn_version() is None


@pytest.mark.parametrize(
    "line", ["- Intel(R) MKL-DNN v3.12.0 (Git Hash 80af)", "- oneDNN v3.12.0 (Git Hash 80af)"]
)
def test_onednn_version(monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    monkeypatch.setattr(torch.__config__, "show", lambda: f"PyTorch built with:\n  {line}\n")
    assert target.onednn_version() == "3.12.0"


def test_environment_is_a_whole_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("KMP_BLOCKTIME", "1")
    monkeypatch.setenv("SECRET_TOKEN", "never in a record")
    monkeypatch.setattr(platform, "node", lambda: "the host's name")
    monkeypatch.setattr(socket, "gethostname", lambda: "the host's name")
    record = target.environment()
    assert json.loads(json.dumps(record))["torch_threads"] == torch.get_num_threads()
    assert record["variables"]["OMP_NUM_THREADS"] == "3"
    assert record["variables"]["KMP_BLOCKTIME"] == "1"
    assert "never in a record" not in json.dumps(record)
    assert "the host's name" not in json.dumps(record)
    assert record["packages"]["torch"] == metadata.version("torch")
    assert record["cpu"]["threads"] == os.cpu_count()
    assert ("bfloat16" in record["onednn_dtypes"]) == target.onednn_supports(torch.bfloat16)


def test_environment_names_preloaded_libraries_without_their_folders(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/secret/place/libjemalloc.so.2:libiomp5.so")
    assert target.environment()["preloaded"] == ["libjemalloc.so.2", "libiomp5.so"]


@pytest.mark.campaign
@pytest.mark.parametrize("binding", [{"OMP_PROC_BIND": "true"}, {"OMP_PLACES": "cores"}, {}])
def test_threads_that_openmp_binds_are_counted_all(binding: dict[str, str]) -> None:
    script = "import torch; from fastres.system.target import cpu_threads; print(cpu_threads())"
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "KMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", script], env={**clean, **binding}, capture_output=True, check=True
    )
    assert int(done.stdout) == target.cpu_threads()
