"""The record as Markdown: what runs natively, and how fast it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.coverage.record import Contender, Coverage, Record, Row, Speed
from fastres.bench import measure

MOST = 3
"""Kinds of operators that a row names; the others are counted."""

PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "int8": "int8"}
PEERS = {"channels-last": "eager", "compile": "compile", "openvino": "OpenVINO"}


def markdown(found: Record) -> str:
    """All tables, each with a sentence that counts."""
    blocks = [_coverage(found)] if any(row.coverage for row in found.rows) else []
    batches = sorted({batch for row in found.rows for batch in row.speed})
    blocks += [_speed(found, batch) for batch in batches]
    failures = [f"- {row.name}: {reason}" for row in found.rows for reason in _failures(row)]
    if failures:
        blocks.append("\n".join(failures))
    return "\n\n".join(blocks)


def _coverage(found: Record) -> str:
    precisions = [name for name in PRECISIONS if any(name in row.coverage for row in found.rows)]
    counts = []
    for precision in precisions:
        measured = [row.coverage[precision] for row in found.rows if precision in row.coverage]
        whole = sum(each.is_whole for each in measured)
        counts.append(f"{whole} of {len(measured)} in {PRECISIONS[precision]}")
    heads = [f"native in {PRECISIONS[name]} | error" for name in precisions]
    lines = [f"Wholly native: {', '.join(counts)}.", ""]
    lines.append(
        f"| architecture | operators | {' | '.join(heads)} | left in {PRECISIONS[precisions[0]]} |"
    )
    lines.append("|---|---:|" + "---|---:|" * len(precisions) + "---|")
    for row in found.rows:
        first = row.coverage.get(precisions[0])
        cells = [row.name, str(first.parts.operators) if first and first.parts else "-"]
        for name in precisions:
            coverage = row.coverage.get(name)
            cells += [_native(coverage), _error(coverage, name)]
        lines.append(f"| {' | '.join([*cells, _left(first)])} |")
    return "\n".join(lines)


def _native(coverage: Coverage | None) -> str:
    """Time's share and subgraphs, ``whole`` where nothing is left."""
    if coverage is None:
        return "-"
    parts = coverage.parts
    if parts is None:
        return "failed"
    if coverage.is_whole:
        return "whole"
    return f"{_percent(parts.native_share)} of the time in {parts.subgraphs}"


def _error(coverage: Coverage | None, precision: str) -> str:
    """The multiple of eager's; in int8, which eager does not have, the error itself."""
    if coverage is None or coverage.error is None or coverage.error_ratio is None:
        return "-"
    return f"{coverage.error:.1e}" if precision == "int8" else f"{coverage.error_ratio:.2f}x"


def _left(coverage: Coverage | None) -> str:
    if coverage is None or coverage.parts is None:
        return "-"
    kinds: dict[str, tuple[int, float]] = {}
    for each in coverage.parts.left:
        count, share = kinds.get(each.operator, (0, 0.0))
        kinds[each.operator] = (count + each.count, share + each.share)
    ordered = sorted(kinds.items(), key=lambda kind: -kind[1][1])
    words = [f"{count} {_short(name)} {_percent(share)}" for name, (count, share) in ordered[:MOST]]
    others = sum(count for _, (count, _) in ordered[MOST:])
    return ", ".join([*words, *([f"{others} others"] if others else [])]) or "nothing"


def _percent(share: float) -> str:
    """In whole percent; neither nothing nor everything where it is not quite that."""
    if 0.995 <= share < 1:
        return ">99%"
    return "<1%" if 0 < share < 0.005 else f"{share:.0%}"


def _short(operator: str) -> str:
    return operator.removeprefix("aten.").removeprefix("fastres.").partition(".")[0]


def _speed(found: Record, batch: int) -> str:
    rows = [(row, row.speed[batch]) for row in found.rows if batch in row.speed]
    precisions = [
        name for name in PRECISIONS if any(_ours(speed, name) is not None for _, speed in rows)
    ]
    wins = []
    for precision in precisions:
        counts = []
        for peer, title in PEERS.items():
            ratios = [r for r in (_ratio(speed, peer, precision) for _, speed in rows) if r]
            if ratios:
                counts.append(f"{title} in {sum(r > 1 for r in ratios)} of {len(ratios)}")
        wins.append(f"in {PRECISIONS[precision]} than {', '.join(counts) or 'nobody'}")
    lines = [f"Batch {batch}: faster {'; '.join(wins)}.", ""]
    heads = [
        f"{PRECISIONS[name]}, ms | " + " | ".join(f"against {peer}" for peer in PEERS.values())
        for name in precisions
    ]
    lines.append("| architecture | " + " | ".join(heads) + " |")
    lines.append("|---|" + "---:|" * (len(precisions) * (1 + len(PEERS))))
    for row, speed in rows:
        cells = [row.name]
        for name in precisions:
            ours = _ours(speed, name)
            cells.append("-" if ours is None else f"{min(ours.samples_ns) / 1e6:.1f}")
            for peer in PEERS:
                ratio = _ratio(speed, peer, name)
                cells.append("-" if ratio is None else f"{ratio:.2f}x")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _timed(speed: Speed, name: str, precision: str) -> Contender | None:
    return next(
        (
            each
            for each in speed.contenders
            if (each.name, each.precision) == (name, precision) and each.samples_ns
        ),
        None,
    )


def _ours(speed: Speed, precision: str) -> Contender | None:
    return _timed(speed, "fastres", precision)


def _ratio(speed: Speed, peer: str, precision: str) -> float | None:
    """How many times as fast as a peer in the same precision: the median over rounds."""
    ours, theirs = _ours(speed, precision), _timed(speed, peer, precision)
    if ours is None or theirs is None:
        return None
    return measure.paired_ratio(theirs.samples_ns, ours.samples_ns).median


def _failures(row: Row) -> Iterator[str]:
    """Sentences about what is missing in a row."""
    if row.failed is not None:
        yield row.failed
    for precision, coverage in row.coverage.items():
        if coverage.failed is not None:
            yield f"{precision}: {coverage.failed}"
    for batch, speed in row.speed.items():
        reasons: Sequence[str] = [
            f"{each.title} {each.precision}: {each.reason}"
            for each in speed.contenders
            if each.reason is not None
        ]
        for reason in [speed.failed] if speed.failed is not None else reasons:
            yield f"batch {batch}: {reason}"
