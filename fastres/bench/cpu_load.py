"""How busy other programs kept the processors during a measurement."""

from __future__ import annotations

import os
import time
from pathlib import Path

from fastres.system import target

_STAT = Path("/proc/stat")


class Watch:
    """Counts other programs' processor time from its construction on."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._others = _others_seconds()

    def share(self) -> float | None:
        """Part of all processors' time that other programs had since the beginning, 0 to 1.

        None where the system does not tell. Its clock ticks every 10 ms.
        """
        now = _others_seconds()
        wall = (time.perf_counter() - self._began) * (target.cpu().threads or 1)
        if now is None or self._others is None or wall <= 0:
            return None
        return min(1.0, max(0.0, (now - self._others) / wall))


def _others_seconds() -> float | None:
    """Processor time of everything but this process since the machine started."""
    try:
        first = _STAT.read_text().splitlines()[0].split()
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, first[1:9])
    except (OSError, IndexError, ValueError):
        return None
    ticks = user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK") - time.process_time()
