"""Plans of real networks for real GPUs, counted without one: launches, bytes, memory, reasons."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, fx

import fastres
from fastres.kernels.tuning.gpus import architecture, by_name
from fastres.runtime.triton.arithmetic import Arithmetic, arithmetic
from fastres.runtime.triton.describe import described, totals
from fastres.runtime.triton.fusion_policy import if_it_fits, never
from fastres.runtime.triton.lower import Planned, plan_for
from fastres.runtime.triton.memory_planner import clashes
from fastres.runtime.triton.plan import KernelStep, Plan, TorchStep
from fastres.runtime.triton.tactics import Tactics
from tests.support.optimizing import optimize

STAGES = ("layer1", "layer2")
"""conv2_x and conv3_x."""


def images(batch: int) -> Tensor:
    """Shapes are all that is looked at."""
    return torch.zeros(1, 1, 1, 1).expand(batch, 3, 224, 224)


@pytest.fixture(scope="module")
def resnet50() -> fx.GraphModule:
    model = fastres.models.resnet50().eval()
    fast = optimize(model, torch.randn(1, 3, 32, 32), engine="eager", precision="fp16")
    graph: fx.GraphModule = fast.graph_module
    return graph


def planned(graph: fx.GraphModule, gpu: str, batch: int, policy: Any = None) -> Planned:
    return plan_for(graph, [images(batch)], Tactics(by_name(gpu)), Arithmetic(), policy)


def moved(plan: Plan, *stages: str) -> int:
    """Bytes of the steps of some of the network's stages."""
    return sum(plan.bytes_moved(step) for step in plan.steps if step.module.split(".")[0] in stages)


@pytest.mark.campaign
@pytest.mark.parametrize("gpu", ["a100", "h100"])
@pytest.mark.parametrize("batch", [32, 256])
def test_resnet50_in_few_launches(resnet50: fx.GraphModule, gpu: str, batch: int) -> None:
    unfused = planned(resnet50, gpu, batch, never)
    fits = planned(resnet50, gpu, batch, if_it_fits("fp16", by_name(gpu)))
    chosen = planned(resnet50, gpu, batch)
    launches = {
        name: totals(each.plan, each.calls()).launches
        for name, each in (("unfused", unfused), ("fits", fits), ("chosen", chosen))
    }
    # 53 convolutions, max-pool, average and classifier; sums of splits come on top.
    assert launches["unfused"] >= 56
    assert launches["fits"] <= 26
    # As measured on an H100, blocks with a shortcut or the next convolution pay for less there.
    assert launches["chosen"] <= {"a100": 34, "h100": 50}[gpu]
    for fused in (fits, chosen):
        assert moved(fused.plan, *STAGES) <= 0.7 * moved(unfused.plan, *STAGES)
        assert list(clashes(fused.plan.buffers, fused.plan.arena)) == []
        assert not any(isinstance(step, TorchStep) for step in fused.plan.steps)
    assert all(str(remark.reason) for remark in chosen.unfused)


def test_bytes_are_each_tensor_once(resnet50: fx.GraphModule) -> None:
    """A block of conv2_x by hand, in elements per pixel, beside its weights."""
    plan = planned(resnet50, "a100", 32, if_it_fits("fp16", by_name("a100"))).plan
    (step,) = (step for step in plan.steps if step.module == "layer1.1.conv3")
    per_pixel = 64 + 256 + 256 + 64  # x, residual, wide, the next block's narrow
    weights = 2 * (9 * 64 * 64 + 64 * 256 + 256 * 64) + 4 * (64 + 256 + 64)
    assert plan.bytes_moved(step) == 32 * 56 * 56 * per_pixel * 2 + weights


def test_residual_sums_lie_where_the_residual_lay(resnet50: fx.GraphModule) -> None:
    plan = planned(resnet50, "a100", 32, never).plan
    sums = [
        step
        for step in plan.steps
        if isinstance(step, KernelStep) and len(step.reads) == 2 and step.overwrites
    ]
    assert len(sums) == 16
    for step in sums:
        assert plan.homes[step.writes[0].name] == plan.homes[step.overwrites[0]]


