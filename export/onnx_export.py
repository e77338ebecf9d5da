"""``to_onnx``: optimise, translate, write, check; only then is there a file."""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fastres.capture import as_arguments, in_eval_mode
from fastres.errors import FastresWarning, InputError, ModelError, OptionError
from fastres.export.requirements import need_onnx, need_onnxruntime
from fastres.optimization import optimize
from fastres.optimized import OptimizedModule
from fastres.transforms import Preprocessing
from fastres.verification import precision_of

OPSET = 18
"""The default version of the standard operators (ONNX 1.13, December 2022).

Version 18 is the first in which reductions take their axes alike and Resize has antialiasing; what
has come since changes no operator that is written here, and older runtimes would not load it.
"""

OPSETS = range(13, 24)
"""Versions that may be asked for. 13 is what TensorRT 8 documents; ONNX Runtime has all of them."""

PRECISIONS = ("fp32", "fp16")
"""What a file computes in. ONNX Runtime has no bfloat16 convolution to check such a file with."""


@dataclass(frozen=True)
class OnnxReport:
    """What was written, and what was checked before it was.

    Attributes:
        path: the file.
        opset: version of the standard operators.
        precision: what it computes in, ``"float32"`` or ``"float16"``.
        inputs, outputs: e.g. ``x float32 [batch, 3, 224, 224]``.
        operators: how many nodes there are of each kind.
        errors: per floating-point output (error, PyTorch's own error, the first as a multiple of
            the second), relative root-mean-square against float64.
        images, agreeing: of how many images, and on how many the first choice was float64's.
        bytes: size of the file, and of the weights beside it.
        data: the file beside it that holds the weights, or None.
        source_sha256: checksum of the weights it was made from, as in its metadata.
        checks: a sentence each.
        not_in_tensorrt: operators that TensorRT's documentation does not list.
        notes: what else one should know.
        seconds: time per stage.
    """

    path: Path
    opset: int
    precision: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    operators: Mapping[str, int]
    errors: Mapping[str, tuple[float, float, float]]
    images: int
    agreeing: int
    bytes: int
    data: Path | None
    source_sha256: str
    checks: tuple[str, ...]
    not_in_tensorrt: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def top1_agreement(self) -> float:
        """Share of images on which the first choice was float64's."""
        return self.agreeing / max(self.images, 1)

    def __str__(self) -> str:
        counted = ", ".join(f"{count} {name}" for name, count in self.operators.items())
        lines = [
            f"{self.path}: {self.bytes / 1e6:.1f} MB, opset {self.opset}, {self.precision}",
            f"  {'; '.join(self.inputs)} -> {'; '.join(self.outputs)}",
            f"  {counted}",
        ]
        lines += [
            f"  {name}: error {ours:.2e} against float64, {ratio:.2f}x PyTorch's own"
            for name, (ours, _, ratio) in self.errors.items()
        ]
        if self.images:
            lines.append(f"  first choice as in float64 on {self.agreeing} of {self.images} images")
        lines += [f"  checked: {sentence}" for sentence in self.checks]
        lines += [f"  note: {sentence}" for sentence in self.notes]
        return "\n".join(lines)


def to_onnx(
    model: nn.Module,
    path: str | Path,
    *,
    example_input: Any = None,
    dynamic_size: bool = False,
    opset: int = OPSET,
    precision: str | None = None,
    float32_io: bool = False,
    external_data: bool = False,
    labels: Sequence[str] | None = None,
    openvino: bool = False,
    **options: Any,
) -> OnnxReport:
    """Write a model as an ONNX file of standard operators, if its answers are the model's.

    The file is written to a temporary folder beside ``path``, loaded again, checked by
    ``onnx.checker`` with full shape inference, run in ONNX Runtime with 1, 2 and 7 images (and at a
    second image size with ``dynamic_size``) and compared with the model in float64 and in PyTorch.
    Only then does it replace what is at ``path``. The batch is always open where the model allows
    it. There is no int8 yet: files with QuantizeLinear and DequantizeLinear will come with
    quantisation.

    Args:
        model: a model, which is optimised first, or what :func:`fastres.optimize` returned.
        path: of the file. Weights beside it are called ``<path>.<checksum>.data``.
        example_input: as for ``optimize``; its image size is the file's unless ``dynamic_size``.
            Default: the size that an optimised model was captured with, else 224x224.
        dynamic_size: leave height and width open too.
        opset: version of the standard operators, one of :data:`OPSETS`.
        precision: ``"fp32"``, ``"fp16"``, or None for the model's own. An optimised model has one.
        float32_io: with ``"fp16"``, take and give float32; weights and arithmetic stay float16.
        external_data: keep the weights in a second file. Beyond 2 GB that is always so.
        labels: names of the classes, for the metadata; default: those of the model's preprocessing.
        openvino: check the answers in OpenVINO too.
        options: for a model that is not optimised yet: of :func:`fastres.optimize`
            (``input_format``, ``transforms`` and so on).

    Raises:
        OptionError: an argument is not one of those, or ``path`` cannot be written.
        ModelError: an operation has no translation (the message names module and operator), the
            model is bfloat16, or ``dynamic_size`` where the model fixes its size.
        CaptureError: as for ``optimize``.
        TargetError: onnx or ONNX Runtime is missing.
        VerificationError: the file's answers are not the model's. No file is written, and one that
            was there is untouched; the message names the first tensor that differs.
    """
    target_file = _checked_path(path)
    _check_options(opset, precision, dynamic_size, float32_io, external_data, openvino)
    need_onnx()
    need_onnxruntime()
    seconds: dict[str, float] = {}
    began = time.perf_counter()
    fast, source = _optimised(model, example_input, precision, options)
    seconds["optimise"] = time.perf_counter() - began
    dtype = precision_of(fast)
    if dtype not in (torch.float32, torch.float16):
        raise ModelError(
            f"the model computes in {str(dtype).removeprefix('torch.')}, and ONNX Runtime has no "
            "such convolution to check the file with: optimise with precision='fp32' or 'fp16'"
        )
    example = _example(fast, example_input)
    from fastres.export.onnx_writing import write_checked

    return write_checked(
        *(fast, source, example, target_file),
        dynamic_size=dynamic_size,
        opset=opset,
        io_dtype=torch.float32 if float32_io else dtype,
        external=external_data,
        metadata=_metadata(fast, source, labels),
        openvino=openvino,
        seconds=seconds,
    )


