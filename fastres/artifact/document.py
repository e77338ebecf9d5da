"""The parts of a saved model, and their description in JSON.

=============  ================================================================================
field          holds
=============  ================================================================================
made_by        versions of fastres and torch that wrote the file: to tell, not to decide by
graph          the fused graph (:mod:`fastres.artifact.graph_json`)
weights        dtype, shape and SHA-256 per tensor; those of the graph are called ``weights.NAME``,
               constants of the recipe ``recipe.NAME``
contract       the inputs that the graph is valid for; signature; structures; the captured call
report         the receipt, with what the engine that it was saved from left to torch apart
options        precision, strict and such; device, engine and threads are chosen when it is loaded
preprocessing  what surrounds the network, null where nothing does
recipe         the captured graph, for ``refresh``: a JSON text of its own, read when it is needed
quantized      of int8 only: settings and scales, for ``refresh``; each value's means are a tensor
               called ``means.NAME``
ranges         of float16 that was calibrated only: its values' ranges, for ``refresh``
=============  ================================================================================
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fastres.artifact.calls import (
    contract_from_json,
    contract_to_json,
    example_from_json,
    example_to_json,
    signature_from_json,
    signature_to_json,
)
from fastres.artifact.container import tensors_to_json
from fastres.artifact.graph_json import graph_from_json, graph_to_json
from fastres.artifact.quantized import (
    float16_ranges_from_json,
    float16_ranges_to_json,
    quantized_from_json,
    quantized_to_json,
)
from fastres.artifact.receipt import options_to_json, report_from_json, report_to_json
from fastres.artifact.strict import fields, of_type, parse, text
from fastres.artifact.structure import structure_from_json, structure_to_json
from fastres.capture.contract import Contract, TensorInput
from fastres.errors import ArtifactError, OptionError
from fastres.options import Options
from fastres.quantization.apply import Calibrated
from fastres.quantization.calibration import Quantized
from fastres.report import Report
from fastres.transforms import Preprocessing

_FIELDS = (
    "made_by", "graph", "weights", "contract", "signature", "arguments", "results", "example",
    "report", "options", "preprocessing", "recipe",
)  # fmt: skip


_OF_SOME = ("quantized", "ranges")


@dataclass
class Parts:
    """The parts of an optimised model, which a file holds.

    Attributes:
        module: the fused graph; weights are its buffers.
        contract, signature, in_spec, out_spec, example: as in ``Captured``.
        report: the receipt, without the engine's own remarks.
        options: as in :func:`fastres.optimize`.
        preprocessing: what surrounds the network.
        recipe: the captured graph as text, and its constants; None where it could not be kept.
        calibrated: what quantised the graph, or made it float16.
    """

    module: fx.GraphModule
    contract: Contract
    signature: inspect.Signature
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec
    example: list[Any]
    report: Report
    options: Options
    preprocessing: Preprocessing | None
    recipe: tuple[str, dict[str, Tensor]] | None
    calibrated: Calibrated | None = None


def describe(parts: Parts, made_by: dict[str, str]) -> tuple[str, dict[str, Tensor]]:
    """The description of a model and its tensors, on the CPU.

    Raises:
        ArtifactError: a part of it cannot be held by a file; the message says which and why.
    """
    recipe, kept = parts.recipe if parts.recipe is not None else (None, {})
    tensors = {f"weights.{name}": value for name, value in parts.module.named_buffers()}
    tensors |= {f"recipe.{name}": value for name, value in kept.items()}
    if isinstance(parts.calibrated, Quantized):
        means = parts.calibrated.calibration.means
        tensors |= {f"means.{name}": value for name, value in means.items()}
    tensors = {name: _plain(name, value) for name, value in tensors.items()}
    description = {
        "made_by": made_by,
        "graph": graph_to_json(parts.module),
        "weights": tensors_to_json(tensors),
        "contract": contract_to_json(parts.contract),
        "signature": signature_to_json(parts.signature),
        "arguments": structure_to_json(parts.in_spec, "the model's arguments"),
        "results": structure_to_json(parts.out_spec, "the model's results"),
        "example": example_to_json(parts.example),
        "report": report_to_json(parts.report),
        "options": options_to_json(parts.options),
        "preprocessing": None if parts.preprocessing is None else parts.preprocessing.to_dict(),
        "recipe": recipe,
    }
    if isinstance(parts.calibrated, Quantized):
        description["quantized"] = quantized_to_json(parts.calibrated)
    elif parts.calibrated is not None:
        description["ranges"] = float16_ranges_to_json(parts.calibrated)
    return json.dumps(description, separators=(",", ":"), allow_nan=False), tensors


def _plain(name: str, value: Tensor) -> Tensor:
    """A dense copy on the CPU that shares memory with no other."""
    if value.layout != torch.strided or value.is_quantized:
        raise ArtifactError(f"{name} is a {value.layout} tensor of {value.dtype}: only dense ones")
    copied: Tensor = value.detach().cpu().clone(memory_format=torch.contiguous_format)
    return copied


class Description:
    """A parsed and checked description.

    Raises:
        ArtifactError: it does not describe a model.
    """

    def __init__(self, data: str) -> None:
        parsed = of_type(parse(data), dict, "the description")
        names = (*_FIELDS, *(name for name in _OF_SOME if name in parsed))
        values = dict(zip(names, fields(parsed, names, "the description"), strict=True))
        self._values = values
        self.weights = of_type(values["weights"], dict, "weights")
        self.report = report_from_json(values["report"])
        self.contract = contract_from_json(values["contract"])
        self.made_by = {
            name: text(version, "made_by", 100)
            for name, version in of_type(values["made_by"], dict, "made_by").items()
        }

    @property
    def device(self) -> str:
        """The device that the saved model's first tensor input was on."""
        devices = (each.device for each in self.contract.inputs if isinstance(each, TensorInput))
        return str(next(devices, "cpu"))

    def parts(
        self,
        tensors: dict[str, Tensor],
        device: torch.device,
        make_options: Callable[[Any], Options],
    ) -> Parts:
        """The model's parts on ``device``.

        Args:
            tensors: of the file, already held against their checksums.
            make_options: from the options in the file.

        Raises:
            ArtifactError: they do not belong together.
        """
        values = self._values
        weights = _with_prefix("weights.", tensors)
        kept = _with_prefix("recipe.", tensors)
        means = _with_prefix("means.", tensors)
        if len(weights) + len(kept) + len(means) != len(tensors):
            raise ArtifactError("weights: a tensor belongs neither to the graph nor to the recipe")
        saved = torch.device(self.device)

        def moved(original: torch.device) -> torch.device:
            return device if original == saved else original

        constants = {name: value.to(device) for name, value in weights.items()}
        module = graph_from_json(values["graph"], constants, moved)
        parts = Parts(
            module,
            self.contract.on(device),
            signature_from_json(values["signature"]),
            structure_from_json(values["arguments"], "arguments"),
            structure_from_json(values["results"], "results"),
            example_from_json(values["example"]),
            self.report,
            make_options(values["options"]),
            _preprocessing(values["preprocessing"]),
            None if values["recipe"] is None else (_recipe(values["recipe"]), kept),
            _calibrated(values, means),
        )
        _check_counts(parts)
        return parts


