"""The engine ``native`` as a user meets it: through ``optimize``, on every instruction set."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastres
from fastres.errors import NotOptimizedError
from fastres.runtime.native.subgraph import NativeSubgraph
from tests.runtime.test_engine import BORN_INSIDE, layouts
from tests.runtime.test_sharing import leaves
from tests.support.native.by_hand import SETS, needs
from tests.support.optimizing import optimize
from tests.support.oracle import PRECISIONS
from tests.support.small import Net, assert_right, conv, images, measured, net, pair_net


@pytest.fixture(params=SETS, ids=[isa for _, isa in SETS])
def precision(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of the model, with the processor limited to one instruction set; skips where that is not."""
    name, isa = request.param
    needs(isa)
    monkeypatch.setenv("FASTRES_NATIVE_ISA", isa)
    return str(name)


def native(model: nn.Module, example: Any, **options: Any) -> Any:
    """The model optimised for this engine."""
    fast = optimize(model, example, engine="native", **options)
    assert fast.engine == "native"
    return fast


def subgraphs(fast: Any, *inputs: Tensor) -> list[NativeSubgraph]:
    """The subgraphs that a call with these inputs runs."""
    steps = fast._runner.executable(list(inputs))._steps
    return [step.function for step in steps if isinstance(step.function, NativeSubgraph)]


def ops_of(fast: Any, *inputs: Tensor) -> list[list[str]]:
    """What each subgraph runs: the kinds of its operations."""
    return [[op.kind for op in subgraph.lowered.ops] for subgraph in subgraphs(fast, *inputs)]


def blocks(m: Any, x: Tensor) -> Any:
    """Sums in place, a residual that is read again, activations on both sides, two results."""
    y = F.relu(m.norm(m.stem(x)))
    y = F.max_pool2d(y, 3, 2, 1)
    y = F.relu(m.second(F.relu(m.first(y))) + y)
    z = F.relu6(m.third(y)) + y
    y = F.hardswish(m.fourth(z) + z)
    return y, m.head(y.mean((2, 3)))


def block_net(channels: int = 3, width: int = 40) -> nn.Module:
    torch.manual_seed(0)
    return measured(
        Net(
            blocks,
            stem=conv(channels, width, 7, stride=2, bias=False),
            norm=nn.BatchNorm2d(width),
            first=conv(width, width),
            second=conv(width, width),
            third=conv(width, width, 1),
            fourth=conv(width, width, groups=2),
            head=nn.Linear(width, 5),
        ),
        images(4, channels, 17, 19),
    )


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return block_net()


def image(batch: int = 2, height: int = 17, width: int = 19) -> Tensor:
    return images(batch, 3, height, width)


# ---- what it computes ----------------------------------------------------------------------------


@pytest.mark.sampled(3)
@pytest.mark.parametrize("channels", [1, 3, 4, 8, 9])
def test_answers(precision: str, channels: int) -> None:
    model = block_net(channels)
    fast = native(model, images(2, channels, 17, 19), precision=precision)
    for size in ((1, 17, 19), (3, 17, 19), (2, 30, 8), (5, 5, 5)):
        x = images(size[0], channels, *size[1:])
        assert_right(model, fast, x, precision=precision)
    assert len(subgraphs(fast, x)) == 1
    assert fast.report.complete


def test_several_pieces(precision: str) -> None:
    """An operation that the library lacks cuts the graph; casts lie at the edges of subgraphs."""

    def function(m: Any, x: Tensor) -> Any:
        y = F.relu(m.first(x))
        y = y * torch.cos(m.gate(y.mean((2, 3), keepdim=True)))
        return m.last(F.relu(m.second(y) + y)), y.amax((2, 3))

    model = net(
        function, first=conv(4, 33), gate=conv(33, 33, 1), second=conv(33, 33), last=conv(33, 7)
    )
    fast = native(model, images(2), precision=precision)
    for x in (images(2), images(5, height=3, width=11)):
        assert_right(model, fast, x, precision=precision)
    assert ops_of(fast, x) == [
        ["import", "convolution", "mean", "convolution", "export", "export"],
        ["import", "import", "map", "convolution", "convolution", "export", "export"],
    ]


def test_inputs_of_different_batches(precision: str) -> None:
    """A subgraph has one number of images."""
    x, other = images(2, 16), images(3, 16)
    parts = {"a": conv(16, 16), "b": conv(16, 16)}
    model = pair_net(lambda m, x, y: (F.relu(m.a(x)), F.relu(m.b(y))), x, other, **parts)
    fast = native(model, (x, other), precision=precision)
    for sizes in ((2, 3), (4, 1), (1, 1)):
        given = [images(n, 16) for n in sizes]
        assert_right(model, fast, *given, precision=precision)


