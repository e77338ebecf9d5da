"""The CIFAR-size networks against the paper's section 4.2, written out with functions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastres import models
from fastres.models.blocks import SubsampleAndPad

DEPTHS = (20, 32, 44, 56, 110)


def randomised(model: nn.Module) -> nn.Module:
    """Give the BatchNorms something to do."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2.0)
    return model.eval()


def written_out(state: dict[str, Tensor], x: Tensor, blocks: int) -> Tensor:
    """The network as the paper words it, from its weights alone."""

    def norm(y: Tensor, name: str) -> Tensor:
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        return F.batch_norm(y, mean, var, state[f"{name}.weight"], state[f"{name}.bias"])

    def convolve(y: Tensor, conv: str, bn: str, stride: int) -> Tensor:
        weight = state[f"{conv}.weight"]
        return norm(F.conv2d(y, weight, stride=stride, padding=weight.shape[-1] // 2), bn)

    x = F.relu(convolve(x, "conv1", "bn1", 1))
    for level in range(3):
        for index in range(blocks):
            at = f"layer{level + 1}.{index}"
            stride = 2 if level > 0 and index == 0 else 1
            y = F.relu(convolve(x, f"{at}.conv1", f"{at}.bn1", stride))
            y = convolve(y, f"{at}.conv2", f"{at}.bn2", 1)
            if f"{at}.downsample.0.weight" in state:
                x = convolve(x, f"{at}.downsample.0", f"{at}.downsample.1", stride)
            elif stride == 2:
                wider = torch.zeros_like(y)
                wider[:, : x.shape[1]] = x[:, :, ::2, ::2]
                x = wider
            x = F.relu(y + x)
    return F.linear(x.mean((2, 3)), state["fc.weight"], state["fc.bias"])


@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize("depth", [20, 32])
def test_output_is_the_papers(depth: int, shortcut: str) -> None:
    model = randomised(models.build(f"cifar_resnet{depth}", shortcut=shortcut)).double()
    image = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.inference_mode():
        output, expected = model(image), written_out(model.state_dict(), image, (depth - 2) // 6)
    assert output.shape == (2, 10)
    assert expected.std() > 0.1
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("depth", DEPTHS)
def test_depth_is_the_number_of_weight_layers(depth: int) -> None:
    model = models.build(f"cifar_resnet{depth}")
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == depth
    assert not any(key for key in model.state_dict() if "downsample" in key)


def test_option_b_projects_where_the_shape_changes_and_only_there() -> None:
    model = models.cifar_resnet20(shortcut="B")
    found = {key.rsplit(".", 1)[0] for key in model.state_dict() if "downsample.0" in key}
    assert found == {"layer2.0.downsample.0", "layer3.0.downsample.0"}
    changed = model.get_submodule("layer3.0.downsample.0")
    assert isinstance(changed, nn.Conv2d)
    assert (changed.kernel_size, changed.stride, changed.weight.shape[:2]) == (
        (1, 1),
        (2, 2),
        (64, 32),
    )


def test_sizes_of_the_three_stages() -> None:
    model = models.cifar_resnet20().eval()
    x = torch.randn(1, 3, 32, 32)
    x = model.relu(model.bn1(model.conv1(x)))
    sizes = []
    for level in (model.layer1, model.layer2, model.layer3):
        x = level(x)
        sizes.append(tuple(x.shape[1:]))
    assert sizes == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 5, 7), (0, 2, 4, 4)])
def test_shortcut_a_takes_every_second_pixel_and_adds_zero_channels(
    shape: tuple[int, int, int, int],
) -> None:
    x = torch.randn(shape)
    n, c, h, w = shape
    y = SubsampleAndPad(c, c + 3, 2)(x)
    assert y.shape == (n, c + 3, (h + 1) // 2, (w + 1) // 2)
    assert torch.equal(y[:, :c], x[:, :, ::2, ::2])
    assert not y[:, c:].any()


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_exports_with_any_batch_and_image_size(shortcut: str) -> None:
    model = randomised(models.build("cifar_resnet20", shortcut=shortcut))
    any_size = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    program = torch.export.export(
        model, (torch.randn(2, 3, 32, 32),), dynamic_shapes=(any_size,), strict=False
    )
    for shape in ((2, 3, 32, 32), (3, 3, 33, 46)):
        image = torch.randn(shape)
        with torch.inference_mode():
            assert torch.equal(program.module()(image), model(image))


@pytest.mark.parametrize(
    ("options", "channels", "expected"),
    [
        ({"in_channels": 1, "num_classes": 7}, 1, (2, 7)),
        ({"in_channels": 4, "include_top": False}, 4, (2, 64, 9, 6)),
        ({"zero_init_residual": True}, 3, (2, 10)),
    ],
)
def test_options_shape_the_output(
    options: dict[str, Any], channels: int, expected: tuple[int, ...]
) -> None:
    model = models.build("cifar_resnet20", **options).eval()
    with torch.inference_mode():
        assert model(torch.randn(2, channels, 33, 24)).shape == expected
    has_top = options.get("include_top", True)
    assert any(key.startswith("fc.") for key in model.state_dict()) == has_top
