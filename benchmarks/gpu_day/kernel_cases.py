"""The stages ``kernels`` and ``small``: hard cases of every kernel, against float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_day import hard_cases, rehearsal
from benchmarks.gpu_day.answers import Tensors, judge
from benchmarks.gpu_day.hard_cases import Case
from benchmarks.gpu_day.results import Job, Record
from benchmarks.gpu_day.settings import DEVICE, DTYPES, GPU, REHEARSED, allow_tf32
from fastres.errors import OptionError
from fastres.kernels import reference
from fastres.kernels.launch import (
    bottleneck,
    conv2d,
    elementwise,
    layout,
    linear,
    pool_linear,
    pooling,
    stem,
)
from fastres.kernels.tuning.conv2d import Conv2dConfig, on_matrix_units
from fastres.kernels.tuning.elementwise import power_of_two_from
from fastres.kernels.tuning.gpus import Gpu, by_name
from fastres.kernels.tuning.traffic import ELEMENT_BYTES

INTERPRETED_WORK = 1e6
"""Of a case that is interpreted in a rehearsal; of larger ones only the launches are made."""


class Draw:
    """Random tensors, drawn on the CPU: the same on every machine."""

    def __init__(self, dtype: torch.dtype, device: str) -> None:
        self.dtype, self.device = dtype, device

    def __call__(self, *shape: int) -> Tensor:
        """Of the case's dtype; of four axes channels-last."""
        drawn = torch.randn(shape, dtype=torch.float32, device="cpu").to(self.device, self.dtype)
        return conv2d.channels_last(drawn) if len(shape) == 4 else drawn

    def weight(self, *shape: int) -> Tensor:
        """Such that sums are of the size of what is summed."""
        return self(*shape) / math.sqrt(math.prod(shape[1:]))

    def bias(self, count: int) -> Tensor:
        """Always float32."""
        return torch.randn(count, dtype=torch.float32, device="cpu").to(self.device)


Answer = tuple[Tensor, Callable[[Tensors], Tensor], Tensors, int]
"""A kernel's answer, the operator in torch, its tensors, and the length of its sums."""


def run_case(case: Case, precision: str, device: str = DEVICE) -> Record:
    """Our kernels against float64, and torch in the same precision against float64."""
    if precision != "fp16" and case.operator == "far":
        return {"skipped": "in fp16 only"}
    if precision == "tf32" and not case.multiplies:
        return {"skipped": "no products: as fp32"}
    allow_tf32(precision)
    try:
        answers = answered(case, precision, device)
    except OptionError as error:
        return {"skipped": str(error)}
    nan = case.options.get("nan", False)
    verdicts = [judge(*answer, precision, nan) for answer in answers]
    return max(verdicts, key=lambda each: (not each["ok"], each["error"]))


def answered(case: Case, precision: str, device: str) -> list[Answer]:
    """The kernels' answers, and what they are compared with."""
    chosen = {"precision": precision, "gpu": by_name(GPU)}
    return OPERATORS[case.operator](case, Draw(DTYPES[precision], device), chosen)


