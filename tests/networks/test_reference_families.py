"""The five families of residual networks that fastres has to take as their authors wrote them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from fastres.errors import CaptureError
from tests.support.optimizing import assert_complete, nodes, optimize, refusal_of
from tests.support.oracle import assert_as_accurate
from tests.zoo.configurable import (
    configurable_resnet34,
    configurable_resnet50,
    configurable_resnext50,
)
from tests.zoo.resblk import ConcatenationNetwork, EarlyResBlk, ResBlk, ResBlkNetwork
from tests.zoo.residual_notes import (
    FunctionalPoolNetwork,
    misspelt_stage,
    nested_sequential_network,
    one_channel_network,
    one_channel_network_as_written,
)
from tests.zoo.same_padding import SamePaddingResNet
from tests.zoo.statistics import randomise_statistics


@dataclass(frozen=True)
class Family:
    """A network, the shape of one image, and what its receipt must count."""

    build: Callable[[], nn.Module]
    image: tuple[int, int, int]
    batch_norm: int
    convolution: int
    addition: int
    activation: int

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        model = self.build()
        return randomise_statistics(model, self.images(8, seed=1)).eval()

    def images(self, batch: int, seed: int = 0, grow: int = 0) -> torch.Tensor:
        size = [side if side < 5 else side + grow for side in self.image]
        return torch.randn(batch, *size, generator=torch.Generator().manual_seed(seed))

    def counts(self) -> dict[str, int]:
        kinds = ("batch_norm", "convolution", "addition", "activation")
        return {kind: getattr(self, kind) for kind in kinds}


FAMILIES = {
    "one channel, no head": Family(one_channel_network, (1, 64, 64), 17, 20, 8, 17),
    "nested Sequential": Family(nested_sequential_network, (3, 64, 64), 17, 20, 8, 17),
    "functional pooling": Family(FunctionalPoolNetwork, (3, 64, 64), 17, 20, 8, 17),
    "configurable 34": Family(configurable_resnet34, (3, 64, 64), 36, 36, 16, 33),
    "configurable 34, headless": Family(
        lambda: configurable_resnet34(include_top=False), (3, 64, 64), 36, 36, 16, 33
    ),
    "configurable 50": Family(configurable_resnet50, (3, 64, 64), 53, 53, 16, 49),
    "configurable 50, v1": Family(
        lambda: configurable_resnet50(stride_first=True), (3, 64, 64), 53, 53, 16, 49
    ),
    "configurable ResNeXt-50": Family(configurable_resnext50, (3, 64, 64), 53, 53, 16, 49),
    "ResBlk": Family(ResBlkNetwork, (3, 48, 48), 14, 14, 5, 9),
}


@pytest.fixture(params=FAMILIES, scope="module")
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def model(family: Family) -> nn.Module:
    return family.model()


@pytest.mark.campaign
def test_every_family_is_optimised_whole(family: Family, model: nn.Module) -> None:
    fast = optimize(model, family.images(1))
    assert_complete(fast, **family.counts())
    assert len(nodes(fast, "conv2d")) == family.convolution
    for images in (family.images(2), family.images(1, 1, 13), family.images(3, 2, -5)):
        assert_as_accurate(model, fast, images)
    # Eager's own `view(0, -1)` fails; an empty batch is no reason for the optimised model to.
    assert fast(family.images(0)).shape == (0, *fast(family.images(1)).shape[1:])


@pytest.mark.sampled(10)
def test_every_family_is_as_accurate_in_bfloat16(family: Family, model: nn.Module) -> None:
    fast = optimize(model, family.images(1), precision="bf16")
    assert_complete(fast, **family.counts())
    assert_as_accurate(model, fast, family.images(4), precision="bf16")


@pytest.mark.campaign
@pytest.mark.parametrize("expand", [1, 4], ids=["basic", "bottleneck"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_tensorflows_conventions(expand: int, precision: str) -> None:
    def images(height: int, width: int, batch: int = 2) -> torch.Tensor:
        return torch.randn(batch, height, width, 3)

    model = SamePaddingResNet(depths=(1, 2, 1, 1), expand=expand)
    randomise_statistics(model, images(64, 64, batch=8)).eval()
    fast = optimize(model, images(64, 64), precision=precision)
    report = fast.report
    assert report.done["batch_norm"] == report.found["batch_norm"] == (14 if expand == 1 else 20)
    assert_as_accurate(model, fast, images(64, 64), precision=precision)
    assert_as_accurate(model, fast, images(64, 64, batch=5), precision=precision)
    # Its padding depends on the size: another size is computed with its own padding or refused.
    for size in ((32, 64), (65, 63), (71, 50)):
        refusal = refusal_of(fast, images(*size))
        if refusal is None:
            assert_as_accurate(model, fast, images(*size), precision=precision)
        else:
            assert "expected [N, 64, 64, 3]" in refusal


@pytest.mark.campaign
def test_without_its_top_the_nhwc_network_returns_nhwc() -> None:
    model = SamePaddingResNet(depths=(1, 1, 1, 1), include_top=False)
    images = torch.randn(4, 64, 64, 3)
    randomise_statistics(model, images).eval()
    fast = optimize(model, images)
    assert fast(images).shape == (4, 2, 2, 512)
    assert_as_accurate(model, fast, images)


@pytest.mark.campaign
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_concatenation_keeps_the_batch_norms_no_convolution_can_take(precision: str) -> None:
    model = ConcatenationNetwork()
    randomise_statistics(model, torch.randn(8, 3, 32, 32)).eval()
    fast = optimize(model, torch.randn(2, 3, 32, 32), precision=precision)
    report = fast.report
    # Four of its ten follow a convolution directly; the others read a concatenation or a pooling.
    assert (report.found["batch_norm"], report.done["batch_norm"]) == (10, 4)
    unfolded = {remark.module for remark in report.refused + report.left}
    assert {"layers.0.0", "layers.3.0", "transition.0", "last"} <= unfolded
    assert_as_accurate(model, fast, torch.randn(3, 3, 29, 30), precision=precision)


def test_a_printing_forward_prints_nothing_and_the_receipt_says_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = ResBlkNetwork()
    fast = optimize(model.eval(), torch.randn(1, 3, 48, 48))
    fast(torch.randn(2, 3, 48, 48))
    assert "ResBlk gets" not in capsys.readouterr().out
    assert any("print in forward" in note for note in fast.report.notes)


def test_the_misspelt_helper_fails_where_its_author_calls_it() -> None:
    with pytest.raises(TypeError, match="stride"):
        misspelt_stage(64, 128, 2)
    with pytest.raises(AssertionError):
        one_channel_network_as_written()


def test_a_forgotten_return_is_named() -> None:
    block = EarlyResBlk(4, 4, returns=False)
    with pytest.raises(CaptureError, match=r"\(the model itself\) \(EarlyResBlk\) returned None"):
        optimize(block.eval())
    with pytest.raises(CaptureError, match=r"module 1 \(EarlyResBlk\) returned None"):
        optimize(nn.Sequential(nn.Conv2d(3, 4, 1), block).eval())


def test_a_forgotten_return_in_the_middle_is_named() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), EarlyResBlk(4, 4, returns=False), nn.Conv2d(4, 4, 1))
    with pytest.raises(CaptureError, match=r"1 \(EarlyResBlk\) returned None"):
        optimize(model.eval())


def test_a_stride_that_cannot_be_added_is_named() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), ResBlk(8, 8, stride=2))
    with pytest.raises(CaptureError, match=r"fails in module 1 \(ResBlk\): RuntimeError: The size"):
        optimize(model.eval())
