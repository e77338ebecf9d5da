"""Resizing and cropping inside the model: images of any size, next to what Pillow makes of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastres
from fastres.errors import InputError
from fastres.ir import ops
from fastres.preprocess import load_pixels
from fastres.transforms import Interpolation, Transforms
from tests.support.optimizing import nodes, optimize
from tests.support.photographs import PHOTOGRAPHS
from tests.support.small import Net, conv

WHOLE = Transforms(resize=None, crop=None)

# How far a byte may be from Pillow's, and the mean deviation; on these ten pictures 1 and 0.003
# are reached with "bilinear", 2 and 0.006 with "bicubic".
CLOSE: dict[Interpolation, tuple[int, float]] = {"bilinear": (1, 0.01), "bicubic": (2, 0.02)}


def channels_first(path: Any) -> Tensor:
    """A whole photograph, [1, 3, H, W]."""
    return load_pixels(path, WHOLE).permute(2, 0, 1)[None]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("interpolation", CLOSE)
@pytest.mark.parametrize(("resize", "crop"), [(256, 224), (64, 57), (640, 600)])
def test_photographs_look_as_pillow_resizes_them(
    interpolation: Interpolation, resize: int, crop: int
) -> None:
    largest, mean = CLOSE[interpolation]
    deviations = []
    for path in PHOTOGRAPHS:
        wanted = load_pixels(path, Transforms(resize, crop, interpolation)).permute(2, 0, 1)
        got = ops.resize_crop(channels_first(path), resize, crop, interpolation, True)[0]
        deviations.append((got.int() - wanted.int()).abs())
    assert max(int(d.max()) for d in deviations) <= largest
    assert sum(float(d.float().mean()) for d in deviations) / len(deviations) <= mean


@pytest.mark.parametrize(("resize", "crop"), [(256, 224), (64, 57), (640, 600)])
def test_the_nearest_pixel_is_pillows_unless_two_are_as_near(resize: int, crop: int) -> None:
    for path in PHOTOGRAPHS:
        wanted = load_pixels(path, Transforms(resize, crop, "nearest")).permute(2, 0, 1)
        got = ops.resize_crop(channels_first(path), resize, crop, "nearest", True)[0]
        assert (got != wanted).any(0).float().mean() < 0.1


def test_without_antialiasing_it_is_another_image() -> None:
    """Were the option ignored, the comparison above would not tell."""
    image = channels_first(PHOTOGRAPHS[0])
    sharp = ops.resize_crop(image, 64, 64, "bilinear", False).int()
    assert (sharp - ops.resize_crop(image, 64, 64, "bilinear", True).int()).abs().max() > 50


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Net(lambda m, x: m.conv(x), conv=conv(3, 4, 3, stride=2)).eval()


TRANSFORMS = Transforms(resize=48, crop=33)


@pytest.fixture(scope="module")
def fast(model: nn.Module) -> Any:
    options: dict[str, Any] = {"transforms": TRANSFORMS, "resize": True, "strict": True}
    return optimize(model, input_format="uint8_nhwc", **options)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("path", PHOTOGRAPHS, ids=lambda path: path.stem)
def test_a_photograph_of_any_size_goes_in(model: nn.Module, fast: Any, path: Any) -> None:
    whole = load_pixels(path, WHOLE)[None]
    mean, std = (
        torch.tensor(values, dtype=torch.float64).view(-1, 1, 1)
        for values in (TRANSFORMS.mean, TRANSFORMS.std)
    )
    resized = ops.resize_crop(whole.permute(0, 3, 1, 2), 48, 33, "bilinear", True)
    with torch.no_grad():
        wanted = model.double()((resized.double() / 255 - mean) / std)
        model.float()
    for images in (whole, whole.transpose(1, 2).contiguous().transpose(1, 2)):
        got = fast(images)
        assert got.shape == (1, 4, 17, 17)
        torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("height", "width"), [(48, 48), (1, 1), (47, 200), (200, 47), (49, 48), (1411, 300), (33, 32)]
)
def test_any_size_gives_one_size(fast: Any, model: nn.Module, height: int, width: int) -> None:
    images = torch.randint(0, 256, (3, height, width, 3), dtype=torch.uint8)
    assert fast(images).shape == (3, 4, 17, 17)
    assert fastres.verify(model, fast, images).passed


def test_the_graph_resizes_bytes(fast: Any) -> None:
    (resize,) = nodes(fast, "resize_crop")
    assert list(resize.args[1:]) == [48, 33, "bilinear", True]
    assert {user.target for user in resize.users} == {torch.ops.aten.to.dtype}
    (image,), _ = fast.example
    assert list(image.shape) == [1, 80, 144, 3]
    assert (
        "the model takes uint8_nhwc images of any size, and resizes them to 48 and crops them "
        "to 33" in fast.report.notes
    )


def test_an_image_that_would_become_too_large_is_refused(fast: Any) -> None:
    thread = torch.zeros(1, 1, 120_000, 3, dtype=torch.uint8)
    with pytest.raises(InputError, match=r"\[1, 1, 120000, 3\] does not fit .*too large"):
        fast(thread)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_bytes_are_the_same_in_every_precision(model: nn.Module, precision: str) -> None:
    options: dict[str, Any] = {"transforms": TRANSFORMS, "resize": True, "precision": precision}
    narrow = optimize(model, input_format="uint8_nchw", **options)
    image = channels_first(PHOTOGRAPHS[1])
    result = fastres.verify(model, narrow, image)
    assert result.passed, str(result)
