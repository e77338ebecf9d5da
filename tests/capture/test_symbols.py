"""Sizes as trees of our own: they say what sympy says, and need nothing but Python."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import sympy
from torch.utils._sympy import functions as torchs

from fastres.capture.symbols import (
    FUNCTIONS,
    Expression,
    UnknownFunction,
    evaluate,
    from_sympy,
    solve,
    symbol,
)

A, B = sympy.symbols("a b", integer=True, positive=True)
LEAVES = (A, B, sympy.Integer(1), sympy.Integer(2), sympy.Integer(7), sympy.Integer(32))
WHOLE = (
    lambda x, y: x + y,
    lambda x, y: x - y,
    lambda x, y: x * y,
    torchs.FloorDiv,
    torchs.PythonMod,
    torchs.Max,
    torchs.Min,
)
CONDITIONS = (sympy.Eq, sympy.Ne, sympy.Lt, sympy.Le, sympy.Gt, sympy.Ge)


def random_size(draw: random.Random, depth: int) -> Any:
    if depth == 0:
        return draw.choice(LEAVES)
    return draw.choice(WHOLE)(random_size(draw, depth - 1), random_size(draw, depth - 1))


def random_condition(draw: random.Random) -> Any:
    plain = draw.choice(CONDITIONS)(random_size(draw, 2), random_size(draw, 2))
    if draw.random() < 0.5:
        return plain
    other = draw.choice(CONDITIONS)(random_size(draw, 1), random_size(draw, 1))
    return draw.choice((sympy.And, sympy.Or, lambda x, y: sympy.And(x, sympy.Not(y))))(plain, other)


def test_random_expressions_have_sympys_values() -> None:
    draw = random.Random(0)
    compared = 0
    makers: list[Callable[[], Any]] = [lambda: random_size(draw, 3), lambda: random_condition(draw)]
    for make in makers:
        for _ in range(150):
            try:
                given = make()
            except ZeroDivisionError:
                continue
            ours = from_sympy(given)
            for a, b in ((1, 1), (2, 3), (224, 7), (225, 96)):
                try:
                    wanted = given.xreplace({A: sympy.Integer(a), B: sympy.Integer(b)})
                except ZeroDivisionError:
                    continue
                if not (wanted.is_Integer or wanted in (sympy.true, sympy.false)):
                    continue
                got = evaluate(ours, {"a": a, "b": b})
                assert got == (bool(wanted) if wanted.is_Boolean else int(wanted)), (given, a, b)
                compared += 1
    assert compared > 800


@pytest.mark.parametrize(
    ("given", "value"),
    [
        (torchs.IntTrueDiv(A, B), 7 / 3),
        (torchs.CeilToInt(torchs.IntTrueDiv(A, B)), 3),
        (torchs.FloorToInt(torchs.FloatTrueDiv(A, B)), 2),
        (torchs.ModularIndexing(A, 2, 2), 1),
        (torchs.OpaqueUnaryFn_sqrt(A + 2), 3.0),
        (torchs.RoundToInt(torchs.ToFloat(A)), 7),
        (torchs.CleanDiv(A - 1, 2), 3),
        (torchs.PowByNatural(A, 2), 49),
        (A / 2, 3.5),
        (sympy.true, True),
    ],
)
def test_torchs_functions(given: Any, value: Any) -> None:
    assert evaluate(from_sympy(given), {"a": 7, "b": 3}) == value


def test_an_unknown_function_is_told() -> None:
    with pytest.raises(UnknownFunction, match="sin"):
        from_sympy(sympy.sin(A))


def test_what_has_no_value_is_none() -> None:
    a = symbol("a")
    for nothing in (
        a,
        Expression("floordiv", (a, 0)),
        Expression("floordiv", (3, 0)),
        Expression("pow", (2, 10_000)),
        Expression("lshift", (2, 10_000)),
        Expression("mod", ("text", 3)),
        Expression("pow", (-8, 0.5)),
        Expression("sqrt", (-1,)),
    ):
        assert evaluate(nothing, {}) is None
    assert evaluate(Expression("and", (Expression("eq", (a, 1)), False)), {}) is False
    assert evaluate(Expression("or", (Expression("eq", (a, 1)), True)), {}) is True


def test_linear_sizes_are_solved() -> None:
    a, b = symbol("a"), symbol("b")
    line = Expression("add", (Expression("mul", (2, a)), 3))
    assert solve(line, 11, "a", {}) == 4
    assert solve(line, 12, "a", {}) is None
    assert solve(Expression("add", (a, b)), 9, "a", {"b": 4}) == 5
    assert solve(Expression("mul", (a, Expression("add", (a, 1)))), 6, "a", {}) is None
    assert solve(Expression("floordiv", (a, 2)), 6, "a", {}) is None
    assert solve(Expression("mul", (0, a)), 0, "a", {}) is None


def test_they_read_like_python() -> None:
    a, b = symbol("a"), symbol("b")
    half = Expression("floordiv", (Expression("add", (a, 1)), 2))
    assert str(half) == "(a + 1)//2"
    assert str(Expression("eq", (half, b))) == "((a + 1)//2) == b"
    assert str(Expression("max", (a, 3))) == "max(a, 3)"


def test_every_function_takes_its_number_of_operands() -> None:
    for name, (count, function) in FUNCTIONS.items():
        operands = (4, 2, 2)[: count or 2]
        assert function(*operands) is not None, name
