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

_SYMBOLIC_SHAPE_FILES = tuple(
    str(_TORCH / part) for part in ("fx/experimental", "__init__.py", "utils/_sympy")
)
"""torch's code for symbolic sizes: it evaluates conditions that some caller further out needs."""

_FASTRES_FILES = tuple(
    str(Path(__file__).with_name(f"{name}.py")) for name in ("decisions", "export_program")
)
"""Files of fastres between the model's code and torch's operators: they never decide themselves."""

_PYTHON_LAYERS = ("nn", "functional.py", "_tensor.py")
"""Parts of torch that are Python code above the operators, and count as the model's own code."""


@dataclass(frozen=True)
class CodeLocation:
    """Where code decided on a size.

    Attributes:
        line: ``file:line`` of the model's code (or of ``torch.nn``).
        module: name and class of the innermost module of the model; "" where there is none.
    """

    line: str
    module: str

    def __str__(self) -> str:
        return f"{self.line} (module {self.module})" if self.module else self.line


@dataclass(frozen=True)
class Specialization:
    """Symbols that were fixed to the example's size because code needed a plain number."""

    symbols: frozenset[str]
    location: CodeLocation


class TangledSizes(Exception):
    """The sizes' expressions are too complicated for symbols; the message is the module's name.

    Capture starts again with the image's height and width as plain numbers.
    """


class Decisions:
    """Watches the questions about sizes in one capture.

    Args:
        model: whose modules to name.
        strict: record what a coincidence answers too, so that it binds later calls.

    Attributes:
        locations: where the conditions that torch recorded come from, by their number.
        specializations: symbols that became numbers, and the code that needed them, in order.
        coincidences: how many answers held because a size of the example happened to be 1.
    """

    def __init__(self, model: nn.Module, strict: bool = False) -> None:
        self.locations: dict[int, CodeLocation] = {}
        self.specializations: list[Specialization] = []
        self.coincidences = 0
        self._strict = strict
        self._names = {id(module): name for name, module in model.named_modules()}
        self._watched: Any = None

    @property
    def has_begun(self) -> bool:
        """Whether a symbolic size was seen, so that the questions about it are watched."""
        return self._watched is not None

    def watch(self, size: torch.SymInt) -> None:
        """Wrap ``evaluate_expr`` of the shape environment that ``size`` belongs to, once."""
        shape_env: Any = size.node.shape_env
        if shape_env is self._watched:
            return
        self._watched = shape_env
        evaluate = self._with_short_errors(shape_env.evaluate_expr)

        def evaluate_expr(expression: Any, *args: Any, **kwargs: Any) -> Any:
            purpose = _purpose(_asking_frame())
            if purpose:
                with shape_env.suppress_guards():
                    answer = evaluate(expression, *args, **kwargs)
                if purpose == "layout" or _holds_for_usual_sizes(expression, answer):
                    return answer
                if purpose == "broadcast" and not self._strict:
                    self.coincidences += _is_one_by_coincidence(expression, answer)
                    return answer
            before = len(shape_env.guards)
            answer = evaluate(expression, *args, **kwargs)
            new = [n for n in range(before, len(shape_env.guards)) if n not in self.locations]
            if new:
                location = self._location()
                self.locations.update(dict.fromkeys(new, location))
                if not expression.is_Relational:
                    self.specializations.append(
                        Specialization(frozenset(map(str, expression.free_symbols)), location)
                    )
            return answer

        shape_env.evaluate_expr = evaluate_expr  # of this capture alone, and gone with it

    def _with_short_errors(self, evaluate: Callable[..., Any]) -> Callable[..., Any]:
        """The same, with errors for which torch does not print the whole graph so far."""

        def evaluate_or_shorten(*args: Any, **kwargs: Any) -> Any:
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

        return evaluate_or_shorten

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

    def _location(self) -> CodeLocation:
        frame = _asking_frame()

        while frame.f_back is not None and (
            _category(frame.f_code) != "model" or frame.f_code.co_filename == F.__file__
        ):
            frame = frame.f_back
        line = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
        return CodeLocation(line, self.module())


def _asking_frame() -> FrameType:
    """The innermost frame outside fastres and outside torch's code for symbolic sizes."""
    frame = sys._getframe(2)
    while frame.f_back is not None and _category(frame.f_code) == "asking":
        frame = frame.f_back
    return frame


def _purpose(frame: FrameType | None) -> str:
    """``"layout"``, ``"broadcast"`` or ``"operator"`` if an operator asks for its own use.

    "" for the model's code, and for an operator whose result has a rank by the sizes.
    """
    operator = ""
    while frame is not None:
        category = _category(frame.f_code)
        if category in ("layout", "broadcast"):
            return category
        if category == "model":
            return operator
        operator = category
        if frame.f_code is _CALL and "squeeze" in str(frame.f_locals.get("self")):
            return ""
        frame = frame.f_back
    return operator


@functools.cache
def _category(code: CodeType) -> str:
    """What a frame's code is part of."""
    if code.co_filename.startswith((*_SYMBOLIC_SHAPE_FILES, *_FASTRES_FILES)):
        return "asking"
    if not is_operator_code(code.co_filename):
        return "model"
    if _LAYOUT.search(code.co_name):
        return "layout"
    return "broadcast" if _BROADCAST.search(code.co_name) else "operator"


_CALL = torch._ops.OpOverload.__call__.__code__


def _holds_for_usual_sizes(expression: Any, answer: Any) -> bool:
    """Whether the answer is that sizes are more than 0 or 1, as they are in all usual images.

    An operator that asked finds out again; what is computed from its result's sizes is right for
    0 and 1, too.
    """
    if getattr(expression, "func", None) is not None and expression.func.__name__ == "And":
        return bool(answer) and all(_holds_for_usual_sizes(part, True) for part in expression.args)
    if not expression.is_Relational or not any(s in (0, 1) for s in expression.args):
        return False
    number_is_left = expression.args[0] in (0, 1)
    usual = {"!=": True, "==": False, ">": True, ">=": True, "<": False, "<=": False}
    expected = usual.get(expression.rel_op)
    if number_is_left and expression.rel_op in ("<", "<=", ">", ">="):
        expected = not expected
    return expected is not None and bool(answer) == expected


def _is_one_by_coincidence(expression: Any, answer: Any) -> bool:
    """Whether symbolic sizes were found to be 1."""
    if not expression.free_symbols or not expression.is_Relational:
        return False
    equal = bool(answer) if expression.rel_op == "==" else not answer
    return equal and expression.rel_op in ("==", "!=") and any(s == 1 for s in expression.args)


def is_operator_code(filename: str) -> bool:
    """Whether a file is torch's and below its Python surface: part of how operators work."""
    if not filename.startswith(str(_TORCH) + os.sep):  # torchvision is no part of torch
        return False
    return Path(filename).relative_to(_TORCH).parts[0] not in _PYTHON_LAYERS
