"""Calls with what only passes for a tensor, and calls that something watches or transforms.

The answer is right, or one of our errors says what to use instead; nothing crashes, and what is
recorded computes the answer of other inputs, too.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim
from torch.func import functional_call, functionalize, grad, jacfwd, jacrev, jvp, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

import fastres
from fastres.errors import FastresError, InputError, ModelError, OptionError
from fastres.system.plain_tensors import is_plain_call
from fastres.system.target import most_threads
from tests.support.optimizing import optimize
from tests.support.small import Net, classifier, conv, images

# torch's forward-mode differentiation compiles some of its rules in a way that it warns of.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.*")


class Wrapper(torch.Tensor):
    """Holds another tensor, and has no memory itself."""

    inner: Any

    @staticmethod
    def __new__(cls, inner: Tensor) -> Any:
        made: Any = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        def inner(value: Any) -> Any:
            return value.inner if isinstance(value, Wrapper) else value

        def outer(value: Any) -> Any:
            return Wrapper(value) if isinstance(value, Tensor) else value

        tree_map = torch.utils._pytree.tree_map
        return tree_map(outer, function(*tree_map(inner, args), **tree_map(inner, kwargs or {})))


class Refusing(Wrapper):
    """Computes nothing."""

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise NotImplementedError("no operator at all")


class Named(torch.Tensor):
    """A subclass with memory."""


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return classifier()


@pytest.fixture(params=["auto", "onednn", "eager"], scope="module")
def fast(request: pytest.FixtureRequest, model: nn.Module) -> Any:
    return optimize(model, batch(), engine=request.param)


def batch(count: int = 2, size: int = 16) -> Tensor:
    return torch.randn(count, 3, size, size)


def answer(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)  # type: ignore[no-any-return]


def assert_close(given: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(given, wanted, rtol=1e-4, atol=1e-5)


def negative(x: Tensor) -> Tensor:
    """``x`` as a view whose memory holds ``-x``."""
    view: Tensor = torch.complex(x, -x).conj().imag
    assert view.is_neg()
    return view


def freed(x: Tensor, left: int = 0) -> Tensor:
    x.untyped_storage().resize_(left)
    return x


SAME_VALUES: dict[str, Callable[[Tensor], Tensor]] = {
    "negative bit": negative,
    "negative bit of channels-last": lambda x: negative(
        x.contiguous(memory_format=torch.channels_last)
    ),
    "parameter": lambda x: nn.Parameter(x, requires_grad=False),
    "subclass with memory": lambda x: x.as_subclass(Named),
    "expanded": lambda x: x[:1, :, :1].expand(x.shape),
    "overlapping": lambda x: x.flatten().as_strided(x.shape, (1, 7, 3, 2)),
    "made in inference mode": lambda x: torch.inference_mode()(x.clone)(),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("kind", SAME_VALUES)
def test_tensors_that_have_values_in_some_way(kind: str, fast: Any, model: nn.Module) -> None:
    x = batch()
    given = SAME_VALUES[kind](x)
    wanted = answer(model, given.as_subclass(Tensor).clone().resolve_neg())
    assert_close(fast(given).as_subclass(Tensor), wanted)
    assert_close(fast(x), answer(model, x))


def test_a_zero_without_memory(fast: Any, model: nn.Module) -> None:
    assert_close(
        fast(torch._efficientzerotensor(2, 3, 16, 16)), answer(model, torch.zeros(2, 3, 16, 16))
    )


def test_a_wrapper_gets_a_wrapper(fast: Any, model: nn.Module) -> None:
    x = batch()
    given = fast(Wrapper(x))
    assert type(given) is Wrapper
    assert_close(given.inner, answer(model, x))


NO_VALUES: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "freed": (freed, "its memory was given back (0 bytes are left of 6144)"),
    "partly freed": (lambda x: freed(x, 40), "its memory was given back (40 bytes are left"),
    "freed and negative": (lambda x: negative_of_freed(x), "its memory was given back"),
    "freed subclass": (lambda x: freed(x).as_subclass(Named), "its memory was given back"),
    "refusing wrapper": (Refusing, "cannot compute this call on Refusing"),
    "nested": (lambda x: nested([x[0], x[1]]), "got a nested tensor"),
    "jagged": (lambda x: nested([x[0].flatten(1), x[1].flatten(1)], jagged=True), "got a nested"),
    "meta": (lambda x: x.to("meta"), "got a tensor on meta"),
    "sparse": (lambda x: x.to_sparse(), "got a torch.sparse_coo tensor"),
    "conjugate": (lambda x: torch.complex(x, x).conj(), "got torch.complex64"),
    "dual": (lambda x: forward_ad.make_dual(x, x), "has none"),
    "needs a gradient": (lambda x: x.requires_grad_(), "requires a gradient"),
    "proxy": (lambda x: torch.fx.Proxy(torch.fx.Graph().placeholder("x")), "symbolic_trace"),
}


def negative_of_freed(x: Tensor) -> Tensor:
    pair = torch.complex(x, x)
    view: Tensor = pair.conj().imag
    pair.untyped_storage().resize_(0)
    return view


def nested(parts: list[Tensor], jagged: bool = False) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor(parts, layout=torch.jagged if jagged else torch.strided)


@pytest.mark.parametrize("kind", NO_VALUES)
def test_what_cannot_be_computed_with_is_refused(kind: str, fast: Any, model: nn.Module) -> None:
    make, text = NO_VALUES[kind]
    with forward_ad.dual_level() if kind == "dual" else contextlib.nullcontext():
        given = make(batch())
        for call in (fast, fast.profile, fast.program):
            with pytest.raises(InputError) as caught:
                call(given)
            if call is fast:
                assert text in str(caught.value)
    x = batch()
    assert_close(fast(x), answer(model, x))


def test_fake_in_fake_out(fast: Any, model: nn.Module) -> None:
    mode = FakeTensorMode()
    outside = fast(mode.from_tensor(batch()))
    with mode:
        inside = fast(torch.empty(5, 3, 20, 24))
    with FakeTensorMode(allow_non_fake_inputs=True):
        real = fast(batch())
    for given, count in ((outside, 2), (inside, 5), (real, 2)):
        assert type(given).__name__ == "FakeTensor"
        assert given.shape == (count, 10)
        assert given.dtype == torch.float32
    assert not mode.allow_non_fake_inputs
    x = batch(5)
    assert_close(fast(x), answer(model, x))  # and nothing fake was kept for this size


@pytest.mark.parametrize("tracing", ["real", "fake", "symbolic"])
@pytest.mark.parametrize("pre_dispatch", [False, True])
def test_make_fx(tracing: Any, pre_dispatch: bool, fast: Any, model: nn.Module) -> None:
    traced: Any = make_fx(fast, tracing_mode=tracing, pre_dispatch=pre_dispatch)(batch())
    others = [batch(), batch(3, 22)] if tracing == "symbolic" else [batch()]
    for x in others:
        assert_close(traced(x), answer(model, x))
    assert any(
        "convolution" in str(n.target) or "conv2d" in str(n.target) for n in traced.graph.nodes
    )


@pytest.mark.sampled(3)
def test_export_and_compile(fast: Any, model: nn.Module) -> None:
    sizes = ({0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO},)
    program = torch.export.export(fast, (batch(),), dynamic_shapes=sizes)
    torch.compiler.reset()
    compiled: Any = torch.compile(fast, backend="aot_eager", fullgraph=True)
    for x in (batch(), batch(3, 22)):
        assert_close(program.module()(x), answer(model, x))
        assert_close(compiled(x), answer(model, x))


@pytest.mark.campaign
def test_onnx_by_torch(fast: Any, model: nn.Module, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    x, path = batch(), tmp_path / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(fast, (x,), path, dynamo=True, verbose=False)
    session = runtime.InferenceSession(path)
    other = batch()
    (given,) = session.run(None, {session.get_inputs()[0].name: other.numpy()})
    assert_close(torch.from_numpy(given), answer(model, other))


def test_the_contract_holds_in_what_is_traced() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        return m.conv(x) if x.shape[2] > 10 else -m.conv(x)

    fast = optimize(Net(forward, conv=conv()).eval(), images(2, height=20))
    for trace in (lambda x: make_fx(fast)(x), lambda x: vmap(fast)(x[None])):
        with pytest.raises(InputError, match="at least 11 where this is 8"):
            trace(images(2, height=8))
    symbolic: Any = make_fx(fast, tracing_mode="symbolic")(images(2, height=20))
    assert symbolic.shape_env.guards


def test_transformations_of_torch_func(fast: Any, model: nn.Module) -> None:
    x = batch(4)
    wanted = answer(model, x)
    assert_close(functionalize(fast)(x), wanted)
    assert_close(vmap(lambda image: fast(image[None])[0])(x), wanted)
    assert_close(
        vmap(vmap(lambda i: fast(i[None])[0]))(x.unflatten(0, (2, 2))).flatten(0, 1), wanted
    )
    assert_close(vmap(lambda k: fast(x) + 0 * k)(torch.zeros(3))[2], wanted)
    assert_close(grad(lambda k: (k * fast(x)).sum())(torch.ones(4, 10)), wanted)


def test_many_weights_at_once(fast: Any, model: nn.Module) -> None:
    x = batch()
    weights = {name: torch.stack([b, b]) for name, b in fast.named_buffers()}
    given = vmap(lambda each: functional_call(fast, each, (x,)))(weights)
    assert_close(given[1], answer(model, x))


def at_a_level(f: Any, x: Tensor) -> Any:
    with forward_ad.dual_level():
        return f(forward_ad.make_dual(x, x))


@pytest.mark.parametrize(
    "take",
    [
        lambda f, x: jvp(f, (x,), (x,)),
        lambda f, x: vjp(f, x),
        lambda f, x: grad(lambda y: f(y).sum())(x),
        lambda f, x: jacrev(f)(x),
        lambda f, x: jacfwd(lambda k: f(k * x))(torch.tensor(2.0)),
        lambda f, x: vmap(lambda i: jvp(lambda j: f(j[None]), (i,), (i,)))(x),
        lambda f, x: torch.no_grad()(lambda: jvp(f, (x,), (x,)))(),
        lambda f, x: at_a_level(f, x),
        lambda f, x: torch.no_grad()(at_a_level)(f, x),
        lambda f, x: torch.autograd.functional.jacobian(f, x),
    ],
)
def test_derivatives_are_refused(take: Any, fast: Any) -> None:
    with pytest.raises(InputError, match="is for inference and has none"):
        take(fast, batch())


def test_a_plain_tensor_where_others_are_dual(fast: Any, model: nn.Module) -> None:
    x = batch()
    with forward_ad.dual_level():
        assert_close(fast(x), answer(model, x))


@pytest.mark.parametrize(
    "trace",
    [
        lambda f, x: torch.jit.trace(f, x),
        lambda f, x: torch.jit.trace(nn.Sequential(f, nn.ReLU()), x),
        lambda f, x: torch.jit.script(f),
        lambda f, x: torch.jit.script(nn.Sequential(f, nn.ReLU())),
        lambda f, x: torch.fx.symbolic_trace(f),
        lambda f, x: torch.fx.symbolic_trace(nn.Sequential(f, nn.ReLU())),
        lambda f, x: torch.onnx.export(f, (x,), "unwritten.onnx", dynamo=False),
    ],
)
def test_tracers_that_cannot_follow_are_told_what_to_use(trace: Any, fast: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(FastresError, match=r"fast\.save and fastres\.export\.to_onnx store it"):
            trace(fast, batch())


def test_modes_that_only_watch(fast: Any, model: nn.Module) -> None:
    class Watching(TorchFunctionMode):
        seen = 0

        def __torch_function__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            Watching.seen += function is torch.conv2d
            return function(*args, **(kwargs or {}))

    x = batch()
    with Watching(), FlopCounterMode(display=False) as counter:
        assert_close(fast(x), answer(model, x))
    assert Watching.seen == 2 * 4  # the model's own and ours
    assert counter.get_total_flops() > 0


def test_results_share_no_memory_either_way() -> None:
    fast = optimize(
        Net(lambda m, x: (m.conv(x), x, x[:, :2], m.conv.weight), conv=conv()).eval(), images(2)
    )
    x = negative(images(2))
    given = [x, *fast.graph_module.buffers(), *fast(x)]
    places = [t.untyped_storage().data_ptr() for t in given]
    assert len(set(places)) == len(places)


@pytest.mark.parametrize(
    "work",
    [
        lambda f, m, x, p: fastres.optimize(m, x),
        lambda f, m, x, p: fastres.load(p),
        lambda f, m, x, p: f.refresh(p),
        lambda f, m, x, p: copy.deepcopy(f),
        lambda f, m, x, p: f.save(Path("never.fastres")),
        lambda f, m, x, p: f.load_state_dict({}, strict=False),
        lambda f, m, x, p: f.intermediate([x]),
        lambda f, m, x, p: fastres.verify(m, f, x),
    ],
)
def test_what_makes_weights_is_refused_under_modes(work: Any, fast: Any, model: nn.Module) -> None:
    x = batch()
    with FakeTensorMode(), pytest.raises(OptionError, match="under FakeTensorMode"):
        work(fast, model, x, {})
    with pytest.raises(OptionError, match="under a transformation of torch"):
        vmap(lambda k: work(fast, model, x, {}))(torch.zeros(2))
    assert_close(fast(x), answer(model, x))


@pytest.mark.parametrize("spoil", [freed, Wrapper, negative, FakeTensorMode().from_tensor])
def test_weights_that_are_not_in_memory(spoil: Any, fast: Any) -> None:
    model: Any = classifier()
    x = batch()
    spoiled = nn.Parameter(spoil(model.fc.weight.detach().clone()), requires_grad=False)
    model.fc.weight = spoiled
    with pytest.raises(ModelError, match=r"fc\.weight is no plain tensor"):
        fastres.optimize(model, batch())
    other = copy.deepcopy(fast)
    state = {**classifier().state_dict(), "fc.weight": spoiled.detach()}
    with pytest.raises(OptionError, match=r"fc\.weight: expected a plain tensor in memory"):
        other.refresh(state)
    state = {**other.state_dict(), "graph_module.fc_weight": spoiled.detach()}
    with pytest.raises(ModelError, match="fc_weight cannot be read"):
        other.load_state_dict(state, assign=True)
    if spoil is negative:  # copying reads it as it is meant
        other.load_state_dict(state)
        assert_close(other(x), fast_with(fast, spoiled.detach().resolve_neg())(x))
        return
    with pytest.raises(ModelError, match="fc_weight cannot be read"):
        other.load_state_dict(state)
    assert_close(other(x), fast(x))


def fast_with(fast: Any, weight: Tensor) -> Any:
    twin = copy.deepcopy(fast)
    twin.load_state_dict({**fast.state_dict(), "graph_module.fc_weight": weight})
    return twin


@pytest.mark.parametrize(("dtype", "assign"), [(torch.complex64, False), (torch.float64, True)])
def test_weights_of_a_dtype_that_would_be_lost(dtype: Any, assign: bool, fast: Any) -> None:
    other, x = copy.deepcopy(fast), batch()
    weight = fast.state_dict()["graph_module.fc_weight"].to(dtype)
    state = {**fast.state_dict(), "graph_module.fc_weight": weight}
    with pytest.raises(ModelError, match=f"fc_weight is torch.float32, got {dtype}"):
        other.load_state_dict(state, assign=assign)
    assert_close(other(x), fast(x))


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("make", "text"),
    [
        (freed, "its memory was given back"),
        (Wrapper, "it is a Wrapper, a tensor that stands for something else"),
        (FakeTensorMode().from_tensor, "it is a FakeTensor"),
        (lambda x: x.to("meta"), "it is on the meta device"),
        (lambda x: x.to_sparse(), "it is a torch.sparse_coo tensor"),
        (lambda x: nested([x[0], x[1]]), "it is a nested tensor"),
    ],
)
def test_examples_without_values(make: Any, text: str, model: nn.Module) -> None:
    with pytest.raises(OptionError, match=text):
        fastres.optimize(model, make(batch()))
    fast = optimize(model, batch())
    with pytest.raises(OptionError, match=text):
        fastres.verify(model, fast, make(batch()))
    with pytest.raises(OptionError, match=text):
        fast.intermediate([make(batch())])


@pytest.mark.parametrize("make", [negative, lambda x: x.as_subclass(Named), Tensor.requires_grad_])
def test_examples_with_values(make: Any, model: nn.Module) -> None:
    fast, x = optimize(model, make(batch())), batch()
    assert_close(fast(x), answer(model, x))


@pytest.mark.campaign
def test_a_model_made_in_inference_mode(tmp_path: Path) -> None:
    with torch.inference_mode():
        model = classifier()
        x = batch()
        inside = fastres.optimize(model, x)
        wanted = model(x)
    outside = fastres.optimize(model, x)
    outside.save(tmp_path / "model")
    for fast in (inside, outside, fastres.load(tmp_path / "model"), copy.deepcopy(inside)):
        assert_close(fast(x), wanted)
        assert fastres.verify(model, fast, x).passed
        fast.refresh(model.state_dict())
        assert_close(fast(x), wanted)
    assert all(p.is_inference() for p in model.parameters())


@pytest.mark.parametrize("threads", [most_threads() + 1, 100_000, 2**31, 2**63, 10**30])
def test_more_threads_than_there_can_be(threads: int) -> None:
    with pytest.raises(OptionError, match="expected an integer from 1 to"):
        fastres.optimize(classifier(), batch(), threads=threads)
    with pytest.raises(OptionError, match="expected an integer from 1 to"):
        fastres.load("nowhere", threads=threads)


def test_ordinary_calls() -> None:
    x = batch()
    assert is_plain_call([x, 3, None, x[:, :, ::2], x[:0], x.bfloat16(), nn.Parameter(x)])
    for context in (torch.no_grad, torch.inference_mode, lambda: torch.device("meta")):
        with context():
            assert is_plain_call([x])
    with torch.autocast("cpu"):
        assert is_plain_call([x])
    with torch.inference_mode():
        assert is_plain_call([torch.randn(2, 3)])
