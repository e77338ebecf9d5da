"""The shape that tracing takes for a BatchNorm's result, and how much tracing asks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_impls import get_fast_op_impls
from torch._subclasses.fake_tensor import FakeTensorMode

from fastres.capture import decisions
from fastres.capture.capture import capture
from fastres.capture.quick_shapes import _BATCH_NORM, _batch_norm
from tests.support.small import conv


def made(shape: tuple[int, ...], form: str) -> Tensor:
    x = torch.zeros(shape, dtype=torch.float32, device="cpu")
    if form == "channels last":
        return x.to(memory_format=torch.channels_last)
    if form == "permuted":
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("shape", "form"),
    [
        ((2, 3, 4, 5), "dense"),
        ((2, 3, 4, 5), "channels last"),
        ((0, 3, 4, 5), "dense"),
        ((2, 3), "dense"),
        ((2, 3, 7), "dense"),
        ((1, 3, 1, 1), "dense"),
    ],
    ids=str,
)
def test_a_batch_norms_result_is_like_its_input(
    shape: tuple[int, ...], form: str, dtype: torch.dtype
) -> None:
    x = made(shape, form).to(dtype)
    statistics = [torch.ones(3, dtype=torch.float32, device="cpu") for _ in range(4)]
    mode = FakeTensorMode()
    faked = [mode.from_tensor(each) for each in (x, *statistics)]
    fake, scale, shift, mean, variance = faked
    ours = _batch_norm(mode, fake, scale, shift, mean, variance, 0.1, 1e-5)
    torchs = _BATCH_NORM(x, *statistics, 0.1, 1e-5)
    for a, b in zip(ours[:1], torchs[:1], strict=True):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())
    assert [tuple(each.shape) for each in ours[1:]] == [(0,), (0,)]


def test_torchs_own_shape_functions_are_back_afterwards() -> None:
    before = dict(get_fast_op_impls())
    capture(nn.Sequential(conv(), nn.BatchNorm2d(4)).eval(), torch.zeros(1, 4, 8, 8))
    with pytest.raises(Exception, match="elements"):
        capture(nn.Sequential(conv(), nn.BatchNorm2d(5)).eval(), torch.zeros(1, 4, 8, 8))
    assert get_fast_op_impls() == before
    assert torch._dynamo.config.fake_tensor_cache_enabled


class Attention(nn.Module):
    """Attention over all pixels with positions, as botnets and lambda networks have it."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Conv2d(4, 12, 1, bias=False)
        self.position = nn.Conv3d(1, 4, (1, 3, 3), padding=(0, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        q, k, v = self.project(x).reshape(n, 3, c, h * w).unbind(1)
        content = q.transpose(1, 2) @ (torch.softmax(k, -1) @ v.transpose(1, 2))
        near = self.position(v.reshape(n, 1, c, h, w)).reshape(n, c, c, h * w)
        mixed = (q.transpose(1, 2).unsqueeze(-2) @ near.permute(0, 3, 1, 2)).squeeze(-2)
        result: Tensor = (content + mixed).transpose(1, 2).reshape(n, c, h, w)
        return result


def asked(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many questions about sizes a capture asks."""
    count = 0
    purpose = decisions._purpose

    def counting(frame: Any) -> str:
        nonlocal count
        count += 1
        return purpose(frame)

    with monkeypatch.context() as patched:
        patched.setattr(decisions, "_purpose", counting)
        capture(model.eval(), torch.zeros(1, 4, 16, 16))
    return count


@pytest.mark.parametrize("part", [Attention, nn.Identity], ids=["attention", "convolutions"])
def test_questions_grow_no_faster_than_depth(
    part: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    def deep(blocks: int) -> nn.Module:
        return nn.Sequential(
            *(nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), part()) for _ in range(blocks))
        )

    two, four, eight = (asked(deep(blocks), monkeypatch) for blocks in (2, 4, 8))
    assert four - two > 0
    assert eight - four <= 2.2 * (four - two)


def test_a_batch_norm_asks_little(monkeypatch: pytest.MonkeyPatch) -> None:
    def count(norm: type[nn.Module]) -> int:
        parts = [nn.Sequential(conv(stride=2), norm(4)) for _ in range(3)]
        return asked(nn.Sequential(*parts), monkeypatch)

    class Nothing(nn.Identity):
        pass

    assert count(nn.BatchNorm2d) - count(Nothing) <= 3 * 60
