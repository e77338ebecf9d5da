"""Tables of offsets that the library reads while a plan runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from fastres.errors import OutOfMemory


class Tables:
    """A plan's tables; equal ones are one.

    Attributes:
        kept: what must live as long as the plan.
    """

    def __init__(self, kept: list[Any]) -> None:
        self.kept = kept
        self._tables: dict[Any, npt.NDArray[np.int32]] = {}
        self._made: dict[Any, Any] = {}

    def shared(self, key: Any, make: Callable[[], Any]) -> Any:
        """What ``make`` makes, once."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def keep(self, key: Any, make: Callable[[], npt.NDArray[Any]]) -> int:
        """The address of a table of int32.

        Raises:
            OutOfMemory: an offset is too large for it.
        """
        if key not in self._tables:
            table = make()
            if table.size and table.max() >= 2**31:
                raise OutOfMemory(
                    "one image's activations would take more than 8 GiB, which the native engine's "
                    "tables do not reach: use a smaller image, or engine='onednn'"
                )
            self._tables[key] = np.ascontiguousarray(table, dtype=np.int32)
            self.kept.append(self._tables[key])
        return int(self._tables[key].ctypes.data)
