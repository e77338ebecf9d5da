"""torch's default dtype and device are the caller's: nothing here depends on them."""

from __future__ import annotations

import ast
import contextlib
import copy
import functools
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastres
from tests.support import ROOT, interpreter
from tests.support.optimizing import optimize
from tests.support.small import classifier, images

FOLDERS = ("fastres", "kernels", "export", "benchmarks")

# What makes a tensor of torch's default dtype, or on its default device.
FACTORIES = {
    *("empty", "zeros", "ones", "full", "eye", "arange", "range", "linspace", "logspace"),
    *("rand", "randn", "randint", "randperm", "tensor", "as_tensor", "asarray", "scalar_tensor"),
    *("empty_strided", "empty_permuted", "tril_indices", "triu_indices", "normal"),
    *("hann_window", "hamming_window", "kaiser_window", "blackman_window", "bartlett_window"),
}


def sources() -> Iterator[Path]:
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            inner = path.relative_to(ROOT / folder).parts[0]
            if folder != "fastres" or inner not in FOLDERS:  # links, seen at their own places
                yield path


def unnamed(source: str) -> Iterator[str]:
    """Calls of factories that do not name dtype and device; a ``**`` is taken to."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        owner = node.func.value
        if not isinstance(owner, ast.Name) or owner.id != "torch":
            continue
        named = {keyword.arg for keyword in node.keywords}
        if node.func.attr in FACTORIES and None not in named and not {"dtype", "device"} <= named:
            yield ast.unparse(node)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("folder", FOLDERS)
def test_every_tensor_made_inside_names_its_dtype_and_device(folder: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}: {call}"
        for path in sources()
        if path.relative_to(ROOT).parts[0] == folder
        for call in unnamed(path.read_text(encoding="utf-8"))
    ]
    assert found == []


def test_the_rule_finds_what_breaks_it() -> None:
    source = """
torch.zeros(3)
torch.zeros(3, dtype=d)
torch.tensor(1.0, device=d)
torch.ones(3, dtype=d, device=d)
torch.full((), 1.0, **like)
tl.zeros((3,), d)
torch.zeros_like(x)
"""
    assert len(list(unnamed(source))) == 3


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


SURROUNDINGS: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "float16": lambda: default_dtype(torch.float16),
    "meta context": lambda: torch.device("meta"),
    "meta default": lambda: default_device("meta"),
}


class Grid(nn.Module):
    """Makes tensors of the default dtype in forward, in all the ways there are."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        n, _, h, _ = y.shape
        rows = torch.arange(h)
        grid = rows / h + torch.where(rows > 2.5, 0.1, 0.7) + rows.sqrt() + (rows > 3) * 0.3
        grid = grid + torch.full((h,), 0.2) + torch.ones(h) + rows.where(rows > 4, 0.5)
        return y + grid[:, None], torch.zeros(n + 1, 2)[1:], rows * 1.5, rows * 2, x.new_ones(3)


class Bytes(nn.Module):
    """Takes images as they are decoded."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x / 255 - 0.5)  # type: ignore[no-any-return]


def plain(height: int = 12) -> Tensor:
    return torch.randn((2, 3, height, 14), dtype=torch.float32, device="cpu")


def pixels() -> Tensor:
    return torch.randint(0, 256, (2, 3, 20, 24), dtype=torch.uint8, device="cpu")


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "classifier": (classifier, plain),
    "winograd": (lambda: nn.Sequential(nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3)).eval(), plain),
    "grid": (lambda: Grid().eval(), plain),
    "bytes": (lambda: Bytes().eval(), pixels),
}


def assert_answers(given: Any, wanted: Any) -> None:
    for y, z in zip(_tuple(given), _tuple(wanted), strict=True):
        assert (y.dtype, y.shape, y.device) == (z.dtype, z.shape, z.device)
        torch.testing.assert_close(y, z, rtol=1e-4, atol=1e-5)


def _tuple(value: Any) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


@functools.cache
def optimised(kind: str, engine: str) -> tuple[nn.Module, Tensor, Any]:
    make, example = MODELS[kind]
    model, x = make(), example()
    return model, x, optimize(model, x, engine=engine)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("surroundings", SURROUNDINGS)
@pytest.mark.parametrize("engine", ["auto", "onednn"])
@pytest.mark.parametrize("kind", MODELS)
def test_calls_copies_files_and_new_weights(
    kind: str, engine: str, surroundings: str, tmp_path: Path
) -> None:
    model, x, fast = optimised(kind, engine)
    with torch.no_grad():
        wanted, one = model(x), model(x[:1])
    fast.save(tmp_path / "before")
    state = model.state_dict()
    with SURROUNDINGS[surroundings]():
        assert_answers(fast(x), wanted)
        assert_answers(fast(x[:1]), one)  # a new size is prepared here
        assert_answers(copy.deepcopy(fast)(x), wanted)
        assert_answers(pickle.loads(pickle.dumps(fast))(x), wanted)
        assert_answers(fastres.load(tmp_path / "before", engine=engine)(x), wanted)
        fast.refresh(state)
        assert_answers(fast(x), wanted)
        fast.save(tmp_path / "inside")
        fast.profile(x, rounds=1)
        args, _ = fast.example
        assert args[0].dtype == x.dtype
    assert_answers(fastres.load(tmp_path / "inside", engine=engine)(x), wanted)


@pytest.mark.sampled(6)
@pytest.mark.parametrize("surroundings", SURROUNDINGS)
@pytest.mark.parametrize(
    ("engine", "precision"), [("auto", None), ("auto", "bf16"), ("eager", None), ("triton", None)]
)
def test_optimising(engine: str, precision: str | None, surroundings: str) -> None:
    if engine == "triton":
        interpreter.need()
    model, x = classifier(), plain()
    with torch.no_grad():
        wanted = model(x)
    plainly = optimize(model, x, engine=engine, precision=precision)(x)
    with SURROUNDINGS[surroundings]():
        fast = optimize(model, x, engine=engine, precision=precision)
        assert torch.equal(fast(x), plainly)
        if precision is None:
            assert fastres.verify(model, fast, x).passed
    assert fast(x).dtype == wanted.dtype


@pytest.mark.parametrize("surroundings", SURROUNDINGS)
def test_numbers_that_are_none(surroundings: str) -> None:
    model, x = classifier(), plain()
    fast = optimize(model, x)
    x[0, 0, 0, 0] = torch.nan
    with torch.no_grad():
        wanted = model(x)
    with SURROUNDINGS[surroundings]():
        given = fast(x)
    torch.testing.assert_close(given, wanted, equal_nan=True, rtol=1e-4, atol=1e-5)


def test_answers_are_the_same_after_a_change_of_the_default() -> None:
    fast = optimize(Bytes().eval(), pixels())
    x = pixels()
    wanted = fast(x)
    with default_dtype(torch.bfloat16):
        assert torch.equal(fast(x), wanted)
    assert torch.equal(fast(x), wanted)
    assert images().dtype == torch.float32
