"""The order of the house: who may import whom, and who may ask about the machine."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {"fastres": "fastres", "kernels": "fastres.kernels", "export": "fastres.export"}

# A module, or any module of a package, may import what stands before it, and its own package.
ORDER = [
    *("errors", "version", "system", "options", "checks", "descriptions", "transforms", "plain"),
    *("kernels", "ir", "capture", "report", "passes", "artifact", "accuracy", "runtime", "refit"),
    *("optimized", "verification", "optimization", "loading", "export", "models", "preprocess"),
    "fastres",  # the package's own __init__.py: the public surface, which what follows may use
    *("labels", "workload", "bench", "roofline", "inspect", "export_command", "predict"),
    *("verify_command", "verify", "cli"),
]


def module_files() -> dict[str, Path]:
    """Every module's full name and file; the links in fastres/ are not followed."""
    files = {}
    for folder, package in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            if parts[0] in FOLDERS and folder == "fastres":
                continue  # seen through its link; Python before 3.13 follows links here
            name = ".".join([package, *parts]).removesuffix(".__init__")
            files[name] = path
    return files


FILES = module_files()


def imports(name: str, source: str, is_package: bool) -> Iterator[str]:
    """Full names of the modules of fastres that ``source`` imports, anywhere in its text."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = name.split(".")
                kept = parts[: len(parts) - node.level + is_package]
                base = ".".join([*kept, base] if base else kept)
            inner = [f"{base}.{alias.name}" for alias in node.names]
            found = [module if module in FILES else base for module in inner]
        else:
            continue
        yield from (module for module in found if module.split(".")[0] == "fastres")


# A package that the bench uses, and whose command uses the bench.
COMMANDS = {"fastres.export.__main__": "export_command"}


def component(module: str) -> str:
    """The entry in ORDER that ``module`` belongs to."""
    if module in COMMANDS:
        return COMMANDS[module]
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def wrong_imports(name: str, source: str, is_package: bool = False) -> list[str]:
    own = component(name)
    return [
        module
        for module in imports(name, source, is_package)
        if component(module) != own and ORDER.index(component(module)) > ORDER.index(own)
    ]


def is_package(path: Path) -> bool:
    return path.name == "__init__.py"


def test_every_module_has_its_place() -> None:
    assert sorted({component(name) for name in FILES} - set(ORDER)) == []


@pytest.mark.parametrize("name", FILES)
def test_imports_go_one_way(name: str) -> None:
    path = FILES[name]
    wrong = wrong_imports(name, path.read_text(encoding="utf-8"), is_package(path))
    assert wrong == [], f"{name} imports what stands after it in ORDER"


def test_no_module_needs_itself() -> None:
    needs = {
        name: set(imports(name, path.read_text(encoding="utf-8"), is_package(path))) - {name}
        for name, path in FILES.items()
    }
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize(
    ("name", "source", "wrong"),
    [
        ("fastres.errors", "import fastres.ir.ops", ["fastres.ir.ops"]),
        ("fastres.errors", "from fastres.ir import ops", ["fastres.ir.ops"]),
        ("fastres.errors", "from fastres.ir.ops import conv2d", ["fastres.ir.ops"]),
        ("fastres.errors", "from .ir import ops", ["fastres.ir.ops"]),
        ("fastres.errors", "from .ir.ops import conv2d", ["fastres.ir.ops"]),
        ("fastres.errors", "def f():\n    from fastres.ir import ops", ["fastres.ir.ops"]),
        ("fastres.errors", "from fastres import optimize_me", ["fastres"]),
        ("fastres.kernels.reference", "from ..ir import ops", ["fastres.ir.ops"]),
        ("fastres.kernels.reference", "from ..options import pair", []),
        ("fastres.kernels.reference", "from fastres.kernels import other", []),
        ("fastres.ir.ops", "import torch\nfrom fastres import errors", []),
    ],
)
def test_the_rule_finds_what_breaks_it(name: str, source: str, wrong: list[str]) -> None:
    assert wrong_imports(name, source) == wrong


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


@pytest.mark.parametrize("name", [n for n in FILES if component(n) != "system"])
def test_only_system_asks_about_the_machine(name: str) -> None:
    assert list(questions(FILES[name].read_text(encoding="utf-8"))) == []


def test_questions_are_recognised() -> None:
    source = "import platform\nimport os\nos.cpu_count()\nopen('/proc/meminfo')"
    assert set(questions(source)) == {"platform", "cpu_count", "/proc/meminfo"}
    assert len(list(questions(FILES["fastres.system.target"].read_text(encoding="utf-8")))) >= 3
