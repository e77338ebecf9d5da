"""From an ``nn.Module`` to one ``fx.Graph`` of ATen operators, by ``torch.export`` (non-strict).

The user's model is read, never changed: no mode, hook, weight or memory format. Batch, height and
width become symbols where the model's code allows it, so one capture serves every size.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import ExportGraphSignature, InputKind, OutputKind
from torch.fx.immutable_collections import immutable_dict, immutable_list
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]
from torch.utils import _pytree as pytree

from fastres.capture import nested
from fastres.capture.contract import Contract
from fastres.capture.defaults import make_defaults_explicit
from fastres.capture.diagnose import why_not_captured
from fastres.capture.export_program import Exported, export_with_dynamic_sizes
from fastres.capture.functional import can_make_functional, is_in_place, make_functional
from fastres.capture.guard import state_restored
from fastres.capture.imports import import_ahead
from fastres.capture.quick_shapes import quick_shapes
from fastres.capture.wrappers import copy_keeping_modes
from fastres.errors import CaptureError, FastresError, ModelError, OptionError
from fastres.ir.graph import (
    INNER,
    add_constant,
    arguments,
    module_path,
    module_stack,
    output_nodes,
    user_path,
)
from fastres.system import forking
from fastres.system.device import move
from fastres.system.torch_logs import silence_torch_logs
from fastres.system.versions import STATE_WRITES

TRACING = forking.rlock()
"""Held while a model is traced or its prints are caught: torch.export and stdout are one each."""

DEFAULT_IMAGE = 224
"""Height and width in pixels of the example derived from a model's first convolution."""


@dataclass
class Captured:
    """One model as a graph.

    Attributes:
        module: the graph; weights are buffers that share memory with the model's.
        contract: the inputs the graph is valid for.
        in_spec: structure of ``(args, kwargs)``; its leaves are the graph's placeholders.
        out_spec: structure of the result; its leaves are what the graph returns.
        signature: how the model's forward binds its arguments.
        example: the flattened arguments that the model was captured with.
        notes: what capture did that the user should know, a sentence each.
    """

    module: fx.GraphModule
    contract: Contract
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec
    signature: inspect.Signature
    example: list[Any]
    notes: list[str] = field(default_factory=list)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next((b.device for b in self.module.buffers()), torch.device("cpu"))

    def move_to(self, device: torch.device) -> None:
        """Let the graph take inputs, keep weights and make tensors on ``device``."""
        old = next((buffer.device for buffer in self.module.buffers()), device)
        move(self.module, old, device)
        self.contract = self.contract.on(device)


def derive_example(model: nn.Module) -> Tensor:
    """A batch of one image, [1, C, 224, 224], from the model's first ``nn.Conv2d``.

    Raises:
        ModelError: the model has no convolution.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            weight = module.weight
            size = (1, module.in_channels, DEFAULT_IMAGE, DEFAULT_IMAGE)
            return torch.zeros(size, dtype=weight.dtype, device=weight.device)
    raise ModelError(
        f"{type(model).__name__} has no nn.Conv2d: fastres speeds up convolutional networks. If "
        "the convolutions are functional calls, pass example_input=..."
    )


def model_dtype(model: nn.Module) -> torch.dtype:
    """The dtype of the first convolution's weight, else of the first floating-point tensor."""
    convolutions = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d)]
    tensors = [*convolutions, *model.parameters(), *model.buffers()]
    return next((t.dtype for t in tensors if t.is_floating_point()), torch.get_default_dtype())


