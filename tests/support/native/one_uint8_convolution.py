"""One uint8 convolution op run by the compiled library, and the same by its definition.

As ``one_convolution``, with the operators of ``fastres.kernels.quantized`` as the judge: what a
pixel reads is gathered by the tables, and is then a convolution of one pixel. Results are equal or
wrong.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastres.kernels import quantized
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
from fastres.runtime.native.pack import widened
from tests.support.native.one_convolution import (
    IGNORED,
    PANEL,
    UNTOUCHED,
    Array,
    Case,
    aligned,
)

MOST_PIXELS = {"avx2": 6, "avx_vnni": 6, "avx512_vnni": 14, "amx_int8": 32}
"""Of a tile, by instruction set that a processor here may have."""

UINT8 = 2
GROUP = 4
LANES = 64


@dataclass(frozen=True)
class Uint8Case(Case):
    """A convolution of uint8 as its op sees it.

    Attributes:
        zeros: zero points of input, residual and output.
        extreme: the one weight and the one input that there are, in place of random ones.
        read_ahead: of the schedule.
        coarse: the output's scale, in units of what fits all results.
    """

    zeros: tuple[int, int, int] = (131, 77, 40)
    extreme: tuple[int, int] | None = None
    read_ahead: bool = False
    coarse: float = 0.8


def uint8_case(case: Case, **others: Any) -> Uint8Case:
    """The same sizes."""
    return Uint8Case(**{**vars(case), **others})


@dataclass
class Uint8Result:
    """What came out and what should have, [present pixel, channel].

    Attributes:
        strangers: bytes outside these pixels' channels that changed.
    """

    values: Tensor
    expected: Tensor
    strangers: int

    def check(self) -> None:
        """Raise AssertionError unless all is equal and nothing else was written."""
        assert self.strangers == 0
        assert self.values.dtype == self.expected.dtype
        assert torch.equal(self.values, self.expected), (self.values, self.expected)


class Uint8Setting:
    """A case's buffers and tables for an instruction set.

    Attributes:
        inputs, weights, bias: to be changed before :meth:`run`. Weights of channels that there are
            not are any; multipliers of them are NaN.
        present: for each pixel, whether there is one.
    """

    def __init__(self, case: Uint8Case, isa: str, seed: int = 0) -> None:
        self.case, self.isa = case, isa
        rng = np.random.default_rng(seed)
        count = len(case.present)
        runs = rng.permutation(count // 16) * (16 + 3) * case.pixel_units
        runs += rng.integers(0, 3, count // 16) * case.pixel_units
        self.px = np.repeat(runs, 16) + np.tile(np.arange(16), count // 16) * case.pixel_units
        self._steps = rng.integers(0, 40, case.steps) * case.pixel_units
        panel_input = np.arange(case.panels) * 48 if case.groups else np.zeros(case.panels)
        self._panel_input = panel_input.astype(np.int32)
        units = self.px.max() + self._steps.max() + self._panel_input.max() + case.units
        self.inputs = aligned(units * GROUP, np.uint8)
        self.inputs[:] = rng.integers(0, 256, units * GROUP)
        shape = (case.panels, case.steps, case.units, PANEL, GROUP)
        self.weights = rng.integers(-127, 128, shape).astype(np.int8)
        if case.extreme is not None:
            self.weights[:], self.inputs[:] = case.extreme
        products = case.steps * case.units * GROUP
        self.bias = rng.normal(0, 5000 * products**0.5, (case.panels, PANEL)).astype(np.int32)
        self._blocks = -(-case.panels // 2)
        self._slots = count * 2
        self.residual = aligned(self._blocks * self._slots * LANES, np.uint8)
        self.residual[:] = rng.integers(0, 256, self.residual.size)
        self.residual = self.residual.reshape(self._blocks, self._slots, LANES)
        self._to = rng.permutation(self._slots)[:count]
        self._from = rng.permutation(self._slots)[:count]
        self.present = np.array(case.present)
        self._steepness = rng.uniform(0.3, 1.7, case.panels * PANEL)
        self._fit()

    def _fit(self) -> None:
        """Scales with which results are of the size of what activations bend, and fit uint8."""
        case = self.case
        sums = np.concatenate(
            [self._centred(panel) @ self._matrix(panel) for panel in range(case.panels)], 1
        )
        typical = max(float(np.abs(sums).max()), 1.0)
        self.x_scale, self.residual_scale = 0.037, 6.0 / 255
        scales = case.scale * 8.0 / (typical * self.x_scale) * self._steepness
        self.weight_scale = torch.from_numpy(scales).float()
        bounded = "relu6" in (case.before, case.after)
        self.scale = case.coarse * (6.0 if bounded else 14.0) / max(case.zeros[2], 255)

    def _read(self, panel: int) -> Array:
        """[present pixel, number] uint8."""
        start = self.px[self.present, None] + self._steps + self._panel_input[panel]
        at = start[..., None] * GROUP + np.arange(self.case.units * GROUP)
        return np.asarray(self.inputs[at].reshape(len(at), -1))

    def _centred(self, panel: int) -> Array:
        return np.asarray(self._read(panel).astype(np.int64) - self.case.zeros[0])

    def _matrix(self, panel: int) -> Array:
        """[number, channel]."""
        return np.asarray(self.weights[panel].transpose(0, 1, 3, 2).reshape(-1, PANEL), np.int64)

    def _lines(self, buffer: Array, at: Array) -> Tensor:
        """[present pixel, channel], of whole panels."""
        lines = buffer[:, at[self.present]].transpose(1, 0, 2)
        return torch.from_numpy(lines.reshape(lines.shape[0], -1).copy())

    def expected(self) -> Tensor:
        """[present pixel, channel] by the definition."""
        case = self.case
        x_zero, residual_zero, zero = case.zeros
        added = self._lines(self.residual, self._from)
        parts = []
        for panel in range(case.panels):
            channels = slice(panel * PANEL, (panel + 1) * PANEL)
            x = torch.from_numpy(self._read(panel).copy())
            weight = torch.from_numpy(self._matrix(panel).T.astype(np.int8))
            bias = torch.from_numpy(self.bias[panel])
            scale = self.weight_scale[channels]
            if case.rows:
                assert case.before == "none" and not case.residual
                rest = (case.after, self.x_scale, x_zero, None, 0)
                parts.append(quantized.quantized_linear(x, weight, scale, bias, *rest))
                continue
            residual = added[:, channels, None, None] if case.residual else None
            result = quantized.quantized_conv2d(
                x[:, :, None, None], weight[:, :, None, None], scale, bias, residual,
                [1, 1], [0, 0, 0, 0], [1, 1], 1, case.before, case.after, self.x_scale, x_zero,
                self.residual_scale, residual_zero, self.scale, zero,
            )  # fmt: skip
            parts.append(result[:, :, 0, 0])
        return torch.cat(parts, 1)[:, : case.channels]

    def _table(self, values: Array, keep: list[int] | None = None) -> Array:
        """Per pixel; without those that there are not, except for AMX."""
        if self.isa == "amx_int8":
            values = np.where(self.present, values, -1) if keep is None else values.copy()
            if keep is not None:
                values[[i for i in range(len(values)) if i not in keep]] = IGNORED
        else:
            values = values[self.present]
        return np.ascontiguousarray(values, np.int32)

    def run(self, library: Library) -> Uint8Result:
        """Run it, and hold it against the definition."""
        case, amx = self.case, self.isa == "amx_int8"
        count = len(case.present)
        x_zero, residual_zero, zero = case.zeros
        if case.rows:
            output, to = aligned(count * 2 * case.channels * 4, np.uint8), self._to * case.channels
        else:
            output, to = aligned(self._blocks * self._slots * LANES, np.uint8), self._to * 16
        output[:] = UNTOUCHED
        tables = [
            self._table(self.px, list(range(0, count, 16))),
            self._table(to),
            self._table(self._from * 16),
            self._steps.astype(np.int32),
        ]
        packed = torch.from_numpy(self.weights)
        packed = widened(packed) if self.isa == "avx2" else packed
        weights = aligned(packed.numel(), packed.numpy().dtype)
        weights[:] = packed.numpy().reshape(-1)
        sums = np.stack([self._matrix(panel).sum(0) for panel in range(case.panels)])
        bias = (self.bias - x_zero * sums).astype(np.int32)
        activations = [case.after] if case.rows else [case.before, case.after]
        unit = 1.0 if case.rows else quantized.output_unit(activations, self.scale)
        multiplier = quantized.multipliers(self.x_scale, self.weight_scale, unit).numpy().copy()
        multiplier[case.channels :] = np.nan
        op = COp(
            kind=KINDS.index("convolution"),
            isa=ISAS.index(self.isa),
            dtype=UINT8,
            images=1,
            before=CFunction(ACTIVATIONS[case.before]),
            after=CFunction(ACTIVATIONS[case.after]),
            has_residual=case.residual,
            rows=case.rows,
            weights=weights.ctypes.data,
            bias=bias.ctypes.data,
            multiplier=multiplier.ctypes.data,
            panel_bytes=weights.nbytes // case.panels,
            pixels=len(tables[0]),
            step_count=case.steps,
            step_units=case.units,
            panels=case.panels,
            tile=MOST_PIXELS.get(self.isa, 6),
            group=case.group,
            chunk_panels=case.chunk_panels,
            prefetch=case.prefetch,
            read_ahead=case.read_ahead,
            row_step=case.pixel_units * 4 if amx else 0,
            residual_multiplier=quantized.ratio(self.residual_scale, unit),
            output_multiplier=1.0 if case.rows else quantized.ratio(unit, self.scale),
            input_zero=x_zero,
            residual_zero=residual_zero,
            output_zero=zero,
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
        op.output.plane = op.residual.plane = self._slots * LANES
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

    def _result(self, output: Array) -> Uint8Result:
        case, to = self.case, self._to[self.present]
        if case.rows:
            table = output.view(np.float32).reshape(-1, case.channels)
            values = torch.from_numpy(table[to])
            output.reshape(len(table), -1)[to] = UNTOUCHED
        else:
            lines = output.reshape(self._blocks, self._slots, LANES)
            values = self._lines(lines, self._to)[:, : case.channels]
            # Kernels store eight channels at a time; of a line, and of their panel.
            written = -(-case.channels // 8) * 8
            for block in range(self._blocks):
                lines[block, to, : max(0, written - block * LANES)] = UNTOUCHED
        return Uint8Result(values, self.expected(), int((output != UNTOUCHED).sum()))
