"""The limits that control groups set to a Linux process: processor time and memory.

A process is in one group of every mounted hierarchy, and each group on the way up to the
hierarchy's root may set a limit: the tightest counts. Version 1 has one hierarchy per controller,
version 2 a single one; a system may have both mounted. Elsewhere than on Linux there are no groups
and so no limits.

Every function takes the folder in which to look for ``proc`` and ``sys``, so that tests can give it
a tree of their own. Source: the Linux kernel's Documentation/admin-guide/cgroup-v1 and cgroup-v2.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ROOT = Path("/")


@dataclass(frozen=True)
class _Group:
    """One group that holds this process: its folder, and the version of its interface (1 or 2)."""

    version: int
    folder: Path


def text(path: Path) -> str:
    """A kernel file's text without the last line break; empty if there is no such file to read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").rstrip("\n")
    except OSError:  # not on this system, not in this kernel, or not for this user
        return ""


def cpu_quota(root: Path = ROOT) -> float | None:
    """Processors' worth of time that the groups allow, e.g. 1.5; None without a limit."""
    quotas = [_quota(group) for group in _groups("cpu", root)]
    return min((quota for quota in quotas if quota is not None), default=None)


def memory_left(root: Path = ROOT) -> int | None:
    """Bytes that may still be allocated before a group's limit is hit; None without a limit.

    Cached files that nobody has touched lately count as free: the kernel drops them before it
    refuses memory. Never negative.
    """
    limits = [_memory_left(group) for group in _groups("memory", root)]
    return min((remaining for remaining in limits if remaining is not None), default=None)


def _quota(group: _Group) -> float | None:
    if group.version == 2:
        runtime, _, period = text(group.folder / "cpu.max").partition(" ")
    else:
        runtime = text(group.folder / "cpu.cfs_quota_us")
        period = text(group.folder / "cpu.cfs_period_us")
    # "max" in version 2, -1 in version 1 and a missing file (the root group) all mean no limit.
    if not runtime.isdecimal() or not period.isdecimal() or int(runtime) == 0 or int(period) == 0:
        return None
    return int(runtime) / int(period)


def _memory_left(group: _Group) -> int | None:
    if group.version == 2:
        names = ("memory.max", "memory.current", "inactive_file")
    else:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    limit, usage = (text(group.folder / name) for name in names[:2])
    if not limit.isdecimal() or not usage.isdecimal():
        return None
    statistics = text(group.folder / "memory.stat")
    cached = re.search(rf"^{names[2]} (\d+)$", statistics, re.MULTILINE)
    used = int(usage) - (int(cached[1]) if cached else 0)
    return max(0, int(limit) - max(0, used))


def _groups(controller: str, root: Path) -> Iterator[_Group]:
    """Every group that limits this process's use of ``controller``, innermost first."""
    paths = _paths(controller, root)
    for line in text(root / "proc/self/mountinfo").splitlines():
        # 35 24 0:30 /mounted/part /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu
        mount, _, system = line.partition(" - ")
        kind, *_, options = system.split(" ")
        if kind == "cgroup2":
            version = 2
        elif kind == "cgroup" and controller in options.split(","):
            version = 1
        else:
            continue
        if version not in paths:
            continue
        top, point = (_unescaped(field) for field in mount.split(" ")[3:5])
        mounted = root / point.lstrip("/")
        inner = _below(paths[version], top)
        # A container may see only a part of the hierarchy: what is not there sets no limit.
        for part in (inner, *inner.parents):
            folder = mounted / part
            if folder.is_dir():
                yield _Group(version, folder)


def _paths(controller: str, root: Path) -> dict[int, str]:
    """The process's own group in the hierarchy of ``controller``, by version of the interface."""
    paths = {}
    for line in text(root / "proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            paths[2] = path
        elif controller in controllers.split(","):
            paths[1] = path
    return paths


def _below(path: str, top: str) -> PurePosixPath:
    """``path`` relative to ``top``; nothing if it is not below it, as seen from a namespace."""
    group = PurePosixPath(path)
    if ".." in group.parts or not group.is_relative_to(top):
        return PurePosixPath()
    return group.relative_to(top)


def _unescaped(field: str) -> str:
    r"""mountinfo writes a space in a path as \040, and likewise other characters."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
