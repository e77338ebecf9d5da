"""A whole network with AMX's kernels, on processors without it: see ``emulator``."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastres
from fastres.dtypes import PRECISIONS
from fastres.models import resnet50
from fastres.runtime.native.library import Library
from tests.support.native.emulator import tile_instructions


@pytest.fixture
def network() -> nn.Module:
    """A stem, every kind of bottleneck, a classifier; statistics that show a lost BatchNorm."""
    torch.manual_seed(0)
    whole = resnet50(num_classes=37)
    for name in ("layer1", "layer2", "layer3"):
        setattr(whole, name, getattr(whole, name)[:2])
    whole.layer4 = nn.Sequential()
    whole.fc = nn.Linear(1024, 37)
    for module in whole.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return whole.eval()


@pytest.mark.campaign
def test_answers(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    image = torch.randn(2, 3, 45, 38)
    with tile_instructions() as counts:
        monkeypatch.setattr(Library, "isas", frozenset({"avx512", "avx512_bf16", "amx_bf16"}))
        fast = fastres.optimize(network, image, precision="bf16", engine="native", threads=1)
        answer = fast(image)
    assert counts.hardware or counts.done["product"] > 1000
    eager = fastres.optimize(network, image, precision="bf16", engine="eager")(image)
    with torch.no_grad():
        exact = network.double()(image.double())
    assert torch.linalg.norm(answer - exact) <= 2 * torch.linalg.norm(eager - exact)


def test_amx_comes_first() -> None:
    assert PRECISIONS["bf16"].instruction_sets[0] == "amx_bf16"
