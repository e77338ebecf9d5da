"""``to_onnx``: optimise, translate, write, check; only then is there a file."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fastres.capture.capture import as_arguments, in_eval_mode
from fastres.capture.pipeline import with_preprocessing
from fastres.checks import require_bool, require_integer, require_one_of
from fastres.errors import FastresWarning, InputError, ModelError, OptionError
from fastres.export import metadata
from fastres.export.report import OnnxReport, Source
from fastres.export.requirements import need_onnx, need_onnxruntime
from fastres.optimization import optimize
from fastres.optimized import OptimizedModule
from fastres.system.files import as_path, refuse_special
from fastres.system.plain_tensors import materialized, refuse_under_tracing
from fastres.system.threads import safe_threads

OPSET = 18
"""The default version of the standard operators (ONNX 1.13, December 2022).

Version 18 is the first in which reductions take their axes alike and Resize has antialiasing; what
has come since changes no operator that is written here, and older runtimes would not load it.
"""

OPSETS = range(13, 24)
"""Versions that may be asked for. 13 is what TensorRT 8 documents; ONNX Runtime has all of them."""

PRECISIONS = {"fp32": "float32", "fp16": "float16", "int8": "int8"}
"""What a file computes in, and what receipts call it. ONNX Runtime has no bfloat16 convolution to
check such a file with."""


@safe_threads()
def to_onnx(
    model: nn.Module,
    path: str | Path,
    *,
    example_input: Any = None,
    dynamic_size: bool | None = None,
    opset: int = OPSET,
    precision: str | None = None,
    float32_io: bool = False,
    external_data: bool = False,
    labels: Sequence[str] | None = None,
    openvino: bool = False,
    round_sums: bool = False,
    **options: Any,
) -> OnnxReport:
    """Write a model as an ONNX file of standard operators, if its answers are the model's.

    The file is written to a temporary folder beside ``path``, loaded again, checked by
    ``onnx.checker`` with full shape inference, run in ONNX Runtime with 1, 2 and 7 images (and at a
    second image size with ``dynamic_size``) and compared with the model in float64 and in PyTorch.
    Only then does it replace what is at ``path``. The batch is always open where the model allows
    it.

    Of an int8 model the file is in QDQ form, with the model's own scales: int8 weights with a scale
    a filter, int32 biases and uint8 activations behind DequantizeLinear, QuantizeLinear behind each
    operator. Its integers are compared with the int8 model's, each tensor from the file's own
    integers in front of it: none may differ by more than one step. In front of a residual addition
    there is no QuantizeLinear, as int8 models round only behind it. ONNX Runtime then computes that
    convolution in float32, OpenVINO with integers; see ``round_sums``. A layer that was kept in
    bfloat16 is written in float32 arithmetic on values that are rounded as there.

    Args:
        model: a model, which is optimised first, or what :func:`fastres.optimize` returned.
        path: of the file. Weights beside it are called ``<path>.<checksum>.data``.
        example_input: as for ``optimize``; its image size is the file's unless ``dynamic_size``.
            Default: the size that an optimised model was captured with, else 224x224.
        dynamic_size: leave height and width open too. Default: where the model resizes its images
            itself (``resize=True``), and not otherwise.
        opset: version of the standard operators, one of :data:`OPSETS`.
        precision: ``"fp32"``, ``"fp16"``, ``"int8"`` (with ``calibration=``), or None for the
            model's own. An optimised model has one.
        float32_io: with ``"fp16"``, take and give float32; weights and arithmetic stay float16.
        external_data: keep the weights in a second file. Beyond 2 GB that is always so.
        labels: names of the classes, for the metadata; default: those of the model's preprocessing.
        openvino: check the answers in OpenVINO too.
        round_sums: of an int8 model, round a convolution in front of a residual addition too, so
            that ONNX Runtime computes all convolutions with integers. That is faster there and less
            exact: sums differ from the model's by about two steps.
        options: for a model that is not optimised yet: of :func:`fastres.optimize`
            (``input_format``, ``transforms``, ``calibration`` and so on).

    Raises:
        OptionError: an argument is not one of those, ``path`` has no directory, or something
            watches this thread's calls (a fake mode, say).
        ArtifactError: the file cannot be written.
        ModelError: an operation has no translation (the message names module and operator), the
            model is bfloat16, or ``dynamic_size`` where the model fixes its size.
        CaptureError: as for ``optimize``.
        TargetError: onnx or ONNX Runtime is missing.
        VerificationError: the file's answers are not the model's. No file is written, and one that
            was there is untouched; the message names the first tensor that differs.
    """
    refuse_under_tracing("to_onnx")
    target_file = _checked_path(path)
    _check_options(
        opset,
        precision,
        dynamic_size=dynamic_size is not None and dynamic_size,
        float32_io=float32_io,
        external_data=external_data,
        openvino=openvino,
        round_sums=round_sums,
    )
    need_onnx()
    need_onnxruntime()
    seconds: dict[str, float] = {}
    began = time.perf_counter()
    fast, source = _optimised(model, example_input, precision, options)
    seconds["optimise"] = time.perf_counter() - began
    if round_sums and not fast.is_quantized:
        raise OptionError(
            f"round_sums=True: this model computes in {fast.report.precision}, expected an int8 one"
        )
    dtype = fast.dtype
    if dtype not in (torch.float32, torch.float16):
        raise ModelError(
            f"the model computes in {str(dtype).removeprefix('torch.')}, and ONNX Runtime has no "
            "such convolution to check the file with: optimise with precision='fp32' or 'fp16'"
        )
    example = _example(fast, example_input)
    if dynamic_size is None:
        dynamic_size = fast.preprocessing is not None and fast.preprocessing.resize
    from fastres.export.write import write_checked

    return write_checked(
        fast,
        source,
        example,
        target_file,
        dynamic_size=dynamic_size,
        opset=opset,
        io_dtype=torch.float32 if float32_io else dtype,
        external=external_data,
        rounds_sums=round_sums,
        metadata=metadata.describe(fast, source.sha256, source.model is not None, labels),
        openvino=openvino,
        seconds=seconds,
    )


def _checked_path(path: str | Path) -> Path:
    file = as_path(path)
    if not file.name:
        raise OptionError(f"path={str(path)!r}: expected the name of a file to write")
    try:
        refuse_special(file)
    except OSError as error:
        raise OptionError(f"path: expected the name of a file to write: {error}") from error
    if not file.parent.is_dir():
        raise OptionError(f"{file}: there is no directory {file.parent}")
    try:
        str(file).encode()
    except UnicodeEncodeError as error:
        raise OptionError(
            f"{str(file)!a}: expected a name that is text in UTF-8, as onnx reads it"
        ) from error
    return file


def _check_options(opset: int, precision: str | None, **flags: bool) -> None:
    require_integer("opset", opset, least=OPSETS[0], most=OPSETS[-1])
    if precision is not None:
        require_one_of("precision", precision, PRECISIONS, "None takes the model's own")
    for name, flag in flags.items():
        require_bool(name, flag)


def _optimised(
    model: nn.Module, example_input: Any, precision: str | None, options: dict[str, Any]
) -> tuple[OptimizedModule, Source]:
    if isinstance(model, OptimizedModule):
        dtype_name = model.report.precision
        if precision is not None and PRECISIONS[precision] != dtype_name:
            raise OptionError(
                f"precision={precision!r}, but this optimised model computes in {dtype_name}: give "
                f"the model that it was made from, or optimise that with precision={precision!r}"
            )
        if options:
            raise OptionError(
                f"{', '.join(options)}: for a model that is not optimised yet; this one is"
            )
        return model, Source(None, metadata.weights_sha256(model.graph_module))
    if not isinstance(model, nn.Module):
        raise OptionError(
            f"model is a {type(model).__name__}: expected an nn.Module or what optimize() returned"
        )
    evaluated, notes = in_eval_mode(model)
    for sentence in notes:
        warnings.warn(sentence, FastresWarning, stacklevel=3)
    with warnings.catch_warnings():
        # What stays with torch in an optimised model is no loss here: it is translated, or refused.
        warnings.simplefilter("ignore", FastresWarning)
        chosen = {"engine": "eager", **options}
        fast = optimize(evaluated, example_input, precision=precision, **chosen)
    reference = with_preprocessing(evaluated, fast.preprocessing)
    return fast, Source(reference, metadata.weights_sha256(evaluated))


def _example(fast: OptimizedModule, example_input: Any) -> list[Any]:
    """The flattened arguments whose shapes and plain values the file gets."""
    if example_input is None:
        return list(fast.internals.example)
    example_input = pytree.tree_map(partial(materialized, name="example_input"), example_input)
    args, kwargs = as_arguments(example_input)
    try:
        return fast.internals.flatten(args, kwargs)
    except InputError as error:
        raise OptionError(f"example_input: {error}") from error
