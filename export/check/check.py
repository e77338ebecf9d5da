"""The check of a written ONNX file against the model, before it gets its final name.

An int8 model's file is compared with it step by step: :mod:`fastres.export.check.steps`. Of others
the yardstick is that of :mod:`fastres.accuracy`: the error against float64 may be at most twice the
error that PyTorch itself makes in the same precision, or a few units in the last place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, fx

from fastres.accuracy.bounds import BOUND, LAYER_SLACK
from fastres.accuracy.relative_error import ErrorSums
from fastres.accuracy.sample import random_arguments
from fastres.errors import TargetError, VerificationError
from fastres.export.check.compare import (
    Checked,
    compare,
    empty_result,
    floor_of,
    judge,
)
from fastres.export.check.reference import Reference, Values
from fastres.export.check.runner import OutputsDiffer, exposed, feed, runner, viewer
from fastres.export.check.steps import Stepwise
from fastres.export.graph import Converted
from fastres.export.sizes import Sizes
from fastres.ir import ops
from fastres.ir.graph import module_of

BATCHES = (1, 2, 7)
"""How many images are tried: one, an even and an odd number."""

BYTE_TOLERANCE, DIFFERING_SHARE = 2, 0.05
"""Largest difference of resized bytes from PyTorch's, and the share of them that may differ at all.

A sum that lies within its own rounding error of a half may be rounded up or down.
"""


def check(
    file: Path, converted: Converted, reference: Reference, sizes: Sizes, example: Sequence[Any]
) -> Checked:
    """Check that a file is valid ONNX and that its outputs are the model's.

    Args:
        file: the written file.
        converted: what it was written from.
        reference: computes the expected outputs.
        sizes: which sizes are open.
        example: the flattened arguments of the export.

    Raises:
        VerificationError: anything differs; it names the first tensor that does.
    """
    proto = check_form(file)
    checked = empty_result(converted, reference)
    checked.operators = dict(Counter(node.op_type for node in proto.graph.node).most_common())
    checked.done.append("onnx.checker with full shape inference")
    run = runner(file)
    resized = [(n, name) for n, name in converted.traced if n.target is ops.resize_crop]
    stepwise = Stepwise(converted, reference) if reference.fast.is_quantized else None
    names = [name for _, name in resized] + ([] if stepwise is None else stepwise.names)
    look = viewer(file, names, optimise=stepwise is not None)[1] if names else None
    tried: list[str] = []
    for batch, grow in samples(sizes, example):
        inputs = sizes.inputs(example, batch, grow)
        flat = random_arguments(inputs, "cpu", seed=batch, example=example)
        feeds = feed(flat, converted, proto)
        resized_images: dict[str, Tensor] = {}
        try:
            seen = {} if look is None else look(feeds)
            if resized:
                resized_images = _resized(reference, flat, resized, seen)
            if stepwise is not None:
                stepwise.add(flat, seen, run(feeds), resized_images, BOUND)
            else:
                compare(checked, converted, run(feeds), *reference.outputs(flat, resized_images))
                judge(checked, BOUND)
        except OutputsDiffer as error:
            difference = ""
            if stepwise is None:
                difference = (
                    f" {first_difference(file, converted, reference, flat, resized_images)}."
                )
            shapes = ", ".join(str(list(leaf.shape)) for leaf in flat if isinstance(leaf, Tensor))
            raise VerificationError(
                f"the exported file differs from the model on {shapes}: {error}.{difference} No "
                "file was written"
            ) from error
        tried.append(_shape_of(flat))
    where = f"ONNX Runtime on the CPU at {', '.join(tried)}"
    if stepwise is not None:
        found = stepwise.outputs
        checked.outputs, checked.images, checked.agreeing = (
            found.outputs, found.images, found.agreeing
        )  # fmt: skip
        checked.done.append(f"{where}, against the int8 model: {stepwise}")
    else:
        checked.done.append(f"{where}, against float64")
    checked.outputs = [each for each in checked.outputs if each.sums != ErrorSums(each.sums.floor)]
    if resized:
        checked.done.append(
            f"resized bytes within {BYTE_TOLERANCE} of PyTorch's, at most {DIFFERING_SHARE:.0%} of "
            "them not equal; what follows compared on the same bytes"
        )
    return checked


def _resized(
    reference: Reference,
    flat: Sequence[Any],
    resized: Sequence[tuple[fx.Node, str]],
    seen: dict[str, Tensor],
) -> dict[str, Tensor]:
    """The file's resized images, if they are PyTorch's up to the rounding of some bytes.

    All operators after the resizing are then compared on these images.
    """
    graph = Values(reference.fast, reference.dtype)
    graph.run_flat(flat)
    images = {}
    for node, name in resized:
        actual, expected = seen[name], graph.kept[node.name]
        if actual.shape != expected.shape:
            raise OutputsDiffer(f"{name} is {list(actual.shape)}, expected {list(expected.shape)}")
        if not expected.is_floating_point():
            difference = (actual.int() - expected.int()).abs()
            if (
                int(difference.max()) > BYTE_TOLERANCE
                or float((difference > 0).double().mean()) > DIFFERING_SHARE
            ):
                raise OutputsDiffer(
                    f"{name} holds other pixels, by up to {int(difference.max())} of 255"
                )
            images[node.name] = actual
    return images


def _shape_of(flat: Sequence[Any]) -> str:
    return next(
        "x".join(map(str, leaf.shape)) for leaf in flat if isinstance(leaf, Tensor) and leaf.dim()
    )


def samples(sizes: Sizes, example: Sequence[Any]) -> list[tuple[int, int]]:
    """The inputs to run: pairs of batch size and pixels by which images exceed the example's.

    Several batch sizes, and a second image size where it may vary.

    Raises:
        VerificationError: the model takes none of them.
    """
    candidates = [*((batch, 0) for batch in BATCHES), *((2, by) for by in sizes.steps[:1])]
    accepted = [each for each in candidates if sizes.accepts(sizes.inputs(example, *each))]
    shapes = [
        [getattr(leaf, "shape", None) for leaf in sizes.inputs(example, *s)] for s in accepted
    ]
    distinct = [s for index, s in enumerate(accepted) if shapes[index] not in shapes[:index]]
    if not distinct:
        raise VerificationError(f"the model takes none of the batches {BATCHES}: it was not tried")
    return distinct


def check_form(file: Path) -> onnx.ModelProto:
    """Checker, full shape inference, and nothing but the standard operators.

    Raises:
        VerificationError: the file is not in order.
    """
    try:
        onnx.checker.check_model(str(file), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, RuntimeError) as e:
        raise VerificationError(f"onnx.checker refuses the exported file: {e}") from e
    proto = onnx.load_model(str(file), load_external_data=False)
    foreign = {node.domain for node in proto.graph.node if node.domain not in ("", "ai.onnx")}
    if foreign or proto.functions:
        raise VerificationError(f"the exported file has operators of {sorted(foreign)}")
    return proto


def first_difference(
    file: Path,
    converted: Converted,
    reference: Reference,
    flat: Sequence[Any],
    resized_images: dict[str, Tensor],
) -> str:
    """A sentence that names the first tensor in a file that differs from the fused graph's."""
    try:
        visible, look = viewer(file, [name for _, name in converted.traced])
        proto = onnx.load_model(str(file), load_external_data=False)
        values = look(feed(flat, converted, proto))
    except (OutputsDiffer, VerificationError) as error:
        return f"Its values cannot be looked at: {error}"
    exact, plain = (Values(reference.fast, d) for d in (torch.float64, reference.dtype))
    for graph in (exact, plain):
        graph.run_flat(flat, resized_images)
    floor = floor_of(reference)
    for node, name in converted.traced:
        if name not in visible or node.name in resized_images:
            continue
        actual, y64, eager = values[name], exact.kept[node.name], plain.kept[node.name]
        where = f"The first tensor that differs is {name!r} ({module_of(node)}, {node.target})"
        if actual.shape != y64.shape:
            return f"{where}: {list(actual.shape)}, expected {list(y64.shape)}"
        if not y64.is_floating_point():
            continue
        sums = ErrorSums(floor)
        sums.add(actual, y64, eager)
        if not sums.ratio <= LAYER_SLACK * BOUND:
            return f"{where}: error {sums.error:.2e}, PyTorch's {sums.eager_error:.2e}"
    return "Every tensor is the fused graph's, so the fused graph is not the model's"


