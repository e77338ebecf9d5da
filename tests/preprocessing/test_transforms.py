"""The records of preprocessing: what they take, what they are as JSON, and whose they read."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
import torchvision
from PIL import Image

from fastres.errors import OptionError
from fastres.preprocess import load_image
from fastres.transforms import Preprocessing, Transforms
from tests.support.photographs import PHOTOGRAPHS

TIMM: Any = timm.data
CONFIG = {
    "input_size": (3, 224, 224),
    "interpolation": "bicubic",
    "mean": (0.5, 0.4, 0.3),
    "std": (0.2, 0.3, 0.4),
    "crop_pct": 0.875,
    "crop_mode": "center",
}
FULL = Preprocessing("uint8_nchw", Transforms(crop=200), True, True, 5, ("cat", "dog"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resize": 0}, r"resize: got 0, expected None or a size in pixels, 1 to 65536"),
        ({"crop": -1}, r"crop: got -1"),
        ({"crop": 224.0}, r"crop: got 224\.0"),
        ({"crop": True}, r"crop: got True"),
        ({"resize": 10**9}, r"resize: got 1000000000"),
        ({"interpolation": "area"}, r"expected one of 'nearest', 'bilinear', 'bicubic'"),
        ({"interpolation": ["bilinear"]}, r"interpolation: got \['bilinear'\]"),
        ({"antialias": 1}, r"antialias: got 1, expected True or False"),
        ({"mean": (0.5,)}, r"mean has 1 values and std 3"),
        ({"mean": ()}, r"mean: got \(\), expected a tuple of numbers"),
        ({"mean": [0.5, 0.5, 0.5]}, r"mean: got \[0\.5, 0\.5, 0\.5\], expected a tuple"),
        ({"mean": (0.5, 0.5, "0.5")}, r"one per channel"),
        ({"mean": (0.5, 0.5, float("nan"))}, r"one per channel"),
        ({"std": (1.0, 0.0, 1.0)}, r"std: got .*, expected positive"),
        ({"divisor": 0}, r"divisor: got 0, expected a positive number"),
        ({"divisor": float("inf")}, r"divisor: got inf"),
    ],
)
def test_transforms_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Transforms(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_format": "uint8_nhwc"}, "needs transforms=.*cannot be guessed"),
        ({"transforms": Transforms()}, "transforms needs input_format='uint8_nhwc' or"),
        (
            {"input_format": "float32"},
            "input_format: got 'float32', expected 'uint8_nhwc' or 'uint8_nchw'",
        ),
        ({"transforms": "imagenet"}, "expected a Transforms or None"),
        ({"softmax": 1}, "softmax: got 1, expected True or False"),
        ({"resize": True}, "resize=True needs input_format and transforms"),
        ({"top_k": 0}, "top_k: got 0, expected an integer from 1"),
        ({"top_k": True}, "top_k: got True"),
        ({"labels": ()}, "labels: got .*, expected None or a tuple of names"),
        ({"labels": ("cat", 1)}, "labels"),
    ],
)
def test_preprocessing_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Preprocessing(**options)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"resize": None}, "of resize=None, crop=224: both are needed"),
        ({"crop": None}, "of resize=256, crop=None: both are needed"),
        ({"crop": 257}, "crop=257 beyond resize=256: the model does not pad"),
    ],
)
def test_resizing_inside_needs_both_sizes(sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Preprocessing("uint8_nhwc", Transforms(**sizes), resize=True)


@pytest.mark.parametrize(
    "record",
    [
        *(Transforms(), Transforms(None, None, "nearest", False, (0.1,), (3,), 1)),
        *(Preprocessing(), Preprocessing(top_k=3), FULL),
    ],
    ids=["default", "other", "nothing", "top-k", "all"],
)
def test_records_survive_json(record: Any) -> None:
    stored = json.dumps(record.to_dict(), allow_nan=False)
    again = type(record).from_dict(json.loads(stored))
    assert again == record
    assert hash(again) == hash(record)


def damaged(change: str, name: str | None = None, value: Any = None) -> Any:
    plain: Any = FULL.to_dict()
    place = plain["transforms"] if name in plain["transforms"] and name != "resize" else plain
    if change == "missing":
        del place[name]
    else:
        place[name] = value
    return plain


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (None, "a stored Preprocessing is a mapping of .*; got NoneType"),
        ([], "a stored Preprocessing is a mapping of .*; got list"),
        (damaged("missing", "softmax"), "got .*was damaged, or written by another version"),
        (damaged("added", "colour", "bgr"), "got .*colour"),
        (damaged("missing", "mean"), "a stored Transforms is a mapping of"),
        (damaged("added", "transforms", []), "a stored Transforms is a mapping of"),
        (damaged("added", "mean", "0.5"), "mean: got '0.5', expected a list"),
        (damaged("added", "mean", [0.5, 0.5, None]), "one per channel"),
        (damaged("added", "crop", "224"), "crop: got '224'"),
        (damaged("added", "interpolation", {}), "interpolation: got {}"),
        (damaged("added", "labels", {"0": "cat"}), "labels: got {'0': 'cat'}, expected a list"),
        (damaged("added", "labels", [["cat"]]), "labels: got .*, expected None or a tuple"),
        (damaged("added", "input_format", ["uint8_nhwc"]), "input_format"),
        (damaged("added", "top_k", 2.0), r"top_k: got 2\.0"),
    ],
)
def test_damaged_records_are_refused(stored: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Preprocessing.from_dict(stored)


def test_scale_and_shift() -> None:
    transforms = Transforms(mean=(0.5, 0.25, 0.0), std=(0.5, 0.1, 1.0))
    pixels = torch.tensor([0, 255, 51], dtype=torch.float64)
    wanted = [(-0.5) / 0.5, (1.0 - 0.25) / 0.1, 0.2]
    scale, shift = (
        torch.tensor(values, dtype=torch.float64) for values in (transforms.scale, transforms.shift)
    )
    torch.testing.assert_close((pixels * scale + shift).tolist(), wanted)


@pytest.mark.parametrize(
    "name", ["ResNet18_Weights", "ResNet50_Weights", "ResNeXt50_32X4D_Weights", "ViT_B_16_Weights"]
)
def test_torchvisions_presets_give_its_own_pixels(name: str) -> None:
    for weights in getattr(torchvision.models, name):
        preset = weights.transforms()
        transforms = Transforms.of(preset)
        assert (transforms.resize, transforms.crop) == (preset.resize_size[0], preset.crop_size[0])
        for path in PHOTOGRAPHS[:2]:
            ours, theirs = load_image(path, transforms), preset(Image.open(path).convert("RGB"))
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["resnet50.a1_in1k", "resnet18.tv_in1k", "resnet50d.ra2_in1k"])
def test_timms_configurations_give_its_own_pixels(name: str) -> None:
    pretrained: Any = timm.get_pretrained_cfg(name)
    config = TIMM.resolve_data_config(pretrained_cfg=pretrained.to_dict())
    theirs = TIMM.create_transform(**config)
    for path in PHOTOGRAPHS[1:3]:
        image = Image.open(path).convert("RGB")
        torch.testing.assert_close(load_image(path, Transforms.of(config)), theirs(image))


def test_our_own_descriptions_are_taken_as_they_are() -> None:
    transforms = Transforms(crop=100)
    assert Transforms.of(transforms) is transforms
    assert Transforms.of(json.loads(json.dumps(transforms.to_dict()))) == transforms


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_size": (3, 224, 192)}, "expected a square image"),
        ({"input_size": 224}, "input_size: got 224, expected a list"),
        ({"input_size": (224, 224)}, r"expected \(channels, height, width\)"),
        ({"crop_mode": "squash"}, "crop_mode: got 'squash', expected 'center'"),
        ({"crop_mode": "border"}, "crop_mode: got 'border'"),
        ({"crop_pct": 0}, "crop_pct: got 0, expected a share"),
        ({"crop_pct": None}, "crop_pct: got None"),
        ({"interpolation": "random"}, "interpolation: got 'random', expected one of"),
        ({"mean": (0.5,)}, "expected 3 values, one per channel of input_size"),
        ({"url": "http"}, "an unknown 'url': expected timm's data configuration"),
    ],
)
def test_timms_configurations_that_are_not_taken(change: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Transforms.of({**CONFIG, **change})


PRESET = torchvision.models.ResNet50_Weights.DEFAULT.transforms()


def other_preset(**change: Any) -> Any:
    return SimpleNamespace(**{**vars(PRESET), **change})


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({}, "a dict with no 'crop_mode'"),
        ({key: value for key, value in CONFIG.items() if key != "std"}, "no 'std'"),
        ("imagenet", "transforms is a str without resize_size"),
        (torch.nn.Identity(), "transforms is a Identity without resize_size"),
        (torchvision.transforms.Compose([]), "a Compose without resize_size"),
        (torchvision.models.ResNet50_Weights.DEFAULT, "without resize_size"),
        (functools.partial(dict), r"call it, weights\.transforms\(\)"),
        (torchvision.models.ResNet50_Weights.DEFAULT.value.transforms, "call it"),
        (
            other_preset(resize_size=[232, 300]),
            r"resize_size: got \[232, 300\], expected one number",
        ),
        (other_preset(resize_size=[232, 232]), r"expected one number"),
        (other_preset(resize_size=None), "resize_size: got None, expected one number"),
        (other_preset(resize_size=[[232]]), "expected one number"),
        (other_preset(crop_size=[]), r"crop_size: got \[\], expected one number"),
        (other_preset(crop_size=[224, 200]), r"crop_size: got \[224, 200\]"),
        (other_preset(mean=0.5), "mean: got 0.5, expected a list"),
        (
            other_preset(interpolation=torchvision.transforms.InterpolationMode.LANCZOS),
            "interpolation: got 'lanczos'",
        ),
    ],
)
def test_descriptions_that_are_not_taken(description: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Transforms.of(description)


def test_torchvisions_antialiasing_is_kept() -> None:
    assert Transforms.of(other_preset(antialias=None)) == replace(
        Transforms.of(PRESET), antialias=False
    )
