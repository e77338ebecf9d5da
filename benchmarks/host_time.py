"""What the host does in a call on a GPU beside launching: arguments, weights, shapes, results.

The plan of a ResNet-50 for a GPU, on a device that computes nothing: its launches are one recording
whose replay is an empty function, so that what is left of a call is the host's. Beside it the bare
launch: copying the images in, the replay, fresh memory for the result and copying it out, the same
operations without anything around them. The difference is what the runtime adds.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

import fastres
from fastres.bench import measure, record, revision
from fastres.kernels.launch.call import KernelCall
from fastres.kernels.tuning.gpus import Gpu, by_name
from fastres.optimized import OptimizedModule
from fastres.runtime.runner import Runner
from fastres.runtime.triton.device import InterpreterDevice
from fastres.runtime.triton.engine import TritonEngine
from fastres.runtime.triton.workspace import Workspace
from fastres.system import target

LIMIT_US = 20.0
"""More than this above the bare launch is too much."""

CALLS = 200
"""Timed at once: one is too short for the clock."""


class Idle(InterpreterDevice):
    """A device on the CPU's memory that copies, and does nothing else."""

    records = True

    def launch(self, calls: Sequence[KernelCall]) -> None:
        """Nothing."""

    def record(self, program: Callable[[], None]) -> Callable[[], None]:
        """Nothing that can be replayed."""
        return _do_nothing

    def entered(self) -> contextlib.AbstractContextManager[None]:
        """The order of work of a device without any."""
        return contextlib.nullcontext()


class IdleEngine(TritonEngine):
    """Plans for a GPU, and launches nothing."""

    def __init__(self, product: Gpu) -> None:
        super().__init__(product=product)
        self._idle = Workspace(Idle()), product

    def refusal(self, module: fx.GraphModule) -> str | None:
        """None: nothing is computed."""
        return None

    def _place(self, device: torch.device) -> tuple[Workspace, Gpu]:
        return self._idle


def _do_nothing() -> None:
    pass


def optimised_on_idle_device(model: str, size: int, product: str) -> tuple[OptimizedModule, Tensor]:
    """An optimised model whose calls launch nothing, and an image for it."""
    image = torch.zeros((1, 3, size, size), dtype=torch.float32, device="cpu")
    fast = fastres.optimize(fastres.models.build(model).eval(), image, engine="eager")
    fast._runner = Runner(
        fast.graph_module, fast.internals.contract, IdleEngine(by_name(product)), None
    )
    fast(image)
    return fast, image


def bare_launch(fast: OptimizedModule, image: Tensor) -> Callable[[], Tensor]:
    """A call's copies, replays and fresh memory, and nothing else."""
    executable: Any = fast.internals.runner.executable([image])
    ((number, value),) = executable.plan.inputs
    (result,) = executable.plan.results
    assert number == 0
    copied = executable._bound.tensors[value.name]
    replays, tensors = executable._recorded_whole
    source, shape = tensors[result.source], result.value.shape

    def launch() -> Tensor:
        copied.copy_(image)
        for replay in replays:
            replay()
        output = torch.empty(shape, dtype=source.dtype, device="cpu")
        return output.copy_(source)

    return launch


def repeated(call: Callable[[], object]) -> Callable[[], None]:
    """The call so many times over."""

    def run() -> None:
        for _ in range(CALLS):
            call()

    return run


def main(argv: Sequence[str] | None = None) -> int:
    """Print the times; the exit status is 1 if what is added is above `LIMIT_US`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host_time", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", nargs="+", default=["resnet18", "resnet50", "resnext50_32x4d"])
    parser.add_argument("--size", type=int, default=32, help="of the image; copying it takes time")
    parser.add_argument("--gpu", default="h100", help="whose plan")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--json", type=Path, help="write the record")
    options = parser.parse_args(argv)
    os.environ["TRITON_INTERPRET"] = "1"  # kernels for CPU tensors; read when Triton is imported
    rows: list[dict[str, Any]] = []
    for name in options.model:
        fast, image = optimised_on_idle_device(name, options.size, options.gpu)
        launch = bare_launch(fast, image)
        with torch.inference_mode():
            calls = {"call": repeated(functools.partial(fast, image)), "bare": repeated(launch)}
            times = measure.interleave(calls, measure.Plan(seconds=options.seconds, settle=0.0))
        added = [
            (call_ns - bare_ns) / CALLS / 1000
            for call_ns, bare_ns in zip(times["call"], times["bare"], strict=True)
        ]
        weights = len(fast.graph_module._buffers)
        row = {
            "model": name,
            "weights": weights,
            "call_us": min(times["call"]) / CALLS / 1000,
            "bare_us": min(times["bare"]) / CALLS / 1000,
            "added_us": measure.percentile(added, 50),
            "added_us_quartiles": [measure.percentile(added, q) for q in (25, 75)],
        }
        rows.append(row)
        low, high = row["added_us_quartiles"]
        print(
            f"{name:16} {weights:4} weights: fastest call {row['call_us']:.1f} us, bare launch "
            f"{row['bare_us']:.1f} us; the runtime adds {row['added_us']:.1f} us ({low:.1f} to "
            f"{high:.1f})"
        )
    if options.json is not None:
        tree = {
            "schema": "fastres.host_time",
            "version": 1,
            "revision": revision.of_fastres(),
            "environment": target.environment(),
            "rows": rows,
        }
        record.write_tree(tree, options.json)
    return int(any(row["added_us"] > LIMIT_US for row in rows))


if __name__ == "__main__":
    sys.exit(main())
