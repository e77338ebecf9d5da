"""A record as tables: for the terminal, and as Markdown for a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from fastres.bench import gate, measure
from fastres.bench.peers.catalogue import FASTRES
from fastres.bench.peers.peer import QUANTIZED
from fastres.bench.record import Batch, Record, Row

_LEGEND = (
    "p50, p99, min: milliseconds per call, contenders taking turns call by call, each when the "
    "threads of the one before have come to rest. img/s: by p50.",
    "ratio: how many times as fast as {reference}, the median over rounds of both times in one "
    "round (first to third quartile).",
    "error: relative to the model in float64 (multiple of torch eager's in the same precision). "
    "top-1: images with float64's first choice.",
)
_INT8_LEGEND = (
    "int8: quantised with {calibration}, by each contender's own tools. torch eager has no "
    "int8: fastres has to give the answers of int8's definition, bit for bit, of whose error its "
    "own is the multiple; others pass up to an error of {bound:g}."
)
_COLD_LEGEND = (
    "cold: seconds from the model in memory to the first answer in a new process, conversion and "
    "compilation included; after the slash with a compiler's cache from before.",
    "peak: {peak}, MiB.",
)


# A file has no width. This is more than any table needs, so that nothing in it is cut off.
_FILE_WIDTH = 400

_BUSY = 0.03  # a machine that does nothing else stays below 1 %

_CPU_RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "openvino", "nncf")  # either of the first two
_GPU_RUNTIMES = ("onnxruntime-gpu", "tensorrt", "torch-tensorrt")

_LABELS = ("contender", "in")
_SPEED = (*_LABELS, "p50", "p99", "min", "img/s", "ratio")
_COST = (*_LABELS, "cold", "peak", "error", "top-1")


@dataclass(frozen=True)
class _Line:
    """A row, its batch, and the row that its ratio is to."""

    row: Row
    batch: Batch
    reference: Row | None


Columns = dict[str, Callable[[_Line], str]]


def show(record: Record, reference: str, console: Console | None = None) -> None:
    """Print the tables, each in two parts if the terminal is too narrow for one.

    Args:
        record: the results of a run.
        reference: key of the row that ratios are to.
        console: where to; None is standard output.
    """
    console = console or Console()
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    for sentence in heading(record):
        _say(console, sentence)
    for batch in record.batches:
        _say(console, f"\n{_title(record, batch)}")
        for table in _tables_that_fit(_columns(batch), _lines(batch, reference), console):
            console.print(table)
        for sentence in remarks(batch):
            _say(console, sentence)
    _say(console, "")
    for sentence in legend(record, reference):
        _say(console, sentence)


def markdown(record: Record, reference: str) -> str:
    """The tables as GitHub's Markdown."""
    parts = ["\n".join(f"{sentence}  " for sentence in heading(record))]
    for batch in record.batches:
        columns = _columns(batch)
        table = [
            f"| {' | '.join(columns)} |",
            f"|{'|'.join('---' if name in _LABELS else '---:' for name in columns)}|",
        ]
        table += [
            f"| {' | '.join(cell(line) for cell in columns.values())} |"
            for line in _lines(batch, reference)
        ]
        parts += [f"**{_title(record, batch)}**", "\n".join(table)]
        notes = remarks(batch)
        if notes:
            parts.append("\n".join(f"- {sentence}" for sentence in notes))
    parts.append("\n".join(f"{sentence}  " for sentence in legend(record, reference)))
    return "\n\n".join(parts)


def heading(record: Record) -> list[str]:
    """Where and with what it was measured."""
    where, packages = record.environment, record.environment["packages"]
    cpu, gpu = where["cpu"], where.get("gpu")
    runtimes = _CPU_RUNTIMES if gpu is None else ("triton", *_GPU_RUNTIMES)
    versions = ", ".join(
        f"{name} {packages[name]}" for name in ("fastres", "torch", *runtimes) if packages.get(name)
    )
    device = []
    if gpu is not None:
        maker = f"CUDA {gpu['cuda']}" if gpu["cuda"] else f"HIP {gpu['hip']}"
        device = [f"{gpu['name']}, driver {gpu['driver']}, {maker}"]
    return [
        *device,
        f"{record.model['name']}, {record.model['parameters'] / 1e6:.1f} M parameters; images: "
        f"{record.model['images']}",
        f"{cpu['model']}, {', '.join(cpu['isa'][-4:])}; {record.settings['threads']} threads; "
        f"{versions}, oneDNN {where['onednn']}",
    ]


def legend(record: Record, reference: str) -> list[str]:
    """Sentences that explain the columns."""
    rows = [row for batch in record.batches for row in batch.rows]
    cold = _COLD_LEGEND if any(row.fresh is not None for row in rows) else ()
    peak = "largest resident size of that process"
    if record.environment.get("gpu") is not None:
        peak = "the GPU's memory that is in use by then"
    sentences = [*_LEGEND, *cold]
    if any(row.precision in QUANTIZED for row in rows):
        sentences.insert(len(_LEGEND), _INT8_LEGEND)
    return [
        sentence.format(
            reference=reference,
            peak=peak,
            calibration=record.model.get("calibration", "other images"),
            bound=gate.ABSOLUTE["int8"],
        )
        for sentence in sentences
    ]


