"""The list of passes holds every pass."""

from __future__ import annotations

import importlib
import pkgutil

from fastres import passes


def test_every_pass_is_in_the_list() -> None:
    names = [each.name for each in pkgutil.iter_modules(passes.__path__)]
    modules = [importlib.import_module(f"fastres.passes.{name}") for name in names]
    found = {module.run for module in modules if hasattr(module, "run")}
    assert found == {*passes.PASSES, passes.finish.run}
    assert len(set(passes.PASSES)) == len(passes.PASSES)
