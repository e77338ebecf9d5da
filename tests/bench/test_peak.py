"""The peak that layers are held against, and where its library is found."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from fastres import kernels
from fastres.dtypes import ROWS
from fastres.runtime.native import library
from fastres.runtime.native.abi import ISAS


@pytest.fixture
def native() -> library.Library:
    found = library.load()
    if isinstance(found, str):
        pytest.skip(f"the native engine is not here: {found}")
    return found


KERNELS = [(isa, row.dtype) for row in ROWS for isa in row.instruction_sets]
"""What there are kernels for."""


def test_a_peak_for_every_instruction_set_that_is_here(native: library.Library) -> None:
    for isa, dtype in KERNELS:
        speed = native.peak(isa, dtype, threads=1, milliseconds=2)
        if isa in native.isas:
            assert 1e8 < speed < 1e13, isa  # one core's, in any decade
        else:
            assert speed == 0, isa


def test_the_peak_of_two_threads(native: library.Library) -> None:
    for isa, dtype in KERNELS:
        if isa in native.isas:
            assert 1e8 < native.peak(isa, dtype, threads=2, milliseconds=2) < 2e13


def test_what_has_no_kernels_has_no_peak(native: library.Library) -> None:
    for isa in ISAS:
        assert native.peak(isa, torch.float16, threads=1, milliseconds=1) == 0
    assert native.peak("avx512_bf16", torch.float32, threads=1, milliseconds=1) == 0


def test_what_is_masked_has_no_peak(
    native: library.Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTRES_NATIVE_ISA", "avx2")
    assert native.peak("avx512", torch.float32, threads=1, milliseconds=1) == 0
    speed = native.peak("avx2", torch.float32, threads=1, milliseconds=1)
    assert (speed > 0) == ("avx2" in native.isas)


def test_arguments_that_cannot_be_have_no_peak(native: library.Library) -> None:
    peak = native._functions.fr_peak
    assert peak(-1, 0, 1, 1) == peak(len(ISAS), 0, 1, 1) == peak(0, 3, 1, 1) == 0
    assert peak(0, 0, 0, 1) == peak(0, 0, -2, 1) == 0
    if "avx2" in native.isas:
        assert peak(0, 0, 1, -5) > 0, "as short as can be"


def test_the_library_is_found_where_fastres_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the repository's root Python takes the sources, and ``pip install .`` leaves them bare."""
    monkeypatch.delenv("FASTRES_NATIVE_LIBRARY", raising=False)
    monkeypatch.setattr(kernels, "__file__", str(tmp_path / "sources" / "__init__.py"))
    monkeypatch.setattr(sys, "path", ["", str(tmp_path / "nowhere"), str(tmp_path / "site")])
    monkeypatch.chdir(tmp_path)
    assert library.find() is None
    installed = tmp_path / "site" / "fastres" / "kernels" / "cpu" / "_native.abi3.so"
    installed.parent.mkdir(parents=True)
    installed.touch()
    assert library.find() == installed
    beside = tmp_path / "sources" / "cpu" / "_native.abi3.so"
    beside.parent.mkdir(parents=True)
    beside.touch()
    assert library.find() == beside