def remarks(batch: Batch) -> list[str]:
    """Sentences below a table: load by other programs, failures, notes, memory, ratios to peers."""
    sentences = []
    if batch.others_share is not None and batch.others_share >= _BUSY:
        sentences.append(
            f"other programs had {batch.others_share:.0%} of the processors' time meanwhile: trust "
            "the ratios more than the times"
        )
    for row in batch.rows:
        label = f"{row.title} {row.precision}"
        if row.status != "timed":
            sentences.append(f"{label}: {row.status}: {row.reason}")
        if row.notes:
            sentences.append(f"{label}: {', '.join(row.notes)}")
        if row.fresh is not None and row.fresh.export_seconds is not None:
            sentences.append(
                f"{label}: {row.fresh.export_seconds:.1f} s of its cold start are the export"
            )
    before = [row.fresh.before_bytes for row in batch.rows if row.fresh is not None]
    known = [size for size in before if size is not None]
    if known:
        sentences.append(
            f"of the peak, {min(known) / 2**20:.0f} MiB were there before the contender: Python, "
            "torch, fastres, and the model in float32"
        )
    for row in batch.rows:
        if row.name == FASTRES.name and row.samples_ns:
            sentences += _against_peers(row, batch)
    return sentences


def _against_peers(ours: Row, batch: Batch) -> list[str]:
    """How many times as fast fastres is as each peer in the same precision."""
    others = "; ".join(
        f"{_ratio(row, ours)} {row.title}"
        for row in batch.rows
        if row.precision == ours.precision and row.samples_ns and row is not ours
    )
    return [f"fastres against others in {ours.precision}: {others}"] if others else []


def _title(record: Record, batch: Batch) -> str:
    size = record.settings["size"]
    rounds = max(len(row.samples_ns) for row in batch.rows)
    return (
        f"batch {batch.batch}, {size}x{size} pixels: {rounds} rounds, answers checked on "
        f"{batch.images_checked} images"
    )


def _lines(batch: Batch, reference: str) -> list[_Line]:
    reference_row = next((row for row in batch.rows if row.key == reference), None)
    return [_Line(row, batch, reference_row) for row in batch.rows]


def _columns(batch: Batch) -> Columns:
    columns: Columns = {
        "contender": lambda line: line.row.title,
        "in": lambda line: line.row.precision,
        "p50": lambda line: _milliseconds(line, "p50_ns"),
        "p99": lambda line: _milliseconds(line, "p99_ns"),
        "min": lambda line: _milliseconds(line, "min_ns"),
        "img/s": _images_per_second,
        "ratio": _ratio_to_reference,
        "cold": _cold,
        "peak": _peak,
        "error": _error,
        "top-1": _top1,
    }
    if all(row.fresh is None for row in batch.rows):
        del columns["cold"], columns["peak"]
    return columns


def _milliseconds(line: _Line, which: str) -> str:
    if not line.row.samples_ns:
        return line.row.status if which == "p50_ns" else ""
    value = getattr(measure.summarise(line.row.samples_ns), which) / 1e6
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _images_per_second(line: _Line) -> str:
    if not line.row.samples_ns:
        return ""
    rate = line.batch.batch * 1e9 / measure.summarise(line.row.samples_ns).p50_ns
    return f"{rate:.0f}" if rate >= 100 else f"{rate:.1f}"


def _ratio_to_reference(line: _Line) -> str:
    if line.reference is None or not (line.reference.samples_ns and line.row.samples_ns):
        return ""
    return _ratio(line.reference, line.row)


def _ratio(reference: Row, row: Row) -> str:
    ratio = measure.paired_ratio(reference.samples_ns, row.samples_ns)
    return f"{ratio.median:.2f}x ({ratio.low:.2f}–{ratio.high:.2f})"


def _cold(line: _Line) -> str:
    cold_start = line.row.fresh
    if cold_start is None:
        return ""
    cached = "" if cold_start.cached_seconds is None else f" / {cold_start.cached_seconds:.1f}"
    return f"{cold_start.cold_seconds:.1f}{cached}"


def _peak(line: _Line) -> str:
    cold_start = line.row.fresh
    return "" if cold_start is None else f"{cold_start.peak_bytes / 2**20:.0f}"


def _error(line: _Line) -> str:
    if line.row.error is None:
        return ""
    ratio = "" if line.row.error_ratio is None else f" ({line.row.error_ratio:.2f}x)"
    return f"{line.row.error:.1e}{ratio}"


def _top1(line: _Line) -> str:
    return "" if line.row.top1 is None else f"{line.row.top1:.0%}"


def _tables_that_fit(columns: Columns, lines: Sequence[_Line], console: Console) -> list[Table]:
    """One table with all columns, or two where the console is too narrow for it."""
    full = _table(columns, lines)
    needed = Measurement.get(console, console.options.update(width=_FILE_WIDTH), full).maximum
    if needed <= console.width:
        return [full]
    parts = [{name: columns[name] for name in half if name in columns} for half in (_SPEED, _COST)]
    return [_table(part, lines) for part in parts]


def _table(columns: Columns, lines: Sequence[_Line]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="left" if name in _LABELS else "right", no_wrap=True)
    for line in lines:
        ours = line.row.name == FASTRES.name
        style = "dim" if line.row.status != "timed" else "bold" if ours else ""
        table.add_row(*(cell(line) for cell in columns.values()), style=style)
    return table


def _say(console: Console, text: str) -> None:
    """Print text as it is: no markup in it, no colour for its numbers, no line broken."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