def as_arguments(
    example_input: Any, name: str = "example_input"
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call's ``(args, kwargs)``: of a tensor, a tuple of arguments or a dict of keyword ones."""
    if isinstance(example_input, Tensor):
        return (example_input,), {}
    if isinstance(example_input, tuple) and list(map(type, example_input)) == [tuple, dict]:
        return example_input[0], example_input[1]
    if isinstance(example_input, (tuple, list)):
        return tuple(example_input), {}
    if isinstance(example_input, Mapping):
        return (), dict(example_input)
    raise OptionError(
        f"{name} is a {type(example_input).__name__}: expected a tensor, a tuple of "
        "positional arguments or a dict of keyword arguments"
    )


def in_eval_mode(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """The model if all of it is in eval mode, else a copy that is, with a sentence that says so.

    Of a model made under ``torch.inference_mode`` it is a copy, too: torch.export cannot take its
    tensors.
    """
    training = [name or "(the model itself)" for name, m in model.named_modules() if m.training]
    memo = {id(t): t for t in (*model.parameters(), *model.buffers())}
    replacements = {
        i: _outside_inference_mode(t) for i, t in memo.items() if _is_inference_tensor(t)
    }
    if not training and not replacements:
        return model, []
    try:
        copied = copy_keeping_modes(
            model, {**memo, **replacements} if not training else dict(replacements)
        )
    except Exception as error:  # a user's __deepcopy__ may raise anything
        state, advice = "is in training mode", "call model.eval() first"
        if not training:
            state, advice = "was made under torch.inference_mode", "make it outside"
        raise CaptureError(f"the model {state} and cannot be copied ({error}); {advice}") from error
    if not training:
        return copied, []
    return copied.eval(), [
        f"the model was in training mode (first module: {training[0]}): a copy in eval mode was "
        "optimised, the model itself still trains; call model.eval() first to silence this"
    ]


def _is_inference_tensor(tensor: Tensor) -> bool:
    lazy = isinstance(tensor, UninitializedTensorMixin)
    return not lazy and tensor.is_inference()


def _outside_inference_mode(tensor: Tensor) -> Tensor:
    """A tensor on the same memory that torch.export can take: not made in inference mode."""
    with torch.inference_mode(False), torch.no_grad():
        plain = torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(
            tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride()
        )
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(plain, requires_grad=False)
        return plain


def capture(model: nn.Module, example_input: Any = None) -> Captured:
    """Capture ``model`` (in eval mode) as one graph.

    Raises:
        CaptureError: hooks, parametrisations, state changed in forward, control flow that depends
            on data, or anything else torch.export cannot follow; the message names the module.
        ModelError: there is no convolution to derive an example from.
        OptionError: ``example_input`` is neither tensor, tuple nor dict.
    """
    import_ahead()
    _refuse_unsupported_state(model)
    derived = example_input is None
    args, kwargs = as_arguments(derive_example(model) if derived else example_input)
    signature = _without_annotations(inspect.signature(model.forward))
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise OptionError(
            f"example_input does not fit {type(model).__name__}.forward{signature}: {error}"
        ) from error
    args, kwargs = bound.args, bound.kwargs
    example = pytree.tree_leaves((args, kwargs))
    printed = io.StringIO()
    try:
        with (
            TRACING,
            state_restored(model) as changes,
            contextlib.redirect_stdout(printed),
            silence_torch_logs(),
        ):
            exported = export_with_dynamic_sizes(model, signature, args, kwargs)
    except FastresError:  # of a wrapper around the user's model
        raise
    except Exception as error:  # forward is the user's and may raise anything
        raise CaptureError(why_not_captured(model, args, kwargs, derived, error)) from error
    captured = _from_program(exported, signature, example, hasattr(model, INNER))
    captured.notes += changes
    if fixed := exported.fixed_size_note(args, kwargs):
        captured.notes.append(fixed)
    if output_nodes(captured.module.graph) == [None]:
        raise CaptureError(
            why_not_captured(model, args, kwargs, derived, TypeError("it returned None"))
        )
    if printed.getvalue():
        first = printed.getvalue().strip().splitlines()[0]
        captured.notes.append(
            f"print in forward is dropped: it ran once, during capture, and wrote {first[:80]!r}"
        )
    return captured


def _without_annotations(signature: inspect.Signature) -> inspect.Signature:
    """Names, kinds and defaults: annotations may hold what cannot be pickled."""
    plain = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    return inspect.Signature(plain)


_WITH_RUNNING_STATISTICS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
"""Modules that change their statistics when they run in training mode."""


def refuse_torchscript(model: nn.Module) -> None:
    """Raise for a model of which there is no Python code, whole or in part.

    Raises:
        CaptureError: it is TorchScript; the message names the module.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise CaptureError("got a TorchScript module: pass the nn.Module that it was made from")
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise CaptureError(
                f"{_describe_module(name, module)} is TorchScript, of which there is no Python "
                "code to follow: put the nn.Module that it was made from in its place"
            )


def _describe_module(name: str, module: nn.Module) -> str:
    return f"module {user_path(name) or '(the model itself)'} ({type(module).__name__})"


def _refuse_unsupported_state(model: nn.Module) -> None:
    refuse_torchscript(model)
    for name, module in model.named_modules():
        where = _describe_module(name, module)
        if (
            isinstance(module, _WITH_RUNNING_STATISTICS)
            and module.training
            and module.track_running_stats
        ):
            raise CaptureError(
                f"{where} is in training mode though the model is not (its own train() or eval() "
                "keeps it so): it would normalise by each batch and change its statistics; call "
                f".eval() on that module, model.get_submodule({user_path(name)!r}).eval()"
            )
        hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
        if hooks:
            hook = getattr(hooks[0], "__qualname__", type(hooks[0]).__name__)
            raise CaptureError(
                f"{where} has the forward hook {hook}: in one captured graph it would no longer be "
                "called; remove it with the handle that registering it returned (weight_norm and "
                "spectral_norm have functions of their own for that) and put its work into forward"
            )
        if torch.nn.utils.parametrize.is_parametrized(module):
            (tensor, *_) = module.parametrizations
            raise CaptureError(
                f"{where} has a parametrisation on {tensor!r}, which a captured graph would no "
                "longer compute; make it permanent with "
                f"torch.nn.utils.parametrize.remove_parametrizations(module, {tensor!r})"
            )


def _from_program(
    exported: Exported, forward: inspect.Signature, example: list[Any], wrapped: bool
) -> Captured:
    contract, program = exported.contract(), exported.program
    autocast_notes = nested.inline(program)
    if not can_make_functional(program.graph):
        # torch's functionalisation gets views right; it takes seconds, so only where it is needed.
        with torch.no_grad(), quick_shapes(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of its own classes
            program = program.run_decompositions({})
    from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols  # imports sympy

    module = fx.GraphModule(torch.nn.Module(), fx.Graph())
    graph = module.graph
    values: dict[fx.Node, fx.Node] = {}
    signature = program.graph_signature
    specs = iter(signature.input_specs)
    state = {**program.state_dict, **program.constants}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            spec = next(specs)
            if spec.kind == InputKind.USER_INPUT:
                values[node] = graph.node_copy(node)
            elif node.users and isinstance(spec.target, str):
                values[node] = add_constant(graph, user_path(spec.target), state[spec.target])
                values[node].meta["val"] = node.meta.get("val")
        elif node.op == "output":
            graph.output(_user_outputs(node, signature, values))
        elif node.target is not torch.ops.aten._assert_tensor_metadata.default:  # capture's own
            values[node] = graph.node_copy(node, lambda n: values[n])
            values[node].meta["module"] = module_path(node)
            values[node].meta["source"] = node.name
            values[node].meta["added"] = wrapped and not module_stack(node).startswith(INNER)
            if free_unbacked_symbols(node.meta.get("val")):
                raise CaptureError(
                    f"{module_path(node) or 'the model'} computes a size or a number from the "
                    f"values of a tensor ({node.target}), which no prepared graph can hold: "
                    "keep it a tensor (no .item(), no boolean indexing), or optimise the parts "
                    "around it"
                )
            if is_in_place(node) and arguments(values[node])[0].op == "get_attr":
                raise CaptureError(STATE_CHANGES.format(module=module_path(node) or "the model"))
    written = {node.name for node in make_functional(graph)}
    written |= {
        str(spec.target)
        for spec in signature.output_specs
        if spec.kind == OutputKind.USER_INPUT_MUTATION
    }
    notes = autocast_notes + [
        f"the model writes to its input {name!r} in place; the optimised model leaves it as it is"
        for name in sorted(written)
    ]
    make_defaults_explicit(graph)
    graph.lint()
    module.recompile()
    in_spec, out_spec = program.call_spec.in_spec, program.call_spec.out_spec
    assert in_spec is not None and out_spec is not None
    return Captured(
        module, contract, in_spec, _with_python_containers(out_spec), forward, example, notes
    )


def _with_python_containers(spec: pytree.TreeSpec) -> pytree.TreeSpec:
    """The structure with Python's containers for those that ``torch.fx`` keeps in its graphs."""

    def convert(value: Any) -> Any:
        if isinstance(value, immutable_dict):
            return {key: convert(part) for key, part in value.items()}
        if isinstance(value, immutable_list):
            return [convert(part) for part in value]
        return type(value)(map(convert, value)) if type(value) in (tuple, list) else value

    numbered = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
    return pytree.tree_structure(convert(numbered))


STATE_CHANGES = (
    "{module} changes its own state in forward (a buffer or parameter is written); an optimised "
    "model keeps no state: move this out of forward"
)


def _user_outputs(
    output: fx.Node, signature: ExportGraphSignature, values: dict[fx.Node, fx.Node]
) -> tuple[Any, ...]:
    """What the user's forward returns, without the buffers that torch.export returns as well.

    Raises:
        CaptureError: forward writes to a buffer or parameter.
    """
    (results,) = arguments(output)
    assert isinstance(results, (tuple, list))
    outputs: list[Any] = []
    for spec, result in zip(signature.output_specs, results, strict=True):
        if spec.kind in STATE_WRITES:
            raise CaptureError(STATE_CHANGES.format(module="the model"))
        if spec.kind == OutputKind.USER_OUTPUT:
            outputs.append(values[result] if isinstance(result, fx.Node) else result)
    return tuple(outputs)