def _checked_path(path: str | Path) -> Path:
    file = Path(path)
    if not file.name or file.is_dir():
        raise OptionError(f"path={str(path)!r}: expected the name of a file to write")
    if not file.parent.is_dir():
        raise OptionError(f"{file}: there is no directory {file.parent}")
    return file


def _check_options(opset: int, precision: str | None, *flags: bool) -> None:
    if type(opset) is not int or opset not in OPSETS:
        raise OptionError(f"opset={opset!r}: expected {OPSETS[0]} to {OPSETS[-1]}")
    if precision is not None and precision not in PRECISIONS:
        raise OptionError(
            f"precision={precision!r}: expected None (the model's own) or one of "
            f"{', '.join(map(repr, PRECISIONS))}"
        )
    if not all(isinstance(flag, bool) for flag in flags):
        raise OptionError(
            "dynamic_size, float32_io, external_data and openvino: expected True or False"
        )


@dataclass(frozen=True)
class Source:
    """Where a file's weights come from: the user's model if it is known, and their checksum."""

    model: nn.Module | None
    sha256: str


def _optimised(
    model: nn.Module, example_input: Any, precision: str | None, options: dict[str, Any]
) -> tuple[OptimizedModule, Source]:
    if isinstance(model, OptimizedModule):
        own = str(precision_of(model)).removeprefix("torch.")
        if precision is not None and {"fp32": "float32", "fp16": "float16"}[precision] != own:
            raise OptionError(
                f"precision={precision!r}, but this optimised model computes in {own}: give the "
                f"model that it was made from, or optimise that with precision={precision!r}"
            )
        if options:
            raise OptionError(
                f"{', '.join(options)}: for a model that is not optimised yet; this one is"
            )
        return model, Source(None, weights_sha256(model.graph_module))
    if not isinstance(model, nn.Module):
        raise OptionError(
            f"model is a {type(model).__name__}: expected an nn.Module or what optimize() returned"
        )
    evaluated, told = in_eval_mode(model)
    for sentence in told:
        warnings.warn(sentence, FastresWarning, stacklevel=3)
    with warnings.catch_warnings():
        # What stays with torch in an optimised model is no loss here: it is translated, or refused.
        warnings.simplefilter("ignore", FastresWarning)
        chosen = {"engine": "eager", **options}
        fast = optimize(evaluated, example_input, precision=precision, **chosen)
    compared = evaluated if fast.preprocessing is None else None
    return fast, Source(compared, weights_sha256(evaluated))


def weights_sha256(module: nn.Module) -> str:
    """SHA-256 of a module's parameters and buffers: names, dtypes, shapes and bytes, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if not isinstance(tensor, Tensor):
            continue
        digest.update(f"{name!r} {tensor.dtype} {list(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _example(fast: OptimizedModule, example_input: Any) -> list[Any]:
    """The flattened arguments whose shapes and plain values the file gets."""
    if example_input is None:
        return list(fast._example)
    args, kwargs = as_arguments(example_input)
    try:
        return fast._flatten(args, kwargs)
    except InputError as error:
        try:  # a channels-first example of a model that takes bytes is for optimize() only
            return list(fast._example)
        finally:
            if fast.preprocessing is None:
                raise OptionError(f"example_input: {error}") from error


def _metadata(
    fast: OptimizedModule, source: Source, labels: Sequence[str] | None
) -> dict[str, str]:
    from fastres import __version__

    preprocessing: Preprocessing | None = fast.preprocessing
    if labels is not None:
        if isinstance(labels, str) or not all(isinstance(name, str) for name in labels):
            raise OptionError("labels: expected a sequence of names, one per class")
    elif preprocessing is not None:
        labels = preprocessing.labels
    described = {
        "fastres.version": __version__,
        "fastres.model": fast.report.model,
        "fastres.precision": fast.report.precision,
        "fastres.source_sha256": source.sha256,
        "fastres.source": "state_dict" if source.model is not None else "folded weights",
    }
    if preprocessing is not None:
        described["fastres.preprocessing"] = json.dumps(preprocessing.to_dict())
    if labels is not None:
        described["fastres.labels"] = json.dumps(list(labels))
    return described


def leaves(tree: Any) -> list[Any]:
    """The flattened arguments or results of a call."""
    return list(pytree.tree_leaves(tree))
