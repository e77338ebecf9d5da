"""Compiled kernels where Triton's own folder cannot be made: they are kept, and it is said."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import triton
from triton.runtime.cache import FileCacheManager

from fastres.kernels.launch import kernel_cache
from fastres.kernels.launch.kernel_cache import FallbackCache


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A cache folder that cannot be made, not even by root."""
    file = tmp_path / "a file"
    file.write_text("", encoding="utf-8")
    monkeypatch.setattr(FallbackCache, "reason", None)
    return str(file / "cache")


def test_triton_alone_fails(nowhere: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it no longer does, this module can go."""
    monkeypatch.setenv("TRITON_CACHE_DIR", nowhere)
    with pytest.raises(NotADirectoryError):
        FileCacheManager("kernel")


def test_what_is_put_is_found_again(nowhere: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", nowhere)
    path = Path(FallbackCache("kernel").put(b"code", "kernel.cubin"))
    assert path.read_bytes() == b"code"
    assert FallbackCache("kernel").has_file("kernel.cubin")
    assert not FallbackCache("other").has_file("kernel.cubin")
    assert stat.S_IMODE(path.parent.parent.stat().st_mode) == 0o700
    told = kernel_cache.note()
    assert told is not None
    assert told.startswith("compiled kernels are kept for this process only: ")
    assert nowhere in told


def test_a_folder_that_works_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FallbackCache, "reason", None)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    path = Path(FallbackCache("kernel").put(b"code", "kernel.cubin"))
    assert path == tmp_path / "cache" / "kernel" / "kernel.cubin"
    assert FileCacheManager("kernel").has_file("kernel.cubin")
    assert kernel_cache.note() is None


def test_a_cache_of_the_users_own_stays() -> None:
    class Other(FileCacheManager):  # type: ignore[misc]
        pass

    with triton.knobs.cache.scope():
        triton.knobs.cache.manager_class = Other
        kernel_cache.install()
        assert triton.knobs.cache.manager_class is Other
        for usual in (FileCacheManager, None):
            triton.knobs.cache.manager_class = usual
            kernel_cache.install()
            assert triton.knobs.cache.manager_class is FallbackCache


@pytest.mark.campaign
def test_kernels_compile_without_a_home(nowhere: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    arguments = ("--model", "cifar_resnet20", "--size", "8", "--batch", "1", "--arch", "sm_80")
    done = subprocess.run(
        [sys.executable, "-m", "fastres.inspect", *arguments],
        env={**environment, "TRITON_CACHE_DIR": nowhere},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "does not compile" not in done.stdout
