"""The drop-in module that ``optimize`` returns."""

from __future__ import annotations

import copy
import inspect
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fastres.accuracy.sample import random_arguments
from fastres.artifact.document import Parts
from fastres.artifact.recipe import Recipe
from fastres.artifact.saving import save
from fastres.capture.capture import Captured, as_arguments
from fastres.capture.contract import Contract
from fastres.errors import (
    ArtifactError,
    FastresError,
    FastresWarning,
    InputError,
    ModelError,
    OptionError,
)
from fastres.ir import ops
from fastres.ir.graph import output_nodes
from fastres.ir.shapes import shapes
from fastres.options import Options
from fastres.quantization.apply import Calibrated
from fastres.quantization.calibration import Quantized
from fastres.quantization.float16_ranges import Float16Ranges
from fastres.refit import refit
from fastres.report import Remark, Report
from fastres.runtime import profile
from fastres.runtime.eager import EagerEngine
from fastres.runtime.engine import choose
from fastres.runtime.in_torch import INSTEAD, refuse_tracing
from fastres.runtime.integers import by_definition
from fastres.runtime.nonfinite import NonFinite
from fastres.runtime.runner import Runner, check_weights, refuse_unreadable
from fastres.runtime.streams import in_streams
from fastres.system import forking
from fastres.system.files import as_path
from fastres.system.plain_tensors import materialized, refuse_under_tracing
from fastres.system.threads import preparing, safe_threads
from fastres.transforms import Preprocessing
from fastres.version import __version__


@dataclass(frozen=True)
class Internals:
    """How an optimised model is called and run: what exports and benchmarks need to know of it.

    Attributes:
        contract: the sizes and dtypes that it takes.
        in_spec, out_spec: the structures of ``(args, kwargs)`` and of the result.
        example: the flattened arguments of the captured call, tensors on the meta device.
        flatten: makes flat arguments of ``(args, kwargs)``, or raises InputError.
        runner: runs flat arguments.
    """

    contract: Contract
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec
    example: tuple[Any, ...]
    flatten: Callable[[tuple[Any, ...], dict[str, Any]], list[Any]]
    runner: Runner


