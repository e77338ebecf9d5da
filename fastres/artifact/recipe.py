"""The captured graph before any pass, from which an optimised model is made with other weights.

The passes decide by the weights too (does a folded weight fit float16? is a shift zero, so that it
may be folded past padding?). So new weights go through the same passes on the same captured graph,
and the result is bitwise that of ``optimize`` on a model with those weights, without its code and
without torch.export.

The graph is kept as JSON, as saved models hold it, with the name in the model's state dict for each
constant; what is not in the state dict (a tensor made in forward, a non-persistent buffer) is kept
itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from fastres.artifact.arguments import device_from_json, dtype_from_json
from fastres.artifact.graph_json import graph_from_json, graph_to_json
from fastres.artifact.known_values import KnownValues, hints_to_json, values_to_json
from fastres.artifact.receipt import notes_from_json
from fastres.artifact.strict import count, fields, items, of_type, parse, text
from fastres.errors import ArtifactError, OptionError
from fastres.passes import rewrite
from fastres.report import Report
from fastres.system.plain_tensors import why_not_plain

_FIELDS = (
    "graph", "values", "hints", "dtype", "device", "constants", "state", "shared", "notes",
)  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """A captured graph without its weights.

    Attributes:
        document: JSON; the names are those of :func:`record`.
        kept: constants that are in no state dict, by name.
    """

    document: str
    kept: dict[str, Tensor]


@dataclass(frozen=True)
class Expected:
    """What a state dict must hold under one name; ``strides`` where they are not the usual ones."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None


def record(
    module: fx.GraphModule, model: nn.Module, model_dtype: torch.dtype, notes: list[str]
) -> Recipe:
    """The recipe of a captured graph, before the passes change it.

    Args:
        module: the captured graph; its constants share memory with the model's.
        model: the user's model.
        model_dtype: the model's dtype.
        notes: capture's notes for the receipt.

    Raises:
        ArtifactError: the graph holds what no file can hold, or the model has no state dict.
    """
    try:
        state_dict = dict(model.state_dict())
    except Exception as error:  # a user's hooks may raise anything
        raise ArtifactError(f"the model's state_dict() fails: {error}") from error
    state = {name: value for name, value in state_dict.items() if isinstance(value, Tensor)}
    names: dict[Any, list[str]] = {}
    for name, value in state.items():
        names.setdefault(_identity(name, value), []).append(name)
    constants: dict[str, str | None] = {}
    stored: dict[str, Tensor] = {}
    for constant, value in module.named_buffers(recurse=False):
        # Of several names for one tensor, the one that capture named the constant after.
        found = names.get(_identity(constant, value), [])
        same = [name for name in found if name.replace(".", "_") == constant]
        constants[constant] = next(iter(same or found), None)
        if not found:
            stored[constant] = value.detach().clone(memory_format=torch.preserve_format)
    document = {
        "graph": graph_to_json(module),
        "values": values_to_json(module.graph),
        "hints": hints_to_json(module.graph),
        "dtype": str(model_dtype).removeprefix("torch."),
        "device": str(next((b.device for b in module.buffers()), "cpu")),
        "constants": constants,
        "state": {
            name: _expected_to_json(value) if isinstance(value, Tensor) else None
            for name, value in state_dict.items()
        },
        "shared": [group for group in names.values() if len(group) > 1],
        "notes": notes,
    }
    return Recipe(json.dumps(document, separators=(",", ":"), allow_nan=False), stored)


def _identity(name: str, value: Tensor) -> Any:
    """A key that is equal for two names of one tensor; an empty tensor has its name instead."""
    if not value.numel():
        return name.replace(".", "_"), value.shape
    return value.data_ptr(), value.dtype, value.shape, value.stride()


def _expected_to_json(value: Tensor) -> Any:
    strides = None if value.is_contiguous() else list(value.stride())
    return [str(value.dtype).removeprefix("torch."), list(value.shape), strides]


