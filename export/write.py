"""The half of ``to_onnx`` that needs the package onnx: translate, write, check, publish."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import ModelProto, helper

from fastres.accuracy.sample import random_arguments
from fastres.errors import ArtifactError, OptionError
from fastres.export import model_file, tensorrt_operators
from fastres.export.check import check
from fastres.export.check.reference import Reference
from fastres.export.graph import convert
from fastres.export.report import OnnxReport, Source
from fastres.export.sizes import sizes_of
from fastres.optimized import OptimizedModule


def write_checked(
    fast: OptimizedModule,
    source: Source,
    example: Sequence[Any],
    path: Path,
    *,
    dynamic_size: bool,
    opset: int,
    io_dtype: torch.dtype,
    external: bool,
    rounds_sums: bool,
    metadata: dict[str, str],
    openvino: bool,
    seconds: dict[str, float],
) -> OnnxReport:
    """Write ``fast`` to ``path``, unless a check fails; see :func:`fastres.export.to_onnx`."""
    began = time.perf_counter()
    sizes = sizes_of(fast.internals.contract, example, dynamic_size)
    converted = convert(fast, example, sizes, opset, io_dtype, rounds_sums)
    described(converted.proto, metadata)
    _check_labels(converted.proto, metadata)
    seconds["translate"] = time.perf_counter() - began
    beyond = model_file.weight_bytes(converted.proto) > model_file.LIMIT
    with model_file.temporary_folder(path) as folder:
        file = folder / path.name
        began = time.perf_counter()
        try:
            data = model_file.write(converted.proto, file, external or beyond)
        except OSError as error:
            raise ArtifactError(f"{path} cannot be written: {error.strerror or error}") from error
        except onnx.checker.ValidationError as error:  # a name that onnx does not take
            raise ArtifactError(f"{path} cannot be written: {error}") from error
        seconds["write"] = time.perf_counter() - began
        began = time.perf_counter()
        reference = Reference(fast, source.model)
        checked = check.check(file, converted, reference, sizes, example)
        if openvino:
            inputs = sizes.inputs(example, *check.samples(sizes, example)[-1])
            flat = random_arguments(inputs, "cpu", seed=1, example=example)
            checked.done.append(check.check_openvino(file, converted, reference, flat))
        seconds["check"] = time.perf_counter() - began
        size = file.stat().st_size + (data.stat().st_size if data is not None else 0)
        proto = onnx.load_model(str(file), load_external_data=False)
        model_file.publish(file, data, path)
    outside = tensorrt_operators.outside(checked.operators)
    notes = [*converted.notes, *sizes.conditions()]
    if checked.agreeing < checked.images and fast.is_quantized:
        notes.append(
            f"another first choice than the int8 model's on {checked.images - checked.agreeing} of "
            f"{checked.images} random images: roundings that go the other way grow where answers "
            "are close"
        )
    if not sizes.batch:
        notes.append("the model fixes its batch, and so does the file")
    if fast.is_quantized:
        notes.append("TensorRT quantises around 0 only and does not take a file with uint8 values")
    elif outside:
        notes.append(f"TensorRT's documentation does not list {', '.join(outside)}")
    else:
        checked.done.append("all operators are on TensorRT's list")
    return OnnxReport(
        path=path,
        opset=opset,
        precision=fast.report.precision,
        inputs=tuple(map(_described, proto.graph.input)),
        outputs=tuple(map(_described, proto.graph.output)),
        operators=checked.operators,
        errors={
            each.name: (each.sums.error, each.sums.eager_error, each.sums.ratio)
            for each in checked.outputs
        },
        images=checked.images,
        agreeing=checked.agreeing,
        bytes=size,
        data=None if data is None else path.parent / data.name,
        source_sha256=source.sha256,
        checks=tuple(checked.done),
        not_in_tensorrt=tuple(outside),
        notes=tuple(notes),
        example={name: sizes.known[symbol] for symbol, name in sizes.open.items()},
        seconds=seconds,
    )


def described(proto: ModelProto, metadata: dict[str, str]) -> None:
    """Put a file's description into its metadata."""
    proto.producer_version = metadata["fastres.version"]
    helper.set_model_props(proto, metadata)


def _check_labels(proto: ModelProto, metadata: dict[str, str]) -> None:
    """As many labels as the first output has classes, where it has one number for each.

    Raises:
        OptionError: there are more or fewer.
    """
    if "fastres.labels" not in metadata:
        return
    count = len(json.loads(metadata["fastres.labels"]))
    classes = _classes(proto)
    if classes and classes != count:
        raise OptionError(f"labels: got {count} names for {classes} classes")


def _classes(proto: ModelProto) -> int:
    """How many classes there are, of which the model may give the likeliest only; 0 if unknown."""
    graph = proto.graph
    makers = {name: node for node in graph.node for name in node.output}
    name = graph.output[0].name
    while name in makers and makers[name].op_type in ("Cast", "Identity"):
        name = makers[name].input[0]
    if name in makers and makers[name].op_type == "TopK":
        name = makers[name].input[0]
    shapes = [
        info.type.tensor_type.shape.dim
        for info in (*graph.output, *graph.value_info)
        if info.name == name
    ]
    return int(shapes[0][1].dim_value) if shapes and len(shapes[0]) == 2 else 0


def _described(info: onnx.ValueInfoProto) -> str:
    """``x float32 [batch, 3, 224, 224]``."""
    kind = info.type.tensor_type
    sizes = ", ".join(str(dim.dim_param or dim.dim_value) for dim in kind.shape.dim)
    return f"{info.name} {helper.tensor_dtype_to_np_dtype(kind.elem_type)} [{sizes}]"