def _with_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): value for n, value in tensors.items() if n.startswith(prefix)}


def _preprocessing(data: Any) -> Preprocessing | None:
    if data is None:
        return None
    try:
        return Preprocessing.from_dict(of_type(data, dict, "preprocessing"))
    except (OptionError, TypeError, ValueError) as error:
        raise ArtifactError(f"preprocessing: {error}") from error


def _calibrated(values: dict[str, Any], means: dict[str, Tensor]) -> Calibrated | None:
    if "quantized" in values:
        return quantized_from_json(values["quantized"], means)
    if "ranges" in values:
        return float16_ranges_from_json(values["ranges"])
    return None


def _recipe(data: Any) -> str:
    return of_type(data, str, "recipe")


def _check_counts(parts: Parts) -> None:
    """Check that graph, contract, structures and example agree on how many inputs and outputs."""
    nodes = parts.module.graph.nodes
    inputs = sum(node.op == "placeholder" for node in nodes)
    (output,) = (node for node in nodes if node.op == "output")
    counts = {inputs, len(parts.contract.inputs), len(parts.example), parts.in_spec.num_leaves}
    if len(counts) != 1:
        raise ArtifactError(f"graph, contract and example have {sorted(counts)} inputs")
    if len(output.args[0]) != parts.out_spec.num_leaves:
        raise ArtifactError(
            f"the graph gives {len(output.args[0])} results, expected {parts.out_spec.num_leaves}"
        )
