"""Sizes and conditions on sizes, as small trees of our own.

Capture gives sizes as sympy expressions. What an optimised model keeps of them is only ever
evaluated, so it is kept as plain data: a call needs no sympy (a second to import), and a saved
model holds a tree that can be read without evaluating any text.

``Expression("floordiv", (Expression("symbol", ("s0",)), 2))`` is ``s0 // 2``; a number is itself.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce
from typing import Any, TypeAlias

import torch

Number: TypeAlias = "int | float | Fraction | bool"
Size: TypeAlias = "Expression | int | float | bool"


class UnknownFunction(ValueError):
    """An expression holds a function that is none of :data:`FUNCTIONS`."""


@dataclass(frozen=True)
class Expression:
    """A function of :data:`FUNCTIONS` and its operands; ``"symbol"`` has its name as operand."""

    function: str
    operands: tuple[Any, ...]

    @property
    def symbols(self) -> frozenset[str]:
        """The names of the symbols in it."""
        if self.function == "symbol":
            return frozenset(self.operands)
        inner = (part.symbols for part in self.operands if isinstance(part, Expression))
        return frozenset().union(*inner)

    def __str__(self) -> str:
        if self.function == "symbol":
            return str(self.operands[0])
        sign = _INFIX.get(self.function)
        if sign is None:
            return f"{self.function}({', '.join(map(str, self.operands))})"
        inner = (_INFIX.keys() & {getattr(part, "function", None)} for part in self.operands)
        parts = (
            f"({part})" if nested else str(part)
            for part, nested in zip(self.operands, inner, strict=True)
        )
        return sign.join(parts)


def symbol(name: str) -> Expression:
    """A size that is not known yet."""
    return Expression("symbol", (name,))


def _power(base: Any, exponent: Any) -> Any:
    if isinstance(exponent, int) and abs(exponent) > LARGEST_EXPONENT:
        raise OverflowError
    if isinstance(exponent, int) and exponent < 0 and isinstance(base, int):
        return Fraction(1, base**-exponent)
    return base**exponent


def _shifted(base: int, by: int) -> int:
    if by > LARGEST_EXPONENT:
        raise OverflowError
    return base << by


def _divided(a: Any, b: Any) -> float:
    return float(a) / float(b)


def _chosen(condition: Any, one: Any, other: Any) -> Any:
    return one if condition else other


def largest(*parts: Any) -> Any:
    """The largest; of symbolic sizes without deciding which one that is."""
    return reduce(torch.sym_max, parts) if _symbolic(parts) else max(parts)


def smallest(*parts: Any) -> Any:
    """The smallest; of symbolic sizes without deciding which one that is."""
    return reduce(torch.sym_min, parts) if _symbolic(parts) else min(parts)


def _symbolic(parts: Sequence[Any]) -> bool:
    return any(isinstance(part, (torch.SymInt, torch.SymFloat)) for part in parts)


LARGEST_EXPONENT = 64
"""Sizes are below 2^63; a larger power is no size."""

FUNCTIONS: dict[str, tuple[int | None, Callable[..., Any]]] = {
    "add": (None, lambda *parts: sum(parts)),
    "mul": (None, lambda *parts: reduce(operator.mul, parts, 1)),
    "pow": (2, _power),
    "fraction": (2, Fraction),
    "floordiv": (2, operator.floordiv),
    "ceildiv": (2, lambda a, b: -(-a // b)),
    "mod": (2, operator.mod),
    "truediv": (2, _divided),
    "max": (None, largest),
    "min": (None, smallest),
    "abs": (1, abs),
    "floor": (1, math.floor),
    "ceil": (1, math.ceil),
    "trunc": (1, math.trunc),
    "round": (1, round),
    "float": (1, float),
    "sqrt": (1, math.sqrt),
    "log2": (1, math.log2),
    "log": (1, math.log),
    "exp": (1, math.exp),
    "lshift": (2, _shifted),
    "rshift": (2, operator.rshift),
    "bit_and": (2, operator.and_),
    "bit_or": (2, operator.or_),
    "bit_xor": (2, operator.xor),
    "where": (3, _chosen),
    "eq": (2, operator.eq),
    "ne": (2, operator.ne),
    "lt": (2, operator.lt),
    "le": (2, operator.le),
    "gt": (2, operator.gt),
    "ge": (2, operator.ge),
    "not": (1, operator.not_),
    "and": (None, lambda *parts: all(parts)),
    "or": (None, lambda *parts: any(parts)),
}
"""Name -> (number of operands, None for one or more; its value)."""

_INFIX = {
    "add": " + ", "mul": "*", "pow": "**", "floordiv": "//", "mod": " % ", "fraction": "/",
    "eq": " == ", "ne": " != ", "lt": " < ", "le": " <= ", "gt": " > ", "ge": " >= ",
    "and": " and ", "or": " or ",
}  # fmt: skip


def evaluate(size: Any, known: Mapping[str, int]) -> Number | None:
    """The value of ``size`` for these sizes of its symbols.

    Returns:
        None where it has none: a symbol is not known, a division by zero, beyond all sizes.
    """
    if not isinstance(size, Expression):
        return size  # type: ignore[no-any-return]
    if size.function == "symbol":
        return known.get(size.operands[0])
    values = [evaluate(part, known) for part in size.operands]
    decides = {"and": False, "or": True}.get(size.function)
    if decides is not None and any(value is decides for value in values):
        return decides
    if any(value is None for value in values):
        return None
    try:
        value: Any = FUNCTIONS[size.function][1](*values)
    except (ArithmeticError, ValueError, TypeError):
        return None
    return None if isinstance(value, complex) else value


def solve(size: Expression, value: int, unknown: str, known: Mapping[str, int]) -> int | None:
    """The whole number that ``unknown`` must be for ``size`` to be ``value``.

    Returns:
        None where there is none, or where ``size`` is not linear in ``unknown``.
    """
    line = _linear(size, unknown, known)
    if line is None or line[0] == 0:
        return None
    slope, offset = line
    # In whole numbers throughout: a size may be symbolic (torch.SymInt), and no Fraction takes one.
    above = (value * offset.denominator - offset.numerator) * slope.denominator
    below = slope.numerator * offset.denominator
    return above // below if above % below == 0 else None


def _linear(
    size: Any, unknown: str, known: Mapping[str, int]
) -> tuple[int | Fraction, int | Fraction] | None:
    """``(a, b)`` of ``a * unknown + b``, or None for anything else."""
    if not isinstance(size, Expression):
        return (0, size) if isinstance(size, int) else None
    if size == symbol(unknown):
        return 1, 0
    if unknown not in size.symbols:
        value = evaluate(size, known)
        return (0, value) if isinstance(value, (int, Fraction)) else None
    lines = [_linear(part, unknown, known) for part in size.operands]
    if size.function not in ("add", "mul") or None in lines:
        return None
    slope: int | Fraction = 0
    offset: int | Fraction = 0 if size.function == "add" else 1
    for line in lines:
        assert line is not None
        if size.function == "add":
            slope, offset = slope + line[0], offset + line[1]
        elif slope and line[0]:
            return None  # a square
        else:
            slope, offset = slope * line[1] + line[0] * offset, offset * line[1]
    return slope, offset


_BY_CLASS: dict[str, str] = {
    "Add": "add", "Mul": "mul", "Pow": "pow", "PowByNatural": "pow", "FloatPow": "pow",
    "FloorDiv": "floordiv", "CleanDiv": "floordiv", "CeilDiv": "ceildiv",
    "Mod": "mod", "PythonMod": "mod", "IntTrueDiv": "truediv", "FloatTrueDiv": "truediv",
    "Max": "max", "Min": "min", "Abs": "abs",
    "floor": "floor", "ceiling": "ceil", "FloorToInt": "floor", "CeilToInt": "ceil",
    "TruncToInt": "trunc", "RoundToInt": "round", "ToFloat": "float",
    "OpaqueUnaryFn_sqrt": "sqrt", "OpaqueUnaryFn_log2": "log2", "OpaqueUnaryFn_log": "log",
    "OpaqueUnaryFn_exp": "exp", "LShift": "lshift", "RShift": "rshift",
    "BitwiseFn_bitwise_and": "bit_and", "BitwiseFn_bitwise_or": "bit_or",
    "BitwiseFn_bitwise_xor": "bit_xor", "Where": "where",
    "Equality": "eq", "Unequality": "ne", "StrictLessThan": "lt", "LessThan": "le",
    "StrictGreaterThan": "gt", "GreaterThan": "ge", "Not": "not", "And": "and", "Or": "or",
}  # fmt: skip


def from_sympy(expression: Any) -> Size:
    """A sympy expression (of torch's symbolic sizes) as an :class:`Expression` or a number.

    Raises:
        UnknownFunction: it holds a function that is none of :data:`FUNCTIONS`.
    """
    name = type(expression).__name__
    if expression.is_Symbol:
        return symbol(str(expression))
    if expression.is_Boolean and name in ("BooleanTrue", "BooleanFalse"):
        return bool(expression)
    if expression.is_Integer:
        return int(expression)
    if expression.is_Float:
        return float(expression)
    if expression.is_Rational:
        return Expression("fraction", (int(expression.p), int(expression.q)))
    operands: Sequence[Any] = [from_sympy(part) for part in expression.args]
    if name == "Identity":
        return operands[0]  # type: ignore[no-any-return]
    if name == "ModularIndexing":
        base, divisor, modulus = operands
        return Expression("mod", (Expression("floordiv", (base, divisor)), modulus))
    function = _BY_CLASS.get(name)
    if function is None:
        raise UnknownFunction(name)
    return Expression(function, tuple(operands))
