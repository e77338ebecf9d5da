"""Which sizes an exported file fixes, which it leaves open, and shapes to try it with.

The symbols of an optimised model's contract are the sizes that may vary. Those in a tensor's first
dimension are batches and stay open; the others are heights and widths, which are fixed to the
example's unless the file is to take any image.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastres.capture.contract import Contract, TensorInput
from fastres.capture.symbols import Expression, evaluate, solve
from fastres.errors import InputError, ModelError, OptionError

GROWTH = (7, 32, 65, 96, 128, 16, 8, 1)
"""Pixels by which other image sizes may differ; the first :data:`MOST_STEPS` that the model takes
are used, and the very first of them is the size that the file is run at."""

MOST_STEPS = 3


class Spread(NamedTuple):
    """How far open sizes are set apart, so that no two look alike that are not the same.

    Attributes:
        batches: images that each batch has more than the one before it.
        kinds: how many heights and widths in a row grow by another number of pixels each (by 1, 3,
            5, ... times a step): 2 for heights that grow alike and widths that do.
    """

    batches: int
    kinds: int


SPREADS = (Spread(1, 8), Spread(0, 8), Spread(1, 2), Spread(0, 2), Spread(0, 1))
"""From all different to all alike; the first that the model takes is used."""


@dataclass
class Sizes:
    """The open and the fixed sizes of one export.

    Attributes:
        contract: what the optimised model takes.
        known: the example's value of every symbol.
        batch: symbols of batch dimensions.
        open: names in the file for the symbols that stay open: ``batch``, ``height``, ``width``.
        steps: pixels by which images were found to be able to differ, where that is open.
        spread: how far apart open sizes are in what is tried.
    """

    contract: Contract
    known: dict[str, int]
    batch: tuple[str, ...]
    open: dict[str, str] = field(default_factory=dict)
    steps: list[int] = field(default_factory=list)
    spread: Spread = SPREADS[0]

    @property
    def images_vary(self) -> bool:
        """Whether a height or width is open."""
        return bool(set(self.open) - set(self.batch))

    def shape(self, tensor_input: TensorInput) -> list[int | str | None]:
        """A tensor input's dimensions: numbers, names of open sizes, None for other open ones."""
        return [self._dimension(size) for size in tensor_input.sizes]

    def _dimension(self, size: Any) -> int | str | None:
        if not isinstance(size, Expression):
            return int(size)
        if not size.symbols & set(self.open):
            return _number(size, self.known)
        return self.open[size.operands[0]] if size.function == "symbol" else None

    def inputs(
        self, values: Sequence[Any], batch: int, grow: int = 0, device: str = "meta"
    ) -> list[Any]:
        """Arguments with ``batch`` images, by ``grow`` pixels larger where that is open.

        Several batches, heights and widths are set apart by :attr:`spread`: a square image cannot
        tell its height from its width. Tensors are uninitialised, on ``device``; plain values are
        those of ``values``.
        """
        chosen = self.chosen(batch, grow)
        arguments: list[Any] = []
        for tensor_input, value in zip(self.contract.inputs, values, strict=True):
            if not isinstance(tensor_input, TensorInput):
                arguments.append(value)
                continue
            shape = [s if isinstance(s, int) else _number(s, chosen) for s in tensor_input.sizes]
            arguments.append(torch.empty(shape, dtype=tensor_input.dtype, device=device))
        return arguments

    def chosen(self, batch: int, grow: int) -> dict[str, int]:
        """Every symbol's value with ``batch`` images, by ``grow`` pixels larger."""
        chosen = dict(self.known)
        images = [name for name in self.open if name not in self.batch]
        for index, name in enumerate(name for name in self.open if name in self.batch):
            chosen[name] = batch + index * self.spread.batches
        for index, name in enumerate(images):
            chosen[name] += grow * (1 + 2 * (index % self.spread.kinds))
        return chosen

    def accepts(self, inputs: Sequence[Any]) -> bool:
        """Whether the contract allows these sizes."""
        on_meta = [leaf.to("meta") if isinstance(leaf, Tensor) else leaf for leaf in inputs]
        try:
            self.contract.on(torch.device("meta")).check(on_meta)
        except InputError:
            return False
        return True

    def conditions(self) -> list[str]:
        """A sentence for every condition of the model's code on an open height or width.

        An optimised model refuses other sizes; a file has no such check.
        """
        images = {symbol: name for symbol, name in self.open.items() if symbol not in self.batch}

        def named(text: str) -> str:
            return re.sub(r"\w+", lambda word: images.get(word[0], word[0]), text)

        sentences = [
            f"{images[limit.symbol]} is meant to be {limit.lower} to {limit.upper}"
            if limit.upper < _NO_LIMIT
            else f"{images[limit.symbol]} is meant to be at least {limit.lower}"
            for limit in self.contract.limits
            if limit.symbol in images
        ]
        sentences += [
            f"the model's code decides by {named(str(guard.condition))} ({guard.location})"
            for guard in self.contract.guards
            if isinstance(guard.condition, Expression) and guard.condition.symbols & set(images)
        ]
        return [
            f"{each}, and the file does not look: give it no other images" for each in sentences
        ]


_NO_LIMIT = 2**31

FIXED = (
    "dynamic_size=True, but this model fixes its image size (by a Linear on flattened pixels, by "
    "padding computed from the size), or takes no larger one than the example's: export without "
    "dynamic_size, one file per size"
)


def sizes_of(contract: Contract, example: Sequence[Any], dynamic_size: bool) -> Sizes:
    """The sizes of an export with this example.

    Args:
        contract: what the optimised model takes.
        example: flattened arguments; their shapes count.
        dynamic_size: leave heights and widths open.

    Raises:
        OptionError: the model does not take the example.
        ModelError: ``dynamic_size``, and the model fixes its image size.
    """
    on_meta = [leaf.to("meta") if isinstance(leaf, Tensor) else leaf for leaf in example]
    try:
        contract.on(torch.device("meta")).check(on_meta)
    except InputError as error:
        raise OptionError(f"example_input: {error}") from error
    known: dict[str, int] = {}
    batch: list[str] = []
    names: list[str] = []
    for tensor_input, value in zip(contract.inputs, example, strict=True):
        if not isinstance(tensor_input, TensorInput):
            continue
        for axis, (size, got) in enumerate(zip(tensor_input.sizes, value.shape, strict=True)):
            if not isinstance(size, Expression):
                continue
            unknown = sorted(size.symbols - set(known))
            if len(unknown) == 1:
                solution = solve(size, int(got), unknown[0], known)
                assert solution is not None  # the contract was checked
                known[unknown[0]] = solution
                names.append(unknown[0])
            if axis == 0:
                batch += [name for name in sorted(size.symbols) if name not in batch]
    sizes = Sizes(contract, known, tuple(batch))
    images = [name for name in names if name not in batch]
    if dynamic_size and not images:
        raise ModelError(FIXED)
    opened = [name for name in names if name in batch or dynamic_size]
    sizes.open = _named(opened, batch)
    return sizes


def _named(symbols: Sequence[str], batch: Sequence[str]) -> dict[str, str]:
    """``batch``, ``height`` and ``width``; numbered from the second of a kind on."""
    named: dict[str, str] = {}
    images = 0
    for name in symbols:
        if name in batch:
            number, stem = sum(other in batch for other in named), "batch"
        else:
            number, stem = images // 2, ("height", "width")[images % 2]
            images += 1
        named[name] = stem if not number else f"{stem}_{number + 1}"
    return named


def _number(size: Any, known: dict[str, int]) -> int:
    value = evaluate(size, known)
    assert isinstance(value, int)
    return value
