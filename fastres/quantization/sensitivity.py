"""Which layers lose the most when they are quantised: one at a time, the rest in float32."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fastres.ir import ops
from fastres.ir.graph import module_of
from fastres.ir.views import Conv2d, Linear
from fastres.kernels.quantized import dequantize, quantize
from fastres.quantization.calibration import Calibration
from fastres.quantization.observers import Scale
from fastres.quantization.quantize import candidates
from fastres.quantization.settings import Quantization
from fastres.quantization.weights import quantized_weights


@dataclass(frozen=True)
class Sensitivity:
    """One layer's part in int8's error.

    Attributes:
        module: dotted name in the user's model.
        error: relative root-mean-square error of the model's answers against float32 when this
            layer alone is quantised.
        share: of the sum of all layers' squared errors.
    """

    module: str
    error: float
    share: float


class SensitivityTable(list[Sensitivity]):
    """The layers, those that lose the most first; ``print`` it.

    Attributes:
        unmeasured: names of the layers that the time limit left out.
    """

    unmeasured: tuple[str, ...] = ()

    def __str__(self) -> str:
        from rich import box
        from rich.console import Console
        from rich.table import Column, Table

        table = Table(
            Column("module", no_wrap=True),
            Column("error", justify="right"),
            Column("share", justify="right"),
            box=box.SIMPLE_HEAD,
            pad_edge=False,
        )
        for row in self:
            table.add_row(row.module, f"{row.error:.1e}", f"{row.share:.1%}")
        console = Console(width=100, no_color=True)
        with console.capture() as captured:
            console.print(table)
        text = captured.get().rstrip()
        if self.unmeasured:
            text += f"\nnot measured within the time limit: {', '.join(self.unmeasured)}"
        return text


def sensitivities(
    module: fx.GraphModule,
    calibration: Calibration,
    settings: Quantization,
    seconds: float,
) -> SensitivityTable:
    """Measure each layer of a fused float32 graph on the calls that calibration kept.

    Args:
        seconds: after which no further layer is begun.
    """
    from rich.console import Console
    from rich.progress import Progress

    layers = candidates(module.graph, settings)
    began = time.monotonic()
    errors: dict[fx.Node, float] = {}
    console = Console(stderr=True)
    with (
        torch.no_grad(),
        Progress(console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        for node in progress.track(layers, description="sensitivity"):
            if errors and time.monotonic() - began > seconds:
                break
            errors[node] = _error(module, node, calibration, settings)
    total = sum(error**2 for error in errors.values())
    rows = [
        Sensitivity(module_of(node), error, error**2 / total if total else 0.0)
        for node, error in errors.items()
    ]
    found = SensitivityTable(sorted(rows, key=lambda row: -row.error))
    found.unmeasured = tuple(module_of(node) for node in layers if node not in errors)
    return found


def _error(
    module: fx.GraphModule, node: fx.Node, calibration: Calibration, settings: Quantization
) -> float:
    square = size = 0.0
    simulated = _OneQuantized(module, node, calibration, settings)
    for call, answer in zip(calibration.seen.calls, calibration.seen.answers, strict=True):
        ours = simulated.run(*call)[0]
        square += float((ours.double() - answer.double()).square().sum())
        size += float(answer.double().square().sum())
    return (square / size) ** 0.5 if size else 0.0


class _OneQuantized(fx.Interpreter):
    """Runs a float32 graph, one layer of it on rounded values and weights."""

    def __init__(
        self,
        module: fx.GraphModule,
        node: fx.Node,
        calibration: Calibration,
        settings: Quantization,
    ) -> None:
        super().__init__(module)
        self._node, self._scales = node, calibration.scales
        view: Conv2d | Linear = Conv2d.of(node) if node.target is ops.conv2d else Linear.of(node)
        filters = view.filters
        assert filters is not None
        mean = calibration.means.get(view.x.name) if settings.bias_correction else None
        groups = view.groups if isinstance(view, Conv2d) else 1
        scale = self._scales[view.x.name].scale
        bias = None if view.bias is None else getattr(module, str(view.bias.target))
        made = quantized_weights(filters, bias, scale, mean, groups)
        shape = (-1, *(1,) * (filters.dim() - 1))
        self._weight = made.weight.float() * made.scale.view(shape)
        self._bias = (made.bias.double() * made.scale.double() * scale).float()
        self._reads = {view.x.name}
        if isinstance(view, Conv2d) and view.residual is not None:
            self._reads.add(view.residual.name)

    def run_node(self, n: fx.Node) -> Any:
        if n is not self._node:
            return super().run_node(n)
        args = list(self.fetch_args_kwargs_from_env(n)[0])
        for index, source in enumerate(n.args):
            if isinstance(source, fx.Node) and source.name in self._reads:
                args[index] = _rounded(args[index], self._scales[source.name])
        args[1], args[2] = self._weight, self._bias
        result = ops.REFERENCE[n.target](*args)
        assert isinstance(result, Tensor)
        return _rounded(result, self._scales[n.name])


def _rounded(value: Tensor, scale: Scale) -> Tensor:
    q = quantize(value, scale.scale, scale.zero_point)
    return dequantize(q, scale.scale, scale.zero_point)
