"""New weights without capturing again: bitwise what ``optimize`` makes of a model that has them.

All reference families and quirks are refreshed in :mod:`test_artifact_round_trip`, after loading.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastres
from fastres.errors import (
    ArtifactError,
    NotOptimizedError,
    OptionError,
    TargetError,
    VerificationError,
)
from tests.support.small import Net, conv, images, net
from tests.support.stored import assert_same_module, optimized, other_weights


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return net(
        lambda m, x: m.head(torch.relu(m.norm(m.first(x)) + x).mean((2, 3))),
        first=conv(),
        norm=nn.BatchNorm2d(4),
        head=nn.Linear(4, 3),
    )


@pytest.fixture
def fast(model: nn.Module) -> Any:
    return optimized(model, images(2))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_in_lower_precision(model: nn.Module, precision: str) -> None:
    fast = optimized(model, images(2), precision=precision)
    other = other_weights(model)
    fast.refresh(other.state_dict())
    assert_same_module(fast, optimized(other, images(2), precision=precision))


def test_decisions_follow_the_weights(model: nn.Module) -> None:
    """In float16 a folded weight may overflow: then nothing is folded, as in ``optimize``."""
    fast = optimized(model, images(2), precision="fp16")
    assert fast.report.done["batch_norm"] == 1
    huge: Any = copy.deepcopy(model)
    with torch.no_grad():
        huge.norm.running_var.fill_(1e-12)
        huge.norm.weight.fill_(1e5)
    huge_state = huge.state_dict()
    fast.refresh(huge_state, check=False)
    assert fast.report.done["batch_norm"] == 0
    assert "would overflow" in str(fast.report)
    fast.refresh(model.state_dict())
    assert_same_module(fast, optimized(model, images(2), precision="fp16"))


def test_the_receipt_is_new(fast: Any, model: nn.Module) -> None:
    before = fast.report
    fast.refresh(other_weights(model).state_dict())
    assert fast.report is not before
    assert any("renewed by refresh()" in note for note in fast.report.notes)
    assert set(fast.report.seconds) == {"passes", "first shape", "check"}
    fast.refresh(model.state_dict(), check=False)
    assert fast.report.check is None
    assert sum("renewed by refresh()" in note for note in fast.report.notes) == 1


def test_the_model_of_the_weights_verifies(fast: Any, model: nn.Module) -> None:
    other = other_weights(model)
    fast.refresh(other.state_dict())
    assert fastres.verify(other, fast, images(4)).passed
    assert not fastres.verify(model, fast, images(4)).passed


def test_nothing_is_shared_with_the_state_dict(fast: Any, model: nn.Module) -> None:
    state = {name: value.clone() for name, value in model.state_dict().items()}
    x = images(2)
    fast.refresh(state)
    before = fast(x)
    for value in state.values():
        value.zero_()
    assert torch.equal(fast(x), before)


def test_another_memory_format_gives_the_same_bits(fast: Any, model: nn.Module) -> None:
    other = other_weights(model)
    fast.refresh(other.to(memory_format=torch.channels_last).state_dict())
    plain = other.to(memory_format=torch.contiguous_format)
    assert_same_module(fast, optimized(plain, images(2)))


def without(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda state: state.__delitem__(name)


def put(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda state: state.__setitem__(name, value)


WRONG: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "missing": (without("first.weight"), r"has no 'first.weight' \(1 missing\)"),
    "unknown": (put("extra", torch.zeros(1)), "'extra', which the model does not have"),
    "shape": (put("head.weight", torch.zeros(3, 5)), r"expected the shape \[3, 4\], got \[3, 5\]"),
    "dtype": (put("head.weight", torch.zeros(3, 4).double()), r"convert it with .to\(torch.float3"),
    "no tensor": (put("head.weight", [1.0]), "expected a dense tensor with values, got a list"),
    "meta": (put("head.bias", torch.zeros(3, device="meta")), "with values, got a .* on meta"),
    "sparse": (put("head.weight", torch.zeros(3, 4).to_sparse()), "got a torch.sparse_coo tensor"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_state_dict_that_does_not_fit(name: str, fast: Any, model: nn.Module) -> None:
    change, message = WRONG[name]
    state = dict(other_weights(model).state_dict())
    change(state)
    x, report, graph = images(2), fast.report, fast.graph_module
    before = fast(x)
    with pytest.raises(OptionError, match=message):
        fast.refresh(state)
    assert fast.report is report
    assert fast.graph_module is graph
    assert torch.equal(fast(x), before)


def test_no_state_dict(fast: Any, model: nn.Module) -> None:
    with pytest.raises(OptionError, match="state_dict is a Net: expected"):
        fast.refresh(model)
    with pytest.raises(OptionError, match=r"remove 'module\.' from its names"):
        fast.refresh({f"module.{name}": value for name, value in model.state_dict().items()})


def test_counters_may_be_left_out(fast: Any, model: nn.Module) -> None:
    other = other_weights(model)
    state = {k: v for k, v in other.state_dict().items() if "num_batches" not in k}
    assert len(state) < len(other.state_dict())
    fast.refresh(state)
    assert_same_module(fast, optimized(other, images(2)))


def shared_network() -> nn.Module:
    model: Any = Net(lambda m, x: m.b(torch.relu(m.a(x))), a=conv(), b=conv())
    model.b.weight = model.a.weight
    shared: nn.Module = model.eval()
    return shared


def test_shared_weights() -> None:
    model = shared_network()
    fast = optimized(model, images(2))
    other = other_weights(model)
    state = dict(other.state_dict())
    fast.refresh(state)
    assert_same_module(fast, optimized(other, images(2)))
    fast.refresh({name: value.clone() for name, value in state.items()})
    assert_same_module(fast, optimized(other, images(2)))
    for left_out in ("a.weight", "b.weight"):
        fast.refresh({name: value for name, value in state.items() if name != left_out})
        assert_same_module(fast, optimized(other, images(2)))
    with pytest.raises(OptionError, match="are one weight in the model, and differ"):
        fast.refresh({**state, "b.weight": state["b.weight"] + 1})


def test_strict_still_holds(model: nn.Module) -> None:
    fast = optimized(model, images(2), precision="fp16", strict=True)
    huge: Any = copy.deepcopy(model)
    with torch.no_grad():
        huge.norm.running_var.fill_(1e-12)
        huge.norm.weight.fill_(900.0)
    x = images(2)
    before = fast(x)
    with pytest.raises(NotOptimizedError, match="norm: BatchNorm"):
        fast.refresh({**huge.state_dict(), "first.weight": huge.first.weight.detach() * 1000})
    assert torch.equal(fast(x), before)


def test_weights_that_the_engine_cannot_run(model: nn.Module) -> None:
    broken = {k: v.clone() for k, v in model.state_dict().items()}
    broken["head.bias"][0] = float("nan")
    fast = optimized(model, images(2), engine="onednn")
    with pytest.raises(TargetError, match="NaN or infinity"):
        fast.refresh(broken)
    chosen = optimized(model, images(2))
    chosen.refresh(broken)
    assert chosen.engine == "eager"
    assert chosen(images(2))[:, 0].isnan().all()
    assert any("onednn engine was passed over" in note for note in chosen.report.notes)


def test_a_wrong_answer_is_not_taken(
    fast: Any, model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check is a check: a pass that loses the shifts of BatchNorms does not get through."""
    from fastres.passes import fold_batch_norm

    def lossy(node: Any, context: Any) -> Any:
        shift = node.args[2]
        getattr(node.graph.owning_module, shift.target).zero_()
        return fold(node, context)

    fold = fold_batch_norm._fold
    x = images(2)
    before, report = fast(x), fast.report
    monkeypatch.setattr(fold_batch_norm, "_fold", lossy)
    with pytest.raises(VerificationError, match="differs from the captured graph"):
        fast.refresh(other_weights(model).state_dict())
    assert fast.report is report
    assert torch.equal(fast(x), before)
    fast.refresh(other_weights(model).state_dict(), check=False)
    assert not torch.equal(fast(x), before)


