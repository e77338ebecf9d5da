"""Each operator: registered right, equal to its definition, and fit for torch's own tools."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export

from fastres.ir import ops
from fastres.kernels.activations import ACTIVATIONS
from tests.support import loops, quantized_loops

OPERATORS = {target._opname: target for target in ops.REFERENCE}


@dataclass(frozen=True)
class Conv:
    """A convolution by its sizes; the letters are those of ``fastres.kernels.spec``."""

    x: tuple[int, int, int, int] = (2, 3, 6, 5)
    k: int = 4
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (1, 1, 1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    bias: bool = True
    residual: bool = False
    pre_activation: str = "none"
    activation: str = "none"

    def arguments(self) -> tuple[Any, ...]:
        """Random ones, float64."""
        x = random(*self.x)
        weight = random(self.k, self.x[1] // self.groups, *self.kernel)
        shape = (list(self.stride), list(self.padding), list(self.dilation), self.groups)
        size = loops.convolve(x, weight, *shape).shape
        return (
            x,
            weight,
            random(self.k) if self.bias else None,
            random(*size) if self.residual else None,
            *shape,
            self.pre_activation,
            self.activation,
        )


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


CONVOLUTIONS = {
    "plain": Conv(),
    "no bias": Conv(bias=False),
    "odd sizes": Conv(x=(1, 5, 7, 11), k=3),
    "one pixel": Conv(x=(3, 4, 1, 1), k=2),
    "one pixel, one by one": Conv(x=(3, 4, 1, 1), kernel=(1, 1), padding=(0, 0, 0, 0)),
    "one channel": Conv(x=(2, 1, 4, 4), k=1),
    "one of everything": Conv(x=(1, 1, 1, 1), k=1, kernel=(1, 1), padding=(0, 0, 0, 0)),
    "empty batch": Conv(x=(0, 3, 6, 5), residual=True),
    "oblong": Conv(kernel=(1, 5), stride=(2, 1), padding=(0, 3, 0, 3)),
    "four-sided padding": Conv(stride=(2, 2), padding=(0, 2, 1, 3)),
    "padding on one side only": Conv(padding=(0, 0, 0, 1), kernel=(2, 2)),
    "padding beyond the filter": Conv(padding=(3, 4, 3, 4), kernel=(2, 2)),
    "dilated": Conv(x=(1, 2, 9, 8), dilation=(3, 2), padding=(2, 1, 2, 1)),
    "dilated, four-sided": Conv(x=(1, 2, 9, 8), dilation=(2, 3), padding=(1, 0, 2, 4)),
    "grouped": Conv(x=(2, 6, 5, 5), k=4, groups=2),
    "depthwise": Conv(x=(2, 4, 5, 5), k=4, groups=4),
    "depthwise, two filters each": Conv(x=(2, 3, 5, 5), k=6, groups=3),
    "stride beyond the filter": Conv(kernel=(1, 2), stride=(4, 3), padding=(0, 0, 0, 0)),
    "filter as large as the image": Conv(kernel=(6, 5), padding=(0, 0, 0, 0)),
    "residual": Conv(residual=True),
    "residual and ReLU": Conv(residual=True, activation="relu", stride=(2, 2)),
    "ReLU before the residual": Conv(residual=True, pre_activation="relu", bias=False),
    "both activations": Conv(residual=True, pre_activation="silu", activation="relu6"),
    **{f"then {name}": Conv(activation=name) for name in ACTIVATIONS},
    **{f"{name} first": Conv(pre_activation=name, residual=True) for name in ACTIVATIONS},
}

POOLS = {
    "3x3, stride 2": ((2, 3, 7, 6), [3, 3], [2, 2], [1, 1], [1, 1], False),
    "ceil mode": ((2, 3, 7, 6), [3, 3], [2, 2], [0, 0], [1, 1], True),
    "ceil mode, padded": ((1, 2, 6, 7), [2, 3], [3, 2], [1, 1], [1, 1], True),
    "last window in the padding": ((1, 1, 5, 5), [2, 2], [2, 2], [1, 1], [1, 1], True),
    "dilated": ((1, 2, 8, 9), [2, 3], [1, 2], [1, 1], [2, 3], False),
    "one pixel": ((2, 2, 1, 1), [1, 1], [1, 1], [0, 0], [1, 1], False),
    "stride beyond the window": ((1, 2, 7, 7), [1, 2], [3, 4], [0, 0], [1, 1], False),
    "empty batch": ((0, 3, 7, 6), [3, 3], [2, 2], [1, 1], [1, 1], False),
}


STEMS = {
    "7x7": (Conv(x=(2, 3, 15, 13), kernel=(7, 7), stride=(2, 2), padding=(3, 3, 3, 3)), 3, 2, 1),
    "one channel, no bias": (Conv(x=(1, 1, 9, 7), bias=False, padding=(0, 2, 1, 3)), 2, 2, 0),
    "one pixel": (Conv(x=(3, 4, 1, 1), k=2), 3, 2, 1),
    "empty batch": (Conv(x=(0, 3, 6, 5)), 3, 2, 1),
}


RESIZINGS = {
    "smaller": ((2, 3, 9, 7), 4, 3, "bilinear", True),
    "larger": ((1, 3, 4, 5), 9, 8, "bilinear", True),
    "smaller, no antialiasing": ((1, 3, 11, 7), 5, 4, "bilinear", False),
    "bicubic": ((1, 2, 9, 16), 5, 4, "bicubic", True),
    "bicubic, larger, no antialiasing": ((1, 2, 5, 6), 7, 7, "bicubic", False),
    "nearest": ((1, 2, 9, 16), 5, 4, "nearest", True),
    "as it is": ((1, 3, 5, 8), 5, 5, "bilinear", True),
    "a crop that cannot be centred": ((1, 1, 8, 15), 6, 3, "bilinear", True),
    "half to even": ((1, 1, 10, 13), 10, 7, "nearest", True),
    "one pixel": ((2, 3, 1, 1), 3, 2, "bilinear", True),
    "empty batch": ((0, 3, 6, 5), 4, 3, "bilinear", True),
}


def bottleneck_arguments(
    case: Conv, next_k: int | None = None, shortcut: tuple[int, int] | None = None
) -> tuple[Any, ...]:
    """``next_k``: width of the next block's head; ``shortcut``: the stride of a shortcut."""
    x, weight, bias, _, *shape, _, _ = replace(case, residual=False).arguments()
    n, _, p, q = loops.convolve(x, weight, *shape).shape
    wide = 2 * case.k
    residual, shortcut_weight = random(n, wide, p, q), None
    if shortcut is not None:  # a last row and column beyond what the stride reads
        residual = random(n, 5, (p - 1) * shortcut[0] + 1, (q - 1) * shortcut[1] + shortcut[1])
        shortcut_weight = random(wide, 5, 1, 1)
    next_weight = None if next_k is None else random(next_k, wide, 1, 1)
    next_bias = None if next_k is None or not case.bias else random(next_k)
    expand = (random(wide, case.k, 1, 1), random(wide) if case.bias else None)
    ends = (residual, shortcut_weight, list(shortcut or (1, 1)), next_weight, next_bias)
    return (x, weight, bias, *expand, *ends, *shape)


