"""Whole networks by the kernels: as accurate as eager, and the receipt that every engine gives.

Interpreted on the CPU, or compiled in a run on a GPU. Images are small, depths are real.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastres
from fastres.report import KINDS
from fastres.runtime.triton.executable import TritonExecutable
from fastres.runtime.triton.plan import KernelStep
from tests.support.optimizing import optimize
from tests.support.oracle import assert_as_accurate
from tests.zoo.configurable import BottleneckUnit, ConfigurableResNet
from tests.zoo.resblk import ConcatenationNetwork, ResBlkNetwork
from tests.zoo.residual_notes import nested_sequential_network, one_channel_network
from tests.zoo.statistics import randomise_statistics


@dataclass(frozen=True)
class Case:
    """A network.

    Attributes:
        build: makes it.
        image: channels, height and width.
        precision: to compute in.
        steps: kernels that it takes, when every block fuses that can.
        by_torch: steps that torch runs.
    """

    build: Callable[[], nn.Module]
    image: tuple[int, int, int]
    precision: str
    steps: int
    by_torch: int = 0


def resnext() -> nn.Module:
    """ResNeXt's blocks, one per stage, 32 groups of four channels in the first."""
    return ConfigurableResNet(BottleneckUnit, (1, 1, 1, 1), groups=32, width_per_group=4)


CASES = {
    # stem with pool; 16 3x3, 3 of them with a shortcut's 1x1 beside; classifier
    "ResNet-18": Case(fastres.models.resnet18, (3, 64, 64), "fp32", 1 + 16 + 3 + 1),
    # stem with pool; the first 1x1; 16 tails, each with the next 1x1; classifier
    "ResNet-50": Case(fastres.models.resnet50, (3, 32, 32), "fp16", 1 + 1 + 16 + 1),
    "the notebook's blocks": Case(nested_sequential_network, (3, 40, 40), "fp32", 21),
    "one channel, no head": Case(one_channel_network, (1, 33, 47), "fp16", 20),
    "ResBlk": Case(lambda: ResBlkNetwork(talk=False), (3, 45, 48), "fp32", 15),
    # on the CPU the head is float32, after a cast
    "ResBlk in bfloat16": Case(lambda: ResBlkNetwork(talk=False), (3, 45, 48), "bf16", 15, 2),
    # stages 1 and 2 as tails; in 3 and 4 the groups are wide, and their layers run one by one
    "ResNeXt": Case(resnext, (3, 32, 32), "fp16", 1 + 1 + 2 + 4 + 3 + 1),
    "concatenation": Case(ConcatenationNetwork, (3, 21, 22), "fp32", 18, 10),
}


SMALLEST = "concatenation"
NAMES = [
    pytest.param(name, marks=() if name == SMALLEST else pytest.mark.campaign) for name in CASES
]


@pytest.mark.campaign
@pytest.mark.parametrize("name", NAMES)
def test_network(name: str, device: str) -> None:
    case = CASES[name]
    torch.manual_seed(0)
    model = randomise_statistics(case.build(), torch.randn(8, *case.image)).eval()
    example = torch.randn(1, *case.image)
    fast = optimize(model, example, engine="triton", precision=case.precision, device=device)

    def on_device(x: Tensor) -> Any:
        return fast(x.to(device)).cpu()

    assert fast.engine == "triton"
    assert_as_accurate(model, on_device, torch.randn(2, *case.image), precision=case.precision)
    assert_same_counts(fast, optimize(model, example, engine="onednn"))
    executable = fast._runner.executable([torch.randn(2, *case.image, device=device)])
    assert isinstance(executable, TritonExecutable)
    if device == "cpu":
        ours = [isinstance(step, KernelStep) for step in executable.plan.steps]
        assert (ours.count(True), ours.count(False)) == (case.steps, case.by_torch)


def assert_same_counts(fast: Any, other: Any) -> None:
    for kind in KINDS:
        assert fast.report.count(kind) == other.report.count(kind)
    assert [str(r) for r in fast.report.refused] == [str(r) for r in other.report.refused]
    # What engines leave beside that is their own affair: the other one lacks an average pooling.
    ours, others = (each.report.without_engine().left for each in (fast, other))
    assert [str(r) for r in ours] == [str(r) for r in others]
    assert fast.report.engine_left == []
