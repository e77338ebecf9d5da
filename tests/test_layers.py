"""The order of the house: who may import whom, and who may ask about the machine."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ROOT

_SPEC = importlib.util.spec_from_file_location("import_graph", ROOT / "docs" / "import_graph.py")
assert _SPEC is not None and _SPEC.loader is not None
import_graph = importlib.util.module_from_spec(_SPEC)
sys.modules["import_graph"] = import_graph
_SPEC.loader.exec_module(import_graph)

# A room may import what stands before it, and its own modules.
ORDER = [
    *("errors", "version", "dtypes", "system", "checks", "options", "transforms", "preprocess"),
    *("kernels", "ir", "capture", "report", "passes", "quantization", "artifact", "accuracy"),
    *("runtime", "refit", "optimized", "verification", "optimization", "loading", "models"),
    *("workload", "export"),
    "fastres",  # the package's own __init__.py: the public surface, which what follows may use
    *("bench", "roofline", "inspect", "predict", "verify", "cli"),
]

FILES: dict[str, Path] = import_graph.module_files()
MODULES: dict[str, set[str]] = import_graph.module_graph(FILES)


def against_the_order(name: str, needed: set[str]) -> list[str]:
    """What of ``needed`` belongs to a room that stands after ``name``'s own."""
    own = ORDER.index(import_graph.room(name))
    return sorted(each for each in needed if ORDER.index(import_graph.room(each)) > own)


def test_every_module_has_its_place() -> None:
    assert sorted({import_graph.room(name) for name in FILES} ^ set(ORDER)) == []


def test_imports_go_one_way() -> None:
    wrong = {name: against_the_order(name, needed) for name, needed in MODULES.items()}
    assert {name: found for name, found in wrong.items() if found} == {}


def test_no_module_needs_itself() -> None:
    assert import_graph.circle(MODULES) == []
    assert import_graph.circle(import_graph.room_graph(MODULES)) == []


def test_the_root_and_the_levels_stay_few() -> None:
    assert len(list((ROOT / "fastres").glob("*.py"))) <= 18
    assert len(import_graph.levels(import_graph.room_graph(MODULES))) <= 11


@pytest.mark.parametrize(
    ("name", "source", "wrong"),
    [
        ("fastres.checks", "import fastres.ir.ops", ["fastres.ir.ops"]),
        ("fastres.checks", "from fastres.ir import ops", ["fastres.ir.ops"]),
        ("fastres.checks", "from fastres.ir.ops import conv2d", ["fastres.ir.ops"]),
        ("fastres.checks", "from . import optimized", ["fastres.optimized"]),
        ("fastres.checks", "from .ir.ops import conv2d", ["fastres.ir.ops"]),
        ("fastres.checks", "def f():\n    from fastres.ir import ops", ["fastres.ir.ops"]),
        ("fastres.checks", "from fastres import optimize_me", ["fastres"]),
        ("fastres.kernels.reference", "from ..ir import ops", ["fastres.ir.ops"]),
        ("fastres.kernels.reference", "from .spec import pair", []),
        ("fastres.kernels.reference", "from fastres.kernels import other", []),
        ("fastres.ir.ops", "import torch\nfrom fastres import system, errors", []),
    ],
)
def test_the_rule_finds_what_breaks_it(name: str, source: str, wrong: list[str]) -> None:
    needed = set(import_graph.imports(name, source, False, FILES))
    assert against_the_order(name, needed) == wrong


def test_circles_and_levels_are_found() -> None:
    assert set(import_graph.circle({"a": {"b"}, "b": {"c"}, "c": {"a"}})) == {"a", "b", "c"}
    graph = {"a": {"b", "c"}, "b": {"c"}, "c": set(), "d": set()}
    assert import_graph.levels(graph) == [["c", "d"], ["b"], ["a"]]


def questions(source: str) -> Iterator[str]:
    """Questions about the machine that ``source`` puts to the operating system or to torch."""
    asking = {"cpu_count", "process_cpu_count", "sched_getaffinity", "get_cpu_capability"}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr in asking:
            yield node.attr
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in {"platform", "cpuinfo"})
        elif isinstance(node, ast.ImportFrom) and node.module in {"platform", "cpuinfo"}:
            yield node.module
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            files = ("/proc/cpuinfo", "/proc/meminfo", "/sys/")
            yield from (file for file in files if node.value.startswith(file))


def test_only_system_asks_about_the_machine() -> None:
    asking = {
        name: list(questions(path.read_text(encoding="utf-8")))
        for name, path in FILES.items()
        if import_graph.room(name) != "system"
    }
    assert {name: found for name, found in asking.items() if found} == {}


def test_questions_are_recognised() -> None:
    source = "import platform\nimport os\nos.cpu_count()\nopen('/proc/meminfo')"
    assert set(questions(source)) == {"platform", "cpu_count", "/proc/meminfo"}
    assert len(list(questions(FILES["fastres.system.target"].read_text(encoding="utf-8")))) >= 3