def stem_arguments(case: Conv, size: int, step: int, border: int) -> tuple[Any, ...]:
    x, weight, bias, _, stride, padding, *_ = case.arguments()
    pool = ([size, size], [step, step], [border, border])
    return (x, weight, bias, stride, padding, "relu", *pool, None, None)


def pixel_stem_arguments(case: Conv, size: int, step: int, border: int) -> tuple[Any, ...]:
    """Of bytes, with a mean that is far from zero at the border."""
    x, *rest, _, _ = stem_arguments(case, size, step, border)
    n, c, h, w = x.shape
    return (torch.randint(0, 256, (n, h, w, c), dtype=torch.uint8), *rest, random(c), random(c) - 9)


def pool_arguments(size: tuple[int, ...], *window: Any) -> tuple[Any, ...]:
    return (random(*size), *window)


def scale_shift_arguments(shape: tuple[int, ...], activation: str) -> tuple[Any, ...]:
    return (random(*shape), random(shape[1]), random(shape[1]), activation)


def layer_norm_arguments(shape: tuple[int, ...], affine: bool) -> tuple[Any, ...]:
    vectors = [random(shape[1]) if affine else None for _ in range(2)]
    return (random(*shape), *vectors, 1e-3)


def linear_arguments(shape: tuple[int, ...], bias: bool, activation: str) -> tuple[Any, ...]:
    return (random(*shape), random(4, shape[-1]), random(4) if bias else None, activation)