def test_a_batch_that_changes_within(precision: str) -> None:
    def function(m: Any, x: Tensor) -> Any:
        y = m.wide(x)
        half = m.narrow(x.view(-1, 4, *x.shape[2:]))
        return y, half, m.head(y.mean((2, 3), keepdim=True).flatten(0, 2))

    model = Net(function, wide=conv(8, 16), narrow=conv(4, 16), head=nn.Linear(1, 5)).eval()
    fast = native(model, images(2, 8), precision=precision)
    assert_right(model, fast, images(3, 8), precision=precision)


def test_one_image_in_two_forms(precision: str) -> None:
    """Pixel by pixel for one convolution, in lines for an addition and a dilated one."""
    model = net(
        lambda m, x: (F.relu(m.first(x) + x), m.second(x)),
        first=conv(), second=conv(padding=2, dilation=2),
    )  # fmt: skip
    fast = native(model, images(2), precision=precision)
    assert_right(model, fast, images(3), precision=precision)


def test_a_weight_that_two_layers_share(precision: str) -> None:
    shared = conv(40, 40)
    model = Net(lambda m, x: m.a(F.relu(m.b(x))), a=shared, b=shared).eval()
    fast = native(model, images(2, 40), precision=precision)
    assert_right(model, fast, images(3, 40), precision=precision)


@pytest.mark.parametrize("residual", ["kept", "read twice", "its own input"])
def test_residuals_that_must_not_be_overwritten(precision: str, residual: str) -> None:
    def function(m: Any, x: Tensor) -> Any:
        y = F.relu(m.first(x))
        if residual == "kept":
            return F.relu(m.second(F.relu(m.third(y))) + y), y
        if residual == "read twice":
            return m.second(F.relu(m.third(y)) + y) + y
        return F.relu(m.second(y) + y)

    parts = {"first": conv(4, 40), "second": conv(40, 40), "third": conv(40, 40, 1)}
    model = net(function, **parts)
    fast = native(model, images(2), precision=precision)
    assert_right(model, fast, images(3), precision=precision)


def test_empty_batches(model: nn.Module) -> None:
    fast = native(model, image())
    features, scores = fast(image(0))
    assert features.shape == (0, 40, 5, 5)
    assert scores.shape == (0, 5)


def test_layout_of_the_input_is_that_of_the_result(precision: str) -> None:
    model = net(lambda m, x: F.relu(m.norm(m.conv(x)) + x), conv=conv(), norm=nn.BatchNorm2d(4))
    fast = native(model, images(2), precision=precision)
    x = images(3)
    wanted = fast(x)
    for name, given in layouts(x).items():
        kept = given.clone()
        got = fast(given)
        assert torch.equal(got, wanted), name
        assert got.stride() == model(given).stride(), name
        assert torch.equal(given, kept), name
    for shape in ((1, 4, 9, 8), (3, 4, 1, 1), (3, 1, 9, 8), (1, 1, 1, 1)):
        given = torch.randn(shape).expand(3, 4, 9, 8)
        assert_right(model, fast, given, precision=precision)


@pytest.mark.sampled(3)
def test_the_result_does_not_depend_on_threads(precision: str, model: nn.Module) -> None:
    """Nor on the run, nor on the other images of its batch: bit for bit."""
    fast = {n: native(model, image(), precision=precision, threads=n) for n in (1, 2, 3)}
    for batch in (1, 2, 3, 5, 7):
        x = image(batch)
        wanted = [t.clone() for t in fast[1](x)]
        for made in fast.values():
            for _ in range(3):
                assert all(torch.equal(a, b) for a, b in zip(made(x), wanted, strict=True))
        for index in range(batch):
            alone = fast[2](x[index : index + 1])
            assert all(torch.equal(a[0], b[index]) for a, b in zip(alone, wanted, strict=True))


# ---- NaN and infinity ----------------------------------------------------------------------------


