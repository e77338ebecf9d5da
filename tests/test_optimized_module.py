"""The optimised model as an nn.Module: copied, saved, moved, exported, compiled, profiled."""

from __future__ import annotations

import copy
import inspect
import io
import math
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, export

import fastres
from fastres.errors import FastresWarning, OptionError
from tests.support.optimizing import nodes, optimize
from tests.support.small import assert_right, conv, images, measured, net


def chain(m: Any, x: Tensor) -> Any:
    y = m.pool(F.relu(m.norm(m.first(x))))
    return m.head(F.relu(m.last(y) + x[:, :, 1:, 1:]).mean((2, 3)))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    parts = {"first": conv(), "norm": nn.BatchNorm2d(4), "pool": nn.MaxPool2d(2, 1)}
    return net(chain, **parts, last=conv(), head=nn.Linear(4, 3))


@pytest.fixture(scope="module")
def untouched(model: nn.Module) -> Any:
    return optimize(model, images(2))


@pytest.fixture
def fast(untouched: Any) -> Any:
    """A copy of its own for every test."""
    return copy.deepcopy(untouched)


def assert_same(a: Any, b: Any) -> None:
    for x in (images(2), images(1, height=13, width=5), images(0)):
        assert torch.equal(a(x), b(x))


def names(fast: Any) -> list[str]:
    return [layer.module for layer in fast.profile(images(2), rounds=1).layers]


def through_pickle(fast: Any) -> Any:
    return pickle.loads(pickle.dumps(fast))


