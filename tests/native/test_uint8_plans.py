"""Quantised graphs by the native engine: the integers of their definition, on every processor.

Nothing here is near: answers are the eager graph's, bit for bit, whatever the instruction set, the
batch, the threads, and what memory held before.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, note, settings
from torch import Tensor, fx

from fastres.ir import ops
from fastres.kernels.activations import ACTIVATIONS
from fastres.kernels.spec import ConvSpec
from fastres.options import Options
from fastres.runtime.native import release
from fastres.runtime.native.engine import NativeEngine
from fastres.runtime.nonfinite import NonFinite
from tests.native.test_native_convolutions import SHAPES
from tests.support.native.emulator import emulated, loaded
from tests.support.native.examined import Examined
from tests.support.native.quantized_graphs import ISAS, ZERO_POINTS, Building, Native, Value
from tests.support.native.random_graphs import CHANNELS, specs

aten = torch.ops.aten

EXACT = [name for name, row in ACTIVATIONS.items() if row.exact]

SOFTWARE = ("avx_vnni", "amx_int8")
"""Instruction sets that most processors lack. A signal for each product takes a while."""


def assert_equal(got: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
    for one, other in zip(got, wanted, strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        assert torch.equal(one, other), (one.double() - other.double()).abs().max()


def check(
    module: fx.GraphModule, inputs: Sequence[Tensor], isa: str, threads: int = 1
) -> list[list[str]]:
    """Run a graph fenced, on clean and on filled memory; what its subgraphs do.

    Raises:
        AssertionError: an answer is not the definition's.
    """
    wanted = module(*inputs)
    with emulated(isa) as counts:
        fenced = Native(module, inputs, isa, threads, guarded=True)
        assert_equal(fenced(*inputs), wanted)
        native = Native(module, inputs, isa, threads)
        if counts.hardware:
            assert_equal(native(*inputs), wanted)
        for byte in (0xFF, 0x00, 0x7F) if counts.hardware else (0xFF,):
            native.poison(byte)
            assert_equal(native(*inputs), wanted)
    return [[op.kind for op in one.lowered.ops] for one in native.subgraphs]


def bottleneck(b: Building) -> list[Value]:
    """As of a ResNet: a stem, a pooling, a block with a shortcut, a classifier."""
    x = b.max_pool(b.conv(b.image(3, 15, 13), 24, (7, 7), (2, 2), (3, 3, 3, 3), after="relu"))
    y = b.conv(x, 16, (1, 1), padding=(0, 0, 0, 0), after="relu")
    y = b.conv(y, 16, stride=(2, 2), after="relu")
    shortcut = b.conv(x, 40, (1, 1), (2, 2), (0, 0, 0, 0))
    y = b.conv(y, 40, (1, 1), padding=(0, 0, 0, 0), residual=shortcut, after="relu")
    return [b.linear(b.mean(y), 10, wide=True)]


def activations(b: Building) -> list[Value]:
    """Before a residual and behind it, and what a chain of them makes."""
    x = b.image(20, 5, 4)
    for before, after in (("relu", "none"), ("hardswish", "relu6"), ("relu6", "hardswish")):
        x = b.conv(x, 20, residual=x, before=before, after=after)
    return [b.dequantize(x)]


def sums(b: Building) -> list[Value]:
    """Additions of values of other scales, one of them with itself."""
    x = b.image(33, 5, 6)
    y, z = b.conv(x, 33, after="relu"), b.conv(x, 33)
    y = b.add(b.add(y, z, "none"), x, "hardswish")
    return [b.dequantize(b.conv(b.add(y, y, "relu6"), 7))]


def groups(b: Building) -> list[Value]:
    """Of few channels and many, of one channel, and three filters of one."""
    x = b.conv(b.image(12, 6, 5), 48, groups=3)
    x = b.conv(x, 96, groups=12, stride=(2, 1))
    x = b.conv(x, 96, groups=48)
    x = b.conv(b.conv(x, 96, (5, 5), padding=(2, 2, 2, 2), groups=96), 288, groups=96)
    return [b.dequantize(b.conv(x, 8, groups=2))]


def poolings(b: Building) -> list[Value]:
    """Windows over padding, a mean that is a map again, a classifier of uint8."""
    x = b.max_pool(b.conv(b.image(70, 9, 8), 70), 3, 2, 1)
    x = b.max_pool(b.conv(x, 40), 2, 1, 1)
    x = b.max_pool(b.conv(x, 40), 3, 2, 0, ceil=True)  # by torch, as it rounds up
    x = b.flatten(b.mean(b.conv(x, 40), keepdim=True))
    return [b.dequantize(b.linear(b.linear(x, 33, "relu"), 5, "hardswish"))]


def leaves_and_comes_in_again(b: Building) -> list[Value]:
    """A value that a subgraph, torch and another subgraph read, as uint8 and wider."""
    y = b.conv(b.image(16, 6, 5), 20, after="relu")
    wide = b.plain(aten.cos.default, b.dequantize(y))
    z = b.conv(y, 20, residual=b.quantize(wide))
    return [b.dequantize(z), b.dequantize(y), wide]


def flattened(b: Building) -> list[Value]:
    """Moved by torch between two subgraphs: [N, C, H, W] comes in again as [N, C * H * W]."""
    x = b.flatten(b.conv(b.image(5, 4, 3), 20))
    return [b.linear(x, 9, "relu6", wide=True)]


def as_uint8(b: Building) -> list[Value]:
    """What is read as uint8 at the end, too."""
    x = b.conv(b.image(9, 4, 5), 65)
    return [x, b.max_pool(x), b.mean(x), b.dequantize(x)]


def one_weight_twice(b: Building) -> list[Value]:
    """One convolution of two inputs whose zero points differ."""
    x, y = b.image(20, 5, 5), b.image(20, 5, 5)
    weights = b.weights(x, 20, 20, 3, 3)
    z = b.conv(b.conv(x, 20, weights=weights), 20, weights=weights)
    return [b.dequantize(b.add(z, b.conv(y, 20, weights=weights)))]


def one_bias_twice(b: Building) -> list[Value]:
    """A bias and scales that two convolutions share."""
    x = b.image(20, 5, 5)
    first, second = b.weights(x, 20, 20, 3, 3), b.weights(x, 20, 20, 3, 3)
    y = b.conv(x, 20, weights=first)
    return [b.dequantize(b.add(y, b.conv(x, 20, weights=[second[0], *first[1:]])))]


def through_wider_numbers(b: Building) -> list[Value]:
    """float32 into uint8 and back in one place, and bfloat16 in the middle."""
    x = b.dequantize(b.conv(b.image(16, 5, 5), 16))
    half = b.plain(aten.to.dtype, b.plain(aten.to.dtype, x, torch.bfloat16), torch.float32)
    return [b.dequantize(b.conv(b.quantize(half), 16)), b.dequantize(b.conv(b.quantize(x), 16))]


GRAPHS: dict[str, Callable[[Building], list[Value]]] = {
    function.__name__: function
    for function in (
        bottleneck, activations, sums, groups, poolings, leaves_and_comes_in_again, flattened,
        as_uint8, one_weight_twice, one_bias_twice, through_wider_numbers,
    )
}  # fmt: skip


def made(name: str, batch: int = 2, seed: int = 0, turn: int = 0) -> tuple[Building, Any]:
    zeros = [*ZERO_POINTS[turn:], *ZERO_POINTS[:turn]]
    building = Building(seed, batch, zeros)
    return building, building.finish(*GRAPHS[name](building))


SUBGRAPHS = {"leaves_and_comes_in_again": 2, "flattened": 2}
"""How many there are, where that is not one."""


def campaign_in_software(*values: Any) -> list[Any]:
    """Parameters that begin with an instruction set."""
    slow = [pytest.mark.campaign]
    return [pytest.param(*value, marks=slow if value[0] in SOFTWARE else []) for value in values]


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("isa", "name"), campaign_in_software(*itertools.product((*ISAS, "amx_int8"), GRAPHS))
)
def test_graphs(isa: str, name: str) -> None:
    """As their definition says, in as many subgraphs as there have to be."""
    building, module = made(name)
    kinds = check(module, building.inputs, isa)
    assert len(kinds) == SUBGRAPHS.get(name, 1)


@pytest.mark.parametrize("isa", SOFTWARE)
def test_one_graph_in_software(isa: str) -> None:
    """Which a processor without the instruction set can do before a commit."""
    building, module = made("flattened")
    check(module, building.inputs, isa)


@pytest.mark.sampled(24)
@pytest.mark.parametrize("turn", range(1, len(ZERO_POINTS)))
@pytest.mark.parametrize("isa", ["avx2", "avx512_vnni"])
@pytest.mark.parametrize("name", GRAPHS)
def test_zero_points(name: str, isa: str, turn: int) -> None:
    building, module = made(name, seed=turn, turn=turn)
    check(module, building.inputs, isa)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("isa", "name"),
    campaign_in_software(*itertools.product(("avx2", "avx512_vnni", "amx_int8"), GRAPHS)),
)
@pytest.mark.sampled(8)
def test_an_image_has_the_same_answer_in_any_batch(isa: str, name: str, threads: int) -> None:
    """By threads together and each by itself."""
    building, module = made(name, batch=5)
    wanted = module(*building.inputs)
    with emulated(isa):
        for first, end in ((0, 5), (0, 1), (1, 4), (3, 5)):
            part = [x[first:end] for x in building.inputs]
            native = Native(module, part, isa, threads)
            for _ in range(2):
                assert_equal(native(*part), [y[first:end] for y in wanted])


@pytest.mark.sampled(4)
@pytest.mark.parametrize("layout", ["channels last", "transposed", "bfloat16"])
@pytest.mark.parametrize("isa", ["avx2", "avx512_vnni"])
def test_inputs_in_any_layout(isa: str, layout: str) -> None:
    building, module = made("bottleneck")
    (x,) = building.inputs
    if layout == "bfloat16":
        x = x.bfloat16().float()
    elif layout == "channels last":
        x = x.contiguous(memory_format=torch.channels_last)
    else:
        x = x.transpose(2, 3).contiguous().transpose(2, 3)
    check(module, [x], isa)


@pytest.mark.parametrize(
    ("isa", "name"), campaign_in_software(*itertools.product((*ISAS, "amx_int8"), SHAPES))
)
@pytest.mark.sampled(24)
def test_convolutions(isa: str, name: str) -> None:
    """Sizes that fit no tile, with and without a residual, in memory that is looked at."""
    spec = SHAPES[name]
    for residual, turn in itertools.product((False, True), (0, 1)):
        building, module = convolution(spec, residual, turn)
        kinds = check(module, building.inputs, isa)
        if not residual and not turn and kinds and isa not in SOFTWARE:
            examine(module, building.inputs, isa)


def convolution(
    spec: ConvSpec, residual: bool, turn: int, before: str = "none", after: str = "none"
) -> tuple[Building, Any]:
    """One quantised convolution, of float32 and to float32."""
    building = Building(turn, spec.n, [*ZERO_POINTS[turn:], *ZERO_POINTS[:turn]])
    x = building.image(spec.c, spec.h, spec.w)
    addend = building.image(spec.k, spec.p, spec.q) if residual else None
    y = building.conv(
        x, spec.k, (spec.r, spec.s), spec.stride, spec.padding, spec.dilation, spec.groups,
        addend, before, after,
    )  # fmt: skip
    return building, building.finish(building.dequantize(y))


def examine(module: fx.GraphModule, inputs: Sequence[Tensor], isa: str) -> None:
    """Look at the memory of the first subgraph, whose inputs are the graph's."""
    native = Native(module, inputs, isa)
    names = [node.name for node in module.graph.find_nodes(op="placeholder")]
    (call,) = [node for node in native.module.graph.nodes if node.target is native.subgraphs[0]]
    examined = Examined(native.subgraphs[0], 1)
    examined.check([inputs[names.index(source.name)] for source in call.args])
    examined.close()