def check_openvino(
    file: Path, converted: Converted, reference: Reference, flat: Sequence[Any]
) -> str:
    """Load a file in OpenVINO and compare its outputs with float64, as for ONNX Runtime.

    A single run is compared, and OpenVINO chooses its own algorithms, so the bound is
    :data:`~fastres.accuracy.bounds.LAYER_SLACK` times the usual one.

    Returns:
        A sentence on what was checked.

    Raises:
        TargetError: OpenVINO is not installed.
        VerificationError: it does not load the file, or answers differently.
    """
    try:
        import openvino
    except ModuleNotFoundError as error:
        raise TargetError("checking in OpenVINO needs it: pip install openvino") from error
    proto = onnx.load_model(str(file), load_external_data=False)
    core = openvino.Core()

    def run(path: Path) -> list[Any]:
        try:
            compiled = core.compile_model(
                core.read_model(str(path)), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
            )
            results = compiled(feed(flat, converted, proto))
        except RuntimeError as error:
            raise VerificationError(f"OpenVINO does not run the exported file: {error}") from error
        return [results[index].copy() for index in range(len(compiled.outputs))]

    where = f"OpenVINO on the CPU at {_shape_of(flat)}"
    got = run(file)
    try:
        if reference.fast.is_quantized:
            stepwise = Stepwise(converted, reference, keeps_bfloat16=False)
            copy, outputs, _ = exposed(file, stepwise.names)
            seen = dict(zip(outputs, map(torch.from_numpy, run(copy)), strict=True))
            stepwise.add(flat, seen, got, {}, LAYER_SLACK * BOUND)
            return f"{where}, against the int8 model: {stepwise}"
        checked = empty_result(converted, reference)
        compare(checked, converted, got, *reference.outputs(flat))
        judge(checked, LAYER_SLACK * BOUND)
    except OutputsDiffer as error:
        raise VerificationError(f"OpenVINO answers differently from the model: {error}") from error
    return f"{where}, against float64"
