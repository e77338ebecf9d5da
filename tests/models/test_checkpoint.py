"""Weights from files: what is read, and what is refused without being run."""

from __future__ import annotations

import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from fastres.errors import ModelError, OptionError
from fastres.models import checkpoint


def model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    return {name: torch.rand_like(t) if t.is_floating_point() else t for name, t in
            model().state_dict().items()}  # fmt: skip


def holds(network: nn.Module, state: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


WRAPPED: dict[str, Any] = {
    "plain": lambda state: state,
    "in a checkpoint": lambda state: {"epoch": 3, "state_dict": state, "optimizer": {"lr": 0.1}},
    "under model": lambda state: {"model": state},
    "from data-parallel training": lambda state: {f"module.{n}": t for n, t in state.items()},
    "of torch.compile": lambda state: {"state_dict": {f"_orig_mod.{n}": state[n] for n in state}},
}


@pytest.mark.parametrize("form", WRAPPED)
def test_pickled_tensors(form: str, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(WRAPPED[form](state), tmp_path / "w.pth")
    network = model()
    checkpoint.load_into(network, tmp_path / "w.pth")
    assert holds(network, state)


def test_safetensors(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    network = model()
    checkpoint.load_into(network, tmp_path / "w.safetensors")
    assert holds(network, state)


def test_a_batch_norm_that_counted_nothing(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    del state["1.num_batches_tracked"]
    torch.save(state, tmp_path / "w.pt")
    checkpoint.load_into(model(), tmp_path / "w.pt")


class Malicious:
    def __reduce__(self) -> Any:
        return print, ("this must not be printed",)


def test_code_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, dump in (("a.pth", torch.save), ("b.pth", None)):
        path = tmp_path / name
        if dump is None:
            path.write_bytes(pickle.dumps({"w": Malicious()}))
        else:
            dump({"w": Malicious()}, path)
        with pytest.raises(OptionError, match="cannot be read as tensors alone"):
            checkpoint.read(path)
    assert "must not" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("none.pth", None, "there is no such file"),
        ("w.txt", b"", r"expected a file called \.safetensors, \.pth"),
        ("w.pth", b"", "cannot be read as tensors alone"),
        ("w.pth", b"PK\x03\x04 not a zip", "cannot be read as tensors alone"),
        ("w.safetensors", b"\x08\x00\x00\x00\x00\x00\x00\x00{}", "no safetensors file|state dict"),
        ("w.safetensors", b"\xff" * 40, "it is no safetensors file"),
    ],
)
def test_other_files(name: str, content: bytes | None, says: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(OptionError, match=says):
        checkpoint.read(tmp_path / name)


@pytest.mark.parametrize("content", [[1, 2], {"w": 3}, {3: torch.zeros(1)}, {}])
def test_no_state_dict(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(OptionError, match="expected a state dict"):
        checkpoint.read(tmp_path / "w.pth")


def test_weights_of_another_model(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({("0.wieght" if n == "0.weight" else n): t for n, t in state.items()}, path)
    with pytest.raises(
        ModelError,
        match=r"1 of the model's tensors are not there, first 0\.weight; 1 are not the model's, "
        r"first 0\.wieght \(did you mean 0\.weight\?\)",
    ):
        checkpoint.load_into(model(), path)
    torch.save(state | {"0.bias": torch.zeros(5)}, path)
    with pytest.raises(ModelError, match=r"0\.bias is \[5\], and \[4\] in the model; another num"):
        checkpoint.load_into(model(), path)


def test_whole_numbers_are_no_weights(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(state | {"0.weight": state["0.weight"].to(torch.int8)}, path)
    with pytest.raises(ModelError, match=r"0\.weight is of torch\.int8, and of torch\.float32 in"):
        checkpoint.load_into(model(), path)
    counted = state | {"1.num_batches_tracked": torch.tensor(3.0)}  # as some checkpoints have it
    torch.save(counted, path)
    checkpoint.load_into(model(), path)


def test_damaged_files_are_refused_whatever_the_reader_makes_of_them(
    state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """torch's older format too, whose reader fails in many ways."""
    drawn, path, refused = random.Random(0), tmp_path / "w.pth", 0
    for zipped in (True, False):
        torch.save(state, path, _use_new_zipfile_serialization=zipped)
        whole = path.read_bytes()
        for _ in range(300):
            damaged = bytearray(whole)
            for _ in range(drawn.choice((1, 3, 20))):
                damaged[drawn.randrange(len(whole))] = drawn.randrange(256)
            path.write_bytes(damaged)
            try:
                checkpoint.load_into(model(), path)
            except (OptionError, ModelError):
                refused += 1
    assert refused > 100
