"""One convolution op run by the compiled library, and the same sums in float64.

Tables, weights and buffers are made here, not by the planner, so that they can be as awkward as
the header allows: pixels at any place, output lines in any order with others between them, padding
lanes of weights and bias that hold NaN.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fastres.kernels.activations import ACTIVATIONS as TABLE
from fastres.runtime.native.abi import (
    ACTIVATIONS,
    INPUT,
    ISAS,
    KINDS,
    OUTPUT,
    CFunction,
    COp,
    COutside,
    CPhase,
)
from fastres.runtime.native.library import Library

Array = NDArray[Any]
PANEL = 32
UNTOUCHED = 0xAB
"""What every byte of the output holds before."""
IGNORED = -(2**30)
"""Entries of tables that nobody may use: the address is not the process's."""


MOST_PIXELS = {
    "avx2": 6, "avx512": 14, "avx512_bf16": 14, "amx_bf16": 32, "neon": 6, "neon_bf16": 6,
}  # fmt: skip
"""Of a tile, by instruction set."""


@dataclass(frozen=True)
class Case:
    """A convolution as its op sees it.

    Attributes:
        present: for each pixel, in runs of 16, whether there is one; a multiple of 32.
        channels: of the output.
        steps: K-steps.
        units: of 4 bytes, in a step.
        pixel_units: from a pixel of a run to the next.
        residual: whether one is added.
        before: activation before the residual.
        after: activation after it.
        rows: whether the output is float32 rows.
        groups: whether each panel reads an input of its own.
        group, chunk_panels, prefetch: of the schedule.
        threads: that run it.
        scale: of the weights.
    """

    present: tuple[bool, ...]
    channels: int = PANEL
    steps: int = 2
    units: int = 16
    pixel_units: int = 16
    residual: bool = False
    before: str = "none"
    after: str = "none"
    rows: bool = False
    groups: bool = False
    group: int = 1
    chunk_panels: int = 1
    prefetch: bool = False
    threads: int = 1
    scale: float = 1.0

    @property
    def panels(self) -> int:
        return -(-self.channels // PANEL)


def pixels(count: int, of: int = 32) -> tuple[bool, ...]:
    """The first ``count`` of ``of`` pixels."""
    return tuple(i < count for i in range(of))


@dataclass
class Result:
    """What came out, per present pixel and channel, all panels' lanes included.

    Attributes:
        values: ``[pixel, panel * 32 + lane]`` in float64; of rows, ``[pixel, channel]``.
        expected: the same from float64 sums; zero in lanes without a channel.
        bound: how far apart the two may be.
        strangers: bytes outside these pixels' lines that changed.
    """

    values: Array
    expected: Array
    bound: Array
    strangers: int

    def check(self) -> None:
        """Raise AssertionError unless every number is within its bound."""
        assert self.strangers == 0
        assert np.array_equal(np.isnan(self.values), np.isnan(self.expected))
        finite = np.isfinite(self.expected)
        same = self.values[~finite & ~np.isnan(self.expected)]
        assert np.array_equal(same, self.expected[~finite & ~np.isnan(self.expected)])
        apart = np.abs(self.values - self.expected)[finite]
        assert (apart <= self.bound[finite]).all(), (apart - self.bound[finite]).max()


def aligned(count: int, dtype: Any) -> Array:
    """An array of zeros that begins at a multiple of 64 bytes."""
    size = count * np.dtype(dtype).itemsize
    memory = np.zeros(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype)


def activate(x: Array, kind: str) -> Array:
    """An activation in float64; NaN stays NaN."""
    result: Array = FUNCTIONS[kind](torch.from_numpy(np.ascontiguousarray(x))).numpy()
    return result


VALUES = {"leaky_relu": (0.125, 0.0), "elu": (0.75, 1.5), "clamp": (-0.75, 1.25)}
"""The parameters of functions that have such; of float32 that are exact."""

SLOPES = np.linspace(-1.0, 2.0, 32, dtype=np.float32)
"""A panel's, of ``prelu``."""

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    **{name: row.reference for name, row in TABLE.items()},
    "sigmoid": torch.sigmoid,
    "hardsigmoid": F.hardsigmoid,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "tanh": torch.tanh,
    "leaky_relu": partial(F.leaky_relu, negative_slope=VALUES["leaky_relu"][0]),
    "prelu": lambda x: torch.where(
        x > 0, x, x * torch.from_numpy(SLOPES).double().repeat(x.shape[1] // 32)
    ),
    "elu": lambda x: VALUES["elu"][1] * F.elu(x, VALUES["elu"][0]),
    "mish": F.mish,
    "clamp": partial(torch.clamp, min=VALUES["clamp"][0], max=VALUES["clamp"][1]),
}
"""What each of the library's functions means."""

STEEPEST = {"none": 1.0, "relu": 1.0, "relu6": 1.0, "prelu": 2.0}
"""The largest slope of a function; of all others at most 1.5."""


def structure(kind: str) -> CFunction:
    """A function with its parameters as the library takes it."""
    return CFunction(ACTIVATIONS[kind], VALUES.get(kind, (0.0, 0.0)))


class Stored:
    """Numbers as the instruction set stores them: float32, or bfloat16 as its upper half."""

    def __init__(self, isa: str) -> None:
        self.bfloat16 = isa.endswith("bf16")
        self.dtype = np.uint16 if self.bfloat16 else np.float32
        self.per_unit = 2 if self.bfloat16 else 1
        self.lanes = 32 if self.bfloat16 else 16
        self.precision = 2.0**-7 if self.bfloat16 else 2.0**-23

    def pack(self, x: Array) -> Array:
        """Round and store."""
        numbers = np.ascontiguousarray(x, np.float32)
        if not self.bfloat16:
            return numbers
        halves = torch.from_numpy(numbers).bfloat16().view(torch.int16).numpy()
        return np.asarray(halves, np.int16).view(np.uint16)

    def unpack(self, stored: Array) -> Array:
        """In float64."""
        if self.bfloat16:
            stored = (stored.astype(np.uint32) << 16).view(np.float32)
        return stored.astype(np.float64)


class Setting:
    """A case's buffers and tables for an instruction set.

    Attributes:
        inputs, weights, bias, residual: to be changed before :meth:`run`, in stored form; lanes of
            ``weights`` and ``bias`` without a channel hold NaN.
        px: where each pixel's input begins, in units; AMX uses every 16th alone.
        present: for each pixel, whether there is one.
    """

    def __init__(self, case: Case, isa: str, seed: int = 0) -> None:
        self.case, self.isa, self.stored = case, isa, Stored(isa)
        rng = np.random.default_rng(seed)
        stored, unit = self.stored, self.stored.per_unit
        count = len(case.present)
        runs = rng.permutation(count // 16) * (16 + 3) * case.pixel_units
        runs += rng.integers(0, 3, count // 16) * case.pixel_units
        self.px = np.repeat(runs, 16) + np.tile(np.arange(16), count // 16) * case.pixel_units
        self._steps = rng.integers(0, 40, case.steps) * case.pixel_units
        panel_input = np.arange(case.panels) * 48 if case.groups else np.zeros(case.panels)
        self._panel_input = panel_input.astype(np.int32)
        units = self.px.max() + self._steps.max() + self._panel_input.max() + 16
        self.inputs = aligned(units * unit, stored.dtype)
        self.inputs[:] = stored.pack(rng.uniform(-1, 1, units * unit))
        shape = (case.panels, case.steps, case.units, PANEL, unit)
        self.weights = aligned(int(np.prod(shape)), stored.dtype).reshape(shape)
        scale = case.scale / np.sqrt(max(case.steps * case.units * unit, 1))
        self.weights[:] = stored.pack(rng.uniform(-3 * scale, 3 * scale, shape))
        self.bias = rng.uniform(-2, 2, (case.panels, PANEL)).astype(np.float32)
        last = case.channels - (case.panels - 1) * PANEL
        self.weights[-1, :, :, last:] = stored.pack(np.full(1, np.nan))
        self.bias[-1, last:] = np.nan
        self._blocks = PANEL // stored.lanes * case.panels
        self._slots = count * 2
        self.residual = aligned(self._blocks * self._slots * stored.lanes, stored.dtype)
        self.residual[:] = stored.pack(rng.uniform(-2, 2, self.residual.size))
        self.residual = self.residual.reshape(self._blocks, self._slots, stored.lanes)
        self._to = rng.permutation(self._slots)[:count]
        self._from = rng.permutation(self._slots)[:count]
        self.present = np.array(case.present)

    def line_of(self, pixel: int, step: int, panel: int = 0) -> slice:
        """What a pixel reads in a step, in ``inputs``."""
        first = self.px[pixel] + self._steps[step] + self._panel_input[panel]
        unit = self.stored.per_unit
        return slice(first * unit, (first + self.case.units) * unit)

    def _sums(self) -> tuple[Array, Array]:
        """``[present pixel, panel * 32 + lane]`` in float64, and the sums of magnitudes."""
        case, stored = self.case, self.stored
        inputs, weights = stored.unpack(self.inputs), stored.unpack(self.weights)
        start = self.px[self.present, None] + self._steps
        each = np.arange(case.units * stored.per_unit)
        parts, sizes = [], []
        for panel in range(case.panels):
            at = (start + self._panel_input[panel])[..., None] * stored.per_unit + each
            read = inputs[at].reshape(len(at), -1)
            matrix = weights[panel].transpose(0, 1, 3, 2).reshape(-1, PANEL)
            parts.append(read @ matrix + self.bias[panel])
            sizes.append(np.abs(read) @ np.abs(matrix) + np.abs(self.bias[panel]))
        return np.concatenate(parts, 1), np.concatenate(sizes, 1)

    def _lines(self, buffer: Array, at: Array) -> Array:
        """``[present pixel, panel * 32 + lane]`` of a tensor in lines."""
        lines = buffer[:, at[self.present]]
        return lines.transpose(1, 0, 2).reshape(lines.shape[1], -1)

    def expected(self) -> tuple[Array, Array]:
        """The result in float64 and how far off it may be."""
        case = self.case
        x, size = self._sums()
        # Each of a sum's roundings is at most half a unit of the sum of magnitudes.
        terms = case.steps * case.units * self.stored.per_unit + 2
        bound = terms * 2.0**-24 * size
        x = activate(x, case.before)
        if case.residual:
            x = x + self.stored.unpack(self._lines(self.residual, self._from))
        x = activate(x, case.after)
        steepness = STEEPEST.get(case.before, 1.5) * STEEPEST.get(case.after, 1.5)
        bound = bound * steepness + 4 * 2.0**-24 * (np.abs(x) + size)
        if case.rows:
            return x[:, : case.channels], bound[:, : case.channels]
        x[:, case.channels :] = 0
        bound[:, case.channels :] = 0
        return x, bound + np.abs(x) * self.stored.precision / 2

    def _table(self, values: Array, keep: list[int] | None = None) -> Array:
        """Per pixel; without those that there are not, except for AMX."""
        if self.isa == "amx_bf16":
            values = np.where(self.present, values, -1) if keep is None else values.copy()
            if keep is not None:
                values[[i for i in range(len(values)) if i not in keep]] = IGNORED
        else:
            values = values[self.present]
        return np.ascontiguousarray(values, np.int32)

    def run(self, library: Library) -> Result:
        """Run it, and hold it against float64."""
        case, stored, amx = self.case, self.stored, self.isa == "amx_bf16"
        count = len(case.present)
        if case.rows:
            output = aligned(count * 2 * case.channels, np.float32)
            to = self._to * case.channels
        else:
            output = aligned(self._blocks * self._slots * stored.lanes, stored.dtype)
            to = self._to * 16
        output.view(np.uint8)[:] = UNTOUCHED
        self._slopes = np.tile(SLOPES, case.panels)
        tables = [
            self._table(self.px, list(range(0, count, 16))),
            self._table(to),
            self._table(self._from * 16),
            self._steps.astype(np.int32),
        ]
        op = COp(
            kind=KINDS.index("convolution"),
            isa=ISAS.index(self.isa),
            dtype=int(stored.bfloat16),
            images=1,
            before=structure(case.before),
            after=structure(case.after),
            slopes=self._slopes.ctypes.data,
            has_residual=case.residual,
            rows=case.rows,
            weights=self.weights.ctypes.data,
            bias=self.bias.ctypes.data,
            panel_bytes=self.weights[0].nbytes,
            pixels=len(tables[0]),
            step_count=case.steps,
            step_units=case.units,
            panels=case.panels,
            tile=MOST_PIXELS[self.isa],
            group=case.group,
            chunk_panels=case.chunk_panels,
            prefetch=case.prefetch,
            row_step=case.pixel_units * 4 if amx else 0,
        )
        names = ("input_px", "output_px", "residual_px", "steps")
        for name, table in zip(names, tables, strict=True):
            setattr(op, name, table.ctypes.data)
        if case.groups:
            op.panel_input = self._panel_input.ctypes.data
        for tensor, space, index in ((op.input, INPUT, 0), (op.residual, INPUT, 1)):
            tensor.space, tensor.index = space, index
        op.output.space = OUTPUT
        op.output.channels = case.channels
        op.output.plane = op.residual.plane = self._slots * 64
        inputs = (COutside * 2)()
        outputs = (COutside * 1)()
        arrays = (self.inputs, self.residual, output)
        for outside, array in zip((*inputs, *outputs), arrays, strict=True):
            outside.data, outside.image_bytes = array.ctypes.data, array.nbytes
        phase, guards = CPhase(0, 1, 1), (ctypes.c_int64 * 1)()
        plan = library.plan_create(ctypes.byref(op), 1, ctypes.byref(phase), 1, 1, 64, guards, 0)
        assert plan
        try:
            status = library.run(None, plan, case.threads, inputs, 2, outputs, 1, None)
        finally:
            library.plan_destroy(plan)
        assert status == 0
        return self._result(output)

    def _result(self, output: Array) -> Result:
        expected, bound = self.expected()
        raw = output.view(np.uint8)
        if self.case.rows:
            table = output.reshape(-1, self.case.channels)
            values = table[self._to[self.present]].astype(np.float64)
            raw.reshape(len(table), -1)[self._to[self.present]] = UNTOUCHED
        else:
            lines = output.reshape(self._blocks, self._slots, self.stored.lanes)
            values = self.stored.unpack(self._lines(lines, self._to))
            blocks = -(-self.case.channels // self.stored.lanes)
            missing = values[:, blocks * self.stored.lanes :]
            untouched = np.frombuffer(bytes([UNTOUCHED] * 4), self.stored.dtype)
            assert (missing == self.stored.unpack(untouched)[0]).all()
            kept = blocks * self.stored.lanes
            values, expected, bound = values[:, :kept], expected[:, :kept], bound[:, :kept]
            raw.reshape(self._blocks, self._slots, 64)[:, self._to[self.present]] = UNTOUCHED
        return Result(values, expected, bound, int((raw != UNTOUCHED).sum()))
