"""What is decided on sizes while a model is traced, by whom, and which of it binds later calls.

torch.export records every question that is asked about a symbolic size as a condition on it. Some
are asked by torch's operators for themselves: is a tensor contiguous? which of two summands is
repeated along this dimension? An operator asks again of the real sizes, whenever it runs, so these
are not recorded: in a ResNet that saw 32 x 32 the last feature map is a single pixel, contiguous in
every order, and larger images would be refused.

One answer may have an effect beyond its operator: where a size of the example happened to be 1, the
result's size is a plain 1 from there on. Such coincidences are counted; capture then looks at a
larger example.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from fastres.ir.graph import user_path

_TORCH = Path(torch.__file__).parent

_LAYOUT = re.compile(
    "contiguous|stride|memory_format|channels_last|overlapping"
    "|reshape|_view_|^conv$|^convert$"  # how to view it; which layout a convolution prefers
    "|^div_rtn$"  # a division, of which only negative numbers matter
)
_BROADCAST = re.compile("^infer_size$|broadcast|^fast_binary_impl$|^should_expand$|copy_")
"""Names of torch's functions that ask for an operator's own use."""

_ASKING = tuple(str(_TORCH / part) for part in ("fx/experimental", "__init__.py", "utils/_sympy"))
"""torch's code that puts questions on behalf of others."""

_OURS = tuple(str(Path(__file__).with_name(f"{name}.py")) for name in ("decisions", "tracing"))

_PYTHON = ("nn", "functional.py", "_tensor.py")
"""Parts of torch that are Python code above the operators, like the user's own."""


@dataclass(frozen=True)
class Place:
    """Where a size was decided on.

    Attributes:
        line: ``file:line`` of the model's code (or of ``torch.nn``).
        module: name and class of the innermost module of the model; "" where there is none.
        by_operator: not the model's code but an operator that it calls decides.
    """

    line: str
    module: str
    by_operator: bool

    def __str__(self) -> str:
        return f"{self.line} (module {self.module})" if self.module else self.line


@dataclass(frozen=True)
class Fixing:
    """Sizes (names of symbols) that became numbers because somebody wanted a plain number."""

    symbols: frozenset[str]
    place: Place


class TangledSizes(Exception):
    """Raised inside capture to start again with the image's size as a number; says where."""