class OptimizedModule(nn.Module):
    """A model for inference: same call, same result, same dtypes as the model it was made from.

    Attributes:
        graph_module: the fused graph, an ``fx.GraphModule``; ``graph_module.code`` reads well.
        report: the receipt.
        preprocessing: what is part of the model beside the network, None where nothing is.
        loaded_from: the file that it was read from; None where ``optimize`` made it.

    It is always in eval mode, on one device and in one precision. It may be called from several
    threads at once. Results never share memory with inputs, with each other or with later results.
    """

    graph_module: fx.GraphModule
    loaded_from: str | None = None

    def __new__(cls, captured: Captured, *_: Any) -> OptimizedModule:
        """An instance of a class of its own, whose ``forward`` has the model's signature."""
        return super().__new__(_with_signature(captured.signature))

    def __init__(
        self,
        captured: Captured,
        options: Options,
        report: Report,
        preprocessing: Preprocessing | None = None,
        recipe: Recipe | str = "it was made without one",
        calibrated: Calibrated | None = None,
    ) -> None:
        super().__init__()
        self.graph_module = captured.module
        self.report = report
        self.preprocessing = preprocessing
        self._contract = captured.contract
        self._options = options
        self._recipe = recipe
        self._calibrated = calibrated
        self._in_spec = captured.in_spec
        self._out_spec = captured.out_spec
        self._signature = captured.signature
        self._example = [
            leaf.to("meta") if isinstance(leaf, Tensor) else leaf for leaf in captured.example
        ]
        # One tensor in, one tensor out: by far the most calls, and no tree to walk.
        self._takes_one = captured.in_spec == pytree.tree_structure(((0,), {}))
        self._gives_one = captured.out_spec == pytree.tree_structure(0)
        self._runner = self._make_runner()
        super().train(False)

    @property
    def engine(self) -> str:
        """Name of the engine that runs the model."""
        return self._runner.engine.name

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in; quantised, what its unquantised layers compute in."""
        dtype = getattr(torch, self.report.precision, None)
        if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
            return dtype
        return torch.float32

    @property
    def is_quantized(self) -> bool:
        """Whether it computes with integers."""
        return isinstance(self._calibrated, Quantized)

    @property
    def has_wider_layers(self) -> bool:
        """Whether layers of a float16 model are float32, beyond the range of torch's own."""
        if not isinstance(self._calibrated, Float16Ranges):
            return False
        facts = shapes(self.graph_module, pytree.tree_leaves(self.example))
        return any(
            node.target in ops.REFERENCE and facts[node].dtype == torch.float32
            for node in self.graph_module.graph.nodes
        )

    @safe_threads()
    def by_definition(self, *args: Any, **kwargs: Any) -> Any:
        """The answer of a call without any engine: every operator by its meaning in torch."""
        flat = self._flatten(args, kwargs)
        return pytree.tree_unflatten(list(by_definition(self._runner, flat)), self._out_spec)

    @property
    def internals(self) -> Internals:
        """For the rest of fastres: not a part that stays the same between versions."""
        return Internals(
            contract=self._contract,
            in_spec=self._in_spec,
            out_spec=self._out_spec,
            example=tuple(self._example),
            flatten=self._flatten,
            runner=self._runner,
        )

    @property
    def passed_over(self) -> list[str]:
        """A sentence for every faster engine that cannot run the model here."""
        return self._passed_over

    @property
    def example(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """``(args, kwargs)`` of the captured call, with zeros for the tensors' values."""
        flat = [
            torch.zeros(leaf.shape, dtype=leaf.dtype, device=self.report.device)
            if isinstance(leaf, Tensor)
            else leaf
            for leaf in self._example
        ]
        args, kwargs = pytree.tree_unflatten(flat, self._in_spec)
        return args, kwargs

    @property
    def threads(self) -> int:
        """Threads that a call from the current thread uses."""
        return self._runner.limit.threads

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's answer; see :func:`fastres.optimize`.

        Raises:
            InputError: an argument's structure, rank, size, channels, dtype or device is not one
                that the model takes.
            OutOfMemory: this shape does not fit into memory.
        """
        flat = self._flatten(args, kwargs)
        if torch.compiler.is_dynamo_compiling():
            results = self.graph_module(*flat)
        else:
            try:
                results = self._runner(flat)
            except FastresError:
                raise
            except Exception as error:
                if self.loaded_from is None:
                    raise
                raise ArtifactError(  # torch's shape functions do not look at everything
                    f"the graph in {self.loaded_from} cannot run ({type(error).__name__}: "
                    f"{error}): the file was changed, or needs another version of torch"
                ) from error
        return (
            results[0] if self._gives_one else pytree.tree_unflatten(list(results), self._out_spec)
        )

    def map(self, inputs: Iterable[Any]) -> Iterator[Any]:
        """The answers to many calls, in order, as many at a time as ``streams=`` asked for.

        Each is what a call gives, bit for bit. Inputs are taken as calls come to an end, so that
        there may be any number of them.

        Args:
            inputs: for each call a tensor, a tuple of positional arguments or a dict of keyword
                arguments.

        Raises:
            InputError, OptionError: an item is no such call, when the iteration comes to it.
        """
        return in_streams(self._called_with, inputs, self._options.streams or 1)

    def _called_with(self, given: Any) -> Any:
        args, kwargs = as_arguments(given, "an item")
        return self(*args, **kwargs)

    def profile(self, *args: Any, rounds: int = profile.ROUNDS, **kwargs: Any) -> profile.Profile:
        """Time per layer of a call with these arguments, by the names of the user's modules.

        Args:
            rounds: calls to take the fastest of.
        """
        if rounds < 1:
            raise OptionError(f"rounds={rounds!r}: expected a number of at least 1")
        flat = self._flatten(args, kwargs)
        executable = self._runner.finite_executable(flat)
        with torch.no_grad(), self._runner.limit():
            return profile.measure(executable, lambda: self(*args, **kwargs), flat, rounds)

    def program(self, *args: Any, **kwargs: Any) -> str:
        """What a call with these arguments runs, to be read: the engine's calls, and its plans."""
        return self._runner.executable(self._flatten(args, kwargs)).code

    @safe_threads()
    def intermediate(self, flat: Sequence[Any]) -> list[tuple[fx.Node, Tensor]]:
        """Every operator's result for flattened arguments, computed by the engine itself.

        Raises:
            OptionError: an argument has no values in memory, or something watches this thread's
                calls.
        """
        refuse_under_tracing("intermediate")
        flat = [materialized(value, "an argument") for value in flat]
        tapped = _with_taps(self.graph_module)
        nodes = output_nodes(tapped.graph)
        try:
            results = self._runner.run(self._runner.engine.build(tapped, flat), flat)
        except NonFinite:
            results = self._runner.run(EagerEngine().build(tapped, flat), flat)
        return list(zip(nodes, results, strict=True))

    def engine_remarks(self, flat: Sequence[Any]) -> tuple[list[Remark], list[str]]:
        """What the engine left to torch for inputs of these shapes, and its notes."""
        executable = self._runner.executable(flat)
        return executable.remarks, executable.notes

    @safe_threads()
    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the optimised model to one file, for :func:`fastres.load`.

        The file is safetensors with a description in JSON: no pickle, no code. It holds the folded
        weights and what :meth:`refresh` needs, and is read back before it takes its name.

        Raises:
            ArtifactError: the file cannot be written, or a part of the model cannot be in a file (a
                result in a container class of the user's own, an operator that is not torch's).
            OptionError: something watches this thread's calls (a fake mode, say).
        """
        refuse_under_tracing("save")
        versions = {"fastres": __version__, "torch": torch.__version__}
        save(self._parts(), as_path(path), versions)

    def refresh(self, state_dict: Mapping[str, Any], *, check: bool = True) -> None:
        """Take new weights of the same architecture, without the model and without capturing again.

        The passes run again on the captured graph, so that the result is bitwise that of
        :func:`fastres.optimize` on a model with these weights; ``report`` is a new receipt. Calls
        in other threads get either the old or the new weights. On an error, all is as it was.

        Args:
            state_dict: the user's model's, by its names. Tensors that the model does not use in
                inference (``num_batches_tracked``) may be left out.
            check: compare one call with the captured graph in float64, as ``optimize`` does with
                the model. What is captured is taken for granted: that the model's code would still
                do the same is not looked at.

        Raises:
            OptionError: a name is missing or unknown, a tensor has another shape or dtype, or the
                two names of a shared weight have different values.
            NotOptimizedError: the model was optimised under ``strict``, and with these weights
                something is not (a folded weight that overflows float16, say).
            TargetError: the engine asked for cannot run these weights.
            VerificationError: the answers differ from those of the captured graph.
            ArtifactError: there is no captured graph, or it was read from a file and is damaged.
        """
        refuse_under_tracing("refresh")
        with preparing(), _REFITTING:
            if isinstance(self._recipe, str):
                raise ArtifactError(f"there is no captured graph to renew: {self._recipe}")
            sample = random_arguments(self._example, self.report.device)
            new = refit(
                self._recipe,
                state_dict,
                self._options,
                self._contract,
                sample,
                self.report,
                check,
                self._calibrated,
            )
            # A call reads the runner once, which has its own graph.
            self.graph_module, self.report = new.module, new.report
            self._runner = new.runner

    def _parts(self) -> Parts:
        recipe = self._recipe
        return Parts(
            self.graph_module,
            self._contract,
            self._signature,
            self._in_spec,
            self._out_spec,
            self._example,
            self.report,
            self._options,
            self.preprocessing,
            None if isinstance(recipe, str) else (recipe.document, recipe.kept),
            self._calibrated,
        )

    def train(self, mode: bool = True) -> OptimizedModule:
        """Stays in eval mode: BatchNorm is gone, there is nothing to train."""
        if mode:
            warnings.warn(
                "an optimised model is for inference and stays in eval mode; train the model it "
                "was made from and optimise again",
                FastresWarning,
                stacklevel=2,
            )
        super().train(False)
        return self

    @safe_threads()
    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As in ``nn.Module``, for state dicts of this optimised model (folded weights).

        Raises:
            ModelError: a tensor has no values in memory; the old ones are kept.
        """
        refuse_under_tracing("load_state_dict")
        own = dict(self.named_buffers())
        new_state = dict(state_dict)
        for name, value in new_state.items():
            if not isinstance(value, Tensor) or name not in own:
                continue  # torch's to tell
            if not assign and type(value) in (Tensor, nn.Parameter):
                value = new_state[name] = value.resolve_conj().resolve_neg()
            refuse_unreadable(name, value)
            if value.dtype != own[name].dtype and (assign or value.is_complex()):
                raise ModelError(
                    f"the optimised model's weight {name} is {own[name].dtype}, got {value.dtype}; "
                    f"convert it with .to({own[name].dtype})"
                )
        before = dict(self.graph_module._buffers)
        result = super().load_state_dict(new_state, strict, assign)
        try:
            self._runner = self._make_runner()
        except FastresError:
            self.graph_module._buffers.update(before)
            raise
        return result

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> OptimizedModule:
        for buffer in self.graph_module.buffers():
            moved = fn(buffer)
            own = self.dtype if buffer.is_floating_point() else buffer.dtype
            # What is wider than the rest (a bfloat16 network's classifier, say) stays so.
            if moved.dtype not in (own, buffer.dtype) or moved.device != buffer.device:
                raise OptionError(
                    f"an optimised model stays {own} on {buffer.device}; to get one in "
                    f"{moved.dtype} on {moved.device}, call optimize() with precision=... or "
                    "device=..."
                )
        return self

    def __prepare_scriptable__(self) -> Any:
        """What ``torch.jit.script`` asks for, of a module and of each inside it."""
        raise ModelError(f"torch.jit.script cannot compile an optimised model: {INSTEAD}")

    def __reduce__(self) -> Any:
        refuse_under_tracing("copying an optimised model")
        return _restore, (self._signature, self.__getstate__())

    @safe_threads()
    def __deepcopy__(self, memo: dict[int, Any]) -> OptimizedModule:
        refuse_under_tracing("copying an optimised model")
        made = _restore(self._signature, copy.deepcopy(self.__getstate__(), memo))
        memo[id(self)] = made
        return made

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        del state["_runner"]  # executables hold packed weights, which are opaque; they are rebuilt
        # Some versions of torch warn of their own class where a structure is copied.
        state["_in_spec"], state["_out_spec"] = map(_skeleton, (self._in_spec, self._out_spec))
        # torch.fx pickles a graph as its code, without what we know about its nodes.
        state["_known"] = [_knowledge(node) for node in self.graph_module.graph.nodes]
        return state

    @safe_threads()
    def __setstate__(self, state: dict[str, Any]) -> None:
        known = state.pop("_known")
        for name in ("_in_spec", "_out_spec"):
            state[name] = pytree.tree_structure(state[name])
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        for node, meta in zip(self.graph_module.graph.nodes, known, strict=True):
            node.meta.update(meta)
        self._runner = self._make_runner()

    def _make_runner(self) -> Runner:
        refuse_under_tracing("copying an optimised model or giving it weights")
        check_weights(self.graph_module)
        engine, self._passed_over = choose(self._options, self.graph_module)
        return Runner(self.graph_module, self._contract, engine, self._options.threads_per_call)

    def _flatten(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        if self._takes_one and not kwargs and len(args) == 1 and isinstance(args[0], Tensor):
            return [args[0]]
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise InputError(f"the model is called as forward{self._signature}: {error}") from error
        flat, spec = pytree.tree_flatten((bound.args, bound.kwargs))
        if spec != self._in_spec:
            raise InputError(
                f"got arguments of the structure {_names(bound.arguments)}, expected those of the "
                "captured call; optional arguments and nested containers are fixed at capture: "
                "pass the same ones, or optimise with an example_input of this structure"
            )
        return flat


_REFITTING = forking.lock()


def _with_signature(signature: inspect.Signature) -> type[OptimizedModule]:
    """A subclass whose ``forward`` shows this signature, for ``torch.export`` and editors."""

    def forward(self: OptimizedModule, *args: Any, **kwargs: Any) -> Any:
        if type(args) is not tuple:  # torch.fx.symbolic_trace takes the star away
            refuse_tracing([args])
        return OptimizedModule.forward(self, *args, **kwargs)

    first = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = [first, *signature.parameters.values()]
    if any(p.kind is inspect.Parameter.POSITIONAL_ONLY for p in parameters):
        parameters[0] = first.replace(kind=inspect.Parameter.POSITIONAL_ONLY)
    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    forward.__doc__ = OptimizedModule.forward.__doc__
    return type("OptimizedModule", (OptimizedModule,), {"forward": forward})


def _restore(signature: inspect.Signature, state: dict[str, Any]) -> OptimizedModule:
    """What pickle and copy call; see :meth:`OptimizedModule.__reduce__`."""
    module: OptimizedModule = nn.Module.__new__(_with_signature(signature))
    module.__setstate__(state)
    return module


def _skeleton(spec: pytree.TreeSpec) -> Any:
    """Something of this structure."""
    return pytree.tree_unflatten(range(spec.num_leaves), spec)


def _knowledge(node: fx.Node) -> dict[str, Any]:
    return {key: node.meta[key] for key in ("module", "source") if key in node.meta}


def _with_taps(module: fx.GraphModule) -> fx.GraphModule:
    """The same graph with every floating-point result of an operator as an output."""
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    taps = []
    for node in module.graph.nodes:
        if node.op == "output":
            continue
        values[node] = graph.node_copy(node, values.__getitem__)
        if node.target in ops.REFERENCE:
            taps.append(values[node])
    graph.output(tuple(taps))
    return fx.GraphModule(module, graph)


def _names(arguments: dict[str, Any]) -> str:
    return ", ".join(f"{name}: {type(value).__name__}" for name, value in arguments.items())
