"""Views as lines of text; each line says that it is modelled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from fastres.kernels.spec import BottleneckSpec, ConvSpec
from fastres.roofline.view import Row, View

_FUSION = {
    "none": "no block fused",
    "blocks": "blocks fused where modelled to pay, as optimize does",
    "all blocks": "every block fused that fits: fewest launches and bytes",
}
_HEADER = (
    "layer",
    "operator",
    "MB",
    "GFLOP",
    "floor us",
    "modelled us",
    "limit",
    "launches",
    "configuration",
)
_SUMMARY = ("plan", "launches", "us", "images/s", "MB", "fewer bytes")
_LEFT = {"layer", "operator", "limit", "configuration", "plan"}
_MOST_STAGES = 6
"""Columns for stages, modules of several layers; a model of more than that has none."""


def lines(title: str, views: Sequence[View], library: str | None) -> Iterator[str]:
    """One line per operator, view and summary.

    Args:
        title: of all of it.
        views: for each batch, without block fusion, with it where it pays, and wherever it fits.
        library: why convolutions are the library's, None where they are not.
    """
    yield f"modelled, not measured: {title}"
    if library is not None:
        yield f"modelled as if a library's convolutions were as good as ours: {library}"
    for each in views:
        yield f"modelled: batch {each.batch}, {_FUSION[each.fusion]}"
        yield from _aligned([_HEADER, *(_cells(row) for row in each.rows), _total(each)])
    for views_of_batch in zip(views[::3], views[1::3], views[2::3], strict=True):
        yield from _summary(views_of_batch)


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows as lines of columns, the first row their names."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (
            cell.ljust(width) if name in _LEFT else cell.rjust(width)
            for name, cell, width in zip(rows[0], row, widths, strict=True)
        )
        yield f"modelled  {'  '.join(cells)}".rstrip()


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.layer.name,
        f"{row.layer.operator}{_form(row)}",
        f"{row.bytes / 1e6:.2f}",
        f"{row.layer.flops / 1e9:.2f}",
        f"{row.floor_seconds * 1e6:.1f}",
        f"{row.seconds * 1e6:.1f}",
        row.limit,
        str(row.launches),
        row.configuration,
    )


def _form(row: Row) -> str:
    """``3x3/2``, or what a fused block consists of."""
    spec = row.layer.spec
    if isinstance(spec, ConvSpec) and row.layer.operator.endswith("conv2d"):
        stride = f"/{spec.stride[0]}" if spec.stride != (1, 1) else ""
        return f" {spec.r}x{spec.s}{stride}{' + residual' if row.layer.residual else ''}"
    if isinstance(spec, BottleneckSpec):
        parts = [
            *([" + shortcut"] if spec.shortcut is not None else []),
            *([" + next 1x1"] if spec.next_k is not None else []),
        ]
        return "".join(parts)
    return ""


def _total(view: View) -> tuple[str, ...]:
    flops = sum(row.layer.flops for row in view.rows)
    return (
        "all",
        f"{len(view.rows)} operators",
        f"{view.bytes / 1e6:.2f}",
        f"{flops / 1e9:.2f}",
        f"{view.floor_seconds * 1e6:.1f}",
        f"{view.seconds * 1e6:.1f}",
        "",
        str(view.launches),
        f"{view.images_per_second:.0f} images/s",
    )


def _summary(views: Sequence[View]) -> Iterator[str]:
    """A line per way to cut the model, beside the roofline of operators one by one.

    Bytes saved are those of the whole model and of each stage, against the first way.
    """
    unfused = views[0]
    allowed = unfused.batch / unfused.floor_seconds
    yield f"modelled batch {unfused.batch}: the unfused roofline is {allowed:.0f} images/s"
    layers = Counter(row.stage for row in unfused.rows if row.stage)
    stages = [stage for stage, count in layers.items() if count > 1]
    if len(stages) > _MOST_STAGES:
        stages = []
    rows = [(*_SUMMARY, *(f"in {stage}" for stage in stages))]
    for each in views:
        saved = [_saved(each.bytes, unfused.bytes)]
        moved, before = each.stages, unfused.stages
        saved += [_saved(moved.get(stage, 0), before[stage]) for stage in stages]
        rows.append(
            (
                _FUSION[each.fusion],
                str(each.launches),
                f"{each.seconds * 1e6:.1f}",
                f"{each.images_per_second:.0f}",
                f"{each.bytes / 1e6:.2f}",
                *saved,
            )
        )
    yield from _aligned(rows)


def _saved(fewer: int, than: int) -> str:
    return f"{1 - fewer / than:.0%}"
