"""What a peer is: one way to run the model. `fastres.bench.peers.catalogue` lists them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from fastres.dtypes import ROWS

DTYPES = {row.name: row.dtype for row in ROWS}
"""What a peer may compute in."""

FLOATING = tuple(row.name for row in ROWS if not row.quantized)
QUANTIZED = tuple(row.name for row in ROWS if row.quantized)
"""Those whose ranges are taken from calibration images."""

PRECISIONS = {
    device: tuple(row.name for row in ROWS if device in row.devices) for device in ("cpu", "cuda")
}
"""Those that each kind of device has, in the order of the tables."""

FASTRES_BOUND = 2.0
"""fastres passes up to this multiple of eager's own error in the same precision.

Not in int8, which torch eager does not have: there its answers have to be those of int8's
definition, bit for bit.
"""

PEER_BOUND = 10.0
"""Others pass up to this multiple: they may choose other algorithms, but not answer wrongly.

In int8 each chooses scales of its own, and only `fastres.bench.gate.ABSOLUTE` holds for them.
"""


@dataclass(frozen=True)
class Job:
    """What a peer is prepared for: a model, one input shape and a precision.

    Attributes:
        model: the user's, in float32 and evaluation mode; not to be changed.
        example: a batch as it will be timed, ``[N, C, H, W]``, float32, contiguous, on the device
            that computes.
        precision: what to compute in, a key of `DTYPES`.
        threads: how many may be used.
        folder: for files that the peer writes.
        cache: a folder, perhaps not there yet, for what a second process would find again.
        calibration: images ``[N, C, H, W]``, float32, on the CPU, from which the ranges of
            activations are to be taken; None where the precision has no use for them.
    """

    model: nn.Module
    example: torch.Tensor
    precision: str
    threads: int
    folder: Path
    cache: Path
    calibration: torch.Tensor | None = None

    @property
    def device(self) -> torch.device:
        """The device to compute on, that of the example."""
        return self.example.device


@dataclass(frozen=True)
class Ready:
    """A prepared peer.

    Attributes:
        call: from a batch like the example to the model's answers. Each peer gets the same
            float32 tensor and gives float32 answers in memory of their own; what converting them
            takes is part of its time.
        export_seconds: how long it took to write the model for another runtime, if it was.
        notes: what a reader of the table should know, e.g. which of two modes was taken.
        definition: the same from the precision's definition, computed operator by operator, where
            there is one to be held to; it is not timed.
        is_exact: whether ``call`` has to give the definition's answers bit for bit.
    """

    call: Callable[[torch.Tensor], object]
    export_seconds: float | None = None
    notes: tuple[str, ...] = ()
    definition: Callable[[torch.Tensor], object] | None = None
    is_exact: bool = False


@dataclass(frozen=True)
class Peer:
    """One way to run the model.

    Attributes:
        name: its name on the command line and in records.
        title: its name in tables.
        prepare: makes it ready for one job.
        missing: what has to be installed before it works on a kind of device, or None.
        refuses: why it does not compute in a precision on a kind of device, or None.
        devices: the kinds that it is for.
        precisions: those that it is for; in others it has no row at all.
        bound: the largest multiple of eager's own error that passes.
        alternative: whether a user would take it instead of fastres; the others take part only
            where they are asked for.
    """

    name: str
    title: str
    prepare: Callable[[Job], Ready]
    missing: Callable[[str], str | None] = lambda device: None
    refuses: Callable[[str, str], str | None] = lambda precision, device: None
    devices: tuple[str, ...] = ("cpu", "cuda")
    precisions: tuple[str, ...] = FLOATING
    bound: float = PEER_BOUND
    alternative: bool = True
