"""What the kernels need to know about GPUs: figures of the makers' documents, never measured here.

An architecture is what code is compiled for; a GPU is a product with one. Nothing here asks the
machine: :mod:`fastres.system.target` does, and looks up what it found.

Sources. Limits of a multiprocessor: NVIDIA, "CUDA C++ Programming Guide", the table of technical
specifications per compute capability; AMD, "CDNA2" and "CDNA3" instruction set references and the
"HIP hardware implementation" page of the ROCm documentation. Products: the makers' data sheets and
architecture white papers (Turing TU104; Ampere GA100 and GA102; Ada AD102 and the L4 and L40S
sheets; Hopper H100 and H200; Blackwell HGX B200 and RTX GB202; Instinct MI210, MI250X, MI300X).

FLOP/s are dense, never the "with sparsity" figures, and with float32 accumulation, which on
GeForce cards is half the headline figure. A precision that a chip's matrix units lack has the
rate of what runs instead: plain float32 arithmetic; of fp8, fp16 products. Those of int8 are
operations on integers, with int32 accumulation.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from fastres.errors import OptionError

PRECISIONS: tuple[str, ...] = ("fp16", "bf16", "tf32", "fp32", "int8")
"""What kernels compute in; tf32 and fp32 both have float32 tensors."""

FIGURES: tuple[str, ...] = (*PRECISIONS, "fp8")
"""What the data sheets' peaks are given for; why no kernel computes in fp8 (e4m3) is in
``docs/decisions/no-fp8.md``."""


@dataclass(frozen=True)
class Architecture:
    """Limits of one compilation target.

    Attributes:
        name: ``sm_80``, ``gfx942``, ...
        backend: Triton's name for the maker's compiler, ``cuda`` or ``hip``.
        warp_size: threads that run in lock-step.
        max_threads: threads that one multiprocessor holds.
        registers: 32-bit registers of one multiprocessor.
        shared_bytes: shared memory of one multiprocessor.
        shared_bytes_per_block: the most of it that one block may use.
        tensor_core: the instruction family that Triton's dot products become, e.g. ``mma``,
            ``wgmma``, ``tcgen05``, ``mfma``; ``none`` where Triton uses plain multiply-adds.
        tensor_descriptors: whether the hardware copies tiles by descriptor (TMA).
        max_blocks: blocks that one multiprocessor holds.
        registers_per_thread: the most that one thread may use.
        register_unit: registers of a thread are handed out in multiples of this.
        reserved_shared_bytes: shared memory that the system takes from each block.
        schedulers: instructions that one multiprocessor can issue per cycle, each for one warp.
        tf32: whether the matrix units multiply TF32; where they do not, Triton has none either.
    """

    name: str
    backend: str
    warp_size: int
    max_threads: int
    registers: int
    shared_bytes: int
    shared_bytes_per_block: int
    tensor_core: str
    tensor_descriptors: bool
    max_blocks: int
    registers_per_thread: int = 255
    register_unit: int = 8
    reserved_shared_bytes: int = 1024
    schedulers: int = 4
    tf32: bool = True

    @property
    def chains(self) -> bool:
        """Whether a launch's programs may start before the one in front has ended.

        Programmatic dependent launch came with the copy engine that descriptors are for (sm_90).
        """
        return self.tensor_descriptors

    @property
    def max_warps(self) -> int:
        """Warps that one multiprocessor holds."""
        return self.max_threads // self.warp_size

    def computed_in(self, precision: str) -> str:
        """What kernels compute in here where ``precision`` is asked for: fp32 if there is no tf32.

        Nothing would be faster, and Triton refuses the word on AMD's chips without it.
        """
        return "fp32" if precision == "tf32" and not self.tf32 else precision


@dataclass(frozen=True)
class Gpu:
    """One product.

    Attributes:
        name: as in ``--gpu``, e.g. ``a100``.
        architecture: what code for it is compiled for.
        multiprocessors: how many (SMs, or compute units).
        clock_hz: the boost clock at which the matrix units reach ``flops``.
        memory_bytes_per_s: peak memory bandwidth.
        l2_bytes: last-level cache.
        flops: dense peak FLOP/s, by precision: those of :data:`FIGURES`.
        title: what the maker calls it; part of the device's name as the driver tells it.
    """

    name: str
    architecture: Architecture
    multiprocessors: int
    clock_hz: float
    memory_bytes_per_s: float
    l2_bytes: int
    flops: dict[str, float] = field(hash=False)
    title: str


_KIB, _MIB = 2**10, 2**20


def _nvidia(
    capability: int,
    threads: int,
    blocks: int,
    shared_kib: int,
    tensor_core: str,
    descriptors: bool = False,
    reserved_kib: int = 1,
    tf32: bool = True,
) -> Architecture:
    return Architecture(
        name=f"sm_{capability}",
        backend="cuda",
        warp_size=32,
        max_threads=threads,
        registers=64 * _KIB,
        shared_bytes=shared_kib * _KIB,
        shared_bytes_per_block=(shared_kib - reserved_kib) * _KIB,
        tensor_core=tensor_core,
        tensor_descriptors=descriptors,
        max_blocks=blocks,
        reserved_shared_bytes=reserved_kib * _KIB,
        tf32=tf32,
    )


def _amd(name: str, tf32: bool) -> Architecture:
    """Four SIMDs of 512 registers for each of 64 lanes; half of them are matrix accumulators."""
    return Architecture(
        name=name,
        backend="hip",
        warp_size=64,
        max_threads=2048,
        registers=4 * 512 * 64,
        shared_bytes=64 * _KIB,
        shared_bytes_per_block=64 * _KIB,
        tensor_core="mfma",
        tensor_descriptors=False,
        max_blocks=32,
        registers_per_thread=512,
        reserved_shared_bytes=0,
        tf32=tf32,
    )


ARCHITECTURES: dict[str, Architecture] = {
    each.name: each
    for each in (
        # Turing has tensor cores, but Triton 3.8 emits no instruction for them.
        _nvidia(
            75,
            threads=1024,
            blocks=16,
            shared_kib=64,
            tensor_core="none",
            reserved_kib=0,
            tf32=False,
        ),
        _nvidia(80, threads=2048, blocks=32, shared_kib=164, tensor_core="mma"),
        _nvidia(86, threads=1536, blocks=16, shared_kib=100, tensor_core="mma"),
        _nvidia(89, threads=1536, blocks=24, shared_kib=100, tensor_core="mma"),
        _nvidia(90, threads=2048, blocks=32, shared_kib=228, tensor_core="wgmma", descriptors=True),
        _nvidia(
            100, threads=2048, blocks=32, shared_kib=228, tensor_core="tcgen05", descriptors=True
        ),
        _nvidia(120, threads=1536, blocks=24, shared_kib=100, tensor_core="mma", descriptors=True),
        _amd("gfx90a", tf32=False),
        _amd("gfx942", tf32=True),
    )
}
"""Every target that kernels are compiled and inspected for, by its name."""


def _gpu(
    name: str,
    title: str,
    architecture: str,
    multiprocessors: int,
    mhz: float,
    gbytes_per_s: float,
    l2_mib: float,
    tflops: tuple[float, float, float, float, float, float],
) -> Gpu:
    return Gpu(
        name=name,
        architecture=ARCHITECTURES[architecture],
        multiprocessors=multiprocessors,
        clock_hz=mhz * 1e6,
        memory_bytes_per_s=gbytes_per_s * 1e9,
        l2_bytes=int(l2_mib * _MIB),
        flops=dict(zip(FIGURES, (t * 1e12 for t in tflops), strict=True)),
        title=title,
    )


GPUS: dict[str, Gpu] = {
    each.name: each
    for each in (
        # name, title, architecture, multiprocessors, MHz, GB/s, L2 in MiB,
        # TFLOP/s in fp16, bf16, tf32, fp32, int8, fp8
        _gpu("t4", "Tesla T4", "sm_75", 40, 1590, 320, 4, (65, 8.1, 8.1, 8.1, 130, 65)),
        _gpu("a10", "A10", "sm_86", 72, 1695, 600, 6, (125, 125, 62.5, 31.2, 250, 125)),
        _gpu(
            *("a100", "A100-SXM4-80GB", "sm_80", 108, 1410, 2039, 40),
            (312, 312, 156, 19.5, 624, 312),
        ),
        _gpu(
            *("a100-40gb", "A100-SXM4-40GB", "sm_80", 108, 1410, 1555, 40),
            (312, 312, 156, 19.5, 624, 312),
        ),
        _gpu(
            *("rtx3090", "GeForce RTX 3090", "sm_86", 82, 1695, 936, 6),
            (71, 71, 35.6, 35.6, 284, 71),
        ),
        _gpu("l4", "L4", "sm_89", 58, 2040, 300, 48, (121, 121, 60.5, 30.3, 242.5, 242.5)),
        _gpu("l40s", "L40S", "sm_89", 142, 2520, 864, 96, (362, 362, 183, 91.6, 733, 733)),
        _gpu(
            *("rtx4090", "GeForce RTX 4090", "sm_89", 128, 2520, 1008, 72),
            (165.2, 165.2, 82.6, 82.6, 660.6, 330.3),
        ),
        # The float32 figure of these three holds at 1980 MHz (H100, H200) and 1965 MHz (B200).
        _gpu(
            *("h100", "H100 80GB HBM3", "sm_90", 132, 1830, 3350, 50),
            (989.4, 989.4, 494.7, 66.9, 1978.9, 1978.9),
        ),
        _gpu(
            *("h200", "H200", "sm_90", 132, 1830, 4800, 50),
            (989.4, 989.4, 494.7, 66.9, 1978.9, 1978.9),
        ),
        _gpu("b200", "B200", "sm_100", 148, 1855, 8000, 126, (2250, 2250, 1125, 75, 4500, 4500)),
        _gpu(
            *("h100-pcie", "H100 PCIe", "sm_90", 114, 1620, 2000, 50),
            (756, 756, 378, 51.2, 1513, 1513),
        ),
        _gpu(
            *("rtx5090", "GeForce RTX 5090", "sm_120", 170, 2407, 1792, 96),
            (209.5, 209.5, 104.8, 104.8, 838, 419),
        ),
        # Float32 on these runs on the matrix units, in full precision.
        _gpu(
            *("mi210", "Instinct MI210", "gfx90a", 104, 1700, 1638, 8),
            (181, 181, 45.3, 45.3, 181, 181),
        ),
        # One of the two dies of an MI250X, which is what a program sees as one device.
        _gpu(
            *("mi250x", "Instinct MI250X", "gfx90a", 110, 1700, 1638, 8),
            (191.5, 191.5, 47.9, 47.9, 191.5, 191.5),
        ),
        _gpu(
            *("mi300x", "Instinct MI300X", "gfx942", 304, 2100, 5300, 256),
            (1307.4, 1307.4, 653.7, 163.4, 2614.9, 2614.9),
        ),
    )
}
"""Every product with figures, by its name."""


def by_name(name: str) -> Gpu:
    """The product of that name, in any case: ``h100``, ``A100``, ...

    Raises:
        OptionError: there is none; the message lists those there are.
    """
    found = GPUS.get(name.lower())
    if found is None:
        raise OptionError(f"gpu {name!r}: expected one of {', '.join(GPUS)}")
    return found


def architecture(name: str) -> Architecture:
    """The target of that name: ``sm_80``, ``gfx942``, ...

    Raises:
        OptionError: there is none; the message lists those there are.
    """
    found = ARCHITECTURES.get(name.lower())
    if found is None:
        raise OptionError(f"architecture {name!r}: expected one of {', '.join(ARCHITECTURES)}")
    return found


def by_capability(major: int, minor: int) -> Architecture:
    """The NVIDIA target whose limits hold for a device of compute capability ``major.minor``.

    A minor version without an entry has the limits of the nearest one below it in its family.

    Raises:
        OptionError: the family is not known, or the device is older than its first entry.
    """
    family = {
        number % 10: each
        for number, each in _capabilities().items()
        if number // 10 == major and number % 10 <= minor
    }
    if not family:
        raise OptionError(
            f"compute capability {major}.{minor}: expected one at or above an entry of its family "
            f"among {', '.join(f'{n // 10}.{n % 10}' for n in _capabilities())}"
        )
    return family[max(family)]


def _capabilities() -> dict[int, Architecture]:
    return {
        int(each.name.removeprefix("sm_")): each
        for each in ARCHITECTURES.values()
        if each.backend == "cuda"
    }


def by_device(title: str, target: Architecture, multiprocessors: int) -> Gpu:
    """The product behind a device, from what the driver tells about it.

    Args:
        title: the device's name, e.g. ``NVIDIA A100-SXM4-80GB``.
        target: its architecture, see :func:`by_capability` and :func:`architecture`.
        multiprocessors: how many it has.

    Returns:
        The product whose title the name contains; otherwise the one of that architecture with the
        nearest number of multiprocessors, its FLOP/s scaled to the device's number. An instance of
        part of a GPU (MIG) is scaled likewise, since it has its share of everything.
    """
    same = [each for each in GPUS.values() if each.architecture == target]
    # Whole words: an L40S is no L4.
    named = [each for each in same if re.search(rf"\b{re.escape(each.title)}\b", title, re.I)]
    if named:
        found = max(named, key=lambda each: len(each.title))
    else:
        found = min(same, key=lambda each: abs(each.multiprocessors - multiprocessors))
    if found.multiprocessors == multiprocessors:
        return found
    share = multiprocessors / found.multiprocessors
    return Gpu(
        name=f"{found.name}*",
        architecture=target,
        multiprocessors=multiprocessors,
        clock_hz=found.clock_hz,
        memory_bytes_per_s=found.memory_bytes_per_s * min(1.0, share),
        l2_bytes=found.l2_bytes,
        flops={precision: rate * share for precision, rate in found.flops.items()},
        title=title,
    )