def assert_same_places(got: Tensor, wanted: Tensor) -> None:
    for test in (torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(test(got), test(wanted))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("activation", [F.relu, F.relu6, F.hardswish])
def test_nan_and_infinity_come_out_as_of_torch(
    precision: str, activation: Callable[[Tensor], Tensor]
) -> None:
    model = net(
        lambda m, x: F.max_pool2d(activation(m.last(activation(m.norm(m.conv(x)) + x))), 2),
        conv=conv(),
        norm=nn.BatchNorm2d(4),
        last=conv(),
    )
    fast = native(model, images(2), precision=precision)
    x = images(3)
    ordinary = fast(x)
    scale = float(ordinary.abs().max())
    dtype = PRECISIONS[precision]
    eager = copy.deepcopy(model).to(dtype)
    for value in (math.nan, math.inf, -math.inf, 3e38, -3e38, 2.0**64, 1e25):
        x[1, 2, 4, 3] = value
        got = fast(x)
        assert_same_places(got, eager(x.to(dtype)).float())
        for index in (0, 2):  # the other images of the batch do not notice
            torch.testing.assert_close(got[index], ordinary[index], rtol=0, atol=0.02 * scale)


@pytest.mark.parametrize("name", BORN_INSIDE)
def test_nan_and_infinity_born_inside_come_out_as_of_torch(name: str) -> None:
    needs("avx2")
    model = Net(
        lambda m, x: F.relu(m.last(BORN_INSIDE[name](m.conv(x))) + x), conv=conv(), last=conv()
    )
    fast = native(model.eval(), images(2))
    for x in (images(3), images(1).abs()):
        assert_same_places(fast(x), model(x))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("second", [F.relu, F.relu6, F.hardswish])
def test_numbers_that_overflow_on_the_way(
    precision: str, second: Callable[[Tensor], Tensor]
) -> None:
    """Infinity of one pixel goes where torch lets it, through lanes without a channel as well."""
    model = Net(lambda m, x: m.head(second(m.last(F.relu(m.first(x)))).mean((2, 3))),
                first=conv(3, 5, 1), last=conv(5, 7, 1), head=nn.Linear(7, 3)).eval()  # fmt: skip
    with torch.no_grad():
        for name in ("first.weight", "last.weight"):
            model.get_parameter(name).abs_()
        model.get_parameter("first.weight").mul_(2.0**80)
    x = images(3, 3).abs()
    example = x * 2.0**-60
    x[1] *= 2.0**60
    fast = native(model, example, precision=precision)
    dtype = PRECISIONS[precision]
    assert_same_places(fast(x), copy.deepcopy(model).to(dtype)(x.to(dtype)).float())


def test_a_window_that_lies_in_the_padding() -> None:
    """Its largest value is minus infinity, which lanes without a channel must not hold."""
    model = nn.Sequential(
        conv(4, 5, 1), nn.MaxPool2d(2, 1, 1, dilation=3), nn.ReLU(), conv(5, 7, 1)
    )
    fast = native(model.eval(), images(2, height=3, width=3))
    x = images(2, height=2, width=2)
    assert_same_places(fast(x), model(x))


# ---- weights, copies, files ----------------------------------------------------------------------


def test_weights_written_in_place_take_effect(precision: str, model: nn.Module) -> None:
    fast = native(model, image(), precision=precision)
    x = image()
    before = [t.clone() for t in fast(x)]
    with torch.no_grad():
        for buffer in fast.graph_module.buffers():
            buffer.mul_(0.5)
    dtype = PRECISIONS[precision]
    wanted = fast.graph_module(x)
    tolerance = 60 * torch.finfo(dtype).eps
    for got, right, old in zip(fast(x), wanted, before, strict=True):
        torch.testing.assert_close(got, right, rtol=tolerance, atol=tolerance)
        assert not torch.allclose(got, old, rtol=1e-2)


@pytest.mark.sampled(3)
def test_weights_that_are_loaded_take_effect(precision: str, model: nn.Module) -> None:
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.mul_(0.9)
    fast, other, again = (
        native(given, image(), precision=precision) for given in (model, changed, model)
    )
    x = image()
    fast(x), again(x)
    fast.load_state_dict(other.state_dict())
    again.refresh(changed.state_dict())
    for made in (fast, again):
        assert all(torch.equal(a, b) for a, b in zip(made(x), other(x), strict=True))
        assert made.engine == "native"


def through_a_file(fast: Any, folder: Path) -> Any:
    fast.save(folder / "fast")
    return fastres.load(folder / "fast")


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "way",
    [lambda f, _: copy.deepcopy(f), lambda f, _: pickle.loads(pickle.dumps(f)), through_a_file],
    ids=["copy", "pickle", "file"],
)
def test_copies(precision: str, model: nn.Module, way: Any, tmp_path: Path) -> None:
    fast = native(model, image(), precision=precision)
    x = image(3)
    wanted = [t.clone() for t in fast(x)]
    twin = way(fast, tmp_path)
    assert twin.engine == "native"
    assert all(torch.equal(a, b) for a, b in zip(twin(x), wanted, strict=True))
    with torch.no_grad():
        twin.graph_module.head_weight.mul_(1.5)
    assert not torch.equal(twin(x)[1], wanted[1])
    assert all(torch.equal(a, b) for a, b in zip(fast(x), wanted, strict=True))


# ---- callers -------------------------------------------------------------------------------------


