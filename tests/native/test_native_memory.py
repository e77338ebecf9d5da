"""Poisoned memory in and around every buffer: same results, and nothing else is written."""

from __future__ import annotations

import pytest
import torch
from torch import fx

from fastres.ir import ops
from fastres.kernels.spec import ConvSpec
from fastres.runtime.native import schedule
from fastres.runtime.native.plan import Plan
from fastres.runtime.native.subgraph import NativeSubgraph
from tests.native.test_native_convolutions import SHAPES, WINOGRAD, always
from tests.support.native.by_hand import Convolution, arguments_of, each_set, needs, subgraph
from tests.support.native.examined import Examined, Places, places, ranges
from tests.support.oracle import PRECISIONS

AROUND = (1, 1, 1, 1)


def convolution(
    spec: ConvSpec, precision: str, isa: str, threads: int
) -> tuple[NativeSubgraph, list[torch.Tensor]]:
    needs(isa)
    dtype = PRECISIONS[precision]
    model = Convolution(spec, after="relu")
    given = [tensor.to(dtype) for tensor in arguments_of(spec, True)]
    return subgraph(model.to(dtype), model.graph(True), given, isa, threads), given


@pytest.mark.sampled(5)
@each_set
@pytest.mark.parametrize("spec", [*SHAPES.values(), *WINOGRAD.values()], ids=[*SHAPES, *WINOGRAD])
def test_what_memory_held_does_not_matter(
    spec: ConvSpec, precision: str, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "winograd_pays", always)
    for threads in (1, spec.n + 1):  # more threads than images: all work on each
        native, given = convolution(spec, precision, isa, threads)
        examined = Examined(native, threads)
        examined.check(given)
        examined.close()


@each_set
def test_what_memory_held_does_not_matter_to_a_network(precision: str, isa: str) -> None:
    """Pooling, mean, linear, an addition of two inputs, a sum in place; several phases."""
    needs(isa)
    root, graph = torch.nn.Module(), fx.Graph()
    torch.manual_seed(0)
    x, other = graph.placeholder("x"), graph.placeholder("other")

    def weight(*shape: int) -> fx.Node:
        name = f"weight{len(list(root.buffers()))}"
        root.register_buffer(name, torch.randn(shape) * 0.1)
        return graph.get_attr(name)

    def convolve(y: fx.Node, k: int, c: int, r: int, residual: fx.Node | None = None) -> fx.Node:
        call = (y, weight(k, c, r, r), weight(k), residual, [1, 1], [r // 2] * 4, [1, 1], 1)
        return graph.call_function(ops.conv2d, (*call, "none", "relu"))

    stem = convolve(x, 40, 3, 7)
    pooled = graph.call_function(ops.max_pool2d, (stem, [3, 3], [2, 2], [1, 1], [1, 1], False))
    summed = graph.call_function(ops.add_relu, (pooled, other))
    inner = convolve(convolve(summed, 33, 40, 3), 40, 33, 3, residual=summed)
    mean = graph.call_function(ops.global_avg_pool, (inner, False))
    scores = graph.call_function(ops.linear, (mean, weight(7, 40), weight(7), "none"))
    graph.output((scores, pooled))
    dtype = PRECISIONS[precision]
    given = [torch.randn(5, 3, 11, 9).to(dtype), torch.randn(5, 40, 6, 5).to(dtype)]
    for threads in (1, 6):
        native = subgraph(root.to(dtype), graph, given, isa, threads)
        examined = Examined(native, threads)
        examined.check(given)
        examined.close()


def examine(spec: ConvSpec) -> tuple[Examined, list[torch.Tensor]]:
    native, given = convolution(spec, "fp32", "avx2", 1)
    return Examined(native, 1), given


def test_a_border_that_is_not_zero_is_noticed() -> None:
    examined, given = examine(ConvSpec(1, 20, 4, 4, 8, 3, 3, padding=AROUND))
    first = examined.plan.buffers[0]
    examined.places.zeros[first.offset : first.offset + 64] = False  # so that it is poisoned
    with pytest.raises(AssertionError, match="depends on what memory held"):
        examined.check(given)
    examined.close()


def test_a_write_into_a_border_is_noticed() -> None:
    examined, given = examine(ConvSpec(1, 20, 4, 4, 8, 3, 3, padding=AROUND))
    first = examined.plan.buffers[0]
    at = first.offset + first.layout.first
    assert not examined.places.zeros[at : at + 64].any()
    examined.places.zeros[at : at + 64] = True
    with pytest.raises(AssertionError, match="written: a border or a lane without a channel"):
        examined.check(given)
    examined.close()


def test_a_write_between_buffers_is_noticed() -> None:
    examined, given = examine(ConvSpec(1, 20, 4, 4, 8, 3, 3, padding=AROUND))
    last = examined.plan.buffers[-1]
    examined.places.strangers[last.offset : last.offset + last.bytes] = True
    with pytest.raises(AssertionError, match="written: what belongs to no buffer"):
        examined.check(given)
    examined.close()


def test_places_by_hand() -> None:
    """20 channels of 1x2 pixels in a border of 1 are two blocks of 3x4 lines of 16."""
    native, _ = convolution(ConvSpec(1, 20, 1, 2, 8, 3, 3, padding=AROUND), "fp32", "avx2", 1)
    plan: Plan = native.plans[1].plan  # type: ignore[union-attr]
    found: Places = places(plan, 1)
    image = next(b for b in plan.buffers if b.layout.channels == 20)
    assert image.bytes == 2 * 3 * 4 * 64
    zeros = found.zeros[image.offset : image.offset + image.bytes]
    assert ranges(~zeros) == [(5 * 64, 128), ((12 + 5) * 64, 16), ((12 + 6) * 64, 16)]
    assert not found.strangers[image.offset : image.offset + image.bytes].any()
    assert found.strangers[image.offset + image.bytes]
