"""What the caller of ``optimize`` asked for, checked once, at the door."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastres.dtypes import PRECISIONS, REQUESTABLE
from fastres.errors import OptionError
from fastres.system.target import most_threads

ENGINES: tuple[str, ...] = ("auto", "triton", "native", "onednn", "eager")


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

    def __post_init__(self) -> None:
        if self.precision is not None and self.precision not in REQUESTABLE:
            raise OptionError(
                f"precision={self.precision!r}: expected None (the model's own) or one of "
                f"{', '.join(map(repr, REQUESTABLE))}"
            )
        if self.engine not in ENGINES:
            raise OptionError(
                f"engine={self.engine!r}: expected one of {', '.join(map(repr, ENGINES))}"
            )
        for name in ("strict", "tune"):
            if not isinstance(getattr(self, name), bool):
                raise OptionError(f"{name}={getattr(self, name)!r}: expected True or False")
        threads = self.threads
        most = most_threads()
        if threads is not None and (
            not isinstance(threads, int) or isinstance(threads, bool) or not 1 <= threads <= most
        ):
            raise OptionError(
                f"threads={threads!r}: expected None or a number from 1 to {most}; more than the "
                "processors that the process may use only take turns"
            )
        sizes = self.batch_buckets
        if not isinstance(sizes, tuple) or not all(
            type(size) is int and size > 0 for size in sizes
        ):
            raise OptionError(
                f"batch_buckets={sizes!r}: expected a sequence of batch sizes of at least 1"
            )

    def dtype(self, own: torch.dtype) -> torch.dtype:
        """The dtype to compute in, for a model whose own is ``own``."""
        return own if self.precision is None else PRECISIONS[self.precision].dtype
