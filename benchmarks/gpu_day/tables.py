"""Tables of measured models, for ``docs/benchmarks.md``, out of a record."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu_day import models
from benchmarks.gpu_day.results import Results, is_wrong

COLUMNS = {
    models.OURS: "fastres",
    models.EAGER: "eager",
    models.GRAPH: "eager in a graph",
    models.COMPILE: "torch.compile",
    models.OVERHEAD: "reduce-overhead",
    models.AUTOTUNE: "max-autotune",
}
"""Peers by their names in results, and as headings."""

Times = Mapping[str, Mapping[str, Any]]


def times_of(records: Mapping[str, Mapping[str, Any]]) -> dict[tuple[str, str, int], Times]:
    """Peers' times by model, precision and batch, in the order of the record."""
    found: dict[tuple[str, str, int], Times] = {}
    for key, record in records.items():
        parts = re.match(r"(\S+) (\S+) (\d+): (.+)$", key)
        if parts is not None and not is_wrong(dict(record)):
            network = parts[1], parts[2], int(parts[3])
            found[network] = {**found.get(network, {}), parts[4]: record}
    return found


def rate(record: Mapping[str, Any], batch: int) -> float:
    """Images per second, calls one after the other."""
    return float(batch / record["back_to_back_us"] * 1e6)


def markdown(folder: Path) -> str:
    """Images per second (and milliseconds of a call that is waited for), a row per network."""
    times = times_of(Results(folder, "models").records)
    used = [
        name for name in COLUMNS if any("latency_us" in row.get(name, {}) for row in times.values())
    ]
    facts = Results(folder, "facts").records.get("machine", {})
    lines = [
        f"Images per second, and milliseconds of a single call in parentheses; "
        f"{facts.get('gpu', 'GPU unknown')}, torch {facts.get('torch', '?')}, Triton "
        f"{facts.get('triton', '?')}, cuDNN {facts.get('cudnn', '?')}.",
        "",
        "| model | precision | batch | " + " | ".join(COLUMNS[name] for name in used) + " |",
        "|---|---|---:|" + "---:|" * len(used),
    ]
    made_up = False
    for (model, precision, batch), row in times.items():
        cells = []
        for name in used:
            each = row.get(name, {})
            made_up |= bool(each.get("rehearsed"))
            cells.append(
                f"{rate(each, batch):,.0f} ({each['latency_us'] / 1e3:.2f})"
                if "latency_us" in each
                else "-"
            )
        if set(cells) != {"-"}:
            lines.append(f"| {model} | {precision} | {batch} | " + " | ".join(cells) + " |")
    if made_up:
        lines[0] = "MADE UP IN A REHEARSAL. " + lines[0]
    return "\n".join(lines)
