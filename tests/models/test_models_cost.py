"""Parameters and multiply-adds against the published figures, and against arithmetic by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from fastres import models
from fastres.errors import ModelError, OptionError

# https://docs.pytorch.org/vision/stable/models.html: parameters, and GFLOPS (multiply-adds really).
TORCHVISION = {
    "resnet18": (11_689_512, 1.814),
    "resnet34": (21_797_672, 3.664),
    "resnet50": (25_557_032, 4.089),
    "resnet101": (44_549_160, 7.801),
    "resnet152": (60_192_808, 11.514),
    "resnext50_32x4d": (25_028_904, 4.230),
    "resnext101_32x8d": (88_791_336, 16.414),
    "wide_resnet50_2": (68_883_240, 11.398),
}

# He et al., https://arxiv.org/abs/1512.03385, table 1: multiply-adds in units of 1e9.
PAPER = {"resnet18": 1.8, "resnet34": 3.6, "resnet50": 3.8, "resnet101": 7.6, "resnet152": 11.3}

# The same, table 6: millions of parameters on CIFAR-10.
PAPER_CIFAR = {20: "0.27", 32: "0.46", 44: "0.66", 56: "0.85", 110: "1.7"}


def on_meta(name: str, **options: Any) -> nn.Module:
    with torch.device("meta"):
        return models.build(name, **options)


@pytest.mark.parametrize("name", TORCHVISION)
def test_counts_are_torchvisions(name: str) -> None:
    parameters, giga = TORCHVISION[name]
    cost = models.count(on_meta(name), 224)
    assert cost.parameters == parameters
    assert round(cost.multiply_adds / 1e9, 3) == giga


@pytest.mark.parametrize("name", TORCHVISION)
def test_the_figures_above_are_those_of_the_installed_torchvision(name: str) -> None:
    meta = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"].meta
    assert (meta["num_params"], meta["_ops"]) == TORCHVISION[name]


@pytest.mark.parametrize("name", PAPER)
def test_v1_counts_are_the_papers_up_to_its_last_digit(name: str) -> None:
    cost = models.count(on_meta(name, version="v1"), 224)
    # The paper prints two or three digits and rounds ResNet-34 and -50 down.
    assert abs(cost.multiply_adds / 1e9 - PAPER[name]) < 0.1


@pytest.mark.parametrize("name", ["resnet50", "resnet101", "resnet152"])
def test_v1_saves_three_quarters_of_the_first_1x1_of_three_stages(name: str) -> None:
    later = models.count(on_meta(name), 224)
    paper = models.count(on_meta(name, version="v1"), 224)
    saved = 0
    for size, planes in ((56, 128), (28, 256), (14, 512)):
        saved += (size**2 - (size // 2) ** 2) * (2 * planes) * planes
    assert saved == 231_211_008
    assert later.multiply_adds - paper.multiply_adds == saved
    assert later.parameters == paper.parameters


@pytest.mark.parametrize("name", ["resnet18", "resnet34"])
def test_v1_is_v15_for_basic_blocks(name: str) -> None:
    assert models.count(on_meta(name, version="v1"), 224) == models.count(on_meta(name), 224)


@pytest.mark.parametrize("depth", PAPER_CIFAR)
def test_cifar_parameters_are_the_papers(depth: int) -> None:
    cost = models.count(on_meta(f"cifar_resnet{depth}"), 32)
    assert f"{cost.parameters / 1e6:.2g}" == PAPER_CIFAR[depth]
    n = (depth - 2) // 6
    weights = 3 * 16 * 9 + sum(
        9 * width * (width * (2 * n - 1) + narrower)
        for width, narrower in ((16, 16), (32, 16), (64, 32))
    )
    norms = 2 * (16 + 2 * n * (16 + 32 + 64))
    assert cost.parameters == weights + norms + 64 * 10 + 10
    # Each stage has a quarter of the pixels of the one before.
    products = 3 * 16 * 9 * 32**2 + sum(
        9 * width * (width * (2 * n - 1) + narrower) * size**2
        for width, narrower, size in ((16, 16, 32), (32, 16, 16), (64, 32, 8))
    )
    assert cost.multiply_adds == products + 64 * 10


def test_cifar_option_b_adds_two_projections() -> None:
    a = models.count(on_meta("cifar_resnet20"), 32)
    b = models.count(on_meta("cifar_resnet20", shortcut="B"), 32)
    assert b.parameters - a.parameters == 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64
    assert b.multiply_adds - a.multiply_adds == 16 * 32 * 16**2 + 32 * 64 * 8**2


def test_a_convolution_by_hand() -> None:
    layer = nn.Conv2d(6, 8, (3, 5), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2)
    p, q = (13 + 2 - 3) // 2 + 1, 17 - 2 * 4
    expected = models.Cost(8 * 3 * 15 + 8, 8 * p * q * 3 * 15)
    assert models.count(layer, (13, 17)) == expected


def test_layers_used_twice_cost_twice_and_their_parameters_once() -> None:
    layer = nn.Conv2d(4, 4, 1)
    once, twice = models.count(layer, 8), models.count(nn.Sequential(layer, layer), 8)
    assert twice == models.Cost(once.parameters, 2 * once.multiply_adds)


def test_a_model_without_convolution_needs_the_number_of_channels() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(2 * 3 * 3, 5))
    assert models.count(model, 3, in_channels=2) == models.Cost(18 * 5 + 5, 18 * 5)
    with pytest.raises(OptionError) as caught:
        models.count(model, 3)
    assert str(caught.value) == (
        "in_channels: got None, expected a number, because Sequential has no Conv2d to take it "
        "from; pass in_channels=."
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_model_is_not_touched(dtype: torch.dtype) -> None:
    model = models.cifar_resnet20().to(dtype).train()
    model.layer1[0].eval()
    called: list[nn.Module] = []
    model.register_forward_hook(lambda module, *_: called.append(module))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    pointers = [value.data_ptr() for value in model.state_dict().values()]
    modes = [module.training for module in model.modules()]

    assert models.count(model, 32).multiply_adds == 40_551_040

    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [value.data_ptr() for value in model.state_dict().values()] == pointers
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert len(called) == 1
    assert called[0] is not model


def test_counts_in_evaluation_mode() -> None:
    # In training mode BatchNorm refuses the one value per channel that one 32 x 32 image leaves.
    model = on_meta("resnet18").train()
    assert models.count(model, 32) == models.count(model.eval(), 32)


class TakesItsOwnDtype(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        if input.dtype != self.weight.dtype:
            raise RuntimeError(f"expected {self.weight.dtype}")
        return super().forward(input)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_image_has_the_models_dtype(dtype: torch.dtype) -> None:
    assert models.count(TakesItsOwnDtype(3, 5, 1, dtype=dtype), 2).multiply_adds == 3 * 5 * 4


class LooksAtValues(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y if y.sum().item() > 0 else -y


def test_a_model_that_looks_at_values_cannot_be_counted() -> None:
    with pytest.raises(ModelError) as caught:
        models.count(LooksAtValues(), 8)
    text = str(caught.value)
    assert text.startswith(
        "count: LooksAtValues does not run on an image of shape (1, 3, 8, 8) on the meta device: "
    )
    assert text.endswith("whose path depends on the values in its tensors cannot be counted.")
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_an_image_smaller_than_the_filter_is_an_error() -> None:
    with pytest.raises(ModelError, match=r"shape \(1, 3, 2, 2\).*Check image_size"):
        models.count(nn.Conv2d(3, 4, 3), 2)


@pytest.mark.parametrize(
    ("size", "shown"),
    [(0, "(0, 0)"), ((3, -1), "(3, -1)"), ((1, 2, 3), "(1, 2, 3)"), ("224", "'224'"), (2.5, "2.5")],
)
def test_wrong_image_sizes(size: Any, shown: str) -> None:
    with pytest.raises(OptionError) as caught:
        models.count(nn.Conv2d(3, 4, 3), size)
    assert str(caught.value) == (
        f"image_size: got {shown}, expected 2 integers of at least 1; height and width in pixels, "
        "ImageNet has (224, 224)."
    )


def test_wrong_in_channels() -> None:
    with pytest.raises(OptionError, match=r"^in_channels: got 0, expected an integer of at least"):
        models.count(nn.Conv2d(3, 4, 3), 8, in_channels=0)