class ReadRecipe:
    """A parsed and checked recipe.

    Raises:
        ArtifactError: it does not describe a captured graph.
    """

    def __init__(self, recipe: Recipe) -> None:
        graph, values, hints, dtype, device, constants, state, shared, notes = fields(
            parse(recipe.document), _FIELDS, "recipe"
        )
        self.model_dtype = dtype_from_json(dtype, "recipe.dtype")
        self.device = _available_device(device_from_json(device, "recipe.device"))
        self.notes = notes_from_json(notes, "recipe.notes")
        self.state = {
            text(name, "recipe.state"): None if entry is None else _expected(entry)
            for name, entry in of_type(state, dict, "recipe.state").items()
        }
        self.shared = [
            [self._known(name) for name in group] for group in items(shared, list, "recipe.shared")
        ]
        self.constants: dict[str, str | None] = {
            constant: None if name is None else self._known(name)
            for constant, name in of_type(constants, dict, "recipe.constants").items()
        }
        missing = {c for c, name in self.constants.items() if name is None} ^ recipe.kept.keys()
        if missing:
            raise ArtifactError(f"recipe: the constant {min(missing)} is not where it should be")
        self._kept = recipe.kept
        self._graph, self._values, self._hints = graph, values, hints

    def _known(self, name: Any) -> str:
        known = of_type(name, str, "recipe")
        if self.state.get(known) is None:
            raise ArtifactError(f"recipe: {ascii(known)[:60]} is not in the state dict")
        return known

    def graph(self, state: Mapping[str, Tensor]) -> fx.GraphModule:
        """The captured graph with the weights of ``state``, which :meth:`checked` let pass."""
        constants = {
            constant: self._kept[constant].to(self.device) if name is None else state[name]
            for constant, name in self.constants.items()
        }
        module = graph_from_json(self._graph, constants)
        KnownValues(self._hints, self.device).annotate(module.graph, self._values)
        return module

    def checked(self, state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
        """The tensors of a state dict that the graph reads, on its device.

        Raises:
            OptionError: a name is missing or unknown, a tensor has another shape or dtype, or two
                names of one shared weight have different values.
        """
        if not isinstance(state_dict, Mapping):
            raise OptionError(
                f"state_dict is a {type(state_dict).__name__}: expected a model's state_dict()"
            )
        read = {name for name in self.constants.values() if name is not None}
        unknown = [name for name in state_dict if name not in self.state]
        stored_names = {name: self._name_in(state_dict, name) for name in sorted(read)}
        missing = [name for name, other in stored_names.items() if other is None]
        if unknown or missing:
            raise OptionError(_names_message(unknown, missing))
        for name, value in state_dict.items():
            _check(name, value, self.state[name])
        for group in self.shared:
            present = [name for name in group if name in state_dict]
            for name in present[1:]:
                if not _same_bits(state_dict[present[0]], state_dict[name]):
                    raise OptionError(
                        f"{present[0]} and {name} are one weight in the model, and differ in "
                        "state_dict: give both the same values"
                    )
        return {
            name: self._placed(state_dict[str(stored_names[name])], self.state[name])
            for name in stored_names
        }

    def _name_in(self, state_dict: Mapping[str, Any], name: str) -> str | None:
        """``name``, or where that is left out another name of the same shared weight."""
        group = next((group for group in self.shared if name in group), [])
        return next((known for known in (name, *group) if known in state_dict), None)

    def _placed(self, value: Tensor, expected: Expected | None) -> Tensor:
        moved = value.detach().to(self.device)
        assert expected is not None
        strides = expected.strides or moved.new_empty(expected.shape, device="meta").stride()
        if moved.stride() == strides:
            return moved
        # As load_state_dict would: the model's own memory format decides, for sums' order too.
        return torch.empty_strided(
            expected.shape, strides, dtype=moved.dtype, device=self.device
        ).copy_(moved)


def _available_device(device: torch.device) -> torch.device:
    """The recipe's device, on which ``optimize`` ran the passes; the CPU where it is missing."""
    available = device.type == "cpu" or (
        device.type == "cuda" and (device.index or 0) < torch.cuda.device_count()
    )
    return device if available else torch.device("cpu")


def _expected(data: Any) -> Expected:
    where = "recipe.state"
    parts = of_type(data, list, where)
    if len(parts) != 3:
        raise ArtifactError(f"{where}: expected a dtype, a shape and strides")
    shape = tuple(count(size, where) for size in of_type(parts[1], list, where))
    strides = None
    if parts[2] is not None:
        strides = tuple(count(step, where) for step in of_type(parts[2], list, where))
        reach = sum((size - 1) * step for size, step in zip(shape, strides, strict=False))
        elements = 1
        for size in shape:
            elements = min(elements * size, 2**62)
        if len(strides) != len(shape) or reach >= 4 * max(elements, 1):
            raise ArtifactError(f"{where}: strides {list(strides)} of a tensor {list(shape)}")
    return Expected(dtype_from_json(parts[0], where), shape, strides)


def _names_message(unknown: list[str], missing: list[str]) -> str:
    differences = []
    if missing:
        differences.append(f"no {missing[0]!r} ({len(missing)} missing)")
    if unknown:
        differences.append(f"{unknown[0]!r}, which the model does not have ({len(unknown)} such)")
    advice = "pass the state_dict() of a model of the same class and options"
    if unknown and all(str(name).startswith("module.") for name in unknown):
        advice = "it was saved from nn.DataParallel: remove 'module.' from its names"
    return f"state_dict has {' and '.join(differences)}: {advice}"


def _check(name: str, value: Any, expected: Expected | None) -> None:
    if expected is None:  # not a tensor in the model either
        return
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_meta:
        raise OptionError(f"{name}: expected a dense tensor with values, got {_kind(value)}")
    reason = why_not_plain(value)
    if reason is not None:
        raise OptionError(f"{name}: expected a plain tensor in memory: {reason}")
    if tuple(value.shape) != expected.shape:
        raise OptionError(
            f"{name}: expected the shape {list(expected.shape)}, got {list(value.shape)}: new "
            "weights must be of the same architecture; optimise the other model instead"
        )
    if value.dtype != expected.dtype:
        raise OptionError(
            f"{name}: expected {expected.dtype} as in the model, got {value.dtype}; convert it "
            f"with .to({expected.dtype})"
        )


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a {value.layout} tensor on {value.device}"
    return f"a {type(value).__name__}"


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same bits, so that NaN equals NaN."""
    x, y = (t.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for t in (a, b))
    return a is b or torch.equal(x, y)


def make_graph(
    recipe: ReadRecipe,
    state: Mapping[str, Tensor],
    dtype: torch.dtype,
    device: torch.device,
    report: Report,
) -> fx.GraphModule:
    """The fused graph that the passes make of the captured one with these weights.

    Args:
        dtype: the dtype to compute in.
        device: where it will run.
        report: the receipt to write to.
    """
    with torch.inference_mode(False), torch.no_grad():
        module = recipe.graph(state)
        rewrite(module, report, recipe.model_dtype, dtype, device)
    return module