def test_activations_take_the_memory_of_the_widest_moment(resnet50: fx.GraphModule) -> None:
    plan = planned(resnet50, "a100", 32, never).plan
    # The stem's output and the pool's; later moments are narrower: 64 + 64 / 4 per 112 x 112.
    stem = 32 * 112 * 112 * 64 * 2
    assert stem <= plan.arena.nbytes <= 2 * stem


def test_a_t4_gets_the_library_and_no_fused_blocks(resnet50: fx.GraphModule) -> None:
    found = planned(resnet50, "t4", 32)
    by_library = [step for step in found.plan.steps if isinstance(step, TorchStep)]
    assert sum(step.operation == "fastres.conv2d" for step in by_library) == 53
    ours = [step for step in by_library if step.operation.startswith("fastres.")]
    assert {step.tactic for step in ours} == {"library"}
    assert all("no tensor-core instructions for sm_75" in each.reason for each in found.unfused)


def test_small_batches_split_sums(resnet50: fx.GraphModule) -> None:
    found = planned(resnet50, "h100", 1)
    plan = found.plan
    split = [step for step in plan.steps if isinstance(step, KernelStep) and step.scratch]
    assert {step.module.split(".")[0] for step in split} >= {"layer4"}
    for step in split:
        number = plan.steps.index(step)
        assert len(found.calls()[number]) == 2
    assert list(clashes(plan.buffers, plan.arena)) == []


def test_the_plan_in_words(resnet50: fx.GraphModule) -> None:
    found = planned(resnet50, "a100", 32)
    text = described(found.plan, found.calls(), recorded=True)
    first, argument, *rest = text.splitlines()
    assert "launches of kernels replayed as one graph, 0 calls of torch; arena" in first
    filled = "channels filled up with zeros"
    assert argument == f"  argument 0 -> [32, 4, 224, 224] float16, {filled}"
    assert rest[0].startswith("  conv1: fastres.conv2d_max_pool2d -> [32, 64, 56, 56] at ")
    assert any(line.startswith("    bottleneck_kernel grid 1568x1x1, ") for line in rest) or any(
        "bottleneck_kernel grid " in line for line in rest
    )


@pytest.fixture
def flags() -> Iterator[dict[str, Any]]:
    """torch's two flags for float32 on GPUs, as torch sets them; what was before comes back."""
    places: dict[str, Any] = {
        "convolution": torch.backends.cudnn.conv,  # type: ignore[attr-defined]
        "product": torch.backends.cuda.matmul,
    }
    before = {name: place.fp32_precision for name, place in places.items()}
    for name, default in (("convolution", "tf32"), ("product", "none")):  # others may have set them
        places[name].fp32_precision = default
    yield places
    for name, place in places.items():
        place.fp32_precision = before[name]
    assert {name: place.fp32_precision for name, place in places.items()} == before


@pytest.mark.parametrize(
    ("given", "precision", "wanted"),
    [
        ({}, None, ("tf32", "fp32")),  # torch's own defaults
        ({"convolution": "ieee"}, None, ("fp32", "fp32")),
        ({"product": "tf32"}, None, ("tf32", "tf32")),
        ({"convolution": "tf32", "product": "tf32"}, "fp32", ("fp32", "fp32")),
    ],
)
def test_tf32_only_where_torch_itself_takes_it(
    flags: dict[str, Any],
    given: dict[str, str],
    precision: str | None,
    wanted: tuple[str, str],
) -> None:
    for name, value in given.items():
        flags[name].fp32_precision = value
    found = arithmetic(precision, architecture("sm_80"))
    assert (found.convolution, found.product) == wanted
    # On AMD's chips torch has TF32 products where the chip has, and no TF32 convolutions.
    assert arithmetic(precision, architecture("gfx942")) == Arithmetic("fp32", wanted[1])
    for full in (architecture("gfx90a"), architecture("sm_75"), None):
        assert arithmetic(precision, full) == Arithmetic("fp32", "fp32")
    assert found.of_convolution(torch.float16) == "fp16"
    assert found.of_product(torch.bfloat16) == "bf16"