def through_torch_save(fast: Any) -> Any:
    file = io.BytesIO()
    torch.save(fast, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("way", [copy.deepcopy, through_pickle, through_torch_save])
def test_copies(way: Any, fast: Any, model: nn.Module) -> None:
    fast(images(4))
    twin = way(fast)
    assert type(twin) is type(fast) or isinstance(twin, fastres.OptimizedModule)
    assert_same(twin, fast)
    assert str(twin.report) == str(fast.report)
    assert names(twin) == names(fast)
    assert {"first", "pool", "last", "head"} <= set(names(twin))
    with torch.no_grad():
        twin.graph_module.last_weight.mul_(1.5)
    assert not torch.equal(twin(images(2)), fast(images(2)))
    verification = fastres.verify(model, twin, images(2))
    assert not verification.passed
    assert verification.first_drift is not None
    assert verification.first_drift.module == "last"


def test_a_pickle_holds_weights_once(fast: Any) -> None:
    size = sum(b.numel() * b.element_size() for b in fast.graph_module.buffers())
    for height in range(3, 20):
        fast(images(1, height=height))
    first = len(pickle.dumps(fast))
    assert first < size + 60_000
    fast(images(1, height=33))
    assert len(pickle.dumps(fast)) == first


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_precision_and_device_stay(model: nn.Module, precision: str) -> None:
    fast = optimize(model, images(2), precision=precision)
    own = {"fp32": "torch.float32", "bf16": "torch.bfloat16"}[precision]
    before = fast(images(2)[:0])
    dtypes = {name: buffer.dtype for name, buffer in fast.graph_module.named_buffers()}
    changes: list[Callable[[Any], Any]] = [
        lambda m: m.half(),
        lambda m: m.double(),
        lambda m: m.to(torch.float16),
        lambda m: m.to("meta"),
    ]
    for change in changes:
        with pytest.raises(OptionError, match=f"an optimised model stays {own} on cpu") as caught:
            change(fast)
        assert "call optimize() with precision=... or device=..." in str(caught.value)
    assert torch.equal(fast(images(2)[:0]), before)
    assert {name: b.dtype for name, b in fast.graph_module.named_buffers()} == dtypes


def test_what_is_wider_than_the_rest_stays_so() -> None:
    model = nn.Sequential(conv(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    x = images(2)
    fast = optimize(model, x, precision="bf16")
    before = fast(x)
    assert fast.bfloat16() is fast
    assert torch.equal(fast(x), before)
    assert {b.dtype for b in fast.buffers()} == {torch.bfloat16, torch.float32}
    with pytest.raises(OptionError, match=r"an optimised model stays torch.bfloat16 on cpu"):
        fast.float()


def test_moves_that_change_nothing(fast: Any) -> None:
    x = images(2)
    before = fast(x)
    same = fast.to(torch.float32).float().cpu().to("cpu").to(memory_format=torch.channels_last)
    assert same is fast
    fast.requires_grad_(True).zero_grad()
    assert torch.equal(fast(x), before)
    assert not fast(x).requires_grad


def test_it_stays_in_eval_mode(fast: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fast.eval() is fast
        assert fast.train(False) is fast
    with pytest.warns(FastresWarning, match="is for inference and stays in eval mode") as caught:
        assert fast.train() is fast
    assert caught[0].filename == __file__
    assert not any(module.training for module in fast.modules())
    assert not any(module.training for module in nn.Sequential(fast).eval().modules())


def test_state_dict_goes_round(fast: Any, model: nn.Module) -> None:
    state = fast.state_dict()
    assert set(state) == {f"graph_module.{n}" for n, _ in fast.graph_module.named_buffers()}
    other = optimize(model, images(2))
    other.load_state_dict(state, strict=True)
    assert_same(other, fast)
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict({})


def test_signature_and_names_are_the_models(fast: Any, model: nn.Module) -> None:
    theirs = inspect.signature(model.forward).parameters
    ours = inspect.signature(fast.forward).parameters
    assert [(p.name, p.kind, p.default) for p in ours.values()] == [
        (p.name, p.kind, p.default) for p in theirs.values()
    ]
    assert "fastres.conv2d" in fast.graph_module.code
    assert isinstance(fast, nn.Module)
    assert isinstance(fast, fastres.OptimizedModule)


def test_hooks_on_the_optimised_model_work(fast: Any) -> None:
    seen: list[tuple[int, ...]] = []
    handle = fast.register_forward_hook(lambda m, args, result: seen.append(tuple(result.shape)))
    fast(images(2))
    handle.remove()
    fast(images(3))
    assert seen == [(2, 3)]


def test_inside_another_module(fast: Any, model: nn.Module) -> None:
    outer = nn.Sequential(fast, nn.Softmax(1)).eval()
    x = images(3)
    torch.testing.assert_close(outer(x), model(x).detach().softmax(1))
    assert len(list(outer.state_dict())) == len(list(fast.state_dict()))


@pytest.mark.parametrize("dynamic", [False, True])
def test_it_can_be_exported(fast: Any, dynamic: bool) -> None:
    axes = {0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO}
    shapes = (axes,) if dynamic else None
    program = export(fast, (images(2),), dynamic_shapes=shapes)
    operators = [str(n.target) for n in program.graph.nodes if n.op == "call_function"]
    wanted = [str(n.target) for n in fast.graph_module.graph.nodes if n.op == "call_function"]
    assert sorted(o for o in operators if "fastres" in o) == sorted(
        o for o in wanted if "fastres" in o
    )
    sizes = [images(2), images(5, height=13, width=6)] if dynamic else [images(2)]
    for x in sizes:
        torch.testing.assert_close(program.module()(x), fast(x))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_it_can_be_compiled_by_torch(fast: Any, backend: str) -> None:
    torch.compiler.reset()
    compiled: Any = torch.compile(fast, backend=backend, fullgraph=True)
    for x in (images(2), images(3, height=12)):
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), fast(x))


def test_autocast_changes_nothing(fast: Any) -> None:
    x = images(2)
    special = x.clone()
    special[0, 0, 0, 0] = math.nan
    for given in (x, special, x[:0]):
        wanted = fast(given)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = fast(given)
        assert got.dtype == torch.float32
        assert torch.equal(got.nan_to_num(9.0), wanted.nan_to_num(9.0))


def test_under_deterministic_algorithms_and_without(fast: Any) -> None:
    x = images(2)
    wanted = fast(x)
    torch.use_deterministic_algorithms(False)
    assert torch.equal(fast(x), wanted)


def test_profile_has_the_users_names_and_adds_up(fast: Any) -> None:
    profile = fast.profile(images(2), rounds=5)
    listed = [layer.module for layer in profile.layers if "fastres" in layer.operation]
    assert list(dict.fromkeys(listed)) == ["first", "pool", "last", "(model)", "head"]
    rows = sum(layer.milliseconds for layer in profile.layers)
    assert rows + profile.between == pytest.approx(profile.milliseconds)
    assert all(layer.milliseconds >= 0 for layer in profile.layers)
    for layer in profile.layers:
        assert f" {layer.module} " in str(profile)
    assert "(between layers)" in str(profile)
    assert f"{profile.milliseconds:.3f} ms per call" in str(profile)


def test_profile_takes_what_a_call_takes(fast: Any) -> None:
    assert names(fast) == [x.module for x in fast.profile(x=images(2), rounds=1).layers]
    with pytest.raises(fastres.InputError):
        fast.profile(images(2)[:, :3])
    with pytest.raises(OptionError, match="rounds=0"):
        fast.profile(images(2), rounds=0)


def test_profile_of_a_network_with_blocks() -> None:
    block = nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU())
    model = measured(nn.Sequential(block, nn.Sequential(conv(), nn.MaxPool2d(2)), nn.Flatten()))
    fast = optimize(model, images(2))
    assert {"0.0", "1.0", "1.1"} <= set(names(fast))
    assert_right(model, fast, images(2))
    assert [n.meta["module"] for n in nodes(fast, "conv2d", "max_pool2d")] == ["0.0", "1.0", "1.1"]


def test_answers_under_grad_mode_have_no_graph(fast: Any) -> None:
    y: Tensor = fast(images(2))
    assert y.grad_fn is None
    assert not y.requires_grad
    (y * nn.Parameter(torch.ones(3))).sum().backward()
