"""The reference models against torchvision's: same names, same shapes, same bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from fastres import models

NAMES = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "wide_resnet50_2",
)


def theirs(name: str, **options: Any) -> nn.Module:
    constructor: Callable[..., nn.Module] = getattr(torchvision.models, name)
    return constructor(weights=None, **options)


def on_meta(build: Callable[..., nn.Module], name: str, **options: Any) -> nn.Module:
    with torch.device("meta"):
        return build(name, **options)


def shapes(model: nn.Module) -> list[tuple[str, torch.Size, torch.dtype]]:
    return [(name, value.shape, value.dtype) for name, value in model.state_dict().items()]


def random_state(model: nn.Module) -> dict[str, Tensor]:
    """Weights of a sensible size, and BatchNorms that do something, for a model on the meta device.

    Drawn uniformly, in one pass: the default initialisation would take longer than the tests.
    """
    state = {}
    for name, value in model.state_dict().items():
        if value.dtype == torch.int64:  # num_batches_tracked
            state[name] = torch.tensor(3)
        elif value.dim() > 1:
            bound = (6 / value[0].numel()) ** 0.5
            state[name] = torch.empty(value.shape).uniform_(-bound, bound)
        elif name.endswith("running_var") or name.endswith("weight"):
            state[name] = torch.empty(value.shape).uniform_(0.5, 1.0)
        else:
            state[name] = torch.empty(value.shape).uniform_(-0.5, 0.5)
    return state


def outputs(*nets: nn.Module, image: Tensor) -> list[Tensor]:
    with torch.inference_mode():
        return [net.eval()(image) for net in nets]


def assert_says_something(output: Tensor) -> None:
    """Equality proves nothing if the output is NaN, constant, or does not depend on the image."""
    assert output.isfinite().all()
    assert output.std() > 0.1
    assert not torch.equal(output[0], output[1])


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_has_the_same_names_shapes_types_and_order(name: str) -> None:
    assert shapes(on_meta(models.build, name)) == shapes(on_meta(theirs, name))


@pytest.mark.parametrize("version", ["v1", "v1.5"])
def test_version_does_not_change_the_state_dict(version: str) -> None:
    assert shapes(on_meta(models.build, "resnet50", version=version)) == shapes(
        on_meta(theirs, "resnet50")
    )


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", NAMES)
def test_same_weights_give_bitwise_the_same_output(name: str) -> None:
    ours, other = on_meta(models.build, name), on_meta(theirs, name)
    state = random_state(other)
    ours.load_state_dict(state, strict=True, assign=True)
    other.load_state_dict(state, strict=True, assign=True)
    mine, reference = outputs(ours, other, image=torch.randn(2, 3, 64, 64))
    assert_says_something(reference)
    assert torch.equal(mine, reference)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_weights_go_both_ways(name: str) -> None:
    ours, other = models.build(name), theirs(name)
    image = torch.randn(2, 3, 64, 64)
    before_ours, before_other = outputs(ours, other, image=image)
    assert not torch.equal(before_ours, before_other)

    back = on_meta(models.build, name)
    back.load_state_dict(other.state_dict(), strict=True, assign=True)
    (after,) = outputs(back, image=image)
    assert torch.equal(after, before_other)

    other.load_state_dict(ours.state_dict(), strict=True)
    (after,) = outputs(other, image=image)
    assert torch.equal(after, before_ours)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_same_seed_gives_the_same_initial_weights(name: str) -> None:
    torch.manual_seed(7)
    ours = models.build(name, zero_init_residual=True).state_dict()
    torch.manual_seed(7)
    other = theirs(name, zero_init_residual=True).state_dict()
    assert all(torch.equal(ours[key], other[key]) for key in other)


def test_training_mode_agrees_in_output_gradients_and_statistics() -> None:
    ours, other = models.resnet18(), theirs("resnet18")
    ours.load_state_dict(other.state_dict())
    image = torch.randn(4, 3, 32, 32)
    mine, reference = ours(image), other(image)
    assert torch.equal(mine, reference)
    mine.square().mean().backward()
    reference.square().mean().backward()
    gradients = dict(ours.named_parameters())
    for name, parameter in other.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0
        assert torch.equal(parameter.grad, gradients[name].grad)  # type: ignore[arg-type]
    statistics = dict(ours.named_buffers())
    for name, buffer in other.named_buffers():
        assert torch.equal(buffer, statistics[name])


@pytest.mark.parametrize("name", ["resnet50", "resnext50_32x4d"])
def test_v1_is_torchvision_with_the_stride_moved_to_the_first_1x1(name: str) -> None:
    ours, other = on_meta(models.build, name, version="v1"), on_meta(theirs, name)
    moved = 0
    for module in other.modules():
        if isinstance(module, torchvision.models.resnet.Bottleneck):
            moved += module.conv2.stride == (2, 2)
            module.conv1.stride, module.conv2.stride = module.conv2.stride, module.conv1.stride
    assert moved == 3
    state = random_state(other)
    ours.load_state_dict(state, assign=True)
    other.load_state_dict(state, assign=True)
    later = on_meta(models.build, name)
    later.load_state_dict(state, assign=True)
    mine, reference, other_version = outputs(ours, other, later, image=torch.randn(2, 3, 64, 64))
    assert_says_something(reference)
    assert torch.equal(mine, reference)
    assert not torch.equal(mine, other_version)


@pytest.mark.parametrize("options", [{"groups": 2, "width_per_group": 32}, {"width_per_group": 50}])
def test_groups_and_width_are_torchvisions(options: dict[str, int]) -> None:
    ours = on_meta(models.build, "resnet50", num_classes=7, **options)
    other = on_meta(theirs, "resnet50", num_classes=7, **options)
    assert shapes(ours) == shapes(other)
    state = random_state(other)
    ours.load_state_dict(state, assign=True)
    other.load_state_dict(state, assign=True)
    mine, reference = outputs(ours, other, image=torch.randn(2, 3, 33, 47))
    assert_says_something(reference)
    assert torch.equal(mine, reference)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_without_top_it_is_the_feature_map_before_the_pooling(name: str) -> None:
    other = on_meta(theirs, name)
    state = random_state(other)
    other.load_state_dict(state, assign=True)
    ours = on_meta(models.build, name, include_top=False)
    body = {key: value for key, value in state.items() if not key.startswith("fc.")}
    ours.load_state_dict(body, strict=True, assign=True)
    seen: list[Tensor] = []
    other.get_submodule("avgpool").register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    features, _ = outputs(ours, other, image=torch.randn(2, 3, 65, 96))
    assert features.shape == (2, state["fc.weight"].shape[1], 3, 3)
    assert_says_something(features)
    assert torch.equal(features, seen[0])


@pytest.mark.parametrize("channels", [1, 4])
def test_other_numbers_of_input_channels(channels: int) -> None:
    ours, other = models.resnet18(in_channels=channels, num_classes=10), theirs("resnet18")
    assert ours.conv1.weight.shape == (64, channels, 7, 7)
    other.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    other.fc = nn.Linear(512, 10)
    state = random_state(other)
    ours.load_state_dict(state)
    other.load_state_dict(state)
    mine, reference = outputs(ours, other, image=torch.randn(2, channels, 40, 40))
    assert_says_something(reference)
    assert torch.equal(mine, reference)