def pool_linear_arguments(shape: tuple[int, ...], bias: bool, activation: str) -> tuple[Any, ...]:
    return (random(*shape), random(4, shape[1]), random(4) if bias else None, activation)


def cases() -> dict[str, tuple[str, Callable[[], tuple[Any, ...]]]]:
    """Name -> (operator, a function that draws its arguments)."""
    found: dict[str, tuple[str, Callable[[], tuple[Any, ...]]]] = {}

    def add(operator: str, name: str, draw: Callable[..., tuple[Any, ...]], *given: Any) -> None:
        found[f"{operator}: {name}"] = (operator, partial(draw, *given))

    for name, case in CONVOLUTIONS.items():
        add("conv2d", name, case.arguments)
    for name, pool in POOLS.items():
        add("max_pool2d", name, pool_arguments, *pool)
    for name in ("plain", "grouped", "one pixel", "four-sided padding", "empty batch", "no bias"):
        add("bottleneck", name, bottleneck_arguments, CONVOLUTIONS[name])
        add("bottleneck", f"{name}, next", bottleneck_arguments, CONVOLUTIONS[name], 3)
    for name, step in (("plain", (1, 1)), ("four-sided padding", (2, 2)), ("empty batch", (2, 1))):
        block = CONVOLUTIONS[name]
        add("bottleneck", f"{name}, shortcut", bottleneck_arguments, block, None, step)
        add("bottleneck", f"{name}, shortcut and next", bottleneck_arguments, block, 7, step)
    for name, stem in STEMS.items():
        add("conv2d_max_pool2d", name, stem_arguments, *stem)
        add("conv2d_max_pool2d", f"{name}, bytes", pixel_stem_arguments, *stem)
    for name, resizing in RESIZINGS.items():
        add("resize_crop", name, pool_arguments, *resizing)
    images: list[tuple[int, ...]] = [(2, 3, 5, 7), (3, 1, 1, 1), (0, 3, 4, 4)]
    for shape in [*images, (2, 3), (2, 3, 4)]:
        add("scale_shift", str(shape), scale_shift_arguments, shape, "none")
    for activation in ("relu", "hardswish"):
        add("scale_shift", activation, scale_shift_arguments, images[0], activation)
    for shape in [*images, (1, 1, 2, 6)]:
        for affine in (True, False):
            name = f"{shape}, {'affine' if affine else 'plain'}"
            add("layer_norm2d", name, layer_norm_arguments, shape, affine)
    for shape in [*images, (4,)]:
        add("add_relu", str(shape), lambda s: (random(*s), random(*s)), shape)
    for shape in [*images, (1, 1, 1, 6)]:
        for keepdim in (True, False):
            add("global_avg_pool", f"{shape}, {keepdim}", pool_arguments, shape, keepdim)
    for shape in [*images, (1, 1, 1, 6)]:
        for bias, activation in ((True, "none"), (False, "relu")):
            name = f"{shape}, {'bias' if bias else 'no bias'}, {activation}"
            add("pool_linear", name, pool_linear_arguments, shape, bias, activation)
    rows: list[tuple[int, ...]] = [(3, 5), (1, 1), (0, 5), (2, 4, 5), (5,)]
    for shape in rows:
        for bias, activation in ((True, "none"), (False, "relu"), (True, "silu")):
            name = f"{shape}, {'bias' if bias else 'no bias'}, {activation}"
            add("linear", name, linear_arguments, shape, bias, activation)
    return found


