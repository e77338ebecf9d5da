"""Bytes in, the network's own answer out: at every pixel of what the first convolution gives.

A convolution pads the normalised image with zeros. A mean folded past that padding would be wrong
at the border alone, where an answer per image hides it; so these networks answer with feature maps.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastres.system.target import onednn_supports
from fastres.transforms import Transforms
from tests.support.optimizing import nodes, optimize
from tests.support.oracle import PRECISIONS, in_precision
from tests.support.small import Net, conv

FACTOR = 2.0
"""How far off ours may be, as a multiple of eager's own largest error in the same precision."""

IMAGENET = Transforms()
UNSHIFTED = Transforms(mean=(0.0, 0.0, 0.0), std=(0.2, 0.3, 0.25))


def pixels(height: int, width: int, channels: int = 3, low: int = 0, high: int = 256) -> Tensor:
    return torch.randint(low, high, (2, height, width, channels), dtype=torch.uint8)


def normalised(images: Tensor, transforms: Transforms, dtype: torch.dtype) -> Tensor:
    """As users do it, in the order of torchvision."""
    mean, std = (
        torch.tensor(values, dtype=dtype).view(-1, 1, 1)
        for values in (transforms.mean, transforms.std)
    )
    return (images.permute(0, 3, 1, 2).to(dtype) / transforms.divisor - mean) / std


def deviation(got: Tensor, wanted: Tensor) -> Tensor:
    """The largest deviation at each pixel of a map, relative to the map's largest value."""
    return (got.double() - wanted).abs().amax((0, 1)) / wanted.abs().max()


def assert_right_at_every_pixel(
    model: nn.Module, fast: Any, images: Tensor, transforms: Transforms, precision: str
) -> None:
    dtype = PRECISIONS[precision]
    with torch.no_grad():
        wanted = in_precision(model, torch.float64)(normalised(images, transforms, torch.float64))
        # Eager in 16 bits gets an image that was normalised in float32.
        image = normalised(images, transforms, torch.float32).to(dtype)
        eager = in_precision(model, dtype)(image)
        ours = deviation(fast(images), wanted)
    bound = FACTOR * deviation(eager, wanted).max().clamp_min(torch.finfo(dtype).eps)
    wrong = (ours > bound).nonzero().tolist()
    assert wrong == [], f"beyond {float(bound):.1e}, of {list(ours.shape)}; {fast.report}"


def padded(sides: tuple[int, int, int, int], mode: str = "constant") -> nn.Module:
    return Net(
        lambda m, x: m.conv(F.pad(x, sides, mode=mode)), conv=conv(3, 8, 3, padding=0, stride=2)
    ).eval()


def single(kernel: int, **options: Any) -> nn.Module:
    """One convolution that takes images."""
    return Net(lambda m, x: m.conv(x), conv=conv(options.pop("inputs", 3), 8, kernel, **options))


torch.manual_seed(0)  # the same weights whatever was imported before
STEMS: dict[str, nn.Module] = {
    "7x7, stride 2": single(7, stride=2),
    "3x3": single(3),
    "no padding": single(3, padding=0),
    "more padding than filter": single(3, padding=4),
    "height only": single(5, padding=(2, 0)),
    "dilated": single(3, padding=2, dilation=2, bias=False),
    "even filter, padding='same'": single(4, padding="same"),
    "one by one": single(1),
    "reflected": single(3, padding_mode="reflect"),
    "circular": single(3, padding_mode="circular"),
    "padded on one side by F.pad": padded((0, 1, 0, 1)),
    "replicated by F.pad": padded((1, 2, 2, 1), "replicate"),
    "padded by F.pad with a constant": Net(
        lambda m, x: m.conv(F.pad(x, (1, 1, 1, 1), value=0.5)), conv=conv(3, 8, 3, padding=0)
    ),
}


@pytest.mark.sampled(4)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(
    ("name", "transforms", "engine"),
    [
        *((name, IMAGENET, engine) for name in STEMS for engine in ("native", "onednn")),
        *((name, UNSHIFTED, "onednn") for name in ("7x7, stride 2", "no padding", "reflected")),
        *((name, IMAGENET, "eager") for name in ("7x7, stride 2", "no padding")),
        ("7x7, stride 2", UNSHIFTED, "eager"),
    ],
)
def test_every_pixel_is_right(name: str, transforms: Transforms, engine: str) -> None:
    model = STEMS[name].eval()
    options = {"input_format": "uint8_nhwc", "transforms": transforms, "engine": engine}
    fast = optimize(model, pixels(12, 13), **options)
    for images in (pixels(12, 13), pixels(9, 17), pixels(12, 13, low=108, high=124)):
        assert_right_at_every_pixel(model, fast, images, transforms, "fp32")


@pytest.mark.sampled(3)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", ["7x7, stride 2", "no padding", "padded on one side by F.pad"])
def test_every_pixel_is_right_in_16_bits(name: str, precision: str) -> None:
    model = STEMS[name].eval()
    options = {"input_format": "uint8_nhwc", "transforms": IMAGENET, "precision": precision}
    fast = optimize(model, pixels(12, 13), **options)
    if precision == "bf16" and onednn_supports(torch.bfloat16):
        assert fast.engine in ("native", "onednn")
    for images in (pixels(12, 13), pixels(12, 13, low=108, high=124)):
        assert_right_at_every_pixel(model, fast, images, IMAGENET, precision)


