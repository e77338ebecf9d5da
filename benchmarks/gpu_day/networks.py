"""Networks with weights under which answers mean something, optimised once for all batches.

And the stage ``networks``: each against float64, and whether its launches are one CUDA graph.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from torch import Tensor, nn

import fastres
from benchmarks.gpu_day.answers import FACTOR, relative_error
from benchmarks.gpu_day.faults import spoilt
from benchmarks.gpu_day.results import Job, Record
from benchmarks.gpu_day.settings import DEVICE, DTYPES, REHEARSED, allow_tf32
from fastres.workload import inputs, model_source

EXAMPLE = 1
"""Images of the example: a batch whose kernels are prepared."""

CHECKED = 4
"""Images of a batch that are computed in float64, too."""

Network = tuple[str, str, int]
"""Model, precision, batch."""

TIMED: list[Network] = [
    *(("resnet50", "fp16", batch) for batch in (256, 32, 1)),
    *(("resnet50", precision, batch) for precision in ("bf16", "tf32") for batch in (256, 32, 1)),
    *(("resnet18", "fp16", batch) for batch in (256, 32, 1)),
    *(("resnext50_32x4d", "fp16", batch) for batch in (256, 32, 1)),
]
"""In order of worth."""

COMPARED: list[Network] = [
    *(("resnet18", "fp16", batch) for batch in (1, 32)),
    *(("resnet50", "fp16", batch) for batch in (1, 32)),
    *(("resnext50_32x4d", "fp16", batch) for batch in (1, 32)),
    *(("resnet50", precision, batch) for precision in ("bf16", "tf32") for batch in (1, 32)),
    ("resnet50", "fp16", 256),
]
"""Small ones first."""

REHEARSALS: list[Network] = [("tiny", "fp16", 1), ("tiny", "fp16", 2), ("tiny", "fp32", 2)]


class Tiny(nn.Module):
    """One block and a classifier: small enough to be interpreted."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Any:
        """Classify."""
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)) + x)
        return self.fc(x.mean((2, 3)))


def size_of(model: str) -> int:
    """Pixels of a side."""
    if model == "tiny":
        return 8
    return 32 if model.startswith("cifar") else 224


@functools.cache
def calibrated(model: str) -> tuple[nn.Module, Tensor]:
    """On the CPU, whose generators draw the weights: the network, and 16 images."""
    torch.manual_seed(0)
    net = Tiny() if model == "tiny" else model_source.build(model_source.parse(model), seed=0)
    net = net.eval()
    pool = inputs.synthetic_images(16, 3, size_of(model), seed=0)
    inputs.calibrate_random_weights(net, pool, seed=0)
    return net, pool


def network(model: str) -> tuple[nn.Module, Tensor]:
    """A copy of a network, and the images, where it runs."""
    net, pool = calibrated(model)
    return copy.deepcopy(net).to(DEVICE), pool.to(DEVICE)


def batch_of(pool: Tensor, batch: int) -> Tensor:
    """So many images, the pool's over and over."""
    return pool.repeat(-(-batch // len(pool)), 1, 1, 1)[:batch]


def optimised(net: nn.Module, precision: str, images: Tensor, **options: Any) -> Any:
    """The network optimised by the engine for GPUs."""
    allow_tf32(precision)
    requested = (
        None if DTYPES[precision] == torch.float32 else precision
    )  # "fp32" would mean no TF32
    return fastres.optimize(
        net, images[:EXAMPLE], device=DEVICE, engine="triton", precision=requested, **options
    )


@functools.cache
def ready(model: str, precision: str) -> tuple[nn.Module, Tensor, Any]:
    """A network and images in a precision's dtype, and the network optimised once."""
    net, pool = network(model)
    net, pool = net.to(DTYPES[precision]), pool.to(DTYPES[precision])
    return net, pool, optimised(net, precision, pool)


@functools.cache
def float64(model: str) -> nn.Module:
    """The oracle: the network as it was settled, in float64."""
    return network(model)[0].double()


def picked(images: Tensor) -> Tensor:
    """A few of a batch: its first and its last."""
    if len(images) <= CHECKED:
        return images
    return torch.cat([images[: CHECKED // 2], images[-CHECKED // 2 :]])


def compared(model: str, precision: str, images: Tensor, output: Tensor) -> Record:
    """An answer for a batch against float64, and eager's in the same precision."""
    allow_tf32(precision)
    few = picked(images)
    net = network(model)[0].to(images.dtype)
    with torch.inference_mode():
        eager = net(few)
        with torch.backends.cudnn.flags(enabled=True):  # no benchmark of float64's ways
            exact = float64(model)(few.double())
    our_error, eager_error = (
        relative_error(spoilt(picked(output)), exact),
        relative_error(eager, exact),
    )
    least = torch.finfo(images.dtype).eps if precision != "tf32" else 2.0**-11
    return {
        "ok": our_error <= FACTOR * max(eager_error, least),
        "error": our_error,
        "eagers": eager_error,
    }


def networks() -> list[Job]:
    """Each model once in a precision, at one batch after the other."""

    def check(model: str, precision: str, batch: int) -> Record:
        _, pool, fast = ready(model, precision)
        allow_tf32(precision)
        images = batch_of(pool, batch)
        result = compared(model, precision, images, fast(images))
        plan = fast.program(images).splitlines()[0]
        recorded = "one graph" in plan or REHEARSED
        if not result["ok"] and batch <= CHECKED:
            verdict = fastres.verify(network(model)[0].to(pool.dtype), fast, images)
            result["first drift"] = str(verdict.first_drift)
        result["ok"] = result["ok"] and recorded
        return result | {"recorded": recorded, "plan": plan, "receipt": str(fast.report)}

    return [
        Job(
            f"{m} {p} {b}",
            functools.partial(check, m, p, b),
            {"model": m, "precision": p, "batch": b},
        )
        for m, p, b in (REHEARSALS if REHEARSED else COMPARED)
    ]
