"""Facts about the machine: processor, caches, memory, GPU, threads, installed packages.

Nothing else in fastres looks at the operating system, the processor or torch's build, and nothing
is looked up at import. What a system does not tell is None; nothing here raises for that.
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from fastres.system import cgroup
from fastres.system.cgroup import ROOT, text
from fastres.system.versions import cpu_capabilities

_CPU0 = "sys/devices/system/cpu/cpu0"

# What decides between kernels, under Linux's names, weakest first within each family.
_EXTENSIONS = (
    "sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni",
    "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_tile", "amx_int8", "amx_bf16", "amx_fp16",
    "asimd", "asimdhp", "asimddp", "bf16", "i8mm", "sve", "sve2", "sme",
)  # fmt: skip

# torch's names, for systems without /proc/cpuinfo, where they differ from Linux's.
_TORCH_NAMES = {
    "fma3": "fma",
    "avx512_f": "avx512f",
    "avx512_bw": "avx512bw",
    "avx512_dq": "avx512dq",
    "avx512_vl": "avx512vl",
    "neon": "asimd",
    "fp16_arith": "asimdhp",
    "dot": "asimddp",
}

# Who made it, by the number in MIDR_EL1 (Arm Architecture Reference Manual).
_ARM_IMPLEMENTERS = {
    0x41: "Arm",
    0x46: "Fujitsu",
    0x48: "HiSilicon",
    0x4E: "NVIDIA",
    0x51: "Qualcomm",
    0x61: "Apple",
    0xC0: "Ampere",
}

# Environment variables that change how many threads run, where, or with which kernels.
_THREAD_VARIABLES = re.compile(
    r"(OMP|KMP|GOMP|MKL|ONEDNN|DNNL|OPENBLAS|TBB|ATEN)_\w+|MALLOC_\w+|TORCH_\w*(THREAD|CPU)\w*"
)

_PACKAGES = (
    "fastres", "torch", "numpy", "pillow", "torchvision", "timm", "triton",
    "onnx", "onnxruntime", "onnxruntime-gpu", "onnxscript", "openvino", "nncf",
    "tensorrt", "torch-tensorrt",
)  # fmt: skip


@dataclass(frozen=True)
class CpuTarget:
    """The processor, as far as the system tells.

    Attributes:
        vendor: e.g. ``GenuineIntel``, ``AuthenticAMD``, ``Arm``, ``Apple``.
        model: the name on the box.
        architecture: ``x86_64``, ``aarch64``, ``arm64``, ... as :func:`platform.machine` says.
        isa: instruction set extensions that matter to kernels, under Linux's names, e.g. ``avx2``,
            ``avx512_bf16``, ``amx_bf16``, ``sve``.
        cores: physical cores of the machine.
        threads: logical processors of the machine. How many this process may use: `cpu_threads`.
        l1d_bytes: first-level data cache of one core.
        l2_bytes: second-level cache of one core (or of the cores that share it).
        l3_bytes: third-level cache that one core sees.
        memory_bytes: the machine's memory. How much can be had now: `available_memory`.
    """

    vendor: str | None
    model: str | None
    architecture: str
    isa: tuple[str, ...]
    cores: int | None
    threads: int
    l1d_bytes: int | None
    l2_bytes: int | None
    l3_bytes: int | None
    memory_bytes: int | None


@dataclass(frozen=True)
class GpuTarget:
    """A GPU, as its driver tells.

    Attributes:
        name: e.g. ``NVIDIA A100-SXM4-80GB``.
        backend: ``cuda`` or ``hip``.
        architecture: ``sm_80``, ``gfx942``, ...
        multiprocessors: SMs, or compute units.
        memory_bytes: all of its memory.
        driver: version of the kernel module, ``unknown`` where the system does not tell.
    """

    name: str
    backend: str
    architecture: str
    multiprocessors: int
    memory_bytes: int
    driver: str


def cpu_threads(root: Path = ROOT) -> int:
    """How many threads can run at the same time: at least 1.

    The smaller of the affinity mask's size and the control groups' quota of processor time, rounded
    up. More threads than that take turns and, in kernels that wait for each other, stall.

    Args:
        root: the folder that holds ``proc`` and ``sys``.
    """
    bound = _bound_by_openmp() if root == ROOT else None
    if bound is not None:
        allowed = bound
    elif hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    else:  # macOS and Windows have no such mask, or none that Python can read
        allowed = os.cpu_count() or 1
    quota = cgroup.cpu_quota(root)
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


@functools.cache
def openmp() -> ctypes.CDLL | None:
    """torch's OpenMP runtime, None where it has none or it is no shared library of this process."""
    if not torch.backends.openmp.is_available():
        return None
    folder = Path(torch.__file__).parent
    loaded = {path for path in shared_libraries() if re.match(r"lib(gomp|iomp5|omp)\b", path.name)}
    for path in sorted(loaded, key=lambda path: folder not in path.parents):
        runtime = ctypes.CDLL(str(path))
        if hasattr(runtime, "GOMP_parallel"):
            return runtime
    return None


