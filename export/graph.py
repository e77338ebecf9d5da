"""From the fused graph of an optimised model to an ONNX model in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from onnx import ModelProto, ValueInfoProto, helper
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fastres.capture.contract import TensorInput
from fastres.errors import InputError, ModelError
from fastres.export.builder import ELEMENT_TYPES, Builder
from fastres.export.rules.table import RULES
from fastres.export.sizes import FIXED, GROWTH, MOST_STEPS, SPREADS, Sizes
from fastres.ir.graph import arguments, is_call, module_of, output_nodes
from fastres.ir.propagate import propagate
from fastres.optimized import OptimizedModule

_CAST = torch.ops.aten.to.dtype


@dataclass
class Converted:
    """An ONNX model, and which of its tensors are which values of the fused graph.

    Attributes:
        proto: the model, weights included.
        inputs: (index among the flattened arguments, name) of each input.
        outputs: (index among the flattened results, name) of each output.
        traced: (node of the fused graph, name of the tensor with its value), in order.
        notes: what a reader of the report should know.
        rounds_sums: whether quantised convolutions are rounded in front of residual additions.
    """

    proto: ModelProto
    inputs: list[tuple[int, str]]
    outputs: list[tuple[int, str]]
    traced: list[tuple[fx.Node, str]]
    notes: list[str]
    rounds_sums: bool = False


def convert(
    fast: OptimizedModule,
    example: Sequence[Any],
    sizes: Sizes,
    opset: int,
    io_dtype: torch.dtype | None,
    rounds_sums: bool = False,
) -> Converted:
    """Translate a fused graph operator by operator.

    Args:
        fast: the optimised model.
        example: its flattened arguments; plain values are built into the file.
        sizes: which sizes stay open.
        opset: version of the standard operators.
        io_dtype: dtype of floating-point inputs and outputs; None for what the graph has.
        rounds_sums: round a quantised convolution in front of a residual addition.

    Raises:
        ModelError: an operator has no translation; the message names the module.
    """
    module = fast.graph_module
    probes = _probes(module, example, sizes)
    builder = Builder(module, probes, opset, rounds_sums)
    inputs = _inputs(builder, fast, sizes, io_dtype)
    traced = []
    for node in module.graph.nodes:
        if node.op == "call_function":
            value = _translate(builder, node)
            builder.values[node] = value
            if isinstance(value, str) and isinstance(builder.fact(node), Tensor):
                traced.append((node, value))
    outputs, output_infos, notes = _outputs(builder, fast, sizes, io_dtype)
    traced = [(node, builder.name(value)) for node, value in traced]
    known = {name for _, name in (*inputs, *outputs)} | set(builder.initializers)
    infos = [
        _info(name, builder.dtype(name), _shape(builder, fast, sizes, node))
        for name, node in {name: node for node, name in traced}.items()
        if name not in known
    ]
    input_infos = [
        _info(name, builder.dtype(name), sizes.shape(fast.internals.contract.inputs[index]))
        for index, name in inputs
    ]
    imports = [helper.make_opsetid("", opset)]
    graph = helper.make_graph(
        builder.nodes,
        fast.report.model or "model",
        input_infos,
        output_infos,
        initializer=list(builder.initializers.values()),
        value_info=infos,
    )
    proto = helper.make_model(
        graph,
        opset_imports=imports,
        ir_version=helper.find_min_ir_version_for(imports),
        producer_name="fastres",
    )
    _drop_unused(proto)
    return Converted(proto, inputs, outputs, traced, notes, rounds_sums)


def _probes(
    module: fx.GraphModule, example: Sequence[Any], sizes: Sizes
) -> list[dict[fx.Node, Any]]:
    """The fake value of every node for several inputs; sizes that never differ are constants.

    Sets the steps and the spread of ``sizes`` to the first that the model takes.
    """
    device = str(next((buffer.device for buffer in module.buffers()), "cpu"))
    tried: list[dict[str, int]] = []
    any_batch = False
    for sizes.spread in SPREADS:
        if sizes.chosen(2, 1) in tried:
            continue
        tried.append(sizes.chosen(2, 1))
        found = [_probe(module, sizes, example, batch, 0, device) for batch in (2, 5)]
        any_batch = any_batch or any(found)
        sizes.steps = []
        for by in GROWTH if any(found) and sizes.images_vary else ():
            probe = _probe(module, sizes, example, 3, by, device)
            if probe is not None:
                found.append(probe)
                sizes.steps.append(by)
            if len(sizes.steps) == MOST_STEPS:
                break
        if any(found) and (sizes.steps or not sizes.images_vary):
            return [facts for facts in found if facts is not None]
    raise ModelError(FIXED if any_batch else _NO_BATCH)


_NO_BATCH = (
    "the model takes neither 2 nor 5 images: give an example_input of the batch that it takes"
)


def _probe(
    module: fx.GraphModule, sizes: Sizes, example: Sequence[Any], batch: int, by: int, device: str
) -> dict[fx.Node, Any] | None:
    """The fake value of every node for one input; None where the model does not accept it."""
    inputs = sizes.inputs(example, batch, by, device)
    with contextlib.suppress(InputError):  # a Linear on flattened pixels, say
        return propagate(module, inputs) if sizes.accepts(inputs) else None
    return None


def _inputs(
    b: Builder, fast: OptimizedModule, sizes: Sizes, io_dtype: torch.dtype | None
) -> list[tuple[int, str]]:
    """Register the tensors that the file takes; plain arguments are built in."""
    found: list[tuple[int, str]] = []
    placeholders = fast.graph_module.graph.find_nodes(op="placeholder")
    for index, (node, expected) in enumerate(
        zip(placeholders, fast.internals.contract.inputs, strict=True)
    ):
        if not isinstance(expected, TensorInput):
            b.values[node] = expected
            continue
        if expected.dtype not in ELEMENT_TYPES:
            raise ModelError(
                f"input {expected.name!r} is {expected.dtype}, which a file cannot hold"
            )
        floating = expected.dtype.is_floating_point and io_dtype is not None
        name = b.input(expected.name, io_dtype if floating and io_dtype else expected.dtype)
        found.append((index, name))
        b.values[node] = name
    for index, name in found:  # after all inputs have their names
        node = placeholders[index]
        users = [u for u in node.users if not is_call(u, _CAST, torch.ops.aten.sym_size.int)]
        if b.dtype(name) != b.fact(node).dtype and any(user.op != "output" for user in users):
            b.begin(node)
            b.values[node] = b.cast(name, b.fact(node).dtype)
    if not found:
        raise ModelError("the model takes no tensor: there is nothing to export")
    return found


def _translate(b: Builder, node: fx.Node) -> Any:
    b.begin(node)
    fact = b.fact(node)
    if not isinstance(fact, (Tensor, tuple, list)):
        fixed = b.fixed(node)
        if fixed is not None:
            return fixed
    rule = RULES.get(node.target)
    if rule is None:
        raise ModelError(
            f"{module_of(node)}: {node.target} has no translation to ONNX in fastres; replace it "
            "by an operation that has one, or export the parts of the model around it"
        )
    try:
        return rule(b, node)
    except (TypeError, ValueError, LookupError, AttributeError, AssertionError) as error:
        # A form of the operator that the translation was not written for.
        raise b.refusal(f"this form of it has no translation ({error!r})") from error


def _outputs(
    b: Builder, fast: OptimizedModule, sizes: Sizes, io_dtype: torch.dtype | None
) -> tuple[list[tuple[int, str]], list[ValueInfoProto], list[str]]:
    """Name the results after their places in what the model returns."""
    results = output_nodes(fast.graph_module.graph)
    (output,) = fast.graph_module.graph.find_nodes(op="output")
    outputs: list[tuple[int, str]] = []
    infos: list[ValueInfoProto] = []
    notes: list[str] = []
    for index, (result, name) in enumerate(
        zip(results, _output_names(fast.internals.out_spec, len(results)), strict=True)
    ):
        if not isinstance(result, fx.Node) or not isinstance(b.fact(result), Tensor):
            if result is not None:
                what = "a size" if isinstance(result, fx.Node) else repr(result)
                notes.append(f"the model also returns {what} ({name}), which the file does not")
            continue
        b.begin(output)
        value = _boundary(b, result, io_dtype)
        published = b.publish(value, name)
        outputs.append((index, published))
        shape = [
            f"{published}_size_{axis}" if size is None else size
            for axis, size in enumerate(_shape(b, fast, sizes, result))
        ]
        infos.append(_info(published, b.dtype(published), shape))
    if not outputs:
        raise ModelError("the model returns no tensor: there is nothing to export")
    return outputs, infos, notes


def _boundary(b: Builder, result: fx.Node, io_dtype: torch.dtype | None) -> str:
    """A result's value in the dtype that the file gives."""
    if io_dtype is None or not b.fact(result).is_floating_point():
        return b.tensor(result)
    if is_call(result, _CAST):
        value = b.tensor(arguments(result)[0])
        if b.dtype(value) == io_dtype:
            return value  # without the cast back to the model's own dtype
    return b.cast(b.tensor(result), io_dtype)