def _image(case: Case, draw: Draw) -> Tensor:
    x = draw(*case.x)
    if case.options.get("nan"):
        x[0, 5 % x.shape[1], x.shape[2] // 2, x.shape[3] // 2] = torch.nan
        x[-1, 0, 0, 0] = torch.inf
    if case.options.get("nan") == "borders":
        x[0, 0, -1, x.shape[3] // 2] = x[-1, -1, -1, -1] = torch.nan
    return x


def _by_boxes(case: Case, precision: str, gpu: Gpu) -> Conv2dConfig:
    """What :mod:`fastres.kernels.triton.tiled` is launched with.

    Raises:
        OptionError: it cannot be, or is never tried, in this precision or on this GPU.
    """
    if not gpu.architecture.tensor_descriptors or not on_matrix_units(precision, gpu.architecture):
        raise OptionError(f"no boxes in {precision} on {gpu.name}")
    images, high, wide = case.options["boxes"]
    depth = min(power_of_two_from(max(case.x[1], 16)), 128 // ELEMENT_BYTES[precision])
    pixels = images * high * wide
    return Conv2dConfig(pixels, 64, depth, descriptors=True, box_h=high, box_w=wide)


def _conv2d(case: Case, draw: Draw, chosen: Mapping[str, Any]) -> list[Answer]:
    options, x = case.options, _image(case, draw)
    k, groups, activation = (
        options["k"],
        options.get("groups", 1),
        options.get("activation", "relu"),
    )
    weight = draw.weight(k, x.shape[1] // groups, options["r"], options["s"])
    bias = draw.bias(k) - (100.0 if options.get("below") else 0.0)
    bias = bias.to(draw.dtype).float()
    stride, dilation = options.get("stride", 1), options.get("dilation", 1)
    geometry = ((stride,) * 2, options.get("padding", (0,) * 4), (dilation,) * 2, groups)
    like = reference.conv2d(x, weight, None, None, *geometry, "none", activation)
    residual = draw(*like.shape) if options.get("residual") else None
    if options.get("boxes"):
        chosen = {**chosen, "config": _by_boxes(case, chosen["precision"], chosen["gpu"])}
    if "split" in options:
        config = Conv2dConfig(64, 32, 32, split_k=options["split"], fused_sum=True)
        chosen = {**chosen, "config": config}
    actual = conv2d.conv2d(x, weight, bias, residual, *geometry, "none", activation, **chosen)

    def oracle(t: Tensors) -> Tensor:
        x, weight, bias, residual = t
        assert x is not None and weight is not None and bias is not None
        return reference.conv2d(
            x, weight, bias.to(x.dtype), residual, *geometry, "none", activation
        )

    return [(actual, oracle, (x, weight, bias, residual), weight[0].numel())]


def _far(case: Case, draw: Draw, chosen: Mapping[str, Any]) -> list[Answer]:
    n = 2**31 // (56 * 56 * 256) + 2
    x = torch.zeros(n, 56, 56, 256, dtype=draw.dtype, device=draw.device).permute(0, 3, 1, 2)
    x[-2:] = draw(2, 256, 56, 56)
    weight = draw.weight(16, 256, 1, 1)
    geometry = ((1, 1), (0,) * 4, (1, 1), 1, "none", "none")
    actual = conv2d.conv2d(x, weight, None, None, *geometry, **chosen)[-2:]

    def oracle(t: Tensors) -> Tensor:
        assert t[0] is not None and t[1] is not None
        return reference.conv2d(t[0], t[1], None, None, *geometry)

    return [(actual, oracle, (x[-2:], weight), 256)]


def _bottleneck(case: Case, draw: Draw, chosen: Mapping[str, Any]) -> list[Answer]:
    """A bottleneck's tail, with a residual of its own or a shortcut, and perhaps the next head."""
    options, x = case.options, _image(case, draw)
    n, c, h, w = x.shape
    groups, width, k = options.get("groups", 1), options["width"], options["k"]
    shortcut_channels, following = options.get("shortcut"), options.get("next")
    stride = (options.get("stride", 1),) * 2
    p, q = ((size - 1) // stride[0] + 1 for size in (h, w))
    tensors: Tensors = (
        x,
        draw.weight(width, c // groups, 3, 3),
        draw.bias(width).to(draw.dtype).float(),
        draw.weight(k, width, 1, 1),
        draw.bias(k).to(draw.dtype).float(),
        draw(n, shortcut_channels, h, w) if shortcut_channels else draw(n, k, p, q),
        draw.weight(k, shortcut_channels, 1, 1) if shortcut_channels else None,
        draw.weight(following, k, 1, 1) if following else None,
        draw.bias(following).to(draw.dtype).float() if following else None,
    )

    def arguments(t: Tensors) -> list[Any]:
        return [*t[:7], stride, *t[7:], stride, (1,) * 4, (1, 1), groups]

    def oracle(number: int) -> Callable[[Tensors], Tensor]:
        def compute(t: Tensors) -> Tensor:
            x = t[0]
            assert x is not None
            cast = [tensor if tensor is None else tensor.to(x.dtype) for tensor in t]
            return reference.bottleneck(*arguments(cast))[number]

        return compute

    results = bottleneck.bottleneck(*arguments(tensors), **chosen)
    length = 9 * c // groups + width + (shortcut_channels or 1)
    lengths = (length, length + k)
    return [(result, oracle(i), tensors, lengths[i]) for i, result in enumerate(results)]


def _stem(case: Case, draw: Draw, chosen: Mapping[str, Any]) -> list[Answer]:
    options, (n, c, h, w) = case.options, case.x
    pool = options["pool"]
    geometry = ((2, 2), (3,) * 4, "relu", (pool,) * 2, (2, 2), (pool // 2,) * 2)
    weight, bias = draw.weight(64, c, 7, 7), draw.bias(64).to(draw.dtype).float()
    pixels: dict[str, Any] = {}
    if options.get("uint8"):
        x = torch.randint(0, 256, (n, h, w, c), dtype=torch.uint8, device="cpu").to(draw.device)
        pixels = {"scale": draw.bias(c).abs() / 64 + 1 / 64, "shift": draw.bias(c) - 2.0}
    else:
        x = _image(case, draw)
    actual = stem.conv2d_max_pool2d(
        x,
        weight,
        bias,
        *geometry,
        scale=pixels.get("scale"),
        shift=pixels.get("shift"),
        **chosen,
    )

    def oracle(t: Tensors) -> Tensor:
        image, weight, bias = t
        assert image is not None and weight is not None and bias is not None
        if pixels:  # normalised in float32 and rounded, then whatever the weights are
            image = reference.normalise(x, pixels["scale"], pixels["shift"])
            image = image.to(draw.dtype).to(weight.dtype)
        return reference.conv2d_max_pool2d(image, weight, bias.to(weight.dtype), *geometry)

    return [(actual, oracle, (x, weight, bias), 49 * c)]


def _max_pool2d(case: Case, draw: Draw, chosen: Mapping[str, Any]) -> list[Answer]:
    x = _image(case, draw)
    window = ((3, 3), (2, 2), (1, 1), (1, 1), case.options.get("ceil", False))
    return [_unary(pooling.max_pool2d, reference.max_pool2d, x, window, 1)]


def _avg_pool2d(case: Case, draw: Draw, chosen: Mapping[str, Any]) -> list[Answer]:
    x, window = _image(case, draw), ((3, 3), (2, 2), (1, 1), False, False, None)
    return [_unary(pooling.avg_pool2d, reference.avg_pool2d, x, window, 9)]


def _global_avg_pool(case: Case, draw: Draw, chosen: Mapping[str, Any]) -> list[Answer]:
    x = _image(case, draw)
    pixels = x.shape[2] * x.shape[3]
    return [_unary(pooling.global_avg_pool, reference.global_avg_pool, x, (False,), pixels)]


def _unary(
    kernel: Callable[..., Tensor],
    operator: Callable[..., Tensor],
    x: Tensor,
    window: tuple[Any, ...],
    length: int,
) -> Answer:
    return kernel(x, *window), lambda t: operator(t[0], *window), (x,), length


def _linear(case: Case, draw: Draw, chosen: Mapping[str, Any]) -> list[Answer]:
    rows, c = case.x
    x, weight = draw(rows, c), draw.weight(case.options["k"], c)
    bias = draw.bias(case.options["k"]).to(draw.dtype).float()
    actual = linear.linear(x, weight, bias, "relu", **chosen)
    return [(actual, _with_bias(reference.linear), (x, weight, bias), c)]


def _pool_linear(case: Case, draw: Draw, chosen: Mapping[str, Any]) -> list[Answer]:
    x, (_, c, h, w) = _image(case, draw), case.x
    weight = draw.weight(case.options["k"], c)
    bias = draw.bias(case.options["k"]).to(draw.dtype).float()
    actual = pool_linear.pool_linear(x, weight, bias, "none", gpu=chosen["gpu"])
    oracle = _with_bias(reference.pool_linear, "none")
    return [(actual, oracle, (x, weight, bias), c + h * w)]


def _with_bias(
    operator: Callable[..., Tensor], activation: str = "relu"
) -> Callable[[Tensors], Tensor]:
    def compute(t: Tensors) -> Tensor:
        x, weight, bias = t
        assert x is not None and bias is not None
        return operator(x, weight, bias.to(x.dtype), activation)

    return compute


def _scale_shift(case: Case, draw: Draw, chosen: Mapping[str, Any]) -> list[Answer]:
    x, scale, shift = _image(case, draw), draw.bias(case.x[1]), draw.bias(case.x[1])
    actual = elementwise.scale_shift(x, scale, shift, "relu")

    def oracle(t: Tensors) -> Tensor:
        x, scale, shift = t
        assert x is not None and scale is not None and shift is not None
        return reference.scale_shift(x, scale, shift, "relu")

    return [(actual, oracle, (x, scale, shift), 1)]


def _add_relu(case: Case, draw: Draw, chosen: Mapping[str, Any]) -> list[Answer]:
    x, y = _image(case, draw), draw(*case.x)
    actual = elementwise.add_relu(x, y)

    def oracle(t: Tensors) -> Tensor:
        assert t[0] is not None and t[1] is not None
        return reference.add_relu(t[0], t[1])

    return [(actual, oracle, (x, y), 1)]


def _layout(case: Case, draw: Draw, chosen: Mapping[str, Any]) -> list[Answer]:
    x = _image(case, draw).contiguous()
    converted = layout.to_channels_last(x)
    back = layout.to_nchw(converted)

    def oracle(t: Tensors) -> Tensor:
        assert t[0] is not None
        return t[0].clone()

    return [(converted, oracle, (x,), 1), (back, oracle, (x,), 1)]


OPERATORS: dict[str, Callable[[Case, Draw, Mapping[str, Any]], list[Answer]]] = {
    "conv2d": _conv2d,
    "far": _far,
    "bottleneck": _bottleneck,
    "stem": _stem,
    "max_pool2d": _max_pool2d,
    "avg_pool2d": _avg_pool2d,
    "global_avg_pool": _global_avg_pool,
    "linear": _linear,
    "pool_linear": _pool_linear,
    "scale_shift": _scale_shift,
    "add_relu": _add_relu,
    "layout": _layout,
}


def kernels() -> list[Job]:
    """Every case in four precisions."""
    cases = sorted(hard_cases.EVERY, key=lambda case: case.operator == "far")
    return [_job(case, precision) for precision in DTYPES for case in cases]


def small() -> list[Job]:
    """The small ones; run without torch's allocator, whose blocks hide what lies beyond them."""
    return [_job(case, "fp16") for case in hard_cases.SMALL]


def _job(case: Case, precision: str) -> Job:
    def work() -> Record:
        if not REHEARSED or case.work <= INTERPRETED_WORK:
            return run_case(case, precision)
        if case.operator == "far":
            return {"skipped": "cannot be rehearsed: 4 GiB"}
        calls = rehearsal.launched(lambda: answered(case, precision, DEVICE))
        return {"launches": len(calls), "rehearsed": "not interpreted, too large"}

    arguments = {"operator": case.operator, "x": case.x, **case.options, "precision": precision}
    return Job(f"{precision}: {case.name}", work, arguments)
