"""The last pass: precision, constants of its own, and a complete list of what is left."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from tests.support.optimizing import nodes, optimize
from tests.support.small import PairNet, assert_right, conv, images, measured, net, optimized

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def block(m: Any, x: Tensor) -> Any:
    return F.relu(m.norm(m.conv(x)) + x)


@pytest.mark.parametrize("precision", DTYPES)
def test_weights_get_the_precision_and_results_keep_the_models(precision: str) -> None:
    fast = optimized(
        net(block, conv=conv(), norm=nn.BatchNorm2d(4)), images(2), precision=precision
    )
    assert {b.dtype for b in fast.graph_module.buffers()} == {DTYPES[precision]}
    assert fast(images(1)).dtype == torch.float32
    assert fast.report.precision == str(DTYPES[precision]).removeprefix("torch.")
    casts = nodes(fast, "to")
    assert len(casts) == (0 if precision == "fp32" else 2)


@pytest.mark.parametrize("name", ["fp64", "bf16", "fp16"])
def test_a_model_of_another_dtype_keeps_it(name: str) -> None:
    own = DTYPES.get(name, torch.float64)
    model = net(block, conv=conv(), norm=nn.BatchNorm2d(4)).to(own)
    fast = optimize(model, images(2).to(own))
    x = images(3).to(own)
    assert {b.dtype for b in fast.graph_module.buffers()} == {own}
    assert fast(x).dtype == own
    if name == "fp64":
        torch.testing.assert_close(fast(x), model(x).detach())
    else:
        assert_right(model, fast, x, precision=name)


def test_a_float64_model_in_float32() -> None:
    model = net(block, conv=conv(), norm=nn.BatchNorm2d(4)).double()
    fast = optimize(model, images(2).double(), precision="fp32")
    x = images(3).double()
    assert {b.dtype for b in fast.graph_module.buffers()} == {torch.float32}
    assert fast(x).dtype == torch.float64
    torch.testing.assert_close(fast(x), model(x).detach(), rtol=1e-5, atol=1e-5)


def test_constants_are_copies_without_gradient() -> None:
    model = net(
        lambda m, x: m.conv(x) * m.free, conv=conv(), free=torch.rand(4, 9, 8)
    ).requires_grad_(True)
    fast = optimized(model, images(2))
    theirs = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    for buffer in fast.graph_module.buffers():
        assert buffer.untyped_storage().data_ptr() not in theirs
        assert not buffer.requires_grad
        assert buffer.is_contiguous()
    assert list(fast.parameters()) == []


def test_no_constant_is_kept_that_nobody_reads() -> None:
    model = measured(nn.Sequential(conv(), nn.BatchNorm2d(4), conv(padding=0), nn.BatchNorm2d(4)))
    fast = optimized(model)
    read = {str(n.target) for n in fast.graph_module.graph.nodes if n.op == "get_attr"}
    assert {name for name, _ in fast.graph_module.named_buffers()} == read
    assert len(read) == 4


def test_what_nobody_reads_is_not_computed() -> None:
    def function(m: Any, x: Tensor) -> Any:
        m.unused(x)
        return m.used(x)

    fast = optimized(net(function, used=conv(), unused=conv()))
    assert len(nodes(fast, "conv2d")) == 1
    assert "unused" not in fast.graph_module.code


def test_an_input_that_nobody_reads_is_still_taken() -> None:
    model = PairNet(lambda m, x, other: m.conv(x), conv=conv()).eval()
    x, other = images(2), torch.randn(5)
    for precision in ("fp32", "bf16"):
        fast = optimize(model, (x, other), precision=precision)
        assert fast(x, other).shape == (2, 4, 9, 8)


def test_integers_are_left_alone() -> None:
    def function(m: Any, x: Tensor, index: Tensor) -> Any:
        y = F.relu(m.conv(x))
        return y.index_select(1, index), index + 1, m.table[index]

    model = PairNet(function, conv=conv(), table=torch.arange(7)).eval()
    x, index = images(2), torch.tensor([3, 1, 2])
    fast = optimize(model, (x, index), precision="bf16")
    features, following, looked_up = fast(x, index)
    assert features.dtype == torch.float32
    assert torch.equal(following, index + 1)
    assert torch.equal(looked_up, index)


def test_a_float_tensor_made_in_the_call_takes_the_precision() -> None:
    # Option A of the CIFAR networks: channels of zeros. In bfloat16 they must not widen the sum.
    def function(m: Any, x: Tensor) -> Any:
        zeros = torch.zeros(x.shape[0], 2, *x.shape[2:])
        return m.last(torch.cat([F.relu(m.conv(x)), zeros], 1))

    model = net(function, conv=conv(), last=conv(6, 4))
    fast = optimize(model, images(2), precision="bf16")
    x = images(3)
    assert fast(x).dtype == torch.float32
    # The model itself cannot run in bfloat16: it writes float32 zeros.
    torch.testing.assert_close(fast(x), model(x).detach(), rtol=0.02, atol=0.02)
    assert {b.dtype for b in fast.graph_module.buffers()} == {torch.bfloat16}


def test_constants_stand_before_their_first_reader_and_the_code_reads_well() -> None:
    model = measured(nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), conv(), nn.ReLU()))
    fast = optimized(model)
    order = list(fast.graph_module.graph.nodes)
    for node in order:
        if node.op == "get_attr":
            following = order[order.index(node) + 1 :]
            first = next(n for n in following if n.op != "get_attr")
            assert node in first.all_input_nodes
    code = fast.graph_module.code
    assert "torch.ops.fastres.conv2d.default(" in code
    assert "batch_norm" not in code


def test_the_graph_is_a_working_module_by_itself() -> None:
    model = net(block, conv=conv(), norm=nn.BatchNorm2d(4))
    fast = optimized(model)
    assert isinstance(fast.graph_module, fx.GraphModule)
    fast.graph_module.graph.lint()
    (y,) = fast.graph_module(images(3))
    assert y.shape == (3, 4, 9, 8)


def test_layers_are_listed_with_their_dtype() -> None:
    block = (conv(), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
    layers = (*block, nn.Softplus(), nn.BatchNorm2d(4))
    fast = optimized(measured(nn.Sequential(*layers)), images(2), precision="bf16")
    assert fast.report.layers == [
        ("0", "fastres.conv2d.default", "torch.bfloat16"),
        ("3", "fastres.max_pool2d.default", ""),
        ("5", "fastres.scale_shift.default", "torch.bfloat16"),
    ]
    assert [remark.module for remark in fast.report.left] == ["4"]


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: m.conv(x).permute(0, 2, 3, 1),
        lambda m, x: m.conv(x)[:, 1:3, ::2],
        lambda m, x: torch.cat([m.conv(x), x], 1),
        lambda m, x: m.conv(x).chunk(2, 1),
        lambda m, x: m.conv(x).split([1, 3], 1)[1].transpose(2, 3),
        lambda m, x: m.conv(x).unsqueeze(1).expand(-1, 2, -1, -1, -1),
        lambda m, x: m.conv(x).flatten(2).squeeze(0),
    ],
    ids=["permute", "slice", "cat", "chunk", "split", "expand", "squeeze"],
)
def test_moving_data_is_nothing_to_report(function: Any) -> None:
    assert optimized(net(function, conv=conv())).report.complete
