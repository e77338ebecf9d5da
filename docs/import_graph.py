"""Draws which room of fastres imports which: ``python docs/import_graph.py``.

A room is a folder of ``fastres/`` or a file at its root; ``kernels/`` and ``export/`` are two.
A room's level is the longest chain of imports below it, so that it imports only from levels below
its own. Imports inside functions count: they are late, and go no other way.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = {"fastres": "fastres", "kernels": "fastres.kernels", "export": "fastres.export"}


def module_files(root: Path = ROOT) -> dict[str, Path]:
    """Every module's full name and file; the links in ``fastres/`` are not followed."""
    files = {}
    for folder, package in FOLDERS.items():
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root / folder).with_suffix("").parts
            if parts[0] in FOLDERS and folder == "fastres":
                continue  # seen through its link; Python before 3.13 follows links here
            files[".".join([package, *parts]).removesuffix(".__init__")] = path
    return files


def imports(name: str, source: str, is_package: bool, known: Mapping[str, Path]) -> Iterator[str]:
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
            found = [module if module in known else base for module in inner]
        else:
            continue
        yield from (module for module in found if module.split(".")[0] == "fastres")


def module_graph(files: Mapping[str, Path]) -> dict[str, set[str]]:
    """Each module, and the modules that it imports."""
    return {
        name: set(
            imports(name, path.read_text(encoding="utf-8"), path.name == "__init__.py", files)
        )
        - {name}
        for name, path in files.items()
    }


def room(module: str) -> str:
    """The folder, or the file at the root of ``fastres/``, that a module belongs to."""
    return ".".join(module.split(".")[1:2]) or module


def room_graph(modules: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Each room, and the other rooms that its modules import."""
    rooms: dict[str, set[str]] = {room(name): set() for name in modules}
    for name, needed in modules.items():
        rooms[room(name)] |= {room(each) for each in needed} - {room(name)}
    return rooms


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """The nodes of one circle in the graph, or none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def levels(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """The graph's nodes by the longest chain below them, the ground first.

    Raises:
        graphlib.CycleError: there is a circle.
    """
    heights: dict[str, int] = {}
    for node in TopologicalSorter(graph).static_order():
        heights[node] = 1 + max((heights[each] for each in graph.get(node, ())), default=-1)
    rows: list[list[str]] = [[] for _ in range(max(heights.values()) + 1)]
    for node in sorted(heights):
        rows[heights[node]].append(node)
    return rows


def drawn(files: Mapping[str, Path]) -> str:
    """The levels from the top down, each room with what it imports that nothing else brings in."""
    graph = room_graph(module_graph(files))
    below: dict[str, set[str]] = {}
    for node in TopologicalSorter(graph).static_order():
        below[node] = graph[node].union(*(below[each] for each in graph[node]))
    folders = {room(name) for name in files if name.count(".") >= 2} | set(FOLDERS) - {"fastres"}
    rows = levels(graph)
    lines = []
    for level in reversed(range(len(rows))):
        for index, node in enumerate(rows[level]):
            direct = sorted(
                each
                for each in graph[node]
                if not any(each in below[other] for other in graph[node])
            )
            name = f"{node}/" if node in folders else "fastres (optimize, load, verify)"
            name = name if node in folders or node == "fastres" else f"{node}.py"
            start = f"{level:>2}" if index == 0 else "  "
            lines.append(f"{start}  {name:<16}  {'-> ' + ', '.join(direct) if direct else ''}")
    count = sum(len(needed) for needed in graph.values())
    lines.append(f"{len(graph)} rooms, {count} arrows, {len(rows)} levels")
    return "\n".join(line.rstrip() for line in lines)


if __name__ == "__main__":
    print(drawn(module_files()))
