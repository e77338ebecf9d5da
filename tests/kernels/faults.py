"""Seeded faults in device code, and the ordinary tests that are to notice each of them.

A fault is a replacement in a kernel's source. The changed source becomes a module of its own, whose
functions stand in for the originals wherever these have been imported, until the block ends.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from fastres.errors import VerificationError


@dataclass(frozen=True)
class Fault:
    """A mistake that somebody could make.

    Attributes:
        module: of ``fastres.kernels.triton``, with the device code.
        what: what is wrong, in a few words.
        old, new: the text to be replaced, found exactly once in the source, and what replaces it.
        check: an ordinary test, or a part of one, that passes without the fault.
    """

    module: str
    what: str
    old: str
    new: str
    check: Callable[[], Any]

    @property
    def name(self) -> str:
        """For the test's name."""
        return f"{self.module}: {self.what}"


Replacements: TypeAlias = list[tuple[str, str, str, Callable[[], Any]]]
"""Faults of one module: all but its name."""


def source_file(module: str) -> Path:
    """Where the device code stands."""
    file = importlib.import_module(f"fastres.kernels.triton.{module}").__file__
    assert file is not None
    return Path(file)


def with_patch(test: Callable[..., Any], *arguments: Any) -> Callable[[], None]:
    """A test that takes ``monkeypatch`` last, to be called without pytest."""

    def call() -> None:
        with pytest.MonkeyPatch.context() as patch:
            test(*arguments, patch)

    return call


def in_network(check: Callable[..., Any], *arguments: Any) -> None:
    """A check of an optimised network, which ``optimize`` itself may find wrong and not return."""
    try:
        check(*arguments)
    except VerificationError as error:
        raise AssertionError(str(error)) from error


@contextmanager
def seeded(fault: Fault, folder: Path) -> Iterator[None]:
    """Run the block with the fault in place.

    Raises:
        AssertionError: the text to be replaced is not found exactly once.
    """
    path = source_file(fault.module)
    source = path.read_text(encoding="utf-8")
    found = source.count(fault.old)
    assert found == 1, f"found {found} times in {path.name}: {fault.old!r}"
    # A file, because Triton reads the source of its functions from where Python says it stands.
    changed = folder / f"faulty_{path.name}"
    changed.write_text(source.replace(fault.old, fault.new), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(f"faulty_{fault.module}", changed)
    assert spec is not None and spec.loader is not None
    faulty = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(faulty)
    original = importlib.import_module(f"fastres.kernels.triton.{fault.module}")
    replacements = {
        id(function): getattr(faulty, name)
        for name, function in vars(original).items()
        if _is_kernel_of(function, original.__name__)
    }
    assert replacements
    with pytest.MonkeyPatch.context() as patch:
        for name, module in list(sys.modules.items()):
            if name.startswith("fastres.kernels"):
                for attribute, value in list(vars(module).items()):
                    if id(value) in replacements:
                        patch.setattr(module, attribute, replacements[id(value)])
        yield


def _is_kernel_of(value: Any, module: str) -> bool:
    function = getattr(value, "fn", None)
    return function is not None and getattr(function, "__module__", None) == module
