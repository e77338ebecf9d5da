"""The tests of the tests: each seeded fault in device code turns an ordinary test red."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.kernels.fault_table import FAULTS
from tests.kernels.faults import Fault, seeded, source_file
from tests.support import interpreter


@pytest.fixture(autouse=True)
def strict_interpreter() -> None:
    interpreter.install()


@pytest.mark.campaign
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_seeded_fault_is_noticed(fault: Fault, tmp_path: Path) -> None:
    with seeded(fault, tmp_path), pytest.raises(AssertionError):
        fault.check()


def described(check: Callable[[], Any]) -> str:
    if isinstance(check, partial):
        said = ", ".join(getattr(arg, "__name__", None) or repr(arg) for arg in check.args)
        return f"{check.func.__name__}({said})"
    return check.__qualname__


CHECKS = {described(fault.check): fault.check for fault in FAULTS}


@pytest.mark.campaign
@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_without_a_fault_the_check_passes(check: Callable[[], Any]) -> None:
    check()


def test_every_device_module_has_faults() -> None:
    folder = source_file("conv2d").parent
    device = {path.stem for path in folder.glob("*.py") if "@triton.jit" in path.read_text("utf-8")}
    # Interpreted, chained launches are like others: their faults are in test_chain.
    assert device - {fault.module for fault in FAULTS} == {"chain"}


def test_a_fault_whose_text_is_gone_is_an_error(tmp_path: Path) -> None:
    gone = Fault("pooling", "nothing", "no such text", "", lambda: None)
    with pytest.raises(AssertionError, match="found 0 times in pooling"), seeded(gone, tmp_path):
        pass


def test_afterwards_everything_is_as_before(tmp_path: Path) -> None:
    fault = next(fault for fault in FAULTS if fault.module == "activations")
    activations, *others = (
        vars(importlib.import_module(f"fastres.kernels.triton.{name}"))
        for name in ("activations", "elementwise", "pooling")
    )
    before = activations["activate"]
    with seeded(fault, tmp_path):
        assert activations["activate"] is not before
        assert all(other["activate"] is activations["activate"] for other in others)
    assert all(module["activate"] is before for module in (activations, *others))
