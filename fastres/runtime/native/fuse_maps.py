"""Maps into the operation in front of them: one pass over memory instead of two.

A convolution takes a sum with an image of its size, and a function on either side of it; a map
takes in this order a scale, a function, a product, a sum and a function, each once. What is read
by anything else, or handed out, stays by itself.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from fastres.runtime.native.functions import NONE, Function
from fastres.runtime.native.operations import LoweredSubgraph, Op, Value


def fuse_maps(lowered: LoweredSubgraph) -> LoweredSubgraph:
    """The same subgraph with fewer operations."""
    readers = Counter(value for op in lowered.ops for value in op.reads)
    touched = [value for op in lowered.ops for value in (*op.reads, op.output) if value is not None]
    tied = {value.whole[0] for value in touched if value.whole is not None}
    tied |= {op.output for op in lowered.ops if op.lattice is not None and op.output is not None}
    makers: dict[Value, Op] = {}
    found: dict[Op, None] = {}  # in order
    for op in lowered.ops:
        merged = op
        if op.kind == "map" and op.rescaling is None:
            for form in _forms(op):
                value = form.input
                assert value is not None
                producer = makers.get(value)
                is_alone = readers[value] == 1 and value.whole is None and value not in tied
                if producer is None or not is_alone or not _continues(value, form):
                    continue
                both = _merged(producer, form)
                if both is not None:
                    del found[producer]
                    merged = both
                    break
        found[merged] = None
        if merged.output is not None:
            makers[merged.output] = merged
    return replace(lowered, ops=list(found))


def _forms(op: Op) -> list[Op]:
    """A map, and the same with its summands or factors exchanged."""
    forms = [op]
    is_plain = op.scale is None and op.shift is None and op.before == NONE
    if is_plain and op.factor is None and op.residual is not None and op.residual_multiplier == 1.0:
        forms.append(replace(op, input=op.residual, residual=op.input))
    if is_plain and op.factor is not None and op.residual is None:
        forms.append(replace(op, input=op.factor, factor=op.input))
    return forms


def _continues(value: Value, op: Op) -> bool:
    """Whether a map goes on with its input as it is: of the output's size, and read once."""
    assert op.output is not None
    return value not in (op.factor, op.residual) and _size(value) == _size(op.output)


def _size(value: Value) -> tuple[int, int, int]:
    layout = value.layout
    return layout.channels, layout.height, layout.width


def _functions(*functions: Function) -> list[Function]:
    return [function for function in functions if function != NONE]


def _merged(first: Op, second: Op) -> Op | None:
    """Two operations as one, or None."""
    if first.rescaling is not None or (first.slopes is not None and second.slopes is not None):
        return None
    if first.kind == "convolution":
        has_slot = second.scale is None and second.shift is None and second.factor is None
        if not has_slot or (second.residual is not None and not _is_plain_sum(second)):
            return None
    elif first.kind in ("group_norm", "layer_norm"):
        is_function = second.factor is None and second.residual is None and first.after == NONE
        if not is_function or second.scale is not None or second.shift is not None:
            return None
        functions = _functions(second.before, second.after)
        if len(functions) != 1:
            return None
        return replace(first, output=second.output, after=functions[0], slopes=second.slopes)
    elif first.kind != "map" or second.scale is not None or second.shift is not None:
        return None
    slots = _slots(first, second)
    if slots is None:
        return None
    before, after = slots
    return replace(
        first,
        output=second.output,
        factor=first.factor if first.factor is not None else second.factor,
        residual=first.residual if first.residual is not None else second.residual,
        residual_multiplier=(
            first.residual_multiplier if second.residual is None else second.residual_multiplier
        ),
        slopes=first.slopes if first.slopes is not None else second.slopes,
        before=before,
        after=after,
    )


def _is_plain_sum(op: Op) -> bool:
    assert op.residual is not None and op.output is not None
    return op.residual_multiplier == 1.0 and _size(op.residual) == _size(op.output)


def _slots(first: Op, second: Op) -> tuple[Function, Function] | None:
    """The functions in front of product and sum and behind them, or None where there is no room."""
    if second.factor is None and second.residual is None:
        more = _functions(second.before, second.after)
        if first.factor is None and first.residual is None:
            in_turn = [*_functions(first.before, first.after), *more]
            return (*in_turn, NONE, NONE)[:2] if len(in_turn) <= 2 else None  # type: ignore[return-value]
        behind = [*_functions(first.after), *more]
        return (first.before, (*behind, NONE)[0]) if len(behind) <= 1 else None
    if first.residual is not None or (first.factor is not None and second.factor is not None):
        return None
    if first.factor is not None:  # between product and sum is no function
        between = _functions(first.after, second.before)
        return None if between else (first.before, second.after)
    in_front = _functions(first.before, first.after, second.before)
    return ((*in_front, NONE)[0], second.after) if len(in_front) <= 1 else None
