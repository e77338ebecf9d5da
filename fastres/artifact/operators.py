"""Which operations a saved graph may hold, by name; all others are refused.

- ``fastres::conv2d.default`` and the other operators of :mod:`fastres.ir.ops`;
- ``aten::add.Tensor`` and the like: torch's own operators, unless they write to an argument, touch
  files or names (``from_file``), skip their bounds checks (``_unsafe_index``), give memory as it
  is found (``empty``: it may hold anything of the process's), or are torch's internal ones (a
  leading underscore) other than those that captured models consist of;
- ``python::getitem`` and arithmetic on sizes.

A name is looked up in torch's table of operators, never imported.
"""

from __future__ import annotations

import operator
import re
from typing import Any

import torch

from fastres.errors import ArtifactError
from fastres.ir import ops

PYTHON: dict[str, Any] = {
    "getitem": operator.getitem,
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "floordiv": operator.floordiv,
    "mod": operator.mod,
    "neg": operator.neg,
    "truediv": operator.truediv,
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "and": operator.and_,
    "or": operator.or_,
    "sym_max": torch.sym_max,
    "sym_min": torch.sym_min,
    "sym_float": torch.sym_float,
    "sym_int": torch.sym_int,
    "sym_not": torch.sym_not,
}
"""Python's functions by the names that files have for them: a list's item, and sizes."""

INTERNAL: frozenset[str] = frozenset(
    {
        "_adaptive_avg_pool2d",
        "_adaptive_avg_pool3d",
        "_assert_tensor_metadata",
        "_fft_c2r",
        "_fft_r2c",
        "_log_softmax",
        "_softmax",
        "_to_copy",
        "_unsafe_view",
        "_native_batch_norm_legit",
        "_native_batch_norm_legit_no_training",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_weight_norm_interface",
        "_upsample_bicubic2d_aa",
        "_upsample_bilinear2d_aa",
        "_trilinear",
        "_upsample_nearest_exact2d",
        "_upsample_nearest_exact1d",
        "_convolution",
    }
)
"""Operators of torch with a leading underscore that captured models may hold."""

UNINITIALISED: frozenset[str] = frozenset(
    {"new_empty", "new_empty_strided", "resize", "resize_as", "resize_as_sparse"}
)
"""Operators of torch whose results hold what memory held, beside those called ``empty...``."""

TEXTS: frozenset[str] = frozenset(
    {
        "padding",
        "mode",
        "approximate",
        "rounding_mode",
        "equation",
        "reduce",
        "norm",
        "ord",
        "interpolation",
        "side",
        "indexing",
        "driver",
        "UPLO",
        "pad_mode",
        "padding_side",
        "p",
    }
)
"""The arguments of torch's operators that are texts and name nothing outside the call."""

TYPES: frozenset[str] = frozenset(
    {
        "Tensor",
        "int",
        "float",
        "bool",
        "number",
        "str",
        "ScalarType",
        "Layout",
        "MemoryFormat",
        "Device",
        "Generator",
    }
)
"""The types that an argument may have, in a list, optional or plain."""

_NAME = re.compile(
    r"(aten|fastres|python)::([A-Za-z_][A-Za-z0-9_]*)(?:\.([A-Za-z_][A-Za-z0-9_]*))?"
)
_PYTHONS_NAMES = {function: name for name, function in PYTHON.items()}


def operator_name(target: Any) -> str:
    """The name under which a file holds an operation.

    Raises:
        ArtifactError: a saved model may not hold it.
    """
    if isinstance(target, torch._ops.OpOverload):
        name = f"{target.namespace}::{target._opname}.{target._overloadname}"
    elif target in _PYTHONS_NAMES:
        name = f"python::{_PYTHONS_NAMES[target]}"
    else:
        name = str(target)
    resolve(name)
    return name


def resolve(name: str) -> Any:
    """The operation behind a name from a file.

    Raises:
        ArtifactError: there is none, or it is not one that a saved model may hold.
    """
    found = _KNOWN.get(name)
    if found is None:
        found = _KNOWN.setdefault(name, _looked_up(name))
    return found


_KNOWN: dict[str, Any] = {}


def _looked_up(name: str) -> Any:
    match = _NAME.fullmatch(name) if len(name) < 200 else None
    if match is None:
        raise _refused(name, "it is no operator of torch's or of fastres")
    library, base, overload = match.groups()
    if library == "python":
        if base not in PYTHON or overload:
            raise _refused(name, "only items of lists and arithmetic on sizes are taken")
        return PYTHON[base]
    found = _in_torch(library, base, overload)
    if found is None:
        raise _refused(name, "this version of torch and fastres has no such operator")
    if library == "fastres":
        if found not in ops.REFERENCE:
            raise _refused(name, "fastres has no such operator")
        return found
    if base.startswith("_") and base not in INTERNAL:
        raise _refused(name, "it is internal to torch")
    if base.startswith("empty") or base in UNINITIALISED:
        raise _refused(
            name, "it gives memory that nobody has written to; make zeros instead (torch.zeros)"
        )
    schema = found._schema
    if schema.is_mutable:
        raise _refused(name, "it writes to its argument")
    for argument in schema.arguments:
        kind = type_of(argument)
        if plain_type(kind) not in TYPES or ("str" in kind and argument.name not in TEXTS):
            raise _refused(name, f"its argument {argument.name!r} is no tensor, number or option")
    return found


def _in_torch(library: str, base: str, overload: str | None) -> Any:
    """An overload that torch's dispatcher runs, None where there is none."""
    qualified = f"{library}::{base}" + (f".{overload}" if overload not in (None, "default") else "")
    if overload is None or overload.startswith("__"):  # torch allows no such name
        return None
    if not torch._C._dispatch_has_kernel(qualified):
        return None
    packet = getattr(getattr(torch.ops, library), base, None)
    found = getattr(packet, overload, None)
    return found if isinstance(found, torch._ops.OpOverload) else None


def type_of(argument: Any) -> str:
    """An argument's type as its schema writes it: ``"Optional[List[int]]"``, ``"ScalarType"``."""
    return str(getattr(argument, "real_type", argument.type))


def plain_type(kind: str) -> str:
    """``"int"`` of ``"Optional[List[int]]"``."""
    for wrapper in ("Optional[", "List[", "Optional["):
        if kind.startswith(wrapper):
            kind = kind[len(wrapper) : -1]
    return kind


def _refused(name: str, reason: str) -> ArtifactError:
    return ArtifactError(
        f"the operator {ascii(name)[:80]} cannot be part of a saved model: {reason}"
    )
