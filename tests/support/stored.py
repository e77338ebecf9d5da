"""Saved models in tests: written, looked into, changed with or without right checksums."""

from __future__ import annotations

import copy
import hashlib
import json
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import fastres


def optimized(model: nn.Module, example: Any = None, **options: Any) -> fastres.OptimizedModule:
    """``fastres.optimize`` where it does not matter here what stayed unoptimised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fastres.optimize(model, example, **options)


def there_and_back(
    fast: fastres.OptimizedModule, folder: Path, **options: Any
) -> fastres.OptimizedModule:
    path = folder / "model.fastres"
    fast.save(path)
    assert [entry.name for entry in folder.iterdir()] == ["model.fastres"]
    return fastres.load(path, **options)


def assert_equal(got: Any, wanted: Any) -> None:
    """The same structure, dtypes and bits."""
    ours, ours_spec = pytree.tree_flatten(got)
    theirs, theirs_spec = pytree.tree_flatten(wanted)
    assert ours_spec == theirs_spec
    for a, b in zip(ours, theirs, strict=True):
        if isinstance(b, Tensor):
            assert isinstance(a, Tensor)
            assert (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride())
            assert torch.equal(a.nan_to_num(1e6), b.nan_to_num(1e6))
        else:
            assert type(a) is type(b)
            assert a == b


def other_weights(model: nn.Module, seed: int = 7) -> nn.Module:
    """A copy whose every parameter and statistic has another value, of the same magnitude."""
    twin = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*twin.parameters(), *twin.buffers()):
            if tensor.is_floating_point():
                factor = torch.rand(tensor.shape, generator=generator) + 0.5
                tensor.mul_(factor.to(tensor.dtype))
    return twin


def assert_same_module(got: Any, wanted: Any) -> None:
    """The same program, the same weights bit by bit, the same counts."""
    assert got.graph_module.code == wanted.graph_module.code
    ours = dict(got.graph_module.named_buffers())
    theirs = dict(wanted.graph_module.named_buffers())
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        assert ours[name].dtype == value.dtype
        assert torch.equal(ours[name].nan_to_num(1e6), value.nan_to_num(1e6)), name
    for field in ("model", "engine", "precision", "found", "done", "refused", "left", "layers"):
        assert getattr(got.report, field) == getattr(wanted.report, field), field


def header_of(path: Path) -> tuple[int, dict[str, Any]]:
    """Bytes of the header, and what it says."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    return size, json.loads(data[8 : 8 + size])


def parts_of(path: Path) -> tuple[dict[str, Any], dict[str, str], dict[str, Tensor]]:
    """The description, the metadata and the tensors of a file."""
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    return json.loads(metadata["description"]), metadata, tensors


def with_text(path: Path, text: str, tensors: dict[str, Tensor], **metadata: str) -> None:
    """A file with this description and the right checksum for it."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    given = {
        "format": "fastres",
        "format_version": "1",
        "description": text,
        "description_sha256": digest,
        **metadata,
    }
    save_file(tensors, path, given)


def changed(source: Path, target: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A copy whose description ``change`` has edited in place, with the right checksum."""
    description, _, tensors = parts_of(source)
    change(description)
    with_text(target, json.dumps(description), tensors)
    return target
