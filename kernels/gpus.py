"""What the kernels need to know about GPUs: figures of the makers' documents, never measured here.

An architecture is what code is compiled for; a GPU is a product with one. Nothing here asks the
machine: :mod:`fastres.target` does, and looks up what it found.
"""

from __future__ import annotations

from dataclasses import dataclass


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


@dataclass(frozen=True)
class Gpu:
    """One product.

    Attributes:
        name: as in ``--gpu``, e.g. ``a100``.
        architecture: what code for it is compiled for.
        multiprocessors: how many (SMs, or compute units).
        clock_hz: boost clock.
        memory_bytes_per_s: peak memory bandwidth.
        l2_bytes: last-level cache.
        flops: dense peak FLOP/s, by precision: ``fp16``, ``bf16``, ``tf32``, ``fp32``.
    """

    name: str
    architecture: Architecture
    multiprocessors: int
    clock_hz: float
    memory_bytes_per_s: float
    l2_bytes: int
    flops: dict[str, float]