def _bound_by_openmp() -> int | None:
    """Processors that OpenMP may use, where it has bound this thread to one of them.

    ``OMP_PROC_BIND=true`` narrows the affinity mask of the thread that starts it, and with it that
    of all threads made later.
    """
    runtime = openmp()
    if runtime is None or not runtime.omp_get_proc_bind():
        return None
    return int(runtime.omp_get_num_procs())


FEW_THREADS = 64
"""A process may ask for this many threads on any machine, to see what a larger one would do."""


def most_threads() -> int:
    """The largest ``threads`` that is accepted.

    An OpenMP runtime that cannot create the threads it is asked for ends the process.
    """
    return max(FEW_THREADS, 2 * (os.cpu_count() or 1))


def cpu(root: Path = ROOT) -> CpuTarget:
    """Describe the processor.

    Args:
        root: the folder that holds ``proc`` and ``sys``.
    """
    capabilities = cpu_capabilities()
    info = _cpuinfo(root)
    caches = _caches(root)
    implementer = _integer(info.get("CPU implementer"))
    return CpuTarget(
        vendor=info.get("vendor_id") or _ARM_IMPLEMENTERS.get(implementer or 0),
        model=info.get("model name") or _string(capabilities.get("cpu_name")),
        architecture=platform.machine(),
        isa=_isa(info, capabilities),
        cores=_cores(root) or _integer(capabilities.get("num_physical_cores")),
        threads=os.cpu_count() or 1,
        l1d_bytes=caches.get(1) or _integer(capabilities.get("l1d_cache_size")),
        l2_bytes=caches.get(2) or _integer(capabilities.get("l2_cache_size")),
        l3_bytes=caches.get(3),
        memory_bytes=_meminfo(root).get("MemTotal") or _physical_memory(),
    )


def shared_libraries(root: Path = ROOT) -> set[Path]:
    """The shared libraries in this process; empty where the system does not tell."""
    found = set()
    for line in (text(root / "proc/self/maps") or "").splitlines():
        path = line.partition("/")[2]
        if ".so" in path:
            found.add(Path(f"/{path}"))
    return found


def available_memory(root: Path = ROOT) -> int:
    """Bytes that can be allocated now without swapping and within the control groups' limits.

    Where the system does not say (macOS, Windows) this is an upper bound: the machine's whole
    memory, or ``sys.maxsize`` if even that is unknown.

    Args:
        root: the folder that holds ``proc`` and ``sys``.
    """
    free = _meminfo(root).get("MemAvailable")
    if free is None:
        free = _physical_memory() or sys.maxsize
    left = cgroup.memory_left(root)
    return free if left is None else min(free, left)


