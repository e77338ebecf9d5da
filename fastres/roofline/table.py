"""Views as lines of text; each line says that it is modelled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fastres.roofline.view import Row, View
from fastres.spec import BottleneckSpec, ConvSpec

_FUSION = {
    "none": "without block fusion",
    "blocks": "with block fusion where it is modelled to pay",
    "all blocks": "with block fusion wherever it fits",
}
_HEADER = (
    *("layer", "operator", "MB", "GFLOP", "floor us", "modelled us", "limit", "launches"),
    "configuration",
)
_LEFT = {"layer", "operator", "limit", "configuration"}


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
        yield from _table(each)
    yield from _summary(views)


def _table(view: View) -> Iterator[str]:
    rows = [_HEADER, *(_cells(row) for row in view.rows), _total(view)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    yield f"modelled: batch {view.batch}, {_FUSION[view.fusion]}"
    for row in rows:
        cells = (
            cell.ljust(width) if name in _LEFT else cell.rjust(width)
            for name, cell, width in zip(_HEADER, row, widths, strict=True)
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
    if isinstance(spec, ConvSpec) and row.layer.operator == "conv2d":
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
    """Per batch all ways beside the roofline of operators one by one."""
    for apart, together, most in zip(views[::3], views[1::3], views[2::3], strict=True):
        allowed = apart.batch / apart.floor_seconds
        yield (
            f"modelled batch {apart.batch}: {apart.images_per_second:.0f} images/s without block "
            f"fusion in {apart.launches} launches, {_saved(together, apart)} where it pays, "
            f"{_saved(most, apart)} wherever it fits; the unfused roofline is {allowed:.0f}"
        )


def _saved(view: View, apart: View) -> str:
    return (
        f"{view.images_per_second:.0f} in {view.launches} launches with "
        f"{1 - view.bytes / apart.bytes:.0%} fewer bytes"
    )