def test_results_share_memory_with_nothing(precision: str) -> None:
    model = net(
        lambda m, x: (lambda y: (y, y, F.relu(m.b(y) + y), y.flatten(1), y[:, :2], x))(m.a(x)),
        a=conv(4, 8), b=conv(8, 8),
    )  # fmt: skip
    fast = native(model, images(2), precision=precision)
    for given in (images(2), images(2).contiguous(memory_format=torch.channels_last)):
        results = [*leaves(fast(given)), *leaves(fast(given))]
        addresses = [t.untyped_storage().data_ptr() for t in (*results, given)]
        addresses += [b.untyped_storage().data_ptr() for b in fast.graph_module.buffers()]
        assert len(set(addresses)) == len(addresses)
    first = [t.clone() for t in results]
    for result in results:
        result.fill_(7)
    for got, wanted in zip([*leaves(fast(given))] * 2, first, strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_many_callers_get_the_serial_answers(
    precision: str, threads: int, model: nn.Module
) -> None:
    fast = native(model, image(), precision=precision, threads=threads)
    inputs = [image(*size) for size in ((1,), (3,), (2, 9, 8), (5, 20, 33), (0,), (4,))]
    inputs[1][0, 0, 0, 0] = torch.nan  # takes another way through the runner
    serial = copy.deepcopy(fast)
    wanted = [[t.clone() for t in serial(x)] for x in inputs]

    def call(caller: int) -> bool:
        order = [(caller + step) % len(inputs) for step in range(3 * len(inputs))]
        return all(
            torch.equal(a.nan_to_num(3e30), b.nan_to_num(3e30))
            for index in order
            for a, b in zip(fast(inputs[index]), wanted[index], strict=True)
        )

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(call, range(6)))


def test_a_callers_own_number_of_threads(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """``torch.set_num_threads`` between calls."""
    monkeypatch.setattr("fastres.system.threads.cpu_threads", lambda: 64)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        fast = native(model, image())
        x = image(5)
        wanted = [t.clone() for t in fast(x)]
        for threads in (2, 3, 1):
            torch.set_num_threads(threads)
            assert all(torch.equal(a, b) for a, b in zip(fast(x), wanted, strict=True))
            assert [subgraph._threads for subgraph in subgraphs(fast, x)] == [threads]
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


# ---- what it says --------------------------------------------------------------------------------


@pytest.mark.sampled(3)
def test_the_receipt_counts_as_the_others_do(precision: str, model: nn.Module) -> None:
    ours, theirs = (
        optimize(model, image(), precision=precision, engine=engine).report
        for engine in ("native", "onednn")
    )
    assert (ours.found, ours.done, ours.refused) == (theirs.found, theirs.done, theirs.refused)
    assert (ours.layers, ours.threads) == (theirs.layers, theirs.threads)
    assert str(ours).startswith("fastres: Net, native engine, ")


@pytest.mark.sampled(3)
def test_profile_has_the_users_names_and_adds_up(precision: str, model: nn.Module) -> None:
    for threads, batch in itertools.product((1, 2), (1, 3)):
        fast = native(model, image(), precision=precision, threads=threads)
        profile = fast.profile(image(batch), rounds=3)
        listed = [layer.module for layer in profile.layers]
        assert {"stem", "first", "second", "third", "fourth", "head"} <= set(listed)
        rows = sum(layer.milliseconds for layer in profile.layers)
        assert rows + profile.between == pytest.approx(profile.milliseconds)
        assert all(layer.milliseconds >= 0 for layer in profile.layers)
        assert sum(layer.milliseconds for layer in profile.layers if layer.module == "first") > 0


def depthwise() -> nn.Module:
    layers = (conv(4, 40), nn.ReLU(), conv(40, 40, groups=40), nn.ReLU6(), conv(40, 8, 1))
    return measured(nn.Sequential(*layers))


def test_depthwise_convolutions_are_in_the_same_subgraph(precision: str) -> None:
    model = depthwise()
    fast = native(model, images(2), precision=precision)
    assert_right(model, fast, images(3), precision=precision)
    assert fast.report.complete
    assert ops_of(fast, images(3)) == [["import", *["convolution"] * 3, "export"]]
    assert ", depthwise, 40->40 3x3/1" in fast.program(images(3))


def test_strict_takes_what_onednn_runs(model: nn.Module) -> None:
    needs("avx2")
    for given, example in ((model, image()), (depthwise(), images(2))):
        assert native(given, example, strict=True).report.complete


def test_strict_refuses_what_torch_runs() -> None:
    needs("avx2")
    model = net(lambda m, x: m.conv(torch.cos(x)), conv=conv())
    with pytest.raises(NotOptimizedError, match="cos"):
        fastres.optimize(model, images(2), engine="native", strict=True)