def gpu(device: torch.device, root: Path = ROOT) -> GpuTarget:
    """Describe a GPU that torch sees.

    Args:
        device: which one; without an index the current one.
        root: the folder that holds ``proc`` and ``sys``.
    """
    properties = torch.cuda.get_device_properties(device)
    hip = torch.version.hip is not None
    name = str(getattr(properties, "gcnArchName", "")).partition(":")[0]
    return GpuTarget(
        name=properties.name,
        backend="hip" if hip else "cuda",
        architecture=name if hip else f"sm_{properties.major}{properties.minor}",
        multiprocessors=properties.multi_processor_count,
        memory_bytes=properties.total_memory,
        driver=gpu_driver(root),
    )


def gpu_driver(root: Path = ROOT) -> str:
    """Version of the GPU's kernel module, ``unknown`` where the system does not tell."""
    nvidia = re.search(r"\b\d+\.\d+(\.\d+)?\b", text(root / "proc/driver/nvidia/version"))
    return nvidia[0] if nvidia else text(root / "sys/module/amdgpu/version").strip() or "unknown"


def available_gpu_memory(device: torch.device) -> int:
    """Bytes that torch can still hand out on a GPU: what is free, and what it keeps in reserve."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def onednn_supports(dtype: torch.dtype) -> bool:
    """Whether torch's oneDNN computes convolutions in ``dtype`` on this processor.

    float32 always where torch is built with oneDNN; bfloat16 and float16 where the processor has
    what oneDNN asks for (avx512_core or avx2_vnni_2 for bfloat16, avx512_fp16 or amx_fp16 for
    float16, and their Arm counterparts); other types never.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype == torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return dtype == torch.float32


@functools.cache
def onednn_multiplies_bytes() -> bool:
    """Whether torch's oneDNN has exact sums of products of uint8 and int8 on this processor.

    Where the processor has no VNNI, oneDNN adds up pairs of products in 16 bits, which overflow. So
    it is told by what it makes of the largest products; sums come out as float32 at a scale of 1.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    x = torch.full((1, 64, 2, 2), 255, dtype=torch.uint8, device="cpu")
    weight = torch.full((32, 64, 1, 1), 127, dtype=torch.int8, device="cpu")
    scales = torch.ones(32, dtype=torch.float32, device="cpu")
    zeros = torch.zeros(32, dtype=torch.int32, device="cpu")
    shape: Any = ([1, 1], [0, 0], [1, 1], 1)
    try:
        packed = torch.ops.onednn.qconv_prepack(weight, scales, 1.0, 0, *shape, None)
        sums = torch.ops.onednn.qconv2d_pointwise.default(
            x, 1.0, 0, packed, scales, zeros, None, *shape, 1.0, 0, torch.float32, "none", [], ""
        )
    except (AttributeError, RuntimeError):  # a torch without these operators
        return False
    return bool((sums == 255 * 127 * 64).all())


def onednn_version() -> str | None:
    """Version of the oneDNN inside torch, e.g. ``3.12.0``; None if torch has none."""
    match = re.search(r"(?:MKL-DNN|oneDNN) v(\S+)", torch.__config__.show())
    return match[1] if match else None


def environment(root: Path = ROOT) -> dict[str, Any]:
    """Everything that may change a timing, as plain values for a JSON record.

    Holds neither the host's name nor the user's.

    Args:
        root: the folder that holds ``proc`` and ``sys``.
    """
    return {
        "os": _system(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "cpu": asdict(cpu(root)),
        "virtual_machine": "hypervisor" in _cpuinfo(root).get("flags", "").split(),
        "frequency_governor": text(root / _CPU0 / "cpufreq/scaling_governor") or None,
        "load_average": _load_average(),
        "cpu_threads": cpu_threads(root),
        "cpu_quota": cgroup.cpu_quota(root),
        "available_memory": available_memory(root),
        "torch_threads": torch.get_num_threads(),
        "torch_interop_threads": torch.get_num_interop_threads(),
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch_flags": {
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
            "mkldnn_enabled": bool(torch.backends.mkldnn.enabled),
            "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        },
        "onednn": onednn_version(),
        "onednn_dtypes": [
            str(dtype).removeprefix("torch.")
            for dtype in (torch.float32, torch.bfloat16, torch.float16)
            if onednn_supports(dtype)
        ],
        "variables": {
            name: value
            for name, value in sorted(os.environ.items())
            if _THREAD_VARIABLES.fullmatch(name)
        },
        "preloaded": [
            Path(name).name for name in re.split("[ :]", os.environ.get("LD_PRELOAD", "")) if name
        ],
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def _system() -> str:
    """E.g. ``Linux 6.12, glibc 2.36``: what timings may depend on, without the build's name."""
    release = ".".join(platform.release().split(".")[:2])
    library = " ".join(platform.libc_ver()).strip()
    return f"{platform.system()} {release}" + (f", {library}" if library else "")


