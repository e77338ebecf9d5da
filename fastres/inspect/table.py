"""Readings as a table: a line per launch, and in a second part what its main loop consists of."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from fastres.inspect.launches import representative
from fastres.inspect.reading import Reading
from fastres.kernels.inspection.finding import Finding
from fastres.kernels.tuning.fusing import why_library
from fastres.kernels.tuning.gpus import Architecture

_FILE_WIDTH = 240
_COLUMNS = (
    "layer",
    "kernel",
    "in",
    "tile",
    "warps",
    "stages",
    "registers",
    "spills",
    "shared",
    "occupancy",
    "products",
    "copies",
    "loop",
    "issue",
    "budgets",
)
_LEFT = {"layer", "kernel", "in", "tile", "products", "copies", "loop", "budgets"}
_LEGEND = (
    "tile: m x n x k of a step. registers, spills: per thread, the latter in bytes. shared: bytes "
    "per block.",
    "occupancy: warps resident on a multiprocessor, of those it can hold, and what limits them.",
    "products: matrix instructions of the whole kernel. copies: of the main loop, bytes a thread "
    "copies at a time x number; tma: by descriptor.",
    "loop: tensor/integer/float/global/shared/other instructions of the main loop, u if it is "
    "unrolled as a whole. issue: slots of the others per cycle in which the matrix units are busy.",
    "Grouped convolutions have a loop besides, for tiles that NaN or infinity fell into: copies, "
    "loop and issue are of the same kernel compiled without it, all else of the one that runs.",
)


def show(architecture: Architecture, readings: Sequence[Reading], console: Console) -> None:
    """Print the table of one architecture, and a sentence for each broken budget."""
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    console.print(f"\n{architecture.name}: {len(readings)} distinct launches", highlight=False)
    library = why_library(representative(architecture))
    if library is not None:
        console.print(f"products are the library's: {library}", markup=False, highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in _COLUMNS:
        table.add_column(name, justify="left" if name in _LEFT else "right")
    for reading in readings:
        style = "bold red" if reading.broken else ""
        table.add_row(*_cells(reading, library is not None), style=style)
    console.print(table)
    for reading in readings:
        for sentence in reading.broken:
            console.print(
                f"{reading.layers[0]}: {sentence}", markup=False, highlight=False, soft_wrap=True
            )
    for sentence in _LEGEND:
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)


def _cells(reading: Reading, library: bool) -> tuple[str, ...]:
    first, *others = reading.layers
    layer = f"{first} +{len(others)}" if others else first
    found = reading.finding
    if found is None:
        return layer, reading.operation, reading.precision, *[""] * 11, "does not compile"
    occupancy = found.occupancy
    return (
        layer,
        found.kernel,
        reading.precision,
        _tile(found),
        str(found.num_warps),
        str(found.num_stages),
        str(found.registers),
        str(found.spill_bytes),
        str(found.shared_bytes),
        f"{occupancy.share:.0%} {occupancy.limit}",
        " ".join(f"{name}x{count}" for name, count in found.whole.opcodes.items()),
        _copies(found),
        _loop(found),
        "" if found.issue_ratio is None else f"{found.issue_ratio:.2f}",
        "broken" if reading.broken else "none" if library else "held",
    )


def _tile(found: Finding) -> str:
    names = ("BLOCK_SIZE_M", "TILE_H", "TILE_W", "BLOCK_SIZE_N", "BLOCK_SIZE_K", "ROW")
    sides = (found.constants.get(name) for name in names)
    split = found.constants.get("SPLIT_K", 1)
    tile = "x".join(str(side) for side in sides if side is not None)
    return f"{tile}/{split}" if split != 1 else tile


def _copies(found: Finding) -> str:
    parts = []
    for way, widths in found.loop_copies.items():
        name = "tma" if way == "descriptor" else way
        parts += [f"{name} {f'{size}x' if size else ''}{count}" for size, count in widths.items()]
    return ", ".join(parts)


def _loop(found: Finding) -> str:
    if found.loop_form == "none":
        return ""
    kinds = (("tensor",), ("integer",), ("float",), ("global",), ("shared",), ("control", "local"))
    counts = "/".join(str(found.loop.of(*each)) for each in kinds)
    return f"{counts} u" if found.loop_form == "unrolled" else counts
