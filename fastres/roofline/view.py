"""Each operator's floor and modelled time on one GPU, and their sums.

A floor is ``max(FLOPs / peak, least bytes / bandwidth)``, the roofline: no kernel is faster.
A view is one way to cut the model into operators: each by itself, or blocks as one kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastres.kernels.tuning.cost import floor_seconds
from fastres.kernels.tuning.fusing import modelled, pooling
from fastres.kernels.tuning.gpus import Gpu
from fastres.roofline.layers import Layer


@dataclass(frozen=True)
class Row:
    """One operator.

    Attributes:
        layer: the operator and its sizes.
        bytes: the least number that it has to read and write.
        floor_seconds: the roofline's time, by the data sheet's peak and bandwidth.
        seconds: the modelled time, launches included.
        limit: the resource that bounds the modelled time; see
            :class:`fastres.kernels.tuning.cost.Estimate`.
        launches: how many kernels it takes.
        configuration: of the kernels, in words.
    """

    layer: Layer
    bytes: int
    floor_seconds: float
    seconds: float
    limit: str
    launches: int
    configuration: str

    @property
    def stage(self) -> str:
        """The model's own module that the layer is inside of; "" for one that is not inside any."""
        stage, _, inside = self.layer.name.partition(".")
        return stage if inside else ""


@dataclass(frozen=True)
class View:
    """A model cut into operators.

    Attributes:
        fusion: ``none``, ``blocks`` where one kernel is modelled to be faster, or ``all blocks``
            that fit, for the fewest launches and bytes.
        batch: images per call.
        rows: the operators in order.
    """

    fusion: str
    batch: int
    rows: tuple[Row, ...]

    @property
    def seconds(self) -> float:
        """Modelled time of all operators, one after the other."""
        return sum(row.seconds for row in self.rows)

    @property
    def floor_seconds(self) -> float:
        """Sum of the floors."""
        return sum(row.floor_seconds for row in self.rows)

    @property
    def bytes(self) -> int:
        """Sum of the least bytes."""
        return sum(row.bytes for row in self.rows)

    @property
    def stages(self) -> dict[str, int]:
        """Least bytes of each module of the model that has layers inside, in order.

        A block's kernel counts where the block is, also for the next one's first convolution.
        """
        found: dict[str, int] = {}
        for row in self.rows:
            if row.stage:
                found[row.stage] = found.get(row.stage, 0) + row.bytes
        return found

    @property
    def launches(self) -> int:
        """Kernel launches of all operators."""
        return sum(row.launches for row in self.rows)

    @property
    def images_per_second(self) -> float:
        """Modelled throughput."""
        return self.batch / self.seconds

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "fusion": self.fusion,
            "total": {
                "launches": self.launches,
                "bytes": self.bytes,
                "bytes_of_stages": self.stages,
                "floor_seconds": self.floor_seconds,
                "modelled_seconds": self.seconds,
                "modelled_images_per_second": self.images_per_second,
            },
            "layers": [
                {
                    "name": row.layer.name,
                    "operator": row.layer.operator,
                    "flops": row.layer.flops,
                    "bytes": row.bytes,
                    "floor_seconds": row.floor_seconds,
                    "modelled_seconds": row.seconds,
                    "modelled_limit": row.limit,
                    "launches": row.launches,
                    "configuration": row.configuration,
                }
                for row in self.rows
            ],
        }


def view(layers: Sequence[Layer], fusion: str, batch: int, precision: str, gpu: Gpu) -> View:
    """The rows of a model's operators, see :class:`View`."""
    return View(fusion, batch, tuple(_row(layer, precision, gpu) for layer in layers))


def _row(layer: Layer, precision: str, gpu: Gpu) -> Row:
    moved = layer.least_bytes(precision)
    if layer.spec is None:
        kernel = pooling(moved, gpu)
    else:
        kernel = modelled(layer.spec, precision, gpu, layer.residual)
    return Row(
        layer=layer,
        bytes=moved,
        floor_seconds=floor_seconds(layer.flops, moved, precision, gpu),
        seconds=kernel.estimate.seconds,
        limit=kernel.estimate.limit,
        launches=kernel.launches,
        configuration=kernel.configuration,
    )
