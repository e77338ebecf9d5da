"""Offsets of 64 bits, exactly where a tensor needs them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastres.kernels.launch.call import KernelCall
from fastres.kernels.launch.conv2d import conv2d_calls, workspace_bytes
from fastres.kernels.packing import pack_conv2d, packed_shape
from fastres.kernels.spec import ConvSpec
from fastres.kernels.tuning.conv2d import Conv2dConfig
from tests.support.far_memory import FarTensor, run_program

SMALL = Conv2dConfig(16, 16, 16)


def calls_on_meta(spec: ConvSpec, config: Conv2dConfig, residual: bool = False) -> list[KernelCall]:
    def images(c: int, h: int, w: int) -> Tensor:
        shape = (spec.n, h, w, c)
        return torch.empty(shape, dtype=torch.float16, device="meta").permute(0, 3, 1, 2)

    weight = packed_shape(spec.c, spec.k, spec.r, spec.s, spec.groups)
    out = images(spec.k, spec.p, spec.q)
    return conv2d_calls(
        images(spec.c, spec.h, spec.w),
        torch.empty(weight, dtype=torch.float16, device="meta"),
        None,
        out if residual else None,
        out,
        spec,
        "none",
        "none",
        config,
        "fp16",
        torch.empty(workspace_bytes(spec, config, "fp16") // 4, device="meta"),
    )


@pytest.mark.parametrize(
    ("spec", "wide"),
    [
        (ConvSpec(1, 16, 1, 2**27, 8, 1, 1), False),
        (ConvSpec(1, 16, 1, 2**27 + 1, 8, 1, 1), True),  # x
        (ConvSpec(1, 8, 1, 2**27, 16, 1, 1), False),
        (ConvSpec(1, 8, 1, 2**27 + 1, 16, 1, 1), True),  # out
        (ConvSpec(1, 2**16, 1, 1, 2**15 + 1, 1, 1), True),  # weight
        (ConvSpec(1, 1, 1, 2**31 - 32, 1, 1, 1), False),
        (ConvSpec(1, 1, 1, 2**31 - 8, 1, 1, 1), True),  # the last tile's rows count past 2^31
    ],
    ids=str,
)
def test_wide_offsets_exactly_past_two_to_the_31(spec: ConvSpec, wide: bool) -> None:
    (call,) = calls_on_meta(spec, SMALL)
    assert call.constants["INT64"] is wide


def test_wide_offsets_for_partial_sums_alone() -> None:
    spec = ConvSpec(1, 32, 1, 2**25 + 8, 32, 1, 1)
    main, total = calls_on_meta(spec, Conv2dConfig(16, 16, 16, split_k=2))
    assert main.constants["INT64"] is True
    assert total.constants["INT64"] is False  # it walks from sum to sum, each of them small enough


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize(
    "spec",
    [
        # Two windows far apart, each of two pixels far apart.
        ConvSpec(1, 16, 2, 2**27 + 1, 16, 2, 1, stride=(1, 2**27)),
        # The same with padding, whose masks are computed from the same numbers.
        ConvSpec(1, 16, 2, 2**27 + 1, 16, 2, 1, stride=(1, 2**27), padding=(1, 0, 0, 0)),
        # Three images far apart.
        ConvSpec(3, 16, 1, 2**26 + 3, 16, 1, 1, stride=(1, 2**26 + 3)),
    ],
    ids=["rows", "padded rows", "images"],
)
def test_reading_past_two_to_the_31(
    spec: ConvSpec, wide: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 64 bits the answer is right; with 32 it is not, so that this test can tell."""
    (call,) = calls_on_meta(spec, SMALL)
    assert call.constants["INT64"] is True
    x = FarTensor(torch.float16)
    pixels = torch.randn(spec.n, spec.h, spec.q, spec.c).half()
    for n in range(spec.n):
        for h in range(spec.h):
            for q in range(spec.q):
                place = ((n * spec.h + h) * spec.w + q * spec.stride[1]) * spec.c
                x.at(place, spec.c).copy_(pixels[n, h, q])
    weight = torch.randn(spec.k, spec.c, spec.r, spec.s).half() / 8
    out = torch.empty(spec.n, spec.p, spec.q, spec.k, dtype=torch.float16)
    run_program(
        monkeypatch,
        call,
        (0, 0, 0),
        x_ptr=x.start,
        weight_ptr=pack_conv2d(weight),
        out_ptr=out,
        INT64=wide,
    )
    padded = torch.nn.functional.pad(
        pixels.permute(0, 3, 1, 2).double(), (0, 0, spec.padding[0], spec.padding[2])
    )
    want = torch.conv2d(padded, weight.double()).permute(0, 2, 3, 1)
    assert torch.allclose(out.double(), want, atol=2e-3) is wide