def _cpuinfo(root: Path) -> dict[str, str]:
    """The first processor's entries in /proc/cpuinfo."""
    first, *_ = text(root / "proc/cpuinfo").split("\n\n")
    return _fields(first)


def _cores(root: Path) -> int | None:
    """Physical cores: distinct pairs of socket and core. Arm's cpuinfo has no such entries."""
    blocks = map(_fields, text(root / "proc/cpuinfo").split("\n\n"))
    return len({(b["physical id"], b["core id"]) for b in blocks if "core id" in b}) or None


def _fields(block: str) -> dict[str, str]:
    """Lines of ``name : value``."""
    pairs = (line.partition(":") for line in block.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _isa(info: Mapping[str, str], capabilities: Mapping[str, Any]) -> tuple[str, ...]:
    """Extensions by /proc/cpuinfo, which knows what the kernel enables; else by torch."""
    listed = info.get("flags") or info.get("Features")
    if listed:
        found = set(listed.split())
    else:
        found = {_TORCH_NAMES.get(name, name) for name, has in capabilities.items() if has is True}
    return tuple(name for name in _EXTENSIONS if name in found)


def _caches(root: Path) -> dict[int, int]:
    """Bytes of the data or unified cache at each level, as the first processor sees them."""
    sizes = {}
    for folder in (root / _CPU0 / "cache").glob("index*"):
        size = re.fullmatch(r"(\d+)([KM]?)", text(folder / "size"))
        level = _integer(text(folder / "level"))
        if size and level and text(folder / "type") != "Instruction":
            sizes[level] = int(size[1]) * {"": 1, "K": 1 << 10, "M": 1 << 20}[size[2]]
    return sizes


def _meminfo(root: Path) -> dict[str, int]:
    """/proc/meminfo in bytes."""
    lines = re.findall(r"^(\w+):\s+(\d+) kB$", text(root / "proc/meminfo"), re.MULTILINE)
    return {name: int(kilobytes) << 10 for name, kilobytes in lines}


def _physical_memory() -> int | None:
    """Bytes of memory by POSIX; None on Windows and where POSIX does not know."""
    if not hasattr(os, "sysconf"):
        return None
    try:
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):  # the name is not known here
        return None
    return pages * size if pages > 0 and size > 0 else None


def _load_average() -> tuple[float, float, float] | None:
    """Runnable threads over the last 1, 5 and 15 minutes; Windows does not count them."""
    if not hasattr(os, "getloadavg"):
        return None
    try:
        return os.getloadavg()
    except OSError:
        return None


def _version(package: str) -> str | None:
    """The installed version, found without importing the package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _integer(value: object) -> int | None:
    """A positive integer, also written as text in any base; else None."""
    try:
        number = int(value, 0) if isinstance(value, str) else value
    except ValueError:
        return None
    return number if type(number) is int and number > 0 else None


def _string(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
