"""Sizes after capture: as free as the model's own arithmetic, or a sentence on what fixes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastres
from fastres.capture.capture import capture
from fastres.errors import InputError
from fastres.models import resnet18
from tests.support.optimizing import optimize
from tests.support.small import Net, assert_right, conv, images, measured


def stages(levels: int = 4) -> nn.Sequential:
    """Halves the image at every level, with residual additions and BatchNorms."""
    return nn.Sequential(
        *(nn.Sequential(conv(stride=2), nn.BatchNorm2d(4), nn.ReLU()) for _ in range(levels))
    )


def backbone(m: Any, x: Tensor) -> Any:
    """Features of two levels, the smaller one added to the larger one, as in an FPN."""
    large = m.first(x)
    small = m.second(large)
    return F.interpolate(m.lateral(small), size=large.shape[-2:]) + large, small


@pytest.mark.sampled(3)
@pytest.mark.parametrize("side", [16, 17, 32, 64])
def test_an_example_that_ends_in_one_pixel(side: int) -> None:
    model = measured(Net(backbone, first=stages(3), second=stages(2), lateral=conv()))
    fast = optimize(model, images(2, height=side, width=side))
    for size in ((side, side), (16, 16), (33, 80), (64, 47), (160, 128)):
        assert_right(model, fast, images(1, height=size[0], width=size[1]))
    assert not any("size" in note for note in fast.report.notes)


def test_a_resnet_that_saw_32_pixels() -> None:
    captured = capture(resnet18(num_classes=3).eval(), torch.zeros(2, 3, 32, 32))
    assert captured.contract.limits == ()
    assert captured.contract.guards == ()
    for size in ((16, 16), (32, 64), (97, 65), (224, 224)):
        captured.contract.check([torch.zeros(1, 3, *size)])


@pytest.mark.sampled(3)
@pytest.mark.parametrize("example", [(6, 16), (16, 6), (14, 18), (40, 40)])
def test_a_size_that_was_one_by_coincidence(example: tuple[int, int]) -> None:
    def function(m: Any, x: Tensor) -> Any:
        y = m.norm(m.second(m.first(x)))
        return F.interpolate(y, size=y.shape[2:]), y * y.mean((2, 3), keepdim=True)

    parts = {"first": conv(stride=2, padding=0), "second": nn.Conv2d(4, 4, 2)}
    model = measured(Net(function, norm=nn.BatchNorm2d(4), **parts), images(height=20, width=20))
    fast = optimize(model, images(2, height=example[0], width=example[1]))
    for size in (example, (14, 18), (6, 9), (18, 6), (6, 6), (31, 20)):
        x = images(1, height=size[0], width=size[1])
        assert [y.shape for y in fast(x)] == [y.shape for y in model(x)]
        assert_right(model, fast, x)


def test_what_depends_on_a_size_of_one_stays_bound_to_it() -> None:
    # Without its dimension of one pixel, the result has another rank for other sizes.
    def function(m: Any, x: Tensor) -> Any:
        y = m.net(x).squeeze(2)
        return y + 1 if y.dim() == 3 else y - 1

    model = measured(Net(function, net=conv(stride=2)))
    one, more = (optimize(model, images(2, height=h)) for h in (2, 8))
    for fast, right, wrong in ((one, 2, 9), (more, 9, 2)):
        assert_right(model, fast, images(3, height=right, width=12))
        with pytest.raises(
            InputError, match=r"optimise with an example_input|decides on the image"
        ):
            fast(images(3, height=wrong))


@pytest.mark.parametrize(
    "pool",
    [
        lambda y: F.avg_pool2d(y, y.shape[2:]),
        lambda y: F.max_pool2d(y, y.shape[2:]),
        lambda y: F.max_pool2d(y, kernel_size=y.size()[2:], stride=1),
        lambda y: F.avg_pool2d(y, (y.size(2), y.size(3)), stride=(y.size(2), y.size(3))),
    ],
)
def test_pooling_over_the_whole_image(pool: Callable[[Tensor], Tensor]) -> None:
    model = measured(Net(lambda m, x: pool(m.net(x)), net=conv()))
    fast = optimize(model, images(2))
    for size in ((9, 8), (8, 8), (13, 31)):
        assert_right(model, fast, images(1, height=size[0], width=size[1]))


def test_pooling_by_one_side_of_a_square() -> None:
    model = measured(Net(lambda m, x: F.avg_pool2d(m.net(x), m.net(x).size(3)), net=conv()))
    fast = optimize(model, images(2, height=8, width=8))
    for side in (8, 9, 30):
        assert_right(model, fast, images(1, height=side, width=side))
    with pytest.raises(InputError, match="dimension 3 must be"):
        fast(images(1, height=16, width=8))


def test_what_fixes_the_size_is_named() -> None:
    class Pyramid(nn.Module):
        """Spatial pyramid pooling: windows by plain numbers."""

        def forward(self, y: Tensor) -> Tensor:
            return F.max_pool2d(y, y.shape[2] // 2, stride=1).flatten(1)

    model = nn.Sequential(conv(), Pyramid()).eval()
    fast = fastres.optimize(model, images(2))
    (note,) = [note for note in fast.report.notes if "fixed by the example" in note]
    assert "fixed by the example: test_captured_sizes.py:" in note
    assert "(module 1, Pyramid)" in note
    assert "optimise once per size" in note
    assert_right(model, fast, images(3, width=13))
    with pytest.raises(InputError, match=r"\(module 1, Pyramid\)"):
        fast(images(2, height=10))


def test_what_an_operator_needs_is_located_at_the_models_call_of_it() -> None:
    model = Net(
        lambda m, x: (torch.narrow(m.first(x), 2, 0, 7), m.fc(x.flatten(1))),
        first=conv(),
        fc=nn.Linear(4 * 8 * 9, 2),
    )
    guards = capture(model.eval(), images(2, height=8, width=9)).contract.guards
    locations = {guard.location.partition(":")[0] for guard in guards}
    assert locations == {"test_captured_sizes.py", "linear.py"}


@pytest.mark.campaign
def test_attention_in_blocks_gives_up_early() -> None:
    class Blocks(nn.Module):
        """Sizes that are quotients of height times width."""

        def forward(self, y: Tensor) -> Tensor:
            n, c, h, w = y.shape
            for _ in range(3):
                y = y.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
                y = y.reshape(n * (h * w // 4), -1, 4).softmax(2)
                y = y.reshape(n, -1, h, w)
            return y

    model = nn.Sequential(conv(), Blocks(), conv()).eval()
    fast = optimize(model, images(2, height=8))
    assert_right(model, fast, images(3, height=8))
    told = [note for note in fast.report.notes if "too tangled" in note]
    assert all("module 1, Blocks computes" in note for note in told), told