class Decisions:
    """Watches the questions about sizes in one capture.

    Args:
        model: whose modules to name.
        strict: record what a coincidence answers too, so that it binds later calls.

    Attributes:
        places: where the conditions that torch recorded come from, by their number.
        fixed: what made numbers of sizes, in order.
        coincidences: how many answers held because a size of the example happened to be 1.
    """

    def __init__(self, model: nn.Module, strict: bool = False) -> None:
        self.places: dict[int, Place] = {}
        self.fixed: list[Fixing] = []
        self.coincidences = 0
        self._strict = strict
        self._names = {id(module): name for name, module in model.named_modules()}
        self._watched: Any = None

    def watch(self, size: torch.SymInt) -> None:
        """Look at all questions about sizes of the same capture as ``size``, from now on."""
        environment: Any = size.node.shape_env
        if environment is self._watched:
            return
        self._watched = environment
        evaluate = self._without_listing(environment.evaluate_expr)

        def evaluate_expr(expression: Any, *args: Any, **kwargs: Any) -> Any:
            purpose = _purpose(_asker())
            if purpose:
                with environment.suppress_guards():
                    answer = evaluate(expression, *args, **kwargs)
                if purpose == "layout" or _is_usual(expression, answer):
                    return answer
                if purpose == "broadcast" and not self._strict:
                    self.coincidences += _is_coincidence(expression, answer)
                    return answer
            before = len(environment.guards)
            answer = evaluate(expression, *args, **kwargs)
            new = [n for n in range(before, len(environment.guards)) if n not in self.places]
            if new:
                place = self._place()
                self.places.update(dict.fromkeys(new, place))
                if not expression.is_Relational:
                    self.fixed.append(Fixing(frozenset(map(str, expression.free_symbols)), place))
            return answer

        environment.evaluate_expr = evaluate_expr  # of this capture alone, and gone with it

    def _without_listing(self, evaluate: Callable[..., Any]) -> Callable[..., Any]:
        """The same, with errors for which torch does not print the whole graph so far."""

        def quietly(*args: Any, **kwargs: Any) -> Any:
            try:
                return evaluate(*args, **kwargs)
            except NotImplementedError as error:  # sympy's, solving for a size
                raise TangledSizes(self.module()) from error
            except RuntimeError as error:  # torch goes by this word in the text
                error.args = tuple(
                    arg.replace("data-dependent", "data dependent") if isinstance(arg, str) else arg
                    for arg in error.args
                )
                raise

        return quietly

    def module(self) -> str:
        """Name and class of the module that runs now; "" where there is none."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            module = frame.f_locals.get("self")
            if isinstance(module, nn.Module) and id(module) in self._names:
                name = user_path(self._names[id(module)]) or "the model itself"
                return f"{name}, {type(module).__name__}"
            frame = frame.f_back
        return ""

    def _place(self) -> Place:
        frame = _asker()
        by_operator = _part(frame.f_code) != "model"
        while frame.f_back is not None and (
            _part(frame.f_code) != "model" or frame.f_code.co_filename == F.__file__
        ):
            frame = frame.f_back
        line = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
        return Place(line, self.module(), by_operator)


def _asker() -> FrameType:
    """The innermost frame that is neither ours nor part of how torch asks."""
    frame = sys._getframe(2)
    while frame.f_back is not None and _part(frame.f_code) == "asking":
        frame = frame.f_back
    return frame


def _purpose(frame: FrameType | None) -> str:
    """``"layout"``, ``"broadcast"`` or ``"operator"`` if an operator asks for its own use.

    "" for the model's code, and for an operator whose result has a rank by the sizes.
    """
    operator = ""
    while frame is not None:
        part = _part(frame.f_code)
        if part in ("layout", "broadcast"):
            return part
        if part == "model":
            return operator
        operator = part
        if frame.f_code is _CALL and "squeeze" in str(frame.f_locals.get("self")):
            return ""
        frame = frame.f_back
    return operator


@functools.cache
def _part(code: CodeType) -> str:
    """What a frame's code is part of."""
    if code.co_filename.startswith((*_ASKING, *_OURS)):
        return "asking"
    if not is_operators(code.co_filename):
        return "model"
    if _LAYOUT.search(code.co_name):
        return "layout"
    return "broadcast" if _BROADCAST.search(code.co_name) else "operator"


_CALL = torch._ops.OpOverload.__call__.__code__


def _is_usual(expression: Any, answer: Any) -> bool:
    """Whether the answer is that sizes are more than 0 or 1, as they are in all usual images.

    An operator that asked finds out again; what is computed from its result's sizes is right for
    0 and 1, too.
    """
    if getattr(expression, "func", None) is not None and expression.func.__name__ == "And":
        return bool(answer) and all(_is_usual(part, True) for part in expression.args)
    if not expression.is_Relational or not any(s in (0, 1) for s in expression.args):
        return False
    number_is_left = expression.args[0] in (0, 1)
    usual = {"!=": True, "==": False, ">": True, ">=": True, "<": False, "<=": False}
    wanted = usual.get(expression.rel_op)
    if number_is_left and expression.rel_op in ("<", "<=", ">", ">="):
        wanted = not wanted
    return wanted is not None and bool(answer) == wanted


def _is_coincidence(expression: Any, answer: Any) -> bool:
    """Whether symbolic sizes were found to be 1."""
    if not expression.free_symbols or not expression.is_Relational:
        return False
    equal = bool(answer) if expression.rel_op == "==" else not answer
    return equal and expression.rel_op in ("==", "!=") and any(s == 1 for s in expression.args)


def is_operators(filename: str) -> bool:
    """Whether a file is torch's and below its Python surface: part of how operators work."""
    if not filename.startswith(str(_TORCH) + os.sep):  # torchvision is no part of torch
        return False
    return Path(filename).relative_to(_TORCH).parts[0] not in _PYTHON
