"""Files that an earlier fastres wrote are read, and answer as they did.

``data/`` holds what version 0.1.0 saved before its modules got their present names: a small network
with a residual block, the same behind the preprocessing of bytes, and what both answered.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import fastres

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def answers() -> dict[str, Tensor]:
    found: dict[str, Tensor] = load_file(DATA / "answers-0.1.0.safetensors")
    return found


@pytest.mark.parametrize("engine", ["auto", "onednn", "eager"])
def test_a_network(engine: str, answers: dict[str, Tensor]) -> None:
    fast = fastres.load(DATA / "network-0.1.0.fastres", engine=engine)
    torch.testing.assert_close(fast(answers["images"]), answers["answers"], rtol=1e-4, atol=1e-4)


def test_preprocessing_labels_and_top_k(answers: dict[str, Tensor]) -> None:
    fast = fastres.load(DATA / "pixels-0.1.0.fastres")
    values, indices = fast(answers["pixels"])
    torch.testing.assert_close(values, answers["values"], rtol=1e-4, atol=1e-4)
    assert torch.equal(indices, answers["indices"])
    assert fast.preprocessing is not None
    assert list(fast.preprocessing.labels or ()) == list("abcde")


def test_its_weights_can_be_refreshed(answers: dict[str, Tensor]) -> None:
    fast = fastres.load(DATA / "network-0.1.0.fastres")
    prefix = "state."
    state = {name[len(prefix) :]: v for name, v in answers.items() if name.startswith(prefix)}
    fast.refresh(
        {name: value * 2 if name == "fc.weight" else value for name, value in state.items()}
    )
    changed = fast(answers["images"])
    torch.testing.assert_close(
        changed - state["fc.bias"],
        2 * (answers["answers"] - state["fc.bias"]),
        rtol=1e-4,
        atol=1e-4,
    )
    fast.refresh(state)
    torch.testing.assert_close(fast(answers["images"]), answers["answers"], rtol=1e-4, atol=1e-4)