@pytest.mark.parametrize("wide", [True, False])
def test_reading_and_writing_past_two_to_the_31(
    wide: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last tile, a partial one, of x, residual and out."""
    rows = 2**27 + 3
    spec = ConvSpec(1, 16, 1, rows, 16, 1, 1)
    (call,) = calls_on_meta(spec, SMALL, residual=True)
    x, residual, out = (FarTensor(torch.float16) for _ in range(3))
    pixels, added = torch.randn(3, 16).half(), torch.randn(3, 16).half()
    weight = torch.randn(16, 16, 1, 1).half() / 4
    x.at((rows - 3) * 16, 48).copy_(pixels.flatten())
    residual.at((rows - 3) * 16, 48).copy_(added.flatten())
    run_program(
        monkeypatch,
        call,
        (call.grid[0] - 1, 0, 0),
        x_ptr=x.start,
        weight_ptr=pack_conv2d(weight),
        residual_ptr=residual.start,
        out_ptr=out.start,
        INT64=wide,
    )
    want = pixels.double() @ weight[:, :, 0, 0].double().T + added.double()
    got = out.at((rows - 3) * 16, 48).double().view(3, 16)
    assert torch.allclose(got, want, atol=4e-3) is wide
    assert out.at(rows * 16, 256).count_nonzero() == 0


@pytest.mark.parametrize("wide", [True, False])
def test_partial_sums_past_two_to_the_31(wide: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three splits the last, written by the one kernel and read by the other."""
    rows = 2**26 + 5
    spec = ConvSpec(1, 48, 1, rows, 16, 1, 1, stride=(1, 1))
    main, total = calls_on_meta(spec, Conv2dConfig(16, 16, 16, split_k=3))
    x, partial, out = FarTensor(torch.float16), FarTensor(torch.float32), FarTensor(torch.float16)
    pixels = torch.randn(5, 48).half()
    weight = torch.randn(16, 48, 1, 1).half() / 4
    x.at((rows - 5) * 48, 5 * 48).copy_(pixels.flatten())
    for split in range(3):
        run_program(
            monkeypatch,
            main,
            (main.grid[0] - 1, split, 0),
            x_ptr=x.start,
            weight_ptr=pack_conv2d(weight),
            out_ptr=partial.start,
            INT64=wide,
        )
    run_program(
        monkeypatch,
        total,
        (total.grid[0] - 1, 0, 0),
        partial_ptr=partial.start,
        out_ptr=out.start,
    )
    want = pixels.double() @ weight[:, :, 0, 0].double().T
    got = out.at((rows - 5) * 16, 80).double().view(5, 16)
    assert torch.allclose(got, want, atol=8e-3) is wide


@pytest.mark.sampled(3)
@pytest.mark.parametrize("split_k", [1, 2])
@pytest.mark.parametrize(
    "spec",
    [
        ConvSpec(2, 40, 3, 5, 20, 3, 3, (1, 2), (1, 0, 2, 1)),
        ConvSpec(1, 64, 3, 3, 64, 3, 3, padding=(1, 1, 1, 1), groups=16),
        ConvSpec(1, 2, 3, 20, 3, 1, 17, padding=(0, 8, 0, 8)),
        ConvSpec(1, 24, 1, 1, 17, 1, 1),
    ],
    ids=["dense", "grouped", "long", "one pixel"],
)
def test_wide_offsets_give_the_same_bits(spec: ConvSpec, split_k: int, device: str) -> None:
    config = Conv2dConfig(16, 16, 16, split_k=split_k)
    x = torch.randn(spec.n, spec.h, spec.w, spec.c, device=device).permute(0, 3, 1, 2)
    weight = torch.randn(spec.k, spec.c // spec.groups, spec.r, spec.s, device=device)
    workspace = torch.empty(workspace_bytes(spec, config, "fp32") // 4, device=device)
    outs = []
    for wide in (False, True):
        out = torch.empty(spec.n, spec.p, spec.q, spec.k, device=device).permute(0, 3, 1, 2)
        for call in conv2d_calls(
            *(x, pack_conv2d(weight, spec.groups), None, None, out, spec),
            *("none", "relu", config, "fp32", workspace),
        ):
            assert call.constants["INT64"] is False
            KernelCall(
                call.kernel, call.grid, call.arguments, {**call.constants, "INT64": wide}
            ).run()
        outs.append(out)
    assert torch.equal(*outs)
