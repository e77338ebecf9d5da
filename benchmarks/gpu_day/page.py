"""The last page: what was wrong, what was slow, and what was modelled against what was measured."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu_day import fit, models, tables
from benchmarks.gpu_day.layers import BOXES, CHOSEN, CUBLAS, CUDNN, WITH_EPILOGUE
from benchmarks.gpu_day.results import Record, Results, is_wrong

LINES = 60
WIDTH = 150
NAMES = (
    "facts",
    "engine",
    "kernels",
    "small",
    "networks",
    "tests",
    "warm",
    "amx",
    "compile",
    "models",
    "layers",
    "amx_layers",
    "ncu",
)
"""Stages, as the page shows them."""

WRONG, SLOW = 16, 12
"""Lines at most of either part."""

Records = Mapping[str, Mapping[str, Any]]


def page(folder: Path) -> list[str]:
    """At most :data:`LINES` lines."""
    every = {name: Results(folder, name) for name in NAMES if (folder / f"{name}.jsonl").exists()}
    lines = [
        *_machine(every["facts"].records if "facts" in every else {}),
        *_stages(every),
        *_wrong(every),
        *_models(every["models"].records if "models" in every else {}),
        *_layers(every["layers"].records if "layers" in every else {}),
    ]
    if any(r.get("rehearsed") for each in every.values() for r in each.records.values()):
        lines.insert(0, "A REHEARSAL, without a GPU: times are made up")
    return [line[:WIDTH] for line in lines[:LINES]]


def _machine(records: Records) -> list[str]:
    machine, ceilings = records.get("machine", {}), records.get("ceilings", {})
    first = records.get("first kernel", {})
    figures = [
        f"{k} {v:.4g}" for k, v in ceilings.items() if isinstance(v, float) and k != "seconds"
    ]
    lines = []
    if machine:
        words = [str(machine.get("gpu")), f"torch {machine.get('torch')}"]
        words += [f"Triton {machine.get('triton')}", f"cuDNN {machine.get('cudnn')}"]
        lines.append(", ".join([*words, str(machine.get("smi", ""))]))
    if figures:
        lines.append("ceilings: " + ", ".join(figures))
    if "entries" in first:
        before, after = first["entries"]
        hit = "found in the cache" if before == after else "MISSED the cache"
        lines.append(f"first kernel: {hit} of {before}, {first['first_launch_s']:.1f} s")
    return lines


def _stages(every: Mapping[str, Results]) -> list[str]:
    lines = []
    for name, results in every.items():
        count = len(results.records)
        of = f" of {results.planned}" if results.planned is not None else ""
        reasons = [each["skipped"] for each in results.records.values() if "skipped" in each]
        words = [f"{count}{of} results", f"{len(results.wrong)} wrong"]
        if reasons:
            why = f" ({reasons[0]})" if len(reasons) == count else ""
            words.append(f"{len(reasons)} skipped{why}")
        words += [end for end in results.ended if end != "exit 0"]
        lines.append(f"{name:10} " + ", ".join(words))
    return lines


def _wrong(every: Mapping[str, Results]) -> list[str]:
    messages = [
        f"  {name}: {why}"
        for name, results in every.items()
        for why in (*(f"its process ended: {end}" for end in _failures(results)), *_whys(results))
    ]
    # Several stages share the room: none is to fill it alone.
    shown: list[str] = []
    queues = [[line for line in messages if line.startswith(f"  {name}: ")] for name in every]
    while len(shown) < WRONG and any(queues):
        for queue in queues:
            if queue and len(shown) < WRONG:
                shown.append(queue.pop(0))
    shown.sort(key=messages.index)
    more = [f"  and {len(messages) - len(shown)} more"] if len(messages) > len(shown) else []
    return [f"wrong: {len(messages) or 'none'}", *shown, *more]


def _failures(results: Results) -> list[str]:
    """Of the process itself, outside of any result."""
    return [end for end in results.ended if end.startswith("exit ") and end != "exit 0"]


def _whys(results: Results) -> list[str]:
    return [_why(record) for record in results.wrong]


def _why(record: Record) -> str:
    key = record["key"].removeprefix("tests/")
    if "failed" in record:
        return f"{key[:60]}: {record['failed']}"[:110] + f" at {record.get('at', '?')}"
    if "error" in record:
        return f"{key}: error {record['error']:.3g}, torch's {_number(record)}"
    reason = record.get("why") or str(record.get("text", "")).strip().splitlines()[-1:] or ""
    remaining = {k: v for k, v in record.items() if k not in _ELSEWHERE}
    return f"{key}: {reason or remaining}"


_ELSEWHERE = ("key", "ok", "seed", "arguments", "seconds", "receipt", "program", "text")


def _number(record: Record) -> str:
    torch_error = record.get("torchs", record.get("eagers"))
    return "-" if torch_error is None else f"{torch_error:.3g}"


def _models(records: Records) -> list[str]:
    lines = []
    for (model, precision, batch), row in tables.times_of(records).items():
        timed = {name: each for name, each in row.items() if "back_to_back_us" in each}
        if not timed:
            continue
        rates = {name: tables.rate(each, batch) for name, each in timed.items()}
        words = [f"{tables.COLUMNS.get(name, name)} {rates[name]:,.0f}" for name in timed]
        line = f"  {model} {precision} {batch}: " + ", ".join(words)
        if models.OURS in timed:
            ours = timed[models.OURS]
            steps = row.get(models.STEPS, {}).get("steps", [])
            device = sum(us for _, _, us in steps)
            host = f", steps {device:.0f}" if steps else ""
            line += f"; {ours['latency_us']:.0f} us a call, {ours['back_to_back_us']:.0f} in turn"
            line += host
        lines.append(line)
    cut = lines[:SLOW]
    if len(lines) > SLOW:
        cut.append(f"  and {len(lines) - SLOW} more: show --table")
    return ["models, images/s:", *cut] if lines else []


def _layers(records: Records) -> list[str]:
    timed = {
        key: each for key, each in records.items() if "us" in each and not is_wrong(dict(each))
    }
    by_layer: dict[str, dict[str, Mapping[str, Any]]] = {}
    for key, each in timed.items():
        layer, _, way = key.rpartition(": ")
        by_layer.setdefault(layer, {})[way] = each
    batches = dict.fromkeys(layer.split(" x ")[0] for layer in by_layer)
    if not batches:
        return []
    lines = ["layers, sums in us over those that have all three; measured / modelled of all:"]
    lines += [_of_batch(batch, by_layer) for batch in batches]
    lines += _by_boxes(by_layer)
    worst = sorted(by_layer, key=lambda layer: -_behind(by_layer[layer]))[:5]
    lines.append("slowest beside the library:")
    lines += [
        f"  {_of_layer(layer, by_layer[layer])}" for layer in worst if _behind(by_layer[layer])
    ]
    return lines + fit.report_lines(fit.fitted(fit.rows_of(timed)))


def _of_batch(batch: str, by_layer: Mapping[str, Records]) -> str:
    mine = {layer: ways for layer, ways in by_layer.items() if layer.startswith(f"{batch} x ")}
    complete = [ways for ways in mine.values() if CHOSEN in ways and _library(ways) < math.inf]
    chosen = sum(ways[CHOSEN]["us"] for ways in complete)
    best = sum(_best(ways) for ways in complete)
    peer = sum(_library(ways) for ways in complete)
    ratios = [
        each["us"] / each["modelled_us"]
        for ways in mine.values()
        for each in ways.values()
        if "modelled_us" in each
    ]
    modelling = "-"
    if ratios:
        modelling = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    return (
        f"  batch {batch}: {len(complete)} layers, chosen {chosen:.0f}, best of the sweep "
        f"{best:.0f}, library {peer:.0f}; measured / modelled {modelling}"
    )


def _by_boxes(by_layer: Mapping[str, Records]) -> list[str]:
    """How boxes do beside what the model chooses, which is never boxes."""
    ratios = [
        ways[BOXES]["us"] / ways[CHOSEN]["us"]
        for ways in by_layer.values()
        if BOXES in ways and CHOSEN in ways
    ]
    if not ratios:
        return []
    return [
        f"  {len(ratios)} layers by boxes: {statistics.median(ratios):.2f} of what is chosen "
        f"({min(ratios):.2f} to {max(ratios):.2f}), faster in {sum(it < 1 for it in ratios)}"
    ]


def _best(ways: Records) -> float:
    return float(min(each["us"] for each in ways.values() if "config" in each))


def _library(ways: Records) -> float:
    """The fastest of the library's; infinite where there is none."""
    return min(
        (ways[w]["us"] for w in (CUDNN, WITH_EPILOGUE, CUBLAS) if w in ways), default=math.inf
    )


def _behind(ways: Records) -> float:
    """How many times as long as the library's ours takes."""
    return ways[CHOSEN]["us"] / _library(ways) if CHOSEN in ways else 0.0


def _of_layer(layer: str, ways: Records) -> str:
    chosen = ways[CHOSEN]
    c = fit.config_of(chosen["config"])
    fastest = min((n for n, each in ways.items() if "config" in each), key=lambda n: ways[n]["us"])
    config = f"{c.block_m}x{c.block_n}x{c.block_k}, {c.num_warps} warps, {c.num_stages} stages"
    config += ", descriptors" if c.descriptors else ""
    config += f", boxes of {c.box_n}x{c.box_h}x{c.box_w}" if c.box_w else ""
    config += f", split {c.split_k}" if c.split_k > 1 else ""
    return (
        f"{layer}: {chosen['us']:.1f} us, library {_library(ways):.1f}, best {_best(ways):.1f} "
        f"({fastest}), modelled {chosen['modelled_us']:.1f}, floor {chosen['floor_us']:.1f}; "
        + config
    )
