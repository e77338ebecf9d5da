"""Blocks in forward that switch gradients or autocast: inlined, kept as they are, or named."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fastres
from fastres.errors import CaptureError
from tests.support.optimizing import optimize
from tests.support.small import Net, assert_right, conv, counts, images, measured


def parts() -> dict[str, nn.Module]:
    return {
        "first": nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU()),
        "second": nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU()),
    }


def around(block: Callable[[], Any]) -> nn.Module:
    """A network whose second part runs inside ``with block():``."""

    def function(m: Any, x: Tensor) -> Any:
        y = m.first(x)
        with block():
            z = m.second(y)
        return z + y

    return measured(Net(function, **parts()))


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "block",
    [
        lambda: torch.autocast("cpu", enabled=False),
        lambda: torch.autocast("cuda", enabled=False),
        torch.enable_grad,
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.inference_mode(False),
        lambda: torch.set_grad_enabled(True),
        lambda: torch.set_grad_enabled(False),
    ],
    ids=["autocast", "cuda", "enable", "no", "inference", "no inference", "set", "set not"],
)
def test_what_changes_nothing_is_inlined(block: Callable[[], Any]) -> None:
    model = around(block)
    fast = optimize(model, images(2))
    assert_right(model, fast, images(3, height=12))
    assert counts(fast, "batch_norm") == (2, 2)
    assert counts(fast, "addition") == (1, 1)
    assert fast.report.complete
    assert fast.report.notes == []


def test_blocks_in_blocks() -> None:
    def function(m: Any, x: Tensor) -> Any:
        with torch.enable_grad():
            y = m.first(x)
            with torch.autocast("cpu", enabled=False), torch.no_grad():
                z = m.second(y)
        return y.detach(), z

    model = measured(Net(function, **parts()))
    assert_right(model, optimize(model, images(2)), images(3))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_are_inlined(reentrant: bool) -> None:
    def function(m: Any, x: Tensor) -> Any:
        return checkpoint(m.second, m.first(x), use_reentrant=reentrant)

    model = measured(Net(function, **parts()))
    fast = fastres.optimize(model, images(2))
    assert_right(model, fast, images(3))
    assert fast.report.complete


@pytest.mark.sampled(3)
@pytest.mark.parametrize("engine", ["auto", "onednn", "eager"])
def test_a_block_in_lower_precision_stays_so(engine: str) -> None:
    def function(m: Any, x: Tensor) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = m.first(x)
            with torch.autocast("cpu", enabled=False):
                z = m.second(y.float())
            return m.second(y), m.second(z), y

    model = measured(Net(function, **parts()))
    x = images(2)
    fast = optimize(model, x, engine=engine)
    assert [y.dtype for y in fast(x)] == [y.dtype for y in model(x)]
    assert fastres.verify(model, fast, x).error_ratio < 3
    assert counts(fast, "batch_norm") == (4, 4)
    (note,) = [note for note in fast.report.notes if "torch.autocast" in note]
    assert "computes in bfloat16 inside torch.autocast" in note
    weights = {b.dtype for name, b in fast.graph_module.named_buffers() if "weight" in name}
    assert weights == {torch.bfloat16, torch.float32}


def test_a_block_for_another_device_changes_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, that there is no such device
        model = around(lambda: torch.autocast("cuda", dtype=torch.float16))
        fast = fastres.optimize(model, images(2))
        assert_right(model, fast, images(3))
    assert fast.report.complete


def test_control_flow_is_named() -> None:
    def function(m: Any, x: Tensor) -> Any:
        y = m.first(x)
        return torch.cond(y.sum() > 0, lambda a: a + 1, lambda a: a - 1, (y,))

    with pytest.raises(CaptureError, match="the model uses cond, a nested graph"):
        optimize(measured(Net(function, **parts())), images(2))


def test_a_model_that_cannot_run_is_named() -> None:
    def function(m: Any, x: Tensor) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = m.first(x)
        return m.fc(y.mean((2, 3)))  # bfloat16 into a float32 layer

    model = Net(function, **parts(), fc=nn.Linear(4, 3)).eval()
    with pytest.raises(CaptureError, match=r"the model itself fails in module fc \(Linear\)"):
        optimize(model, images(2))