def _shape(
    b: Builder, fast: OptimizedModule, sizes: Sizes, node: fx.Node
) -> list[int | str | None]:
    """Sizes of a value: numbers, the names of inputs' open sizes that they equal, or None."""
    named: list[tuple[str, fx.Node, int]] = []
    placeholders = fast.graph_module.graph.find_nodes(op="placeholder")
    for expected, placeholder in zip(fast.internals.contract.inputs, placeholders, strict=True):
        if isinstance(expected, TensorInput):
            for axis, size in enumerate(sizes.shape(expected)):
                if isinstance(size, str):
                    named.append((size, placeholder, axis))

    def described(axis: int) -> int | str | None:
        fixed = b.size(node, axis)
        if fixed is not None:
            return fixed
        equal = (
            name for name, other, other_axis in named if b.same_size(node, axis, other, other_axis)
        )
        return next(equal, None)

    return [described(axis) for axis in range(b.rank(node))]


def _output_names(spec: pytree.TreeSpec, count: int) -> list[str]:
    """``output``, or keys and positions: ``logits``, ``aux_0``, ``output_1``."""
    places = pytree.tree_unflatten(list(range(count)), spec)
    paths, _ = pytree.tree_flatten_with_path(places)
    names = []
    for path, _ in paths:
        parts = (
            str(next(getattr(key, a) for a in ("key", "name", "idx") if hasattr(key, a)))
            for key in path
        )
        name = "_".join(parts)
        names.append(name if name and not name[0].isdigit() else f"output_{name}".rstrip("_"))
    return names


def _info(name: str, dtype: torch.dtype, shape: Sequence[int | str | None]) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, ELEMENT_TYPES[dtype], list(shape))


def _drop_unused(proto: ModelProto) -> None:
    """Remove nodes whose results nobody reads, and constants that are left over."""
    graph = proto.graph
    used = {output.name for output in graph.output}
    kept = []
    for node in reversed(graph.node):
        if used & set(node.output):
            used |= set(node.input)
            kept.append(node)
    computed = {name for node in kept for name in node.output}
    _keep(graph.node, kept[::-1])
    _keep(graph.initializer, [tensor for tensor in graph.initializer if tensor.name in used])
    _keep(graph.value_info, [info for info in graph.value_info if info.name in computed])


def _keep(field: Any, items: list[Any]) -> None:
    if len(items) != len(field):
        del field[:]
        field.extend(items)