def test_the_judge_sees_a_mean_that_was_folded_past_padding() -> None:
    """The near miss: scale and shift in weights and bias, under a convolution that pads zeros."""
    model: Any = single(3).eval()
    images, weight, bias = pixels(8, 9), model.conv.weight, model.conv.bias
    scale, shift = (torch.tensor(values) for values in (IMAGENET.scale, IMAGENET.shift))

    def folded(batch: Tensor) -> Tensor:
        return F.conv2d(
            batch.permute(0, 3, 1, 2).float(),
            weight * scale.view(1, 3, 1, 1),
            bias + (weight * shift.view(1, 3, 1, 1)).sum((1, 2, 3)),
            padding=1,
        )

    with torch.no_grad():
        wanted = model(normalised(images, IMAGENET, torch.float32))
        wrong = deviation(folded(images), wanted.double()) > 1e-3
    assert not wrong[1:-1, 1:-1].any()
    assert wrong[0].all() and wrong[-1].all() and wrong[:, 0].all() and wrong[:, -1].all()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("7x7, stride 2", "conv pads, and folding the shift would change the border pixels"),
        ("padded on one side by F.pad", "conv pads, and folding"),
        ("no padding", "the folded mean and the pixels would cancel"),
        ("reflected", "it is read by aten.pad.default, not by a convolution"),
    ],
)
def test_a_mean_stays_in_front_and_the_receipt_says_why(name: str, reason: str) -> None:
    options: dict[str, Any] = {"input_format": "uint8_nhwc", "transforms": IMAGENET}
    fast = optimize(STEMS[name].eval(), pixels(12, 13), **options)
    assert len(nodes(fast, "scale_shift")) == 1
    (note,) = [note for note in fast.report.notes if "normalisation" in note]
    assert note.startswith("the images' normalisation runs as one multiply-add, not folded: ")
    assert reason in note
    assert fast.report.refused == []


@pytest.mark.parametrize("precision", [None, "bf16"])
@pytest.mark.parametrize("name", ["7x7, stride 2", "no padding", "padded on one side by F.pad"])
def test_without_a_mean_it_is_folded(name: str, precision: str | None) -> None:
    options = {"input_format": "uint8_nhwc", "transforms": UNSHIFTED, "precision": precision}
    fast = optimize(STEMS[name].eval(), pixels(12, 13), **options)
    assert nodes(fast, "scale_shift") == []
    assert "the images' normalisation is folded into conv" in fast.report.notes


def test_two_readers_of_the_image() -> None:
    """Neither convolution may take the scale: the other one would lose it."""
    model = Net(
        lambda m, x: m.one(x) + m.other(x), one=conv(3, 8, 3), other=conv(3, 8, 1, padding=0)
    ).eval()
    fast = optimize(model, pixels(8, 9), input_format="uint8_nhwc", transforms=UNSHIFTED)
    assert_right_at_every_pixel(model, fast, pixels(8, 9), UNSHIFTED, "fp32")
    assert "not folded: 2 operations read it" in str(fast.report)


def test_small_folded_weights_do_not_underflow() -> None:
    model: Any = single(3, padding=0).eval()
    with torch.no_grad():
        model.conv.weight.mul_(1e-3)
    options = {"input_format": "uint8_nhwc", "transforms": UNSHIFTED, "precision": "fp16"}
    fast = optimize(model, pixels(8, 9), **options)
    assert_right_at_every_pixel(model, fast, pixels(8, 9), UNSHIFTED, "fp16")
    assert "would overflow or underflow torch.float16" in str(fast.report)


def test_a_batch_norm_on_the_image_merges_with_its_normalisation() -> None:
    norm = nn.BatchNorm2d(3)
    with torch.no_grad():
        norm.running_mean = torch.tensor([0.3, -0.2, 0.1])
        norm.running_var = torch.tensor([0.5, 2.0, 1.0])
    model = Net(lambda m, x: m.conv(m.norm(x)), norm=norm, conv=conv(3, 8, 3)).eval()
    options: dict[str, Any] = {"input_format": "uint8_nhwc", "transforms": IMAGENET}
    fast = optimize(model, pixels(8, 9), **options)
    assert len(nodes(fast, "scale_shift")) == 1
    assert_right_at_every_pixel(model, fast, pixels(8, 9), IMAGENET, "fp32")


@pytest.mark.parametrize("channels", [1, 4, 17])
def test_other_numbers_of_channels(channels: int) -> None:
    mean = tuple(0.1 + 0.5 * c / channels for c in range(channels))
    transforms = Transforms(mean=mean, std=tuple(0.2 + m for m in mean))
    model = single(3, inputs=channels).eval()
    options: dict[str, Any] = {"input_format": "uint8_nhwc", "transforms": transforms}
    fast = optimize(model, pixels(8, 9, channels), **options)
    for size in ((8, 9), (1, 5), (7, 1)):
        images = pixels(*size, channels)
        assert_right_at_every_pixel(model, fast, images, transforms, "fp32")


def test_a_float64_network() -> None:
    model = single(5).eval().double()
    fast = optimize(model, pixels(9, 8), input_format="uint8_nhwc", transforms=IMAGENET)
    images = pixels(9, 8)
    with torch.no_grad():
        wanted = model(normalised(images, IMAGENET, torch.float64))
    assert fast(images).dtype == torch.float64
    assert float(deviation(fast(images), wanted).max()) < 1e-14