def test_callers_see_the_old_or_the_new_weights(fast: Any, model: nn.Module) -> None:
    states = [other_weights(model, seed).state_dict() for seed in range(2)]
    x = images(3)
    known = [fast(x)]
    for state in states:
        fast.refresh(state, check=False)
        known.append(fast(x))
    stop, odd, calls = threading.Event(), [0], [0]

    def call() -> None:
        while not stop.is_set():
            y = fast(x)
            calls[0] += 1
            odd[0] += not any(torch.equal(y, wanted) for wanted in known)

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    for turn in range(10):
        fast.refresh(states[turn % 2], check=False)
    stop.set()
    for thread in threads:
        thread.join()
    assert calls[0] > 10
    assert odd[0] == 0


class Extended(Net):
    """Has something in its state dict that is no tensor."""

    def get_extra_state(self) -> Any:
        return {"version": 1}

    def set_extra_state(self, state: Any) -> None:
        pass


def test_extra_state_is_let_pass() -> None:
    model = Extended(lambda m, x: m.c(x), c=conv()).eval()
    fast = optimized(model, images(2))
    other = other_weights(model)
    fast.refresh(other.state_dict())
    assert_same_module(fast, optimized(other, images(2)))


def test_an_unsaveable_graph_says_so(tmp_path: Path) -> None:
    from torchvision.ops import roi_align  # whose import runs an operator, so not in forward

    def forward(m: Any, x: Tensor) -> Tensor:
        boxes = torch.tensor([[0.0, 0.0, 0.0, 4.0, 4.0]])
        found: Tensor = roi_align(m.c(x), boxes, 2)
        return found

    fast = optimized(Net(forward, c=conv()).eval(), images(2))
    with pytest.raises(ArtifactError, match=r"torchvision::roi_align.* cannot be part of a saved"):
        fast.save(tmp_path / "m")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ArtifactError, match=r"no captured graph to renew: .*roi_align"):
        fast.refresh({})
