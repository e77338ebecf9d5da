"""What the caller of ``optimize`` asked for, checked once, at the door."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastres.checks import is_integer, refusal, require_bool, require_integer, require_one_of
from fastres.dtypes import PRECISIONS, REQUESTABLE
from fastres.system.target import most_threads

ENGINES: tuple[str, ...] = ("auto", "triton", "native", "onednn", "eager")

_PRECISIONS = "None is the model's own, and 'auto' takes the fastest that is near enough"

_MORE_THREADS = (
    "None is as many as the process may use, and more than those only take turns on its processors"
)


_MORE_STREAMS = "each stream has a thread, and more than the process has processors take turns"


@dataclass(frozen=True)
class Options:
    """Checked arguments of :func:`fastres.optimize`.

    Attributes:
        precision: one of :data:`fastres.dtypes.REQUESTABLE`, or None for the model's own dtype.
        engine: one of :data:`ENGINES`.
        strict: raise for the first thing that is not optimised.
        threads: threads per call, or None for what the process may use.
        device: where the optimised model runs, or None for where the model is.
        tune: time tactics on the device instead of choosing them by the cost model.
        streams: calls at a time, each on one thread, or None for calls on several threads.
        batch_buckets: batch sizes that smaller batches are filled up to.

    Raises:
        OptionError: a value is not one of those.
    """

    precision: str | None = None
    engine: str = "auto"
    strict: bool = False
    threads: int | None = None
    device: torch.device | None = None
    tune: bool = False
    batch_buckets: tuple[int, ...] = ()
    streams: int | None = None

    def __post_init__(self) -> None:
        if self.precision is not None:
            require_one_of("precision", self.precision, REQUESTABLE, _PRECISIONS)
        require_one_of("engine", self.engine, ENGINES)
        require_bool("strict", self.strict)
        require_bool("tune", self.tune)
        if self.threads is not None:
            require_integer("threads", self.threads, _MORE_THREADS, most=most_threads())
        if self.streams is not None:
            require_integer("streams", self.streams, _MORE_STREAMS, most=most_threads())
            if self.threads not in (None, 1):
                raise refusal("threads", self.threads, "None or 1 beside streams")
        if not isinstance(self.batch_buckets, tuple) or not all(
            map(is_integer, self.batch_buckets)
        ):
            raise refusal(
                "batch_buckets", self.batch_buckets, "a sequence of integers of at least 1"
            )

    @property
    def threads_per_call(self) -> int | None:
        """Threads of a call, or None for what the process may use."""
        return self.threads if self.streams is None else 1

    def dtype(self, own: torch.dtype, is_calibrated: bool = False) -> torch.dtype:
        """The dtype that the passes fold in, for a model whose own is ``own``.

        What is calibrated is folded in float32, and made narrower by what calibration finds.
        """
        if self.precision is None:
            return own
        return torch.float32 if is_calibrated else PRECISIONS[self.precision].folded
