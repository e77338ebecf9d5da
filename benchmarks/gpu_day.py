"""A GPU for eight minutes: is it right, how fast is it, and was the model of the time right?

    python -m benchmarks.gpu_day prepare              # needs no GPU: compile for sm_90, pack the cache
    python -m benchmarks.gpu_day run --out DIR --minutes 8 [--skip STAGE ...] [--cache FILE]
    python -m benchmarks.gpu_day run --out DIR --rehearse    # needs no GPU: everything but launches
    python -m benchmarks.gpu_day show DIR             # tables of what was found

Every stage is a process of its own (a sticky CUDA error ends one stage, not the day), has a share of
the time, and appends a line of JSON per result, flushed at once. What is there already is not done
again: ``--earlier DIR`` takes the files of an earlier run. Answers come first, side by side; times
are taken alone. The files: one per stage of STAGES but ``warm``, and log.txt.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import functools
import json
import multiprocessing
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path("/tmp/fastres-gpu-day")
"""Triton's cache holds absolute paths, so it is packed and unpacked at one place on both machines."""

TRITON, INDUCTOR = ROOT / "triton", ROOT / "inductor"
GPU, ARCHITECTURE = "h100", "sm_90"
DEVICE = os.environ.get("GPU_DAY_DEVICE", "cuda")
"""``cpu`` in a rehearsal: kernels run under Triton's interpreter, then."""

PRECISIONS = ("fp16", "bf16", "tf32", "fp32")
DTYPE = {"fp16": "float16", "bf16": "bfloat16", "tf32": "float32", "fp32": "float32"}

NETWORKS = [("resnet50", p, b) for p in ("fp16", "tf32", "bf16") for b in (256, 32, 1)]
NETWORKS += [(m, "fp16", b) for m in ("resnet18", "resnext50_32x4d") for b in (256, 1)]

# name, seconds, files it needs alone on the GPU, in order. Stages of one group run side by side.
STAGES = {
    "facts": (1, 45),
    "small": (2, 100),  # under compute-sanitizer
    "kernels": (2, 100),
    "networks": (2, 100),
    "warm": (2, 100),  # torch.compile fills its cache on the CPU meanwhile
    "amx": (2, 100),  # the CPU engine's tests, where the processor has AMX
    "tests": (2, 120),
    "models": (3, 130),
    "layers": (4, 95),
    "amx_layers": (4, 95),
    "ncu": (5, 45),
}


