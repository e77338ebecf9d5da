"""What the constructors and the registry accept, what they make of it, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fastres import models
from fastres.errors import FastresError, OptionError
from fastres.models.blocks import SubsampleAndPad


def on_meta(name: str | int, **options: Any) -> nn.Module:
    with torch.device("meta"):
        return models.build(name, **options)


def bottleneck(model: nn.Module, at: str) -> models.Bottleneck:
    block = model.get_submodule(at)
    assert isinstance(block, models.Bottleneck)
    return block


@pytest.mark.parametrize(
    ("version", "first", "second"), [("v1.5", (1, 1), (2, 2)), ("v1", (2, 2), (1, 1))]
)
def test_version_moves_the_stride(
    version: str, first: tuple[int, int], second: tuple[int, int]
) -> None:
    model = on_meta("resnet50", version=version)
    for level in ("layer2", "layer3", "layer4"):
        block = bottleneck(model, f"{level}.0")
        assert (block.conv1.stride, block.conv2.stride, block.conv3.stride) == (
            first,
            second,
            (1, 1),
        )
        assert bottleneck(model, f"{level}.1").conv2.stride == (1, 1)
    assert bottleneck(model, "layer1.0").conv2.stride == (1, 1)


def test_v15_is_the_default() -> None:
    assert bottleneck(on_meta(50), "layer2.0").conv2.stride == (2, 2)


@pytest.mark.parametrize(
    ("options", "width", "groups"),
    [
        ({}, 256, 1),
        ({"groups": 32, "width_per_group": 4}, 512, 32),
        ({"groups": 2, "width_per_group": 50}, 400, 2),
        ({"width_per_group": 1}, 4, 1),
    ],
)
def test_groups_and_width_shape_the_3x3(options: dict[str, int], width: int, groups: int) -> None:
    block = bottleneck(on_meta("resnet50", **options), "layer3.2")
    assert block.conv2.groups == groups
    assert block.conv2.weight.shape == (width, width // groups, 3, 3)
    assert block.conv3.weight.shape == (1024, width, 1, 1)


@pytest.mark.parametrize(
    ("name", "groups", "width"),
    [("resnext50_32x4d", 32, 128), ("resnext101_32x8d", 32, 256), ("wide_resnet50_2", 1, 128)],
)
def test_names_fix_groups_and_width(name: str, groups: int, width: int) -> None:
    block = bottleneck(on_meta(name), "layer1.0")
    assert (block.conv2.groups, block.conv2.out_channels) == (groups, width)
    on_meta(name, width_per_group=width // groups)  # the fixed value may be said


def test_without_top_there_is_neither_pooling_nor_classifier() -> None:
    children = [name for name, _ in on_meta("resnet18", include_top=False).named_children()]
    assert children == ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"]


def test_any_image_size_even_none() -> None:
    model = models.resnet18(num_classes=3, include_top=True).eval()
    with torch.inference_mode():
        for shape in ((1, 3, 1, 1), (2, 3, 31, 50), (0, 3, 32, 32)):
            assert model(torch.randn(shape)).shape == (shape[0], 3)


def test_own_numbers_of_blocks() -> None:
    with torch.device("meta"):
        model = models.ResNet(models.BasicBlock, [1, 2, 1, 3], num_classes=4)
    stages = (model.layer1, model.layer2, model.layer3, model.layer4)
    assert [len(level) for level in stages] == [1, 2, 1, 3]


def test_available_lists_what_build_builds() -> None:
    assert models.available() == (
        "resnet18",
        "resnet34",
        "resnet50",
        "resnet101",
        "resnet152",
        "resnext50_32x4d",
        "resnext101_32x8d",
        "wide_resnet50_2",
        "cifar_resnet20",
        "cifar_resnet32",
        "cifar_resnet44",
        "cifar_resnet56",
        "cifar_resnet110",
    )
    for name in models.available():
        by_name, by_function = on_meta(name, num_classes=5), getattr(models, name)
        with torch.device("meta"):
            direct = by_function(num_classes=5)
        assert by_name.state_dict().keys() == direct.state_dict().keys()
        assert by_name.state_dict()["fc.bias"].shape == (5,)


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_build_by_depth(depth: int) -> None:
    assert on_meta(depth).state_dict().keys() == on_meta(f"resnet{depth}").state_dict().keys()


def test_everything_in_all_exists() -> None:
    assert all(hasattr(models, name) for name in models.__all__)
    assert set(models.available()) < set(models.__all__)


NAMES = ", ".join(models.available())
RESNET_OPTIONS = (
    "groups, in_channels, include_top, num_classes, version, width_per_group, zero_init_residual"
)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "resnet50",
            {"num_classes": 0},
            "num_classes: got 0, expected an integer of at least 1; for no classifier pass "
            "include_top=False.",
        ),
        (
            "resnet50",
            {"num_classes": True},
            "num_classes: got True, expected an integer of at least 1; for no classifier pass "
            "include_top=False.",
        ),
        (
            "resnet18",
            {"in_channels": -3},
            "in_channels: got -3, expected an integer of at least 1; a colour image has 3.",
        ),
        (
            "resnet50",
            {"groups": 1.5},
            "groups: got 1.5, expected an integer of at least 1; an ordinary ResNet has 1, "
            "ResNeXt 32.",
        ),
        (
            "resnet50",
            {"width_per_group": 0},
            "width_per_group: got 0, expected an integer of at least 1; an ordinary ResNet has 64.",
        ),
        (
            "resnet50",
            {"version": "1.5"},
            "version: got '1.5', expected 'v1.5' or 'v1'; 'v1.5' strides on the 3x3, 'v1' on the "
            "first 1x1.",
        ),
        (
            "resnet50",
            {"version": 1},
            "version: got 1, expected 'v1.5' or 'v1'; 'v1.5' strides on the 3x3, 'v1' on the "
            "first 1x1.",
        ),
        (
            "resnet50",
            {"include_top": "false"},
            "include_top: got 'false', expected True or False.",
        ),
        (
            "resnet50",
            {"zero_init_residual": 1},
            "zero_init_residual: got 1, expected True or False.",
        ),
        (
            "resnet18",
            {"groups": 2},
            "groups: got 2, expected 1 in a network of basic blocks; take one of bottlenecks "
            "(resnet50, resnet101, resnet152).",
        ),
        (
            "resnet34",
            {"width_per_group": 128},
            "width_per_group: got 128, expected 64 in a network of basic blocks; take one of "
            "bottlenecks (resnet50, resnet101, resnet152).",
        ),
        (
            "resnext50_32x4d",
            {"groups": 16},
            "groups: got 16, expected 32, which is what the name resnext50_32x4d says; leave it "
            "out, or build ResNet(Bottleneck, (3, 4, 6, 3), groups=16, ...).",
        ),
        (
            "wide_resnet50_2",
            {"width_per_group": 64},
            "width_per_group: got 64, expected 128, which is what the name wide_resnet50_2 says; "
            "leave it out, or build ResNet(Bottleneck, (3, 4, 6, 3), width_per_group=64, ...).",
        ),
        (
            "resnet49",
            {},
            "model: got 'resnet49', expected a depth of 18, 34, 50, 101 or 152, or one of the "
            f"names {NAMES}; for other networks build ResNet(...) or CifarResNet(...).",
        ),
        (
            20,
            {},
            "model: got 20, expected a depth of 18, 34, 50, 101 or 152, or one of the "
            f"names {NAMES}; for other networks build ResNet(...) or CifarResNet(...).",
        ),
        (
            True,
            {},
            "model: got True, expected a depth of 18, 34, 50, 101 or 152, or one of the "
            f"names {NAMES}; for other networks build ResNet(...) or CifarResNet(...).",
        ),
        (
            "resnet50",
            {"classes": 3},
            f"classes: not an option of resnet50, expected some of {RESNET_OPTIONS}; leave it out "
            "or correct its spelling.",
        ),
        (
            "cifar_resnet20",
            {"version": "v1"},
            "version: not an option of cifar_resnet20, expected some of in_channels, include_top, "
            "num_classes, shortcut, zero_init_residual; leave it out or correct its spelling.",
        ),
        (
            "cifar_resnet20",
            {"shortcut": "C"},
            "shortcut: got 'C', expected 'A' or 'B'; 'A' has no parameters, 'B' is a 1x1 "
            "convolution.",
        ),
        (
            "cifar_resnet20",
            {"num_classes": None},
            "num_classes: got None, expected an integer of at least 1; for no classifier pass "
            "include_top=False.",
        ),
        (
            "cifar_resnet20",
            {"in_channels": 0},
            "in_channels: got 0, expected an integer of at least 1; a colour image has 3.",
        ),
        (
            "cifar_resnet20",
            {"include_top": 1},
            "include_top: got 1, expected True or False.",
        ),
    ],
)
def test_wrong_options(name: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        on_meta(name, **options)
    assert str(caught.value) == message
    assert isinstance(caught.value, FastresError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    "layers", [(3, 4, 6), (3, 4, 6, 3, 2), (3, 0, 6, 3), (3, 4.0, 6, 3), 50, "3463"]
)
def test_wrong_layers(layers: Any) -> None:
    with pytest.raises(OptionError) as caught:
        models.ResNet(models.Bottleneck, layers)
    assert str(caught.value) == (
        f"layers: got {layers!r}, expected 4 integers of at least 1; the blocks of each stage; "
        "ResNet-50 has (3, 4, 6, 3)."
    )


def test_wrong_block() -> None:
    with pytest.raises(OptionError) as caught:
        models.ResNet("bottleneck", (3, 4, 6, 3))  # type: ignore[arg-type]
    assert str(caught.value) == (
        "block: got 'bottleneck', expected the class BasicBlock or Bottleneck; import it from "
        "fastres.models."
    )


def test_a_bottleneck_of_no_width() -> None:
    with pytest.raises(OptionError) as caught:
        models.Bottleneck(64, 16, width_per_group=3)
    assert str(caught.value) == (
        "width_per_group: got 3, expected at least 4 for a bottleneck of 16 planes, or no channel "
        "is left; pass a greater one."
    )
    assert models.Bottleneck(64, 16, width_per_group=4).conv1.out_channels == 1


def test_every_group_gets_the_same_whole_number_of_channels() -> None:
    # 16 * 6 / 64 = 1.5 channels per group are 1, before the groups are multiplied.
    assert models.Bottleneck(64, 16, width_per_group=6, groups=4).conv2.weight.shape == (4, 1, 3, 3)


@pytest.mark.parametrize("depth", [8.0, 0, 2, 21, -4])
def test_wrong_cifar_depth(depth: Any) -> None:
    with pytest.raises(OptionError, match=f"^depth: got {depth}, expected ") as caught:
        models.CifarResNet(depth)
    assert str(caught.value).endswith("; the paper has 20, 32, 44, 56 and 110.")


def test_smallest_cifar_depth() -> None:
    assert len(models.CifarResNet(8).layer3) == 1


def test_shortcut_a_cannot_drop_channels() -> None:
    with pytest.raises(OptionError) as caught:
        SubsampleAndPad(4, 3, 2)
    assert str(caught.value) == (
        "shortcut: got option 'A' from 4 to 3 channels, expected at least as many channels out as "
        "in; use option 'B', a projection."
    )


def test_an_unknown_argument_of_a_constructor_is_pythons_error() -> None:
    with pytest.raises(TypeError, match="classes"):
        models.resnet18(classes=3)  # type: ignore[call-arg]
