"""The README's table and chart: what stands for the whole record of ResNet-50 on a CPU.

    python -m benchmarks.summary                  # print the table
    python -m benchmarks.summary --chart          # and draw the chart anew, beside the record

A row is a peer in a precision: the best that a user would otherwise take, so torch's channels-last
format and the export's own file are in ``docs/benchmarks.md`` only, with quartiles, cold starts and
memory. The chart is written by hand as SVG, so that the same record gives the same bytes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from fastres.bench import measure, record
from fastres.bench.record import Batch, Record, Row

RECORD = Path(__file__).parent / "results" / "resnet50.json"
CHART = RECORD.with_suffix(".svg")

REFERENCE = "eager-fp32"
ROWS = (
    REFERENCE,
    "compile-fp32",
    "openvino-fp32",
    "fastres-fp32",
    "openvino-bf16",
    "fastres-bf16",
    "openvino-nncf-int8",
    "fastres-int8",
)
"""Keys of the record's rows, at most eight: of each precision ours, and the best beside it."""

COLUMNS = "| batch | peer | precision | img/s | ratio | error |\n|---:|---|---|---:|---:|---:|"

# The chart, in pixels.
LABELS, BARS, PANEL_GAP, BAR, STEP, TOP = 190, 190, 24, 14, 22, 34
OURS, OTHERS = "#d1495b", "#8d99ae"


def rows(batch: Batch) -> list[Row]:
    """Those of :data:`ROWS` that were timed, in that order."""
    found = {row.key: row for row in batch.rows if row.samples_ns}
    return [found[key] for key in ROWS if key in found]


def rate(row: Row, batch: Batch) -> float:
    """Images per second, by the median time of a call."""
    return batch.batch * 1e9 / measure.summarise(row.samples_ns).p50_ns


def ratio(row: Row, batch: Batch) -> float:
    """How many times as fast as the reference: the median over rounds of both times in a round."""
    (reference,) = (each for each in batch.rows if each.key == REFERENCE)
    return measure.paired_ratio(reference.samples_ns, row.samples_ns).median


def table(found: Record) -> str:
    """The README's table, as GitHub's Markdown."""
    lines = [COLUMNS]
    for batch in found.batches:
        for row in rows(batch):
            name = f"**{row.title}**" if row.name == "fastres" else row.title
            lines.append(
                f"| {batch.batch} | {name} | {row.precision} | {_short(rate(row, batch))} "
                f"| {ratio(row, batch):.2f}x | {_error(row)} |"
            )
    return "\n".join(lines)


def _error(row: Row) -> str:
    multiple = "" if row.error_ratio is None else f" ({row.error_ratio:.2f}x)"
    return f"{row.error:.1e}{multiple}"


def chart(found: Record) -> str:
    """Images per second as bars, a panel for each batch, as SVG."""
    shown = rows(found.batches[0])
    most = max(rate(row, batch) for batch in found.batches for row in rows(batch))
    width = LABELS + len(found.batches) * (BARS + PANEL_GAP) + PANEL_GAP
    height = TOP + len(shown) * STEP + 10
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f"<title>{escape(found.model['name'])}: images per second</title>",
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for index, row in enumerate(shown):
        label = escape(f"{row.title}, {row.precision}")
        lines.append(_text(LABELS - 8, index, label, "end", bold=row.name == "fastres"))
    for panel, batch in enumerate(found.batches):
        left = LABELS + panel * (BARS + PANEL_GAP)
        lines.append(
            f'<text x="{left}" y="20" font-weight="bold">images/s, batch {batch.batch}</text>'
        )
        lines += _bars(batch, shown, left, (BARS - 30) / most)
    return "\n".join([*lines, "</svg>", ""])


def _bars(batch: Batch, shown: Sequence[Row], left: int, scale: float) -> Iterator[str]:
    """The bars of one panel with their numbers; ``scale`` is pixels for one image per second."""
    timed = {row.key: row for row in rows(batch)}
    for index, key in enumerate(row.key for row in shown):
        if key not in timed:
            continue
        ours, speed = timed[key].name == "fastres", rate(timed[key], batch)
        yield (
            f'<rect x="{left}" y="{TOP + index * STEP}" width="{speed * scale:.1f}" '
            f'height="{BAR}" fill="{OURS if ours else OTHERS}"/>'
        )
        yield _text(left + speed * scale + 4, index, _short(speed), "start", bold=ours)


def _text(x: float, index: int, text: str, anchor: str, bold: bool) -> str:
    weight = ' font-weight="bold"' if bold else ""
    y = TOP + index * STEP + BAR - 3
    return f'<text x="{x:.1f}" y="{y}" text-anchor="{anchor}"{weight}>{text}</text>'


def _short(speed: float) -> str:
    return f"{speed:.0f}" if speed >= 100 else f"{speed:.1f}"


def main(argv: Sequence[str] | None = None) -> int:
    """See the top of this file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.summary", description=__doc__)
    parser.add_argument("--chart", action="store_true", help=f"write {CHART.name}, too")
    options = parser.parse_args(argv)
    found = record.read(RECORD)
    print(table(found))
    if options.chart:
        CHART.write_text(chart(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
