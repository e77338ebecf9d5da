"""Models that move: what a graph makes itself moves along; a device that is not here is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fastres
from fastres.artifact.graph_json import graph_from_json, graph_to_json
from fastres.errors import OptionError, TargetError
from fastres.system.device import checked_device, move
from tests.support.small import Net, conv, images
from tests.support.stored import assert_equal, changed, optimized

CPU, META = torch.device("cpu"), torch.device("meta")


def ramp(m: Any, x: Tensor) -> Any:
    return m.c(x) * torch.arange(4, dtype=x.dtype, device=x.device).view(4, 1, 1)


@pytest.fixture
def fast() -> Any:
    return optimized(Net(ramp, c=conv()).eval(), images(2))


def devices(module: Any) -> set[torch.device]:
    """Of the constants, and of what the graph makes."""
    named = {b.device for b in module.buffers()}
    made = (node.kwargs.get("device") for node in module.graph.nodes)
    return named | {device for device in made if device is not None}


def test_a_graph_that_moves_makes_its_tensors_there(fast: Any) -> None:
    assert devices(fast.graph_module) == {CPU}
    move(fast.graph_module, CPU, META)
    assert devices(fast.graph_module) == {META}
    (result,) = fast.graph_module(images(3).to(META))
    assert result.device == META


def test_a_graph_that_is_read_for_another_device(fast: Any) -> None:
    written = graph_to_json(fast.graph_module)
    constants = {name: value.to(META) for name, value in fast.graph_module.named_buffers()}
    read = graph_from_json(written, constants, lambda device: META if device == CPU else device)
    assert devices(read) == {META}


def test_a_model_from_a_device_that_is_not_here(fast: Any, tmp_path: Path) -> None:
    fast.save(tmp_path / "m")

    def as_if_from_a_gpu(description: dict[str, Any]) -> None:
        description["report"]["device"] = "cuda:7"
        for wanted in description["contract"]["inputs"]:
            wanted["device"] = "cuda:7"
        for node in description["graph"]["nodes"]:
            if node.get("named", {}).get("device") is not None:
                node["named"]["device"] = {"device": "cuda:7"}

    path = changed(tmp_path / "m", tmp_path / "gpu", as_if_from_a_gpu)
    if torch.cuda.device_count() <= 7:
        with pytest.raises(TargetError, match=r"it was saved from cuda:7.* pass device='cpu'"):
            fastres.load(path)
    loaded = fastres.load(path, device="cpu")
    assert loaded.report.device == "cpu"
    assert "on cuda:7" in loaded.report.notes[-1]
    x = images(3)
    assert_equal(loaded(x), fast(x))


@pytest.mark.parametrize("wrong", ["nowhere", "meta", 1.5, "cpu:x"])
def test_what_is_no_device(wrong: Any) -> None:
    with pytest.raises(OptionError, match="device="):
        checked_device(wrong)
    assert checked_device(None) is None
    assert checked_device("cpu") == CPU