@pytest.mark.sampled(4)
@pytest.mark.parametrize("isa", ["avx2", "avx512_vnni"])
@pytest.mark.parametrize("name", ["bottleneck", "activations", "sums", "as_uint8"])
def test_borders_hold_what_stands_for_zero(name: str, isa: str) -> None:
    """Before and after each run; and nothing is read that was not written."""
    with emulated(isa):
        building, module = made(name)
        examine(module, building.inputs, isa)


@pytest.mark.parametrize("kept", [True, False])
def test_borders_are_there_again_where_memory_was_given_back(
    kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages are zeros when they come again; an arena may be kept all the same."""
    monkeypatch.setattr(release, "LEAST", 1)
    monkeypatch.setattr(loaded(), "kept", -1)
    building = Building(0, 4, [200, 255, 9])
    x = building.image(40, 30, 31)
    for _ in range(3):
        x = building.conv(x, 40)
    module = building.finish(building.dequantize(x))
    native = Native(module, building.inputs, "avx2")
    (_, compiled) = native.subgraphs[0].plans
    assert compiled is not None and len(compiled.plan.releases) >= 2
    wanted = module(*building.inputs)
    for _ in range(3):
        assert_equal(native(*building.inputs), wanted)
        if not kept:
            loaded().let_go()


def test_no_number_is_left_to_the_library() -> None:
    """NaN and infinity have no integer: the caller hears of them, and runs the eager graph."""
    building, module = made("bottleneck")
    building.inputs[0][1, 0, 3, 3] = float("nan")
    with pytest.raises(NonFinite):
        Native(module, building.inputs, "avx2")(*building.inputs)


@pytest.mark.campaign
def test_the_engine_does_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """As an executable, by each limit of what the processor may do."""
    for name, isa in itertools.product(GRAPHS, ("avx2", "avx512_vnni")):
        if isa not in loaded().isas:
            continue
        building, module = made(name)
        with monkeypatch.context() as patch:
            patch.setenv("FASTRES_NATIVE_ISA", isa)
            executable = NativeEngine(Options(threads=1)).build(module, building.inputs)
            assert_equal(executable(building.inputs), module(*building.inputs))
            assert "# native subgraph 0" in executable.code


sets = st.deferred(lambda: st.sampled_from([isa for isa in ISAS if isa in loaded().isas]))
few_zeros = st.lists(st.integers(0, 255), min_size=1, max_size=5)


CONVOLUTIONS: dict[str, st.SearchStrategy[Any]] = {
    "spec": specs(),
    "isa": sets,
    "threads": st.integers(1, 3),
    "before": st.sampled_from(EXACT),
    "after": st.sampled_from(EXACT),
    "residual": st.booleans(),
    "turn": st.integers(0, len(ZERO_POINTS) - 1),
}


@given(**CONVOLUTIONS)
@settings(max_examples=8, suppress_health_check=[HealthCheck.too_slow])
def test_some_convolutions(**case: Any) -> None:
    any_convolution(**case)


@pytest.mark.campaign
@given(**CONVOLUTIONS)
@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
def test_any_convolution(**case: Any) -> None:
    any_convolution(**case)


def any_convolution(
    spec: ConvSpec, isa: str, threads: int, before: str, after: str, residual: bool, turn: int
) -> None:
    building, module = convolution(spec, residual, turn, before, after)
    check(module, building.inputs, isa, threads)


@st.composite
def graphs(draw: st.DrawFn) -> tuple[Building, fx.GraphModule]:
    """A convolution, then up to eight operations on whatever there is, some of them by torch."""
    b = Building(draw(st.integers(0, 99)), draw(st.integers(1, 4)), draw(few_zeros))
    images = [b.image(draw(st.sampled_from(CHANNELS)), draw(st.integers(1, 8)), 5)]
    vectors: list[Value] = []
    floats: list[Value] = []

    def one_of(values: Sequence[Any]) -> Any:
        return draw(st.sampled_from(list(values)))

    def convolve() -> None:
        x = one_of(images)
        c, h, w = x.tensor.shape[1:]
        kernel = one_of([(1, 1), (3, 3), (3, 3), (1, 3), (2, 2)])
        stride = one_of([(1, 1), (1, 1), (2, 2), (1, 2)])
        half = (kernel[0] // 2, kernel[1] // 2)
        padding = one_of([(*half, *half), (1, 0, 1, 2)])
        of_each = one_of([g for g in (1, 1, 2, 4) if c % g == 0])
        k = one_of([of_each * one_of([4, 9, 16, 33]), c])
        p = (h + padding[0] + padding[2] - kernel[0]) // stride[0] + 1
        q = (w + padding[1] + padding[3] - kernel[1]) // stride[1] + 1
        if p < 1 or q < 1:
            return
        alike = [v for v in images if v.tensor.shape[1:] == (k, p, q)]
        residual = one_of([None, *alike])
        before = one_of(EXACT) if residual is not None else "none"
        after = one_of(EXACT)
        images.append(
            b.conv(x, k, kernel, stride, padding, (1, 1), of_each, residual, before, after)
        )

    def add() -> None:
        x = one_of(images)
        y = one_of([v for v in images if v.tensor.shape == x.tensor.shape])
        images.append(b.add(x, y, one_of(EXACT)))

    def pool() -> None:
        x = one_of(images)
        kernel, stride, padding = one_of([(2, 2, 0), (3, 2, 1), (2, 1, 1), (3, 1, 1)])
        if min(x.tensor.shape[2:]) + 2 * padding >= kernel:
            images.append(b.max_pool(x, kernel, stride, padding, one_of([False, False, True])))

    def mean() -> None:
        x = one_of(images)
        if draw(st.booleans()):
            images.append(b.mean(x, keepdim=True))
            vectors.append(b.flatten(images[-1]))
        else:
            vectors.append(b.mean(x))

    def flatten() -> None:
        vectors.append(b.flatten(one_of(images)))

    def classify() -> None:
        if not vectors:
            return mean()
        wide = draw(st.booleans())
        result = b.linear(one_of(vectors), one_of([1, 10, 40]), one_of(EXACT), wide)
        (floats if wide else vectors).append(result)

    def widen() -> None:
        x = b.dequantize(one_of(images))
        floats.append(x)
        if draw(st.booleans()):
            images.append(b.quantize(b.plain(aten.sin.default, x)))

    convolve()
    steps = [*(convolve,) * 4, add, add, pool, mean, flatten, classify, widen, widen]
    for step in draw(st.lists(st.sampled_from(steps), min_size=1, max_size=8)):
        step()
    known = [*images[1:], *vectors, *floats]
    outputs = [v for v in known if not v.node.users] or [b.dequantize(images[0])]
    return b, b.finish(*outputs, *draw(st.lists(st.sampled_from(known or outputs), max_size=2)))


@given(graph=graphs(), isa=sets, threads=st.integers(1, 2))
@settings(max_examples=8, suppress_health_check=[HealthCheck.too_slow])
def test_some_graphs(graph: tuple[Building, fx.GraphModule], isa: str, threads: int) -> None:
    note(graph[1].code)
    check(graph[1], graph[0].inputs, isa, threads)


@pytest.mark.campaign
@given(graph=graphs(), isa=sets, threads=st.integers(1, 3))
@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
def test_any_graph(graph: tuple[Building, fx.GraphModule], isa: str, threads: int) -> None:
    note(graph[1].code)
    check(graph[1], graph[0].inputs, isa, threads)


def test_every_quantised_operator_is_in_these_graphs() -> None:
    found = {n.target for name in GRAPHS for n in made(name)[1].graph.nodes}
    # Bottlenecks' tails and stems are made by the engine for GPUs.
    known = {target for target in ops.REFERENCE if "quantize" in str(target)}
    assert known - {ops.quantized_bottleneck, ops.quantized_conv2d_max_pool2d} <= found