CASES = cases()


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[str, tuple[Any, ...]]:
    name, draw = CASES[request.param]
    return name, draw()


def in_dtype(arguments: tuple[Any, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    """Whatever is no image of bytes."""
    wide = (isinstance(a, Tensor) and a.is_floating_point() for a in arguments)
    return tuple(a.to(dtype) if w else a for a, w in zip(arguments, wide, strict=True))


def each(result: Tensor | list[Tensor]) -> list[Tensor]:
    """What an operator gave, as a list in any case."""
    return result if isinstance(result, list) else [result]


def assert_all_same(got: Any, wanted: Any, tolerance: float) -> None:
    assert isinstance(got, list) == isinstance(wanted, list)
    for one, other in zip(each(got), each(wanted), strict=True):
        assert_same(one, other, tolerance)


def assert_same(got: Tensor, wanted: Tensor, tolerance: float) -> None:
    assert got.shape == wanted.shape
    scale = float(wanted[wanted.isfinite()].abs().max()) if wanted.isfinite().any() else 1.0
    torch.testing.assert_close(
        got.double(), wanted, rtol=0, atol=tolerance * (scale or 1.0), equal_nan=True
    )


def test_there_is_a_case_for_every_operator() -> None:
    """Those of uint8 are in ``test_quantized_ops``."""
    here = {name for name, _ in CASES.values()}
    assert here | quantized_loops.OPERATORS == set(OPERATORS)
    assert not here & quantized_loops.OPERATORS


def test_opcheck(case: tuple[str, tuple[Any, ...]]) -> None:
    name, arguments = case
    utilities = ("test_schema", "test_autograd_registration", "test_faketensor")
    arguments = in_dtype(arguments, torch.float32)
    torch.library.opcheck(OPERATORS[name], arguments, test_utils=utilities)


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    "name",
    [
        *("conv2d: grouped", "conv2d: residual and ReLU", "conv2d: dilated, four-sided"),
        *("max_pool2d: ceil mode, padded", "scale_shift: relu", "add_relu: (2, 3, 5, 7)"),
        *("global_avg_pool: (2, 3, 5, 7), True", "linear: (3, 5), bias, none"),
        *("bottleneck: plain", "bottleneck: plain, shortcut and next", "conv2d: empty batch"),
        *("conv2d_max_pool2d: 7x7", "pool_linear: (2, 3, 5, 7), bias, none"),
        "conv2d_max_pool2d: 7x7, bytes",
        *("resize_crop: smaller", "resize_crop: bicubic", "resize_crop: nearest"),
    ],
)
def test_opcheck_in_full(name: str) -> None:
    operator, draw = CASES[name]
    torch.library.opcheck(OPERATORS[operator], in_dtype(draw(), torch.float32))


def test_equals_the_definition(case: tuple[str, tuple[Any, ...]]) -> None:
    name, arguments = case
    wanted = getattr(loops, name)(*arguments)
    assert_all_same(OPERATORS[name](*arguments), wanted, 1e-13)
    # At most 150 products each, of random signs: float32 loses less than 100 half-units of the
    # last place.
    narrow = OPERATORS[name](*in_dtype(arguments, torch.float32))
    assert all(result.dtype == torch.float32 for result in each(narrow))
    assert_all_same(narrow, wanted, 50 * torch.finfo(torch.float32).eps)


def test_result_is_memory_of_its_own_and_arguments_are_kept(
    case: tuple[str, tuple[Any, ...]],
) -> None:
    name, arguments = case
    tensors = [a for a in arguments if isinstance(a, Tensor)]
    before = [(t.clone(), t._version) for t in tensors]
    addresses = [t.untyped_storage().data_ptr() for t in tensors]
    for result in each(OPERATORS[name](*arguments)):
        if result.numel():
            assert result.untyped_storage().data_ptr() not in addresses
            addresses.append(result.untyped_storage().data_ptr())
    for tensor, (copy, version) in zip(tensors, before, strict=True):
        assert tensor._version == version
        assert torch.equal(tensor, copy)


def layouts(x: Tensor) -> dict[str, Tensor]:
    """The same numbers at other places in memory."""
    found = {"strided": torch.zeros(*(2 * size for size in x.shape), dtype=x.dtype)}
    for axis, size in enumerate(x.shape):
        found["strided"] = found["strided"].narrow(axis, 0, 2 * size)[
            (slice(None),) * axis + (slice(None, None, 2),)
        ]
    found["strided"].copy_(x)
    found["transposed"] = x.transpose(-1, -2).contiguous().transpose(-1, -2)
    found["batch last"] = x.movedim(0, -1).contiguous().movedim(-1, 0)
    if x.dim() == 4:
        found["channels last"] = x.contiguous(memory_format=torch.channels_last)
    return found


def test_memory_layouts_do_not_matter(case: tuple[str, tuple[Any, ...]]) -> None:
    name, arguments = case
    wanted = OPERATORS[name](*arguments)
    for position, argument in enumerate(arguments):
        if not isinstance(argument, Tensor) or argument.dim() < 2:
            continue
        for layout, x in layouts(argument).items():
            assert torch.equal(x, argument), layout
            changed = (*arguments[:position], x, *arguments[position + 1 :])
            assert_all_same(OPERATORS[name](*changed), wanted, 1e-14)


def test_expanded_arguments() -> None:
    x, weight, bias, _, *rest = CONVOLUTIONS["residual"].arguments()
    residual = random(1, 4, 1, 1).expand(2, 4, 6, 5)
    image = x[:1, :, :1, :1].expand(2, 3, 6, 5)
    wanted = loops.conv2d(image, weight, bias, residual, *rest)
    assert_same(ops.conv2d(image, weight, bias, residual, *rest), wanted, 1e-13)
    assert_same(ops.add_relu(residual, residual), loops.add_relu(residual, residual), 1e-15)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "name",
    [
        *(f"conv2d: then {activation}" for activation in ("none", "relu", "relu6")),
        *("conv2d: residual and ReLU", "conv2d: ReLU before the residual", "conv2d: grouped"),
        *("max_pool2d: 3x3, stride 2", "max_pool2d: ceil mode", "add_relu: (2, 3, 5, 7)"),
        *("scale_shift: relu", "global_avg_pool: (2, 3, 5, 7), True"),
        *("linear: (3, 5), no bias, relu", "bottleneck: plain", "bottleneck: plain, next"),
        *("bottleneck: plain, shortcut and next", "conv2d_max_pool2d: 7x7"),
        "pool_linear: (2, 3, 5, 7), no bias, relu",
    ],
)
def test_nan_and_infinity_go_through(name: str, value: float) -> None:
    operator, draw = CASES[name]
    arguments = draw()
    arguments[0][(0,) * arguments[0].dim()] = value
    every = each(getattr(loops, operator)(*arguments))
    results = each(OPERATORS[operator](*in_dtype(arguments, torch.float32)))
    for got, wanted in zip(results, every, strict=True):
        assert torch.equal(got.isnan(), wanted.isnan())
        assert torch.equal(got.isinf(), wanted.isinf())
        assert_same(got, wanted, 1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_of_special_numbers_are_torchs(activation: str) -> None:
    special = [math.nan, math.inf, -math.inf, -0.0, 0.0, 6.0, 7.0, -3.0, 3.0, -1e30, 1e30]
    x = torch.tensor(special).view(-1, 1, 1, 1)
    got = ops.scale_shift(x, torch.ones(1), torch.zeros(1), activation)
    (function,) = ACTIVATIONS[activation].aten or (lambda v: v,)
    expected = function(x)
    assert torch.equal(got.nan_to_num(99.0), expected.nan_to_num(99.0))
    assert torch.equal(got.isnan(), expected.isnan())


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'gelu': expected none, relu, .* or hardswish"):
        ops.scale_shift(torch.ones(1, 1), torch.ones(1), torch.ones(1), "gelu")


def test_wide_constants_of_scale_shift_are_used_in_full() -> None:
    x = torch.full((1, 1, 1, 1), 3.0, dtype=torch.bfloat16)
    # In bfloat16 the scale would be 1 and the shift would vanish.
    got = ops.scale_shift(x, torch.tensor([1.001]), torch.tensor([-3.0]), "none")
    assert got.dtype == torch.bfloat16
    assert float(got) == pytest.approx(0.003, rel=0.01)


class EveryOperator(nn.Module):
    """Each operator of wider numbers once, in a chain."""

    def __init__(self) -> None:
        super().__init__()
        for name, shape in (
            ("weight", (4, 3, 3, 3)),
            ("bias", (4,)),
            ("narrow", (2, 4, 1, 1)),
            ("wide", (4, 2, 1, 1)),
            ("square", (4, 4, 1, 1)),
            ("head", (5, 4)),
        ):
            self.register_buffer(name, torch.randn(shape))

    def forward(self, x: Tensor) -> Tensor:
        sides = ([1, 1], [0, 1, 1, 2], [1, 1], 1)
        none = ([1, 1], [0, 0, 0, 0], [1, 1], 1)
        weights: Any = self
        y = ops.resize_crop(x, 7, 6, "bilinear", True)
        y = ops.conv2d(y, weights.weight, weights.bias, None, *sides, "none", "relu")
        y = ops.scale_shift(y, weights.bias, weights.bias, "silu")
        y = ops.layer_norm2d(y, weights.bias, None, 1e-5)
        ends = (y, None, [1, 1], weights.square, weights.bias)
        wide, y = ops.bottleneck(y, weights.narrow, None, weights.wide, weights.bias, *ends, *none)
        pool = ([2, 2], [1, 1], [1, 1])
        y = ops.conv2d_max_pool2d(
            wide + y, weights.square, None, *none[:2], "relu", *pool, None, None
        )
        y = ops.max_pool2d(ops.add_relu(y, -y), [2, 2], [2, 2], [0, 0], [1, 1], True)
        pooled: Tensor = ops.global_avg_pool(y, False)
        classes: Tensor = ops.linear(pooled, weights.head, None, "hardswish")
        again: Tensor = ops.pool_linear(y, weights.head, None, "relu")
        return classes + again


def operators_of(program: torch.export.ExportedProgram) -> list[str]:
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


@pytest.mark.campaign
def test_operators_can_be_exported_and_decomposed() -> None:
    model, x = EveryOperator().eval(), torch.randn(2, 3, 6, 5)
    axes = {0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO}
    program = export(model, (x,), dynamic_shapes=(axes,))
    names = [name for name in operators_of(program) if name.startswith("fastres")]
    assert sorted(names) == sorted(
        f"fastres.{name}.default" for name in set(OPERATORS) - quantized_loops.OPERATORS
    )
    plain = program.run_decompositions({**ops.REFERENCE})
    assert operators_of(plain)
    assert not [name for name in operators_of(plain) if "fastres" in name]
    core = program.run_decompositions(
        {**torch.export.default_decompositions().materialize(), **ops.REFERENCE}
    )
    assert not [name for name in operators_of(core) if "fastres" in name]
    for image in (x, torch.randn(3, 3, 9, 4)):
        for other in (program, plain, core):
            torch.testing.assert_close(other.module()(image), model(image))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_operators_can_be_compiled_by_torch(backend: str) -> None:
    torch.compiler.reset()
    model, x = EveryOperator().eval(), torch.randn(2, 3, 6, 5)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))
