"""Control groups, read from made-up trees of files in both versions of the interface."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastres.system import cgroup

V1_CPU = "33 32 0:29 {top} {point} rw,relatime - cgroup cgroup rw,cpu,cpuacct"
V1_MEMORY = "34 32 0:30 {top} {point} rw,relatime - cgroup cgroup rw,memory"
V2 = "31 23 0:28 {top} {point} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
DISK = "22 1 254:0 / / rw,relatime - ext4 /dev/root rw"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def machine(root: Path, mounts: list[str], groups: list[str], files: dict[str, str]) -> Path:
    """A tree with these lines in mountinfo and /proc/self/cgroup, and these files."""
    proc = {
        "proc/self/mountinfo": "\n".join([DISK, *mounts]),
        "proc/self/cgroup": "\n".join(groups),
    }
    return write(root, proc | {f"sys/fs/cgroup/{name}": text for name, text in files.items()})


def v2(root: Path, files: dict[str, str], group: str = "/a/b", top: str = "/") -> Path:
    return machine(root, [V2.format(top=top, point="/sys/fs/cgroup")], [f"0::{group}"], files)


def v1(root: Path, files: dict[str, str], group: str = "/a/b", top: str = "/") -> Path:
    mounts = [
        V1_CPU.format(top=top, point="/sys/fs/cgroup/cpu"),
        V1_MEMORY.format(top=top, point="/sys/fs/cgroup/memory"),
    ]
    lines = [f"4:cpu,cpuacct:{group}", f"3:memory:{group}", "1:name=systemd:/x"]
    return machine(root, mounts, lines, files)


def test_v2_quota(tmp_path: Path) -> None:
    root = v2(tmp_path, {"a/b/cpu.max": "150000 100000"})
    assert cgroup.cpu_quota(root) == 1.5


def test_v2_tightest_group_on_the_way_up_counts(tmp_path: Path) -> None:
    files = {"cpu.max": "50000 100000", "a/cpu.max": "25000 100000", "a/b/cpu.max": "max 100000"}
    assert cgroup.cpu_quota(v2(tmp_path, files)) == 0.25


def test_v2_of_another_group_is_not_ours(tmp_path: Path) -> None:
    files = {"a/b/cpu.max": "max 100000", "a/c/cpu.max": "10000 100000"}
    assert cgroup.cpu_quota(v2(tmp_path, files)) is None


def test_v1_quota(tmp_path: Path) -> None:
    files = {"cpu/a/b/cpu.cfs_quota_us": "200000", "cpu/a/b/cpu.cfs_period_us": "100000"}
    assert cgroup.cpu_quota(v1(tmp_path, files)) == 2.0


def test_v1_minus_one_is_no_limit(tmp_path: Path) -> None:
    files = {"cpu/a/b/cpu.cfs_quota_us": "-1", "cpu/a/b/cpu.cfs_period_us": "100000"}
    assert cgroup.cpu_quota(v1(tmp_path, files)) is None


@pytest.mark.parametrize(
    ("group", "top"),
    [
        pytest.param("/docker/1f", "/docker/1f", id="only its own part is mounted"),
        pytest.param("/docker/1f", "/", id="the whole is mounted, its own part is hidden"),
        pytest.param("/", "/../..", id="a namespace inside the group"),
        pytest.param("/../other", "/", id="a namespace beside the group"),
    ],
)
@pytest.mark.parametrize("version", [1, 2])
def test_inside_a_container(tmp_path: Path, version: int, group: str, top: str) -> None:
    if version == 2:
        root = v2(tmp_path, {"cpu.max": "100000 50000"}, group, top)
    else:
        files = {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "50000"}
        root = v1(tmp_path, files, group, top)
    assert cgroup.cpu_quota(root) == 2.0


def test_both_versions_mounted(tmp_path: Path) -> None:
    mounts = [
        V1_CPU.format(top="/", point="/sys/fs/cgroup/cpu"),
        V2.format(top="/", point="/sys/fs/cgroup/unified"),
    ]
    files = {
        "cpu/cpu.cfs_quota_us": "300000",
        "cpu/cpu.cfs_period_us": "100000",
        "unified/memory.max": "4096",
        "unified/memory.current": "1024",
    }
    root = machine(tmp_path, mounts, ["4:cpu,cpuacct:/", "0::/"], files)
    assert cgroup.cpu_quota(root) == 3.0
    assert cgroup.memory_left(root) == 3072


def test_mount_point_with_a_space(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        [V2.format(top="/", point=r"/sys/fs/cgroup/with\040space")],
        ["0::/"],
        {"with space/cpu.max": "70000 100000"},
    )
    assert cgroup.cpu_quota(root) == 0.7


def test_v2_memory_counts_idle_file_cache_as_free(tmp_path: Path) -> None:
    files = {
        "a/b/memory.max": "1000000",
        "a/b/memory.current": "700000",
        "a/b/memory.stat": "anon 300000\nactive_file 100000\ninactive_file 300000\nslab 0",
    }
    assert cgroup.memory_left(v2(tmp_path, files)) == 600000


def test_v1_memory_counts_idle_file_cache_as_free(tmp_path: Path) -> None:
    files = {
        "memory/a/b/memory.limit_in_bytes": "1000000",
        "memory/a/b/memory.usage_in_bytes": "700000",
        "memory/a/b/memory.stat": "inactive_file 1\ntotal_inactive_file 300000",
    }
    assert cgroup.memory_left(v1(tmp_path, files)) == 600000


def test_memory_of_the_tightest_group(tmp_path: Path) -> None:
    files = {
        "a/memory.max": "5000",
        "a/memory.current": "4500",
        "a/b/memory.max": "3000",
        "a/b/memory.current": "1000",
    }
    assert cgroup.memory_left(v2(tmp_path, files)) == 500


def test_memory_is_never_negative(tmp_path: Path) -> None:
    files = {"a/b/memory.max": "1000", "a/b/memory.current": "5000"}
    assert cgroup.memory_left(v2(tmp_path, files)) == 0


def test_without_limits(tmp_path: Path) -> None:
    root = v2(tmp_path, {"a/b/cpu.max": "max 100000", "a/b/memory.max": "max"})
    assert cgroup.cpu_quota(root) is None
    assert cgroup.memory_left(root) is None


def test_without_control_groups(tmp_path: Path) -> None:
    assert cgroup.cpu_quota(tmp_path) is None
    assert cgroup.memory_left(tmp_path) is None
