"""A record as a bar chart: images per second, one bar a peer."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from fastres.bench import measure
from fastres.bench.peers.catalogue import FASTRES
from fastres.bench.record import Batch, Record, Row
from fastres.bench.table import heading

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE_CHARACTERS = 140
"""What fits into the picture's width in the title's size."""

_COLOURS = {True: "#d1495b", False: "#8d99ae"}  # fastres, everybody else


def draw(record: Record, path: Path) -> None:
    """Write a PNG with a panel per batch size; whiskers are the times' first and third quartile."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    bars = max(sum(bool(row.samples_ns) for row in batch.rows) for batch in record.batches)
    panels = len(record.batches)
    figure = Figure(figsize=(9, panels * (0.8 + 0.32 * bars) + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, batch in zip(
        figure.subplots(panels, squeeze=False)[:, 0], record.batches, strict=True
    ):
        _panel(axes, batch)
    lines = [line for each in heading(record)[:2] for line in textwrap.wrap(each, TITLE_CHARACTERS)]
    figure.suptitle("\n".join(lines), fontsize=8)
    figure.savefig(path, format="png", dpi=150)


def _panel(axes: Axes, batch: Batch) -> None:
    rows = [row for row in batch.rows if row.samples_ns][::-1]  # the first on top
    rates = [[batch.batch * 1e9 / t for t in _quartiles(row)] for row in rows]
    middle = [rate[1] for rate in rates]
    whiskers = [[rate[1] - rate[2] for rate in rates], [rate[0] - rate[1] for rate in rates]]
    bars = axes.barh(
        [f"{row.title}, {row.precision}" for row in rows],
        middle,
        xerr=whiskers,
        color=[_COLOURS[row.name == FASTRES.name] for row in rows],
        error_kw={"linewidth": 1, "capsize": 3},
    )
    axes.bar_label(bars, labels=[f"{rate:.0f}" for rate in middle], padding=6, fontsize=8)
    axes.set_title(f"batch {batch.batch}", fontsize=9, loc="left")
    axes.set_xlabel("images per second (median; whiskers: quartiles)", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.margins(x=0.1)
    axes.spines[["top", "right"]].set_visible(False)


def _quartiles(row: Row) -> tuple[float, float, float]:
    """Times at 25, 50 and 75 %, nanoseconds."""
    low, middle, high = (measure.percentile(row.samples_ns, q) for q in (25, 50, 75))
    return low, middle, high
