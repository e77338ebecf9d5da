"""Does a written ONNX file give the model's answers? Looked at before anybody gets the file.

The yardstick is that of :mod:`fastres.accuracy`: the error against float64 may be at most twice
the error that PyTorch itself makes in the same precision, or a few units in the last place.
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
    floor_of,
    judge,
    nothing_yet,
)
from fastres.export.check.reference import Reference, Values
from fastres.export.check.runner import Differs, feed, runner, viewer
from fastres.export.graph import Converted
from fastres.export.sizes import Sizes
from fastres.ir import ops
from fastres.ir.graph import module_of

BATCHES = (1, 2, 7)
"""How many images are tried: one, an even and an odd number."""

LEVELS, LEVELS_SHARE = 2, 0.05
"""How far resized bytes may be from PyTorch's, and how many of them: sums that lie within their own
rounding of a half go either way."""


def check(
    file: Path, converted: Converted, reference: Reference, sizes: Sizes, example: Sequence[Any]
) -> Checked:
    """Check the form of a file and its answers.

    Args:
        file: the written file.
        converted: what it was written from.
        reference: what it is to answer like.
        sizes: which sizes are open.
        example: the flattened arguments of the export.

    Raises:
        VerificationError: anything differs; it names the first tensor that does.
    """
    proto = check_form(file)
    checked = nothing_yet(converted, reference)
    checked.operators = dict(Counter(node.op_type for node in proto.graph.node).most_common())
    checked.done.append("onnx.checker with full shape inference")
    run = runner(file)
    resized = [(n, name) for n, name in converted.traced if n.target is ops.resize_crop]
    look = viewer(file, [name for _, name in resized])[1] if resized else None
    tried: list[str] = []
    for batch, grow in samples(sizes, example):
        inputs = sizes.inputs(example, batch, grow)
        flat = random_arguments(inputs, "cpu", seed=batch, example=example)
        given = feed(flat, converted, proto)
        taken: dict[str, Tensor] = {}
        try:
            if look is not None:
                taken = _resized(reference, flat, resized, look(given))
            compare(checked, converted, run(given), *reference.answers(flat, taken))
            judge(checked, BOUND)
        except Differs as error:
            found = first_difference(file, converted, reference, flat, taken)
            shapes = ", ".join(str(list(leaf.shape)) for leaf in flat if isinstance(leaf, Tensor))
            raise VerificationError(
                f"the exported file differs from the model on {shapes}: {error}. {found}. No file "
                "was written"
            ) from error
        tried.append(_shape_of(flat))
    checked.outputs = [each for each in checked.outputs if each.sums != ErrorSums(each.sums.floor)]
    checked.done.append(f"ONNX Runtime on the CPU at {', '.join(tried)}, against float64")
    if look is not None:
        checked.done.append(
            f"resized bytes within {LEVELS} of PyTorch's, at most {LEVELS_SHARE:.0%} of them not "
            "equal; what follows compared on the same bytes"
        )
    return checked


def _resized(
    reference: Reference,
    flat: Sequence[Any],
    resized: Sequence[tuple[fx.Node, str]],
    seen: dict[str, Tensor],
) -> dict[str, Tensor]:
    """The file's resized images, if they are PyTorch's but for some roundings of bytes.

    Everything behind them is then compared on the file's own.
    """
    graph = Values(reference.fast, reference.dtype)
    graph.answer(flat)
    taken = {}
    for node, name in resized:
        ours, wanted = seen[name], graph.kept[node.name]
        if ours.shape != wanted.shape:
            raise Differs(f"{name} is {list(ours.shape)}, expected {list(wanted.shape)}")
        if not wanted.is_floating_point():
            apart = (ours.int() - wanted.int()).abs()
            if int(apart.max()) > LEVELS or float((apart > 0).double().mean()) > LEVELS_SHARE:
                raise Differs(f"{name} holds other pixels, by up to {int(apart.max())} of 255")
            taken[node.name] = ours
    return taken


def _shape_of(flat: Sequence[Any]) -> str:
    return next(
        "x".join(map(str, leaf.shape)) for leaf in flat if isinstance(leaf, Tensor) and leaf.dim()
    )


def samples(sizes: Sizes, example: Sequence[Any]) -> list[tuple[int, int]]:
    """(images, pixels larger) of every run: several batches, and a second size where it may vary.

    Raises:
        VerificationError: the model takes none of them.
    """
    wanted = [*((batch, 0) for batch in BATCHES), *((2, by) for by in sizes.steps[:1])]
    taken = [each for each in wanted if sizes.takes(sizes.inputs(example, *each))]
    shapes = [[getattr(leaf, "shape", None) for leaf in sizes.inputs(example, *s)] for s in taken]
    distinct = [s for index, s in enumerate(taken) if shapes[index] not in shapes[:index]]
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
    taken: dict[str, Tensor],
) -> str:
    """A sentence on the first tensor of a file that is not the fused graph's."""
    try:
        seen, look = viewer(file, [name for _, name in converted.traced])
        proto = onnx.load_model(str(file), load_external_data=False)
        answers = look(feed(flat, converted, proto))
    except (Differs, VerificationError) as error:
        return f"Its values cannot be looked at: {error}"
    exact, plain = (Values(reference.fast, d) for d in (torch.float64, reference.dtype))
    for graph in (exact, plain):
        graph.answer(flat, taken)
    floor = floor_of(reference)
    for node, name in converted.traced:
        if name not in seen or node.name in taken:
            continue
        ours, y64, eager = answers[name], exact.kept[node.name], plain.kept[node.name]
        where = f"The first tensor that differs is {name!r} ({module_of(node)}, {node.target})"
        if ours.shape != y64.shape:
            return f"{where}: {list(ours.shape)}, expected {list(y64.shape)}"
        if not y64.is_floating_point():
            continue
        one = ErrorSums(floor)
        one.add(ours, y64, eager)
        if not one.ratio <= LAYER_SLACK * BOUND:
            return f"{where}: error {one.error:.2e}, PyTorch's {one.eager_error:.2e}"
    return "Every tensor is the fused graph's, so the fused graph is not the model's"


def check_openvino(
    file: Path, converted: Converted, reference: Reference, flat: Sequence[Any]
) -> str:
    """Load a file in OpenVINO and hold its answers to those of float64, as for ONNX Runtime.

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
    try:
        compiled = core.compile_model(
            core.read_model(str(file)), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )
        results = compiled(feed(flat, converted, proto))
    except RuntimeError as error:
        raise VerificationError(f"OpenVINO does not run the exported file: {error}") from error
    checked = nothing_yet(converted, reference)
    try:
        got = [results[index] for index in range(len(converted.outputs))]
        compare(checked, converted, got, *reference.answers(flat))
        judge(checked, LAYER_SLACK * BOUND)
    except Differs as error:
        raise VerificationError(f"OpenVINO answers differently from the model: {error}") from error
    return f"OpenVINO on the CPU at {_shape_of(flat)}, against float64"