class Out:
    """A file of results, one JSON object a line; knows what it holds."""

    def __init__(self, folder: Path, name: str, earlier: Path | None = None) -> None:
        self.path = folder / f"{name}.jsonl"
        self.done: dict[str, dict[str, Any]] = {}
        if earlier and (earlier / self.path.name).exists() and not self.path.exists():
            shutil.copy(earlier / self.path.name, self.path)
        for line in self.path.read_text().splitlines() if self.path.exists() else []:
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                if "failed" not in record:
                    self.done[record["key"]] = record

    def put(self, key: str, **record: Any) -> None:
        self.done[key] = {"key": key, **record}
        with self.path.open("a") as file:
            file.write(json.dumps(self.done[key]) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def attempt(self, key: str, work: Callable[[], dict[str, Any]]) -> None:
        """Do it unless it is done; what goes wrong is a result, except where the GPU is gone."""
        if key in self.done:
            return
        began = time.perf_counter()
        try:
            self.put(key, **work(), seconds=round(time.perf_counter() - began, 2))
        except Exception as error:
            self.put(key, failed=f"{type(error).__name__}: {str(error)[:400]}")
            if "CUDA error" in str(error) or "illegal memory" in str(error):
                raise


# ------------------------------------------------------------------ compiling, on either machine


def graph(model: str, precision: str) -> Any:
    import torch

    from fastres.bench import source
    from fastres.roofline.layers import graph_of

    return graph_of(source.build(source.parse(model), seed=0), getattr(torch, DTYPE[precision]))


def specs() -> list[tuple[str, Any, Any]]:
    """ResNet-50's distinct convolutions at each batch: (key, shape, spec)."""
    from benchmarks import shapes
    from fastres.spec import ConvSpec

    found = []
    for batch in (256, 32, 1):
        for shape in sorted(shapes.of_model("resnet50"), reverse=True):
            spec = ConvSpec(
                *(batch, shape.channels, shape.height, shape.width, shape.filters),
                *(shape.kernel, shape.kernel),
                stride=(shape.stride,) * 2,
                padding=(shape.padding,) * 4,
            )
            found.append((f"{batch} x {shape}", shape, spec))
    return found


def variants(spec: Any, precision: str = "fp16") -> dict[str, Any]:
    """The configuration chosen, and what its cost model may have been wrong about."""
    from fastres.kernels.configs.conv2d import candidates, choose_conv2d, estimate_conv2d
    from fastres.kernels.gpus import by_name

    gpu = by_name(GPU)
    every = list(candidates(spec, precision, gpu))

    def best(*conditions: Callable[[Any], bool]) -> Any:
        fitting = [config for config in every if all(holds(config) for holds in conditions)]
        key = lambda config: estimate_conv2d(spec, config, precision, gpu).seconds  # noqa: E731
        return min(fitting, key=key, default=None)

    found = {
        "chosen": choose_conv2d(spec, precision, gpu),
        "block_k=64": best(lambda c: c.block_k == 64, lambda c: c.num_stages >= 3),
        "8 warps": best(lambda c: c.num_warps == 8, lambda c: c.block_k == 64),
        "wide": best(lambda c: c.block_n == 256, lambda c: c.block_k == 64),
        "pointers": best(lambda c: not c.descriptors, lambda c: c.block_k == 64),
        "no split": best(lambda c: c.split_k == 1),
    }
    # And a broad choice, which the constants of the cost model can be fitted to.
    scored: dict[Any, tuple[float, Any]] = {}
    for config in every:
        kind = (config.block_m, config.block_n, config.block_k, config.num_warps)
        kind += (config.descriptors, config.split_k > 1)  # type: ignore[assignment]
        seconds = estimate_conv2d(spec, config, precision, gpu).seconds
        if kind not in scored or seconds < scored[kind][0]:
            scored[kind] = seconds, config
    ranked = sorted(scored.values(), key=lambda each: each[0])
    near = [each for each in ranked if each[0] <= 1.8 * ranked[0][0]]
    picked = near[:5] + near[5 :: max(1, len(near) // 6)]
    for index, (_, config) in enumerate(picked):
        found[f"sweep {index}"] = config
    distinct: dict[Any, str] = {}
    for name, config in found.items():
        if config is not None:
            distinct.setdefault(config, name)
    return {name: config for config, name in distinct.items()}


def jobs() -> list[tuple[str, ...]]:
    """What is compiled: networks, and the layers' variants, cut into parts of like size."""
    parts = [("network", *map(str, each)) for each in NETWORKS]
    parts += [("layers", str(index)) for index in range(len(specs()))]
    cases = [name for name, operator, _ in hard_cases() if operator != "far"]
    return parts + [("case", precision, name) for name in cases for precision in PRECISIONS]


def calls_of(job: tuple[str, ...]) -> list[Any]:
    """The launches of a job, on tensors without memory, or of a case on the CPU's."""
    import torch

    if job[0] == "case":
        return launched(
            lambda: run_case(*next(each[1:] for each in hard_cases() if each[0] == job[2]), job[1])
        )
    from fastres.inspect.launches import launches
    from fastres.kernels.gpus import by_name

    if job[0] == "network":
        model, precision, batch = job[1:]
        found = launches(graph(model, precision), int(batch), 224, precision, by_name(GPU))
        calls = [dataclasses.replace(launch.call, chained=True) for launch in found]
        if (model, precision) == ("resnet50", "fp16"):
            calls += [launch.call for launch in found]
        return calls
    _, _, spec = specs()[int(job[1])]
    with torch.device("meta"):
        return [c for config in variants(spec).values() for c in conv_calls(spec, config)()]


def launched(work: Callable[[], object]) -> list[Any]:
    """What would be launched; results mean nothing."""
    from fastres.errors import FastresError
    from fastres.kernels.call import KernelCall

    found: list[Any] = []
    run, KernelCall.run = KernelCall.run, lambda call: found.append(call)
    globals()["DEVICE"] = "cpu"
    try:
        with contextlib.suppress(FastresError):  # a block that fits on no GPU
            work()
    finally:
        KernelCall.run = run
    return found


def compile_job(job: tuple[str, ...]) -> tuple[str, int, list[str]]:
    """Fill Triton's cache; also what a launch on the GPU finds, since the keys are the same."""
    import torch

    from fastres.errors import FastresError
    from fastres.kernels.gpus import architecture
    from fastres.kernels.inspection.compiling import compiled

    torch.set_num_threads(1)
    failed = []
    found = calls_of(job)
    for call in found:
        try:
            compiled(call, architecture(ARCHITECTURE))
        except FastresError as error:
            failed.append(str(error)[-300:])
    return " ".join(job), len(found), failed


def compile_all(workers: int, kinds: str = "network case layers") -> list[Any]:
    os.environ["TRITON_CACHE_DIR"] = str(TRITON)
    TRITON.mkdir(parents=True, exist_ok=True)
    order = [job for kind in kinds.split() for job in jobs() if job[0] == kind]
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        return list(pool.imap_unordered(compile_job, order, chunksize=1))


def pack(archive: Path) -> int:
    """What a launch needs: machine code and its description, a tenth of the cache."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:xz") as tar:
        for path in sorted(TRITON.rglob("*")):
            if path.suffix in (".cubin", ".json", ".so"):
                tar.add(path, path.relative_to(ROOT))
    return archive.stat().st_size


# ------------------------------------------------------------------ on the GPU


def poisoned(*shape: int, dtype: Any, device: str = DEVICE) -> Any:
    """[N, C, H, W], channels-last, NaN."""
    import torch

    n, c, h, w = shape
    return torch.full((n, h, w, c), torch.nan, dtype=dtype, device=device).permute(0, 3, 1, 2)


def conv_calls(
    spec: Any, config: Any, precision: str = "fp16", device: str = "meta", copies: int = 1
) -> Callable[[], list[Any]]:
    """Launches of one convolution with bias and ReLU, over ``copies`` sets of tensors in turn."""
    import torch

    from fastres.kernels.conv2d_launch import conv2d_calls, workspace_bytes
    from fastres.kernels.packing import packed_shape

    dtype = getattr(torch, DTYPE[precision])
    sets = []
    for _ in range(copies):
        x = torch.empty(spec.n, spec.h, spec.w, spec.c, dtype=dtype, device=device)
        shape = packed_shape(spec.c, spec.k, spec.r, spec.s, spec.groups)
        packed = torch.empty(shape, dtype=dtype, device=device)
        bias = torch.empty(spec.k, dtype=torch.float32, device=device)
        for tensor in (x, packed, bias):
            tensor.normal_()
        out = poisoned(spec.n, spec.k, spec.p, spec.q, dtype=dtype, device=device)
        size = workspace_bytes(spec, config, precision)
        scratch = torch.empty(max(size // 4, 1), device=device)
        sets.append(
            conv2d_calls(
                *(x.permute(0, 3, 1, 2), packed, bias, None, out, spec, "none", "relu", config),
                *(precision, scratch),
            )
        )
    turn = iter(range(10**9))
    return lambda: sets[next(turn) % copies]


def graph_time(run: Callable[[], object], launches: int = 20, rounds: int = 9) -> float:
    """Microseconds of one run: the median over replays of a CUDA graph of ``launches`` of them."""
    import torch

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
        stream.synchronize()
        recorded = torch.cuda.CUDAGraph()
        with torch.cuda.graph(recorded, stream=stream):
            for _ in range(launches):
                run()
        times = []
        for _ in range(rounds + 2):
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            began.record()
            recorded.replay()
            ended.record()
            ended.synchronize()
            times.append(began.elapsed_time(ended) * 1e3 / launches)
    return statistics.median(times[2:])


def call_times(call: Callable[[], object], seconds: float = 0.8) -> dict[str, float]:
    """Microseconds per call: waiting for each (latency), and one after the other (throughput)."""
    import torch

    for _ in range(3):
        call()
    torch.cuda.synchronize()
    single, ended = [], time.perf_counter() + seconds / 2
    while len(single) < 5 or time.perf_counter() < ended:
        began = time.perf_counter()
        call()
        torch.cuda.synchronize()
        single.append((time.perf_counter() - began) * 1e6)
    typical = statistics.median(single)
    rounds, count = [], max(3, int(seconds / 8 * 1e6 / typical))
    for _ in range(4):
        began, over = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        for _ in range(count):
            call()
        over.record()
        over.synchronize()
        rounds.append(began.elapsed_time(over) * 1e3 / count)
    return {"latency_us": typical, "least_us": min(single), "back_to_back_us": min(rounds)}


def facts(out: Out) -> None:
    import torch
    import triton

    def machine() -> dict[str, Any]:
        told = torch.cuda.get_device_properties(0)
        smi = ["nvidia-smi", "--query-gpu=driver_version,clocks.sm,clocks.mem,power.limit"]
        tools = {name: shutil.which(name) for name in ("ncu", "compute-sanitizer", "gcc", "nvcc")}
        return {
            "gpu": told.name,
            "multiprocessors": told.multi_processor_count,
            "l2": getattr(told, "L2_cache_size", None),
            "torch": torch.__version__,
            "triton": triton.__version__,
            "cudnn": torch.backends.cudnn.version(),
            "smi": subprocess.run(
                [*smi, "--format=csv,noheader"], capture_output=True, text=True
            ).stdout.strip(),
            "tools": tools,
        }

    def ceilings() -> dict[str, Any]:
        a = torch.randn(8192, 8192, device="cuda")
        found = {}
        for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
            b = a.to(dtype)
            found[f"{name} TFLOP/s"] = 2 * 8192**3 / graph_time(lambda: b @ b, 5) / 1e6
        torch.backends.cuda.matmul.allow_tf32 = True
        found["tf32 TFLOP/s"] = 2 * 8192**3 / graph_time(lambda: a @ a, 5) / 1e6
        x, y = (torch.empty(2**31, dtype=torch.uint8, device="cuda") for _ in range(2))
        found["copy TB/s"] = 2 * 2**31 / graph_time(lambda: y.copy_(x), 3) / 1e6
        tiny = torch.zeros(1, device="cuda")
        found["launch in a graph, us"] = graph_time(lambda: tiny.add_(1), 200)
        return found

    def first_kernel() -> dict[str, Any]:
        # Hit or miss: says whether the cache that was brought along fits this Triton.
        _, _, spec = specs()[0]
        before = len(list(TRITON.glob("*/*.cubin")))
        began = time.perf_counter()
        for call in conv_calls(spec, variants(spec)["chosen"], device="cuda")():
            call.run()
        torch.cuda.synchronize()
        after = len(list(TRITON.glob("*/*.cubin")))
        return {"entries": [before, after], "first_launch_s": time.perf_counter() - began}

    out.attempt("machine", machine)
    out.attempt("ceilings", ceilings)
    out.attempt("first kernel", first_kernel)


# name -> (operator of kernels.reference, its arguments but the tensors' values). Shapes at which an
# offset, a mask, a tile's edge, a layout or a rule of the compiler has room to be wrong.
def hard_cases() -> Iterator[tuple[str, str, dict[str, Any]]]:
    def conv(name: str, x: tuple[int, ...], k: int, r: int = 1, s: int | None = None, **more: Any):
        return name, "conv2d", {"x": x, "k": k, "r": r, "s": s or r, **more}

    yield conv("1x1 by descriptors, residual", (2, 64, 56, 56), 256, residual=True)
    yield conv("1x1 partial tiles", (3, 24, 13, 11), 40, residual=True)
    yield conv("1x1, rows of 40 bytes", (2, 20, 9, 9), 24)
    yield conv("1x1 stride 2", (2, 64, 15, 15), 96, stride=2)
    yield conv("3x3", (2, 64, 56, 56), 64, 3, padding=(1,) * 4)
    yield conv("3x3 stride 2, odd image", (2, 128, 29, 27), 128, 3, stride=2, padding=(1,) * 4)
    yield conv("3x3 dilation 2, SAME", (1, 72, 17, 19), 48, 3, dilation=2, padding=(2, 2, 2, 2))
    yield conv("oblong, four paddings", (2, 32, 21, 18), 33, 5, 2, padding=(2, 0, 1, 1))
    yield conv("17x1 filter", (1, 16, 40, 5), 16, 17, 1, padding=(8, 0, 8, 0))
    yield conv("7x7/2 of three channels", (2, 3, 65, 63), 64, 7, stride=2, padding=(3,) * 4)
    yield conv("one pixel", (1, 512, 1, 1), 2048, residual=True)
    yield conv("one channel, one filter", (1, 1, 8, 8), 1, 3, padding=(1,) * 4)
    yield conv("split sums", (1, 512, 7, 7), 512, 3, padding=(1,) * 4, residual=True)
    yield conv("32 groups of 4", (2, 128, 28, 28), 128, 3, groups=32, padding=(1,) * 4)
    yield conv(
        "32 groups of 4 and a NaN", (2, 128, 28, 28), 128, 3, groups=32, padding=(1,) * 4, nan=1
    )
    yield conv("depthwise", (2, 96, 14, 14), 96, 3, groups=96, padding=(1,) * 4)
    yield conv("NaN and infinity", (1, 64, 14, 14), 64, 3, padding=(1,) * 4, nan=1)
    yield conv("silu", (2, 48, 10, 10), 80, activation="silu")
    for x, width, k, more in (
        ((2, 64, 28, 28), 64, 256, {"shortcut": 64, "next": 64}),
        ((2, 64, 29, 27), 64, 256, {"next": 72}),
        ((1, 128, 28, 28), 128, 512, {"stride": 2, "shortcut": 256}),
        ((3, 256, 14, 14), 256, 1024, {}),
        ((1, 512, 7, 7), 512, 2048, {}),
        ((2, 128, 28, 28), 128, 256, {"groups": 32, "next": 128}),
        ((2, 128, 28, 28), 128, 256, {"groups": 32, "shortcut": 64, "nan": 1}),
    ):
        yield (
            f"block of {x}, {width}, {k}, {more}",
            "bottleneck",
            {"x": x, "width": width, "k": k, **more},
        )
    for x, pool in (((2, 3, 64, 64), 3), ((1, 3, 65, 63), 3), ((2, 1, 40, 36), 2)):
        yield f"stem of {x}, pool {pool}", "stem", {"x": x, "pool": pool}
    yield "stem with NaN", "stem", {"x": (2, 3, 64, 64), "pool": 3, "nan": 1}
    yield "beyond 2^31 elements", "far", {}


def run_case(operator: str, given: dict[str, Any], precision: str) -> dict[str, Any]:
    """Our kernels against float64, and torch in the same precision against float64."""
    import torch

    from fastres.kernels import conv2d_launch, reference
    from fastres.kernels.gpus import by_name

    dtype = getattr(torch, DTYPE[precision])
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    if operator == "far":
        if precision != "fp16":
            return {"skipped": "fp16 only"}
        n = 2**31 // (56 * 56 * 256) + 2
        x = torch.zeros(n, 56, 56, 256, dtype=dtype, device=DEVICE).permute(0, 3, 1, 2)
        x[-2:].normal_()
        weight = torch.randn(16, 256, 1, 1, dtype=dtype, device=DEVICE) / 16
        geometry = ((1, 1), (0,) * 4, (1, 1), 1, "none", "none")
        ours = conv2d_launch.conv2d(x, weight, None, None, *geometry, gpu=by_name(GPU))[-2:]
        return errors(ours, lambda t: reference.conv2d(*t, None, None, *geometry), (x[-2:], weight))
    n, c, h, w = given["x"]
    groups, chosen = given.get("groups", 1), {"precision": precision, "gpu": by_name(GPU)}

    x = torch.randn(n, h, w, c, device=DEVICE).to(dtype).permute(0, 3, 1, 2)
    if given.get("nan"):
        x[0, 5 % c, h // 2, w // 2], x[-1, 0, 0, 0] = torch.nan, torch.inf
    if operator != "conv2d":
        return run_block(operator, x, given, groups, chosen)
    k = given["k"]
    weight = torch.randn(k, c // groups, given["r"], given["s"], device=DEVICE).to(dtype)
    weight = weight / (weight[0].numel() ** 0.5)
    bias = torch.randn(k, device=DEVICE)
    geometry = (
        *((given.get("stride", 1),) * 2, given.get("padding", (0,) * 4)),
        *((given.get("dilation", 1),) * 2, groups, "none", given.get("activation", "relu")),
    )
    like = reference.conv2d(x, weight, None, None, *geometry)
    residual = torch.randn_like(like) if given.get("residual") else None
    ours = conv2d_launch.conv2d(x, weight, bias, residual, *geometry, **chosen)
    tensors = (x, weight, bias, residual)
    return errors(ours, lambda t: reference.conv2d(*t, *geometry), tensors)


def run_block(
    operator: str, x: Any, given: dict[str, Any], groups: int, chosen: dict[str, Any]
) -> dict[str, Any]:
    """A bottleneck's tail, with a residual of its own or a shortcut; or a stem and its pool."""
    import torch

    from fastres.errors import OptionError
    from fastres.kernels import bottleneck_launch, reference, stem_launch

    def weight(k: int | None, c: int, r: int = 1) -> Any:
        drawn = None if k is None else torch.randn(k, c, r, r, device=DEVICE) / (c * r * r) ** 0.5
        return None if drawn is None else drawn.to(x.dtype)

    def bias(k: int | None) -> Any:
        return None if k is None else torch.randn(k, device=DEVICE)

    n, c, h, w = x.shape
    if operator == "stem":
        tensors = (x, weight(64, c, 7), bias(64))
        rest = (
            (2, 2),
            (3,) * 4,
            "relu",
            *((given["pool"],) * 2, (2, 2), (given["pool"] // 2,) * 2),
        )
        ours = stem_launch.conv2d_max_pool2d(*tensors, *rest, **chosen)
        return errors(ours, lambda t: reference.conv2d_max_pool2d(*t, *rest), tensors)
    width, k, following, beside = (
        given["width"],
        given["k"],
        given.get("next"),
        given.get("shortcut"),
    )
    stride = (given.get("stride", 1),) * 2
    p, q = ((size - 1) // stride[0] + 1 for size in (h, w))
    sides = (beside, h, w) if beside else (k, p, q)
    residual = torch.randn(n, *sides, device=DEVICE).to(x.dtype)
    tensors = (x, weight(width, c // groups, 3), bias(width), weight(k, width), bias(k), residual)
    tensors += (weight(k if beside else None, beside or 0), weight(following, k), bias(following))

    def arguments(t: Any) -> list[Any]:
        return [*t[:7], stride, *t[7:], stride, (1,) * 4, (1, 1), groups]

    try:
        ours = bottleneck_launch.bottleneck(*arguments(tensors), **chosen)
    except OptionError as error:
        return {"skipped": str(error)}
    found = [
        errors(got, lambda t, i=i: reference.bottleneck(*arguments(t))[i], tensors)
        for i, got in enumerate(ours)
    ]
    return max(found, key=lambda each: (not each["ok"], each["error"]))


def errors(ours: Any, oracle: Callable[[Any], Any], tensors: tuple[Any, ...]) -> dict[str, Any]:
    import torch

    def cast(dtype: Any) -> Any:
        return oracle([t if t is None else t.to(dtype) for t in tensors])

    exact, theirs = cast(torch.float64), cast(tensors[0].dtype)
    finite = exact.to(ours.dtype).isfinite()
    same = torch.equal(ours.isnan(), exact.to(ours.dtype).isnan())
    scale = float(exact[finite].abs().max()) if finite.any() else 1.0

    def worst(got: Any) -> float:
        return float(torch.where(finite, (got.double() - exact).abs(), 0.0).max()) / scale

    mine, torchs = worst(ours), worst(theirs)
    torchs = torchs if torchs == torchs else 0.0  # where torch itself is wrong about NaN
    floor = 2.0**-10 if tensors[0].dtype != torch.float32 else 2.0**-21
    floor = 2.0**-7 if tensors[0].dtype == torch.bfloat16 else floor
    if torch.backends.cudnn.allow_tf32 and tensors[0].dtype == torch.float32:
        floor = 2.0**-10
    return {
        "ok": same and mine <= max(2 * torchs, floor),
        "error": mine,
        "torchs": torchs,
        "nan": same,
    }


def kernels(out: Out) -> None:
    for precision in PRECISIONS:
        for name, operator, given in hard_cases():
            out.attempt(f"{precision}: {name}", lambda: run_case(operator, given, precision))


def small(out: Out) -> None:
    """Under compute-sanitizer, without torch's allocator, whose blocks hide what lies beyond them."""
    for name, operator, given in hard_cases():
        if operator == "conv2d" and given["x"][2] <= 30:
            out.attempt(f"fp16: {name}", lambda: run_case(operator, given, "fp16"))


@functools.cache
def settled(model: str) -> tuple[Any, Any]:
    """On the CPU, whose generators draw the weights: the network, and 16 images."""
    from fastres.bench import source, workload

    net = source.build(source.parse(model), seed=0)
    pool = workload.synthetic_images(16, 3, 224, seed=0)
    workload.settle(net, pool, seed=0)
    return net.eval(), pool


def network(model: str) -> tuple[Any, Any]:
    net, pool = settled(model)
    return copy.deepcopy(net).to(DEVICE), pool.to(DEVICE)


@functools.cache
def shared(model: str, precision: str, half: bool = False, key: str = "") -> tuple[Any, Any, Any]:
    """A network, images, and the network optimised once for all batches."""
    import torch

    net, pool = network(model)
    if half:
        net = net.to(getattr(torch, DTYPE[precision]))
        pool = pool.to(getattr(torch, DTYPE[precision]))
    return net, pool, optimised(net, precision, pool[:2])


def optimised(net: Any, precision: str, images: Any) -> Any:
    import torch

    import fastres

    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    asked = None if DTYPE[precision] == "float32" else precision  # "fp32" by name means no TF32
    return fastres.optimize(net, images, device="cuda", engine="triton", precision=asked)


def networks(out: Out) -> None:
    import torch
    from torch import nn

    import fastres

    def right(model: str, precision: str, batch: int) -> dict[str, Any]:
        net, pool, fast = shared(model, precision)
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = (
            precision == "tf32"
        )
        images = pool[:batch].repeat(max(1, batch // len(pool)), 1, 1, 1)
        verdict = fastres.verify(net, fast, images)
        plan = fast.program(images).splitlines()[0]
        return {
            "ok": bool(verdict.passed),
            "verdict": str(verdict),
            "plan": plan,
            "receipt": str(fast.report),
        }

    for model, precision, batch in NETWORKS:
        if batch <= 32 or precision == "fp16":
            out.attempt(
                f"{model} {precision} {batch}", lambda: right(model, precision, min(batch, 32))
            )

    def softmaxed() -> tuple[Any, Any]:
        net, pool = network("resnet18")
        return nn.Sequential(net, nn.Softmax(1)).eval(), pool

    def callers_graph() -> dict[str, Any]:
        """Defect D1: results of torch's steps after the caller recorded a call."""
        net, pool = softmaxed()
        fast = optimised(net, "fp16", pool[:2])
        wanted = [fast(pool[i : i + 2]).clone() for i in (0, 2)]
        x, recorded = pool[:2].clone(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(recorded):
            y = fast(x)
        after = [fast(pool[i : i + 2]) for i in (0, 2)]
        recorded.replay()
        torch.cuda.synchronize()
        good = all(torch.equal(a, b) for a, b in zip(after, wanted, strict=True))
        return {"ok": good and torch.equal(y, wanted[0]), "after": good}

    def two_threads() -> dict[str, Any]:
        """Defect D4: two models made ready at once must both be recorded."""
        plans: list[str] = []

        def one(index: int) -> None:
            net, pool = network("resnet18")
            fast = fastres.optimize(net, pool[:1], device="cuda", engine="triton", precision="fp16")
            for batch in (2, 3, 4, 5):
                fast(pool[:batch])
                plans.append(fast.program(pool[:batch]).splitlines()[0])

        threads = [threading.Thread(target=one, args=(i,)) for i in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        alone = [plan for plan in plans if "one by one" in plan]
        return {
            "ok": len(plans) == 12 and not alone,
            "plans": len(plans),
            "not recorded": len(alone),
        }

    def after_a_failed_recording() -> dict[str, Any]:
        """Defect D3: a model that cannot be recorded must not break torch's allocator."""

        class Syncs(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv = nn.Conv2d(3, 16, 3)

            def forward(self, x: Any) -> Any:
                y = self.conv(x)
                return torch.bincount(y.flatten().abs().long().clamp(max=3), minlength=4)

        with contextlib.suppress(fastres.FastresError):
            fast = fastres.optimize(
                Syncs().eval().cuda(), torch.randn(1, 3, 32, 32, device="cuda"), engine="triton"
            )
            fast(torch.randn(1, 3, 32, 32, device="cuda"))
        torch.cuda.empty_cache()  # raises where the allocator believes in a recording,
        torch.randn(1, device="cuda")  # and this where the generator does
        net, pool = network("resnet18")
        return {"ok": "one graph" in optimised(net, "fp16", pool[:1]).program(pool[:1])}

    def profile() -> dict[str, Any]:
        net, pool = softmaxed()
        return {
            "ok": True,
            "profile": str(optimised(net, "fp16", pool[:8]).profile(pool[:8]))[:2000],
        }

    # Last, since each may spoil the process.
    for check in (profile, callers_graph, two_threads, after_a_failed_recording):
        out.attempt(check.__name__, check)


# ------------------------------------------------------------------ times


def contenders(
    model: str, net: Any, precision: str, images: Any
) -> dict[str, Callable[[], Callable[[], object]]]:
    import torch

    dtype = getattr(torch, DTYPE[precision])

    def channels_last() -> Any:
        torch.backends.cudnn.benchmark = True
        return copy.deepcopy(net).to("cuda", dtype, memory_format=torch.channels_last)

    x = images.to(dtype, memory_format=torch.channels_last)

    def eager() -> Callable[[], object]:
        copied = channels_last()
        return torch.inference_mode()(lambda: copied(x))

    def graphed() -> Callable[[], object]:
        call, stream, recorded = eager(), torch.cuda.Stream(), torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream):
            for _ in range(3):
                call()
            with torch.cuda.graph(recorded, stream=stream):
                call()
        return recorded.replay

    def compiled(mode: str | None) -> Callable[[], Callable[[], object]]:
        def make() -> Callable[[], object]:
            from torch._inductor import config

            torch._dynamo.reset()
            copied = torch.compile(channels_last(), mode=mode, dynamic=False)
            call = torch.inference_mode()(lambda: copied(x))
            with config.patch(freezing=True):
                call()
            return call

        return make

    def ours() -> Callable[[], object]:
        # In the dtype of the others' input: a float32 model would take float32 images.
        _, _, fast = shared(model, precision, half=True)
        return lambda: fast(x)

    def unchained() -> Callable[[], object]:
        from fastres.kernels.gpus import Architecture

        kept, Architecture.chains = Architecture.chains, property(lambda gpu: False)
        try:
            _, _, fast = shared(model, precision, half=True, key="unchained")
            fast(x)
        finally:
            Architecture.chains = kept
        return lambda: fast(x)

    found = {"fastres": ours, "eager nhwc": eager, "eager nhwc in a graph": graphed}
    if (model, precision) == ("resnet50", "fp16"):
        found["fastres unchained"] = unchained
        found["compile"] = compiled(None)
        found["compile reduce-overhead"] = compiled("reduce-overhead")
    return found


def models(out: Out, autotune: bool = False) -> None:
    """First ours and torch as it comes, for all networks; then torch.compile."""
    import torch

    def images_of(pool: Any, batch: int) -> Any:
        return pool.repeat(-(-batch // len(pool)), 1, 1, 1)[:batch]

    def steps(model: str, precision: str, batch: int) -> dict[str, Any]:
        _, pool, fast = shared(model, precision, half=True)
        flat = [images_of(pool, batch).contiguous(memory_format=torch.channels_last)]
        executable = fast._runner.executable(flat)
        runs = [executable.timed(flat) for _ in range(5)]
        rows = [(m, o, min(run[i][2] for run in runs) / 1e3) for i, (m, o, _) in enumerate(runs[0])]
        return {"steps": rows, "program": executable.code}

    for compiling in (False, True):
        for model, precision, batch in NETWORKS:
            net, pool = network(model)
            images = images_of(pool, batch)
            tf32 = precision == "tf32"
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
            for name, make in contenders(model, net, precision, images).items():
                if ("compile" in name) != compiling or (compiling and model != "resnet50"):
                    continue

                def timed(make: Any = make) -> dict[str, Any]:
                    began = time.perf_counter()
                    call = make()
                    call()
                    torch.cuda.synchronize()
                    ready = time.perf_counter() - began
                    return {**call_times(call), "ready_s": ready, "batch": batch}

                out.attempt(f"{model} {precision} {batch}: {name}", timed)
            if not compiling:
                key = f"{model} {precision} {batch}: steps"
                out.attempt(key, partial(steps, model, precision, batch))


def amx(out: Out) -> None:
    """The CPU engine on a processor with AMX, if this is one."""
    if "amx_bf16" not in Path("/proc/cpuinfo").read_text():
        out.put("amx", skipped="no AMX on this processor")
        return
    tests = ["test_tiles", "test_amx_network", "test_amx_emulated", "test_native_convolutions"]
    command = [
        "timeout",
        "-s",
        "INT",
        "90",
        sys.executable,
        "-m",
        "pytest",
        "-n",
        "3",
        "-q",
        "-rfE",
    ]
    command += ["--tb=short", "-p", "no:benchmark"]
    command += [f"tests/native/{name}.py" for name in tests]
    out.attempt("tests", lambda: told(command))


def tests(out: Out) -> None:
    """The kernels' and the engine's tests on the GPU, as far as the time goes."""
    command = ["timeout", "-s", "INT", "112", sys.executable, "-m", "pytest", "tests/kernels"]
    command += ["-m", "gpu", "-n", "8", "-q", "-rfE", "--tb=short", "-p", "no:benchmark"]
    command += ["-k", "not tuning_is_measured", "-W", "ignore::FutureWarning"]
    out.attempt("tests", lambda: told(command))


def amx_layers(out: Out, folder: Path) -> None:
    command = ["timeout", "-s", "INT", "90", sys.executable, "-m", "benchmarks.layers"]
    command += ["--precision", "bf16", "--threads", "4", "--seconds", "20"]
    command += ["--json", str(folder / "layers_cpu.json")]
    out.attempt("layers", lambda: told(command))


def told(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True)
    text = (done.stdout + done.stderr)[-12000:]
    return {"ok": done.returncode == 0, "code": done.returncode, "text": text}


def warm(out: Out) -> None:
    """torch.compile's caches, filled while the GPU checks answers."""
    for batch in (1, 32, 256):
        net, pool = network("resnet50")
        images = pool.repeat(-(-batch // len(pool)), 1, 1, 1)[:batch]
        made = contenders("resnet50", net, "fp16", images)
        out.attempt(f"compile {batch}", lambda: {"ok": made["compile"]() is not None})


def layers(out: Out, rehearse: bool = False) -> None:
    """First what is chosen and the library's for all shapes, then the other ways to launch ours."""
    for again in (False, True):
        for key, _, spec in specs():
            moved = least_bytes_of(spec)
            copies = min(8, max(1, int(1.5e8 // moved))) if spec.n >= 32 else 1
            for name, config in variants(spec).items():
                if (name != "chosen") == again:
                    out.attempt(f"{key}: {name}", partial(layer, spec, config, copies, rehearse))
            if not rehearse and not again:
                for name, make in library(spec, copies).items():
                    out.attempt(f"{key}: {name}", lambda make=make: {"us": graph_time(make())})


def least_bytes_of(spec: Any) -> int:
    from fastres.kernels.configs.traffic import least_bytes

    return least_bytes(spec, "fp16")


def layer(spec: Any, config: Any, copies: int, rehearse: bool) -> dict[str, Any]:
    """One convolution in one configuration: measured, modelled, and what the data sheet allows."""
    from fastres.kernels.configs.conv2d import estimate_conv2d
    from fastres.kernels.configs.cost import floor_seconds
    from fastres.kernels.configs.traffic import flops
    from fastres.kernels.gpus import by_name

    gpu, moved, work = by_name(GPU), least_bytes_of(spec), flops(spec)
    calls = conv_calls(spec, config, device="meta" if rehearse else "cuda", copies=copies)
    modelled = estimate_conv2d(spec, config, "fp16", gpu).seconds * 1e6

    def run() -> None:
        for call in calls():
            call.run()

    us = modelled * 1.3 if rehearse else graph_time(run)
    return {
        "us": us,
        "modelled_us": modelled,
        "floor_us": floor_seconds(work, moved, "fp16", gpu) * 1e6,
        "TFLOP/s": work / us / 1e6,
        "TB/s": moved / us / 1e6,
        "config": str(config),
    }


def library(spec: Any, copies: int) -> dict[str, Callable[[], Callable[[], object]]]:
    """cuDNN's convolution alone, with bias and ReLU in its epilogue, and cuBLAS where it is a product."""
    import torch
    import torch.nn.functional as F

    torch.backends.cudnn.benchmark = True
    half = {"dtype": torch.float16, "device": "cuda"}
    xs = [
        torch.randn(spec.n, spec.h, spec.w, spec.c, **half).permute(0, 3, 1, 2)
        for _ in range(copies)
    ]
    weight = torch.randn(spec.k, spec.r, spec.s, spec.c, **half).permute(0, 3, 1, 2)
    bias, turn = torch.randn(spec.k, **half), iter(range(10**9))
    sides, stride = list(spec.padding[:2]), list(spec.stride)

    def x() -> Any:
        return xs[next(turn) % copies]

    found = {
        "cudnn": lambda: lambda: F.conv2d(x(), weight, None, stride, sides),
        "cudnn bias relu": lambda: (
            lambda: torch.ops.aten.cudnn_convolution_relu(
                x(), weight, bias, stride, sides, [1, 1], 1
            )
        ),
    }
    if (spec.r, spec.stride) == (1, (1, 1)):
        rows = weight.reshape(spec.k, spec.c)
        found["cublas"] = lambda: (
            lambda: F.linear(x().permute(0, 2, 3, 1).reshape(-1, spec.c), rows)
        )
    return found


def ncu(out: Out, folder: Path) -> None:
    """The three layers farthest above their floor, one launch each."""
    found = Out(folder, "layers").done
    mine = {key: each for key, each in found.items() if key.endswith(": chosen") and "us" in each}
    slow = sorted(
        mine, key=lambda key: mine[key]["us"] / mine[key]["floor_us"] * (key.startswith("256"))
    )[-3:]
    sections = (
        "SpeedOfLight",
        "WarpStateStats",
        "MemoryWorkloadAnalysis",
        "Occupancy",
        "InstructionStats",
    )
    for key in slow:
        command = [
            "ncu",
            "--clock-control",
            "none",
            "-k",
            "regex:conv2d_kernel|pointwise_kernel",
            "-c",
            "1",
        ]
        command += [word for section in sections for word in ("--section", section)]
        command += [sys.executable, "-m", __spec__.name, "one", key.rsplit(":", 1)[0]]
        out.attempt(
            key,
            lambda: {
                "text": subprocess.run(command, capture_output=True, text=True, timeout=40).stdout[
                    -6000:
                ]
            },
        )


def one(key: str) -> None:
    import torch

    spec = next(spec for name, _, spec in specs() if name == key)
    for call in conv_calls(spec, variants(spec)["chosen"], device="cuda")():
        call.run()
    torch.cuda.synchronize()


# ------------------------------------------------------------------ the day


def stage(name: str, folder: Path, earlier: Path | None, rehearse: bool) -> None:
    out = Out(ROOT if name == "warm" else folder, name, earlier)  # of no interest afterwards
    if name == "layers":
        layers(out, rehearse)
    elif name == "ncu" and not rehearse:
        ncu(out, folder)
    elif name == "amx_layers" and not rehearse:
        amx_layers(out, folder)
    elif not rehearse or name == "small":
        {
            **{"facts": facts, "small": small, "kernels": kernels, "networks": networks},
            **{"warm": warm, "models": models, "amx": amx, "tests": tests},
        }[name](out)


def start(name: str, folder: Path, options: list[str], log: Any) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "TRITON_CACHE_DIR": str(TRITON),
        "TORCHINDUCTOR_CACHE_DIR": str(INDUCTOR),
    }
    environment |= {"PYTHONUNBUFFERED": "1", "TORCHINDUCTOR_FX_GRAPH_CACHE": "1"}
    command = [sys.executable, "-m", __spec__.name, "stage", name, "--out", str(folder), *options]
    if "--rehearse" in options:
        environment |= {
            "GPU_DAY_DEVICE": "cpu",
            "TRITON_INTERPRET": "1" if name == "small" else "0",
        }
    elif name == "small":
        environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
        command = ["compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9", *command]
    return subprocess.Popen(
        command, stdout=log, stderr=log, env=environment, start_new_session=True
    )


def run(
    folder: Path,
    minutes: float,
    skip: list[str],
    archive: Path | None,
    earlier: Path | None,
    rehearse: bool,
) -> None:
    began, folder = time.monotonic(), folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    left = lambda: minutes * 60 - (time.monotonic() - began)  # noqa: E731
    ROOT.mkdir(parents=True, exist_ok=True)
    if archive and archive.exists():
        with tarfile.open(archive) as tar:
            tar.extractall(ROOT, filter="data")
    options = (["--earlier", str(earlier)] if earlier else []) + (
        ["--rehearse"] if rehearse else []
    )
    with (folder / "log.txt").open("a") as log:

        def say(text: str) -> None:
            print(f"[{time.monotonic() - began:5.0f} s] {text}", flush=True)
            log.write(text + "\n")
            log.flush()

        for group in dict.fromkeys(number for number, _ in STAGES.values()):
            names = [
                name for name, (number, _) in STAGES.items() if number == group and name not in skip
            ]
            if not names or left() < 15:
                continue
            if group == 2 and not rehearse:
                compiling = start("compile", folder, [], log)
            running = {name: start(name, folder, options, log) for name in names}
            until = time.monotonic() + min(max(STAGES[name][1] for name in names), left() - 5)
            for name, process in running.items():
                try:
                    code = process.wait(max(1, until - time.monotonic()))
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    code = "its time was over"
                done = Out(folder, name).done
                bad = [key for key, each in done.items() if each.get("ok") is False]
                say(f"{name}: exit {code}, {len(done)} results, wrong: {bad or 'none'}")
    show(folder)


def show(folder: Path) -> None:
    """What to look at first."""
    for name in ("facts", "kernels", "small", "networks"):
        path = folder / f"{name}.jsonl"
        for line in path.read_text().splitlines() if path.exists() else []:
            record = json.loads(line)
            if "failed" in record or record.get("ok") is False or name == "facts":
                print(name, {k: v for k, v in record.items() if k not in ("receipt", "verdict")})
    times = Out(folder, "models").done
    for key, each in times.items():
        if "back_to_back_us" in each:
            rate = each["batch"] / each["back_to_back_us"] * 1e6
            print(f"{key:52} {each['latency_us']:9.0f} us  {rate:8.0f} img/s")
    found = Out(folder, "layers").done
    ratios: dict[str, list[float]] = {}
    for key, each in found.items():
        if "modelled_us" not in each:
            continue
        peer = found.get(key.rsplit(":", 1)[0] + ": cudnn bias relu", {}).get("us")
        print(
            f"{key:44} {each['us']:8.1f} us  modelled {each['modelled_us']:8.1f}  floor {each['floor_us']:7.1f}"
            f"  cuDNN {peer or float('nan'):8.1f}  {each['TFLOP/s']:5.0f} TFLOP/s  {each['TB/s']:.2f} TB/s"
        )
        ratios.setdefault(key.split(" x ")[0], []).append(each["us"] / each["modelled_us"])
    for batch, values in ratios.items():
        print(
            f"batch {batch}: measured over modelled, median {statistics.median(values):.2f}, {min(values):.2f} to {max(values):.2f}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_day",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=("prepare", "run", "show", "stage", "one"))
    parser.add_argument("what", nargs="?")
    parser.add_argument("--out", type=Path, default=Path("gpu-day"))
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--skip", nargs="*", default=[])
    parser.add_argument("--cache", type=Path, default=Path(".gpu/cache.tar"))
    parser.add_argument("--earlier", type=Path)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rehearse", action="store_true")
    given = parser.parse_args()
    if given.command == "prepare":
        for job, count, failed in compile_all(given.workers):
            print(
                f"{job}: {count} launches{''.join(f'; FAILED {each}' for each in failed)}",
                flush=True,
            )
        print(f"{given.cache}: {pack(given.cache) / 2**20:.1f} MiB")
    elif given.command == "run":
        run(given.out, given.minutes, given.skip, given.cache, given.earlier, given.rehearse)
    elif given.command == "show":
        show(Path(given.what))
    elif given.command == "one":
        one(given.what)
    elif given.what == "compile":
        os.nice(10)
        compile_all(8, "layers")
    else:
        stage(given.what, given.out, given.earlier, given.rehearse)
    return 0


if __name__ == "__main__":
    sys.exit(main())
