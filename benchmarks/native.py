"""The engine ``native`` as the scripts need it: whether it is here, and without Winograd."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fastres.dtypes import PRECISIONS
from fastres.runtime.native import plan_builder
from fastres.runtime.native.library import Library, load
from fastres.runtime.native.operations import Op


def why_unavailable(precision: str) -> str | None:
    """Why the engine cannot compute in a precision here, or None where it can."""
    library = load()
    if isinstance(library, str):
        return f"no native engine: {library}"
    if instruction_set(library, precision) is None:
        return f"this processor has no instructions for {precision} that the native engine knows"
    return None


def instruction_set(library: Library, precision: str) -> str | None:
    """The one that it computes with, None where the processor has none for the precision."""
    choice = PRECISIONS[precision].instruction_sets
    return next((isa for isa in choice if isa in library.isas), None)


@contextmanager
def without_winograd() -> Iterator[None]:
    """What is planned meanwhile multiplies directly; a plan is made when a shape is first seen."""

    def never(op: Op, isa: str) -> bool:
        return False

    before = plan_builder.uses_winograd
    plan_builder.uses_winograd = never
    try:
        yield
    finally:
        plan_builder.uses_winograd = before
