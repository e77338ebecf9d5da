"""Kernels compiled where there is no GPU, for the one there will be, and packed to be taken along.

A launch on such a GPU looks for the very names in Triton's cache that are written here, if Triton
is the same. Of each kernel the machine code and its description are needed, a tenth of the cache.
"""

from __future__ import annotations

import dataclasses
import functools
import multiprocessing
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.gpu_day import engine, hard_cases, networks
from benchmarks.gpu_day.facts import FIRST_KERNEL
from benchmarks.gpu_day.kernel_cases import answered
from benchmarks.gpu_day.layers import conv_calls, specs, variants
from benchmarks.gpu_day.rehearsal import launched
from benchmarks.gpu_day.results import Job, Record, Results
from benchmarks.gpu_day.settings import ARCHITECTURE, DTYPES, GPU, REHEARSED, ROOT, TRITON
from fastres.errors import FastresError
from fastres.inspect.launches import launches
from fastres.kernels.inspection.compiling import compiled
from fastres.kernels.launch.call import KernelCall
from fastres.kernels.tuning.gpus import architecture, by_name
from fastres.roofline.layers import graph_of

ARCHIVE = Path(".gpu/cache.tar")

KINDS = ("network", "case", "layers")


class Part(NamedTuple):
    """What one process compiles at a time: of a kind, the rest says what."""

    kind: str
    name: str
    precision: str = ""
    batch: int = 0

    def __str__(self) -> str:
        return " ".join(str(word) for word in self if word)


class Compiled(NamedTuple):
    """What became of a part."""

    part: Part
    launches: int
    failed: list[str]

    def __str__(self) -> str:
        failures = "".join(f"; FAILED {each}" for each in self.failed)
        return f"{self.part}: {self.launches} launches{failures}"


def networks_to_compile() -> list[networks.Network]:
    """All that the stages run, the batch of the example among them."""
    listed = [*networks.COMPARED, *networks.TIMED]
    examples = [(model, precision, networks.EXAMPLE) for model, precision, _ in listed]
    checks = [("cifar_resnet20", "fp16", batch) for batch in (*engine.BATCHES, 8)]
    checks += [("tiny", "fp16", batch) for batch in (1, 2)]
    return list(dict.fromkeys([*examples, *listed, *checks]))


def parts(kinds: tuple[str, ...] = KINDS) -> list[Part]:
    """What is compiled, in parts of like size."""
    cases = (case.name for case in hard_cases.EVERY if case.operator != "far")
    by_kind = {
        "network": [Part("network", *network) for network in networks_to_compile()],
        "case": [Part("case", name, precision) for name in cases for precision in DTYPES],
        "layers": [Part("layers", key) for key, _ in specs()],
    }
    return [part for kind in kinds for part in by_kind[kind]]


@functools.cache
def _graph(model: str, precision: str) -> torch.fx.GraphModule:
    return graph_of(networks.calibrated(model)[0], DTYPES[precision])


def calls_of(part: Part) -> list[KernelCall]:
    """The launches of a part, on tensors without memory, or of a case on the CPU's."""
    if part.kind == "case":
        case = next(case for case in hard_cases.EVERY if case.name == part.name)
        return launched(lambda: answered(case, part.precision, "cpu"))
    if part.kind == "layers":
        spec = dict(specs())[part.name]
        return [c for config in variants(spec).values() for c in conv_calls(spec, config)[0]()]
    size = networks.size_of(part.name)
    listed = launches(
        _graph(part.name, part.precision), part.batch, size, part.precision, by_name(GPU)
    )
    return [dataclasses.replace(launch.call, chained=True) for launch in listed]


def compile_part(part: Part) -> Compiled:
    """Fill Triton's cache with a part."""
    torch.set_num_threads(1)
    calls = calls_of(part)
    reasons = [_why_not_compiled(call) for call in calls]
    return Compiled(part, len(calls), [why for why in reasons if why is not None])


def _why_not_compiled(call: KernelCall) -> str | None:
    try:
        compiled(call, architecture(ARCHITECTURE))
    except FastresError as error:
        return str(error)[-300:]
    return None


def compile_all(workers: int, parts_to_compile: list[Part]) -> Iterator[Compiled]:
    """In several processes; what is done as it is done."""
    os.environ["TRITON_CACHE_DIR"] = str(TRITON)
    TRITON.mkdir(parents=True, exist_ok=True)
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap_unordered(compile_part, parts_to_compile, chunksize=1)


def pack(archive: Path) -> int:
    """Put what launches need into an archive; its bytes."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:xz") as tar:
        for path in sorted(TRITON.rglob("*")):
            if path.suffix in (".cubin", ".json", ".so"):
                tar.add(path, path.relative_to(ROOT))
    return archive.stat().st_size


def unpack(archive: Path) -> bool:
    """Put an archive where kernels are looked for; False where there is none."""
    ROOT.mkdir(parents=True, exist_ok=True)
    if not archive.exists():
        return False
    with tarfile.open(archive) as tar:
        tar.extractall(ROOT, filter="data")
    return True


def compile_here(folder: Path) -> list[Job]:
    """The stage ``compile``: the layers' kernels on all cores, where the cache does not fit."""
    facts = Results(folder, "facts").records.get(FIRST_KERNEL, {})
    if facts.get("hit", False) and not REHEARSED:
        return [Job("the whole", lambda: {"skipped": "the cache that was brought along fits"})]
    parts_to_compile = parts(("network", "layers"))
    if REHEARSED:
        parts_to_compile = [part for part in parts_to_compile if part.name == "tiny"][:1]

    def work() -> Record:
        results = list(compile_all(1 if REHEARSED else 8, parts_to_compile))
        failed = [failure for result in results for failure in result.failed]
        return {
            "ok": not failed,
            "launches": sum(result.launches for result in results),
            "why": failed[:5],
        }

    return [Job("the whole", work)]
