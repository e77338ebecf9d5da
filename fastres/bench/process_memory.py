"""Resident memory of this process: now, and its peak.

getrusage's maximum is no use to a process that another one started: Linux hands it the starter's
own size as a beginning. Linux's VmHWM counts this program's pages only, and can be reset.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def resident() -> int | None:
    """Resident bytes now, or None where the system has no /proc."""
    return _status("VmRSS")


def peak() -> tuple[int, str]:
    """The most resident bytes since the last reset or the start, and the counter's name.

    Shared libraries and files that are mapped count as far as they are resident.

    Raises:
        OSError: the system has neither /proc nor getrusage.
    """
    highest = _status("VmHWM")
    if highest is not None:
        return highest, "VmHWM"
    try:
        import resource
    except ModuleNotFoundError as error:
        raise OSError("this system does not tell a process its peak memory") from error
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "ru_maxrss"


def reset_peak() -> bool:
    """Let the peak begin anew at what is resident now.

    Returns:
        Whether the system could; if not, `peak` still counts what came before.
    """
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


def _status(name: str) -> int | None:
    try:
        text = _STATUS.read_text()
    except OSError:
        return None
    match = re.search(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE)
    return int(match[1]) << 10 if match else None
