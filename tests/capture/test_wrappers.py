"""Models in wrappers, made in inference mode, copied badly, or with parts that still train."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.fx import GraphModule, symbolic_trace

import fastres
from fastres.errors import CaptureError
from fastres.system.versions import release
from tests.support.optimizing import optimize
from tests.support.oracle import unchanged
from tests.support.small import Net, assert_right, classifier, conv, counts, images, measured


@pytest.fixture
def group() -> Iterator[None]:
    store = distributed.HashStore()  # type: ignore[attr-defined]
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def small() -> Any:
    return measured(nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), conv()))


def assert_unwrapped(wrapped: nn.Module, model: nn.Module, note: str) -> Any:
    """``wrapped`` is optimised as ``model``."""
    fast = fastres.optimize(wrapped, images(2))
    assert_right(model, fast, images(3, height=11))
    assert counts(fast, "batch_norm") == (1, 1)
    assert note in fast.report.notes
    assert fastres.verify(wrapped, fast, images(2)).passed
    return fast


def test_distributed(group: None) -> None:
    model = small()
    wrapped = nn.parallel.DistributedDataParallel(model).eval()
    note = "DistributedDataParallel around the model is left out"
    fast = assert_unwrapped(wrapped, model, note)
    with torch.no_grad():
        model[0].weight.mul_(2)
    fast.refresh(model.state_dict())
    assert_right(model, fast, images(2))


def test_data_parallel_and_compiled() -> None:
    model = small()
    wrapped = nn.DataParallel(model).eval()
    assert_unwrapped(wrapped, model, "DataParallel around the model is left out")
    compiled: Any = torch.compile(wrapped, backend="eager")
    fast = assert_unwrapped(compiled, model, "OptimizedModule around the model is left out")
    assert "DataParallel around the model is left out" in fast.report.notes


def test_wrapped_parts() -> None:
    model = small()
    inner: Any = torch.compile(model[:3], backend="eager")
    around = nn.Sequential(nn.DataParallel(inner), model[3]).eval()
    fast = fastres.optimize(around, images(2))
    assert isinstance(around[0], nn.DataParallel)
    assert "DataParallel around 0 is left out" in fast.report.notes
    assert_right(model, fast, images(3))
    assert counts(fast, "batch_norm") == (1, 1)


def test_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model = small()
    x = images(2)
    fast = fastres.optimize(model, x)
    assert next(model.parameters()).is_inference()
    assert_right(model, fast, images(3))
    with torch.inference_mode():
        training = small().train()
    with pytest.warns(fastres.FastresWarning, match="training mode"):
        assert_right(training.eval(), fastres.optimize(training.train(), x), x)


def test_a_graph_module_stays_in_eval_mode() -> None:
    # A deep copy of one is in training mode, and so would be its functional BatchNorms.
    def function(m: Any, x: Tensor) -> Any:
        y = m.first(x)
        return {"a": y, "b": [m.second(y)]}

    model = Net(function, first=small(), second=small()).eval()
    traced = symbolic_trace(model)
    assert isinstance(traced, GraphModule)
    traced.eval()
    fast = fastres.optimize(traced, images(2))
    answer = fast(images(2))
    assert type(answer) is dict
    assert type(answer["b"]) is list
    assert_right(model, fast, images(3))


def test_batch_norms_that_stay_in_training_mode() -> None:
    class Frozen(nn.Module):
        """A detector's backbone whose own ``train`` forgets its BatchNorms."""

        def __init__(self) -> None:
            super().__init__()
            self.net = small()

        def train(self, mode: bool = True) -> Frozen:
            self.training = mode
            return self

        def forward(self, x: Tensor) -> Any:
            return self.net(x)

    model: Any = Frozen().eval()
    model.net[1].train()
    with unchanged(model), pytest.raises(CaptureError) as caught:
        fastres.optimize(model, images(2))
    text = str(caught.value)
    assert text.startswith("module net.1 (BatchNorm2d) is in training mode")
    assert "model.get_submodule('net.1').eval()" in text
    model.net[1].eval()
    optimize(model, images(2))


def test_attributes_and_containers_that_forward_fills() -> None:
    def function(m: Any, x: Tensor) -> Any:
        m.feature = m.net[:3](x)
        m.features.append(m.feature)
        m.cache["a"][0].append(m.feature)
        m.net[0].last = x
        return m.net[3:](m.feature)

    model: Any = Net(function, net=small()).eval()
    model.features, model.cache = [1], {"a": ([], 2)}
    if release(torch.__version__) < (2, 11):  # there torch.export takes no attribute that is new
        with pytest.raises(CaptureError, match="attrs were created in the model"):
            fastres.optimize(model, images(2))
        return
    fast = fastres.optimize(model, images(2))
    assert (model.features, model.cache) == ([1], {"a": ([], 2)})
    assert not hasattr(model, "feature")
    told = [
        "(Net) sets self.feature ",
        "self.features ",
        "self.cache ",
        "net.0 (Conv2d) sets self.last ",
    ]
    for part in told:
        assert sum(f"{part}in forward" in note for note in fast.report.notes) == 1, fast.report


def test_decisions_on_values_are_said_once(capfd: pytest.CaptureFixture[str]) -> None:
    def function(m: Any, x: Tensor) -> Any:
        y = m.net(x)
        return y if y.sum() > 0 else -y

    with pytest.raises(CaptureError, match="decides on the values of a tensor at test_wrappers"):
        fastres.optimize(Net(function, net=classifier()).eval(), images(2, channels=3))
    written = capfd.readouterr()
    assert written.err == ""
    assert written.out == ""
