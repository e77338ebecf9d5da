"""Does a written ONNX file give the model's answers? Looked at before anybody gets the file.

The yardstick is that of :mod:`fastres.verification`: the error against float64 may be at most twice
the error that PyTorch itself makes in the same precision, or a few units in the last place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fastres import target
from fastres.deviation import relative, square, squared_error
from fastres.errors import TargetError, VerificationError
from fastres.export.onnx_graph import Converted
from fastres.export.onnx_sizes import Sizes
from fastres.export.requirements import need_onnxruntime
from fastres.graph import module_of
from fastres.optimized import OptimizedModule
from fastres.retype import retype_node
from fastres.verification import BOUND, LAYER_SLACK, NUMBERS_AGREE, InPrecision, precision_of

BATCHES = (1, 2, 7)
"""How many images are tried: one, an even and an odd number."""

FLOOR_ULPS = 4.0
"""Units in the last place that are forgiven whatever PyTorch achieves: on a handful of numbers its
own error can be next to nothing by luck."""


@dataclass
class OutputError:
    """How one output compares, over everything that was run.

    Attributes:
        name: of the output.
        error, eager_error: relative root-mean-square against float64, of the file and of PyTorch.
        floor: the error that is forgiven in any case.
    """

    name: str
    floor: float
    ours: float = 0.0
    eagers: float = 0.0
    square: float = 0.0

    @property
    def error(self) -> float:
        """Of the file."""
        return relative(self.ours, self.square)

    @property
    def eager_error(self) -> float:
        """Of PyTorch in the same precision."""
        return relative(self.eagers, self.square)

    @property
    def ratio(self) -> float:
        """The file's error as a multiple of PyTorch's, which counts as the floor at least."""
        eager = self.eager_error if isfinite(self.eager_error) else 0.0
        return self.error / max(eager, self.floor)


@dataclass
class Checked:
    """What the checks found.

    Attributes:
        outputs: errors of the floating-point outputs.
        images, agreeing: of how many images, and on how many the first choice was float64's.
        operators: how many nodes of each kind the file has.
        done: the checks, a sentence each.
    """

    outputs: list[OutputError]
    images: int = 0
    agreeing: int = 0
    operators: dict[str, int] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Reference:
    """What the file is to answer like.

    Attributes:
        fast: the optimised model that was exported.
        model: the model that it was made from, where that is known and takes the same inputs.
    """

    fast: OptimizedModule
    model: nn.Module | None

    @property
    def dtype(self) -> torch.dtype:
        """What the file computes in."""
        return precision_of(self.fast)

    def answers(self) -> tuple[Callable[[list[Any]], list[Any]], Callable[[list[Any]], list[Any]]]:
        """Flattened results for flattened arguments: in float64, and by PyTorch as it is."""
        if self.model is None:
            exact, plain = Values(self.fast, torch.float64), Values(self.fast, self.dtype)
            return exact.answer, plain.answer
        twins = [InPrecision(self.model, dtype) for dtype in (torch.float64, self.dtype)]
        return tuple(self._by_model(twin) for twin in twins)  # type: ignore[return-value]

    def _by_model(self, twin: InPrecision) -> Callable[[list[Any]], list[Any]]:
        def answer(flat: list[Any]) -> list[Any]:
            args, kwargs = pytree.tree_unflatten(flat, self.fast._in_spec)
            with torch.no_grad():
                return list(pytree.tree_leaves(twin((args, kwargs))))

        return answer


class Values(fx.Interpreter):
    """A fused graph in plain PyTorch, in its own precision or in float64, all values kept.

    Attributes:
        kept: the values, by the names of the fused graph's nodes.
        given: values that are taken instead of computed.
    """

    def __init__(self, fast: OptimizedModule, dtype: torch.dtype) -> None:
        graph = fx.Graph()
        mapping: dict[fx.Node, fx.Node] = {}
        graph.output(graph.graph_copy(fast.graph_module.graph, mapping))
        super().__init__(fx.GraphModule(fast.graph_module, graph))
        self.dtype = dtype
        self.kept: dict[str, Tensor] = {}
        self.given: dict[str, Tensor] = {}
        self._original = {new.name: old.name for old, new in mapping.items()}
        self._inputs = {
            wanted.dtype for wanted in fast._contract.inputs if hasattr(wanted, "dtype")
        }
        if dtype == torch.float64:
            for own in (torch.float32, torch.float16, torch.bfloat16):
                for node in graph.nodes:
                    retype_node(node, own, dtype)

    def answer(self, flat: Sequence[Any]) -> list[Any]:
        """The flattened results."""
        with torch.no_grad():
            return list(self.run(*flat))

    def run_node(self, n: fx.Node) -> Any:
        """One node's value, in float64 where that is wanted."""
        name = self._original.get(n.name, n.name)
        value = self.given[name] if name in self.given else super().run_node(n)
        if not isinstance(value, Tensor):
            return value
        if self.dtype == torch.float64 and value.is_floating_point():
            value = value.double()
        if n.op == "call_function":
            self.kept[name] = value
        return value


def draw(inputs: Sequence[Any], given: Sequence[Any], seed: int) -> list[Any]:
    """Random images in the place of the uninitialised tensors ``inputs``.

    Floating-point tensors get N(0, 1), bytes get 0 to 255; other tensors keep the values of
    ``given`` where that has their shape, else zero.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn: list[Any] = []
    for leaf, example in zip(inputs, given, strict=True):
        if not isinstance(leaf, Tensor):
            drawn.append(leaf)
        elif leaf.is_floating_point():
            drawn.append(torch.randn(leaf.shape, generator=generator).to(leaf.dtype))
        elif leaf.dtype == torch.uint8:
            drawn.append(torch.randint(0, 256, leaf.shape, generator=generator, dtype=leaf.dtype))
        else:
            kept = isinstance(example, Tensor) and example.shape == leaf.shape
            drawn.append(
                example.cpu() if kept and not example.is_meta else leaf.new_zeros(leaf.shape)
            )
    return drawn


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
    floor = FLOOR_ULPS * torch.finfo(reference.dtype).eps
    checked = Checked([OutputError(name, floor) for _, name in converted.outputs])
    checked.operators = dict(Counter(node.op_type for node in proto.graph.node).most_common())
    checked.done.append("onnx.checker with full shape inference")
    run = runner(file)
    exact, plain = reference.answers()
    tried: list[str] = []
    for batch, grow in samples(sizes, example):
        flat = draw(sizes.inputs(example, batch, grow, "cpu"), example, seed=batch)
        given = _fed(flat, converted, proto)
        try:
            got = run(given)
            wanted, eager = exact(_copied(flat)), plain(_copied(flat))
            _compare(checked, converted, got, wanted, eager)
            _judge(checked)
        except _Differs as error:
            found = first_difference(file, converted, reference, flat)
            shapes = ", ".join(str(list(leaf.shape)) for leaf in flat if isinstance(leaf, Tensor))
            raise VerificationError(
                f"the exported file differs from the model on {shapes}: {error}. {found}. No file "
                "was written"
            ) from error
        tried.append(_shape_of(flat))
    checked.outputs = [each for each in checked.outputs if each.square or each.ours or each.eagers]
    checked.done.append(f"ONNX Runtime on the CPU at {', '.join(tried)}, against float64")
    return checked


class _Differs(Exception):
    """Raised inside: something in the file's answers is not the model's."""


def _shape_of(flat: Sequence[Any]) -> str:
    return next(
        "x".join(map(str, leaf.shape)) for leaf in flat if isinstance(leaf, Tensor) and leaf.dim()
    )


def _copied(flat: Sequence[Any]) -> list[Any]:
    return [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in flat]


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


def runner(file: Path, optimise: bool = True) -> Callable[[dict[str, Any]], list[Any]]:
    """A function from named arrays to the file's answers, by ONNX Runtime on the CPU."""
    runtime = need_onnxruntime()
    settings = runtime.SessionOptions()
    settings.intra_op_num_threads = target.cpu_threads()
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 4
    if not optimise:
        settings.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = runtime.InferenceSession(str(file), settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own types have no common base
        raise VerificationError(f"ONNX Runtime does not load the exported file: {error}") from error

    def run(given: dict[str, Any]) -> list[Any]:
        try:
            return list(session.run(None, given))
        except Exception as error:  # likewise
            raise _Differs(f"ONNX Runtime fails: {str(error).splitlines()[0]}") from error

    return run


def _fed(flat: Sequence[Any], converted: Converted, proto: onnx.ModelProto) -> dict[str, Any]:
    """The arrays that the file takes, in its dtypes."""
    types = {info.name: info.type.tensor_type.elem_type for info in proto.graph.input}
    fed = {}
    for index, name in converted.inputs:
        if name in types:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(types[name])
            fed[name] = flat[index].numpy().astype(dtype, copy=False)
    return fed


def _compare(
    checked: Checked, converted: Converted, got: list[Any], wanted: list[Any], eager: list[Any]
) -> None:
    first = True
    for (index, name), into, value in zip(converted.outputs, checked.outputs, got, strict=True):
        y64, plain = wanted[index], eager[index]
        ours = torch.from_numpy(np.asarray(value))
        if tuple(ours.shape) != tuple(y64.shape):
            raise _Differs(f"{name} is {list(ours.shape)}, expected {list(y64.shape)}")
        if not y64.is_floating_point():
            if ours.numel() and float((ours == y64).double().mean()) < NUMBERS_AGREE:
                raise _Differs(f"{name} holds other numbers")
            continue
        into.ours += squared_error(ours, y64, plain)
        into.eagers += squared_error(plain, y64, plain)
        into.square += square(y64)
        if first and y64.dim() >= 2 and y64.numel():
            _count_first_choices(checked, name, ours.double(), y64)
        first = False


def _judge(checked: Checked) -> None:
    for each in checked.outputs:
        if not each.ratio <= BOUND:
            raise _Differs(
                f"{each.name} has an error of {each.error:.2e} against float64, {each.ratio:.1f}x "
                f"PyTorch's own ({each.eager_error:.2e}); {BOUND:g}x is allowed"
            )


def _count_first_choices(checked: Checked, name: str, ours: Tensor, y64: Tensor) -> None:
    """A first choice may be another only where float64 itself is undecided within the error."""
    flat, flat64 = ours.flatten(1), y64.flatten(1)
    chosen, right = flat.argmax(1), flat64.argmax(1)
    checked.images += len(chosen)
    checked.agreeing += int((chosen == right).sum())
    lead = flat64.gather(1, right[:, None]) - flat64.gather(1, chosen[:, None])
    if bool((lead[:, 0] > 2 * (flat - flat64).abs().amax(1)).any()):
        raise _Differs(f"{name} has another first choice than float64")


def first_difference(
    file: Path, converted: Converted, reference: Reference, flat: Sequence[Any]
) -> str:
    """A sentence on the first tensor of a file that is not the fused graph's."""
    proto = onnx.load_model(str(file))
    made = {name for node in proto.graph.node for name in node.output}
    there = {output.name for output in proto.graph.output}
    traced = [(node, name) for node, name in converted.traced if name in made]
    proto.graph.output.extend(
        onnx.ValueInfoProto(name=name) for _, name in traced if name not in there
    )
    names = [output.name for output in proto.graph.output]
    probe = file.with_name(f"{file.name}.values.onnx")
    onnx.save_model(proto, str(probe), save_as_external_data=True, location=f"{probe.name}.data")
    exact, plain = Values(reference.fast, torch.float64), Values(reference.fast, reference.dtype)
    exact.answer(_copied(flat))
    plain.answer(_copied(flat))
    try:
        answers = dict(
            zip(names, runner(probe, optimise=False)(_fed(flat, converted, proto)), strict=True)
        )
    except (_Differs, VerificationError) as error:
        return f"Its values cannot be looked at: {error}"
    floor = FLOOR_ULPS * torch.finfo(reference.dtype).eps
    for node, name in traced:
        ours, y64 = torch.from_numpy(np.asarray(answers[name])), exact.kept[node.name]
        where = f"The first tensor that differs is {name!r} ({module_of(node)}, {node.target})"
        if tuple(ours.shape) != tuple(y64.shape):
            return f"{where}: {list(ours.shape)}, expected {list(y64.shape)}"
        if not y64.is_floating_point():
            continue
        eager = plain.kept[node.name]
        one = OutputError(name, floor, squared_error(ours, y64, eager))
        one.eagers, one.square = squared_error(eager, y64, eager), square(y64)
        if not one.ratio <= LAYER_SLACK * BOUND:
            return f"{where}: error {one.error:.2e}, PyTorch's {one.eager_error:.2e}"
    return "Every tensor is the fused graph's, so the fused graph is not the model's"


def check_openvino(file: Path, converted: Converted, reference: Reference, flat: list[Any]) -> str:
    """Load a file in OpenVINO and hold its answers to those of float64, as for ONNX Runtime.

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
        results = compiled(_fed(flat, converted, proto))
    except RuntimeError as error:
        raise VerificationError(f"OpenVINO does not run the exported file: {error}") from error
    exact, plain = reference.answers()
    floor = FLOOR_ULPS * torch.finfo(reference.dtype).eps
    checked = Checked([OutputError(name, floor) for _, name in converted.outputs])
    got = [results[index] for index in range(len(converted.outputs))]
    try:
        _compare(checked, converted, got, exact(_copied(flat)), plain(_copied(flat)))
        for each in checked.outputs:
            if not each.ratio <= LAYER_SLACK * BOUND:
                raise _Differs(f"{each.name} is {each.ratio:.1f}x as far off as PyTorch")
    except _Differs as error:
        raise VerificationError(f"OpenVINO answers differently from the model: {error}") from error
    return f"OpenVINO on the CPU at {_shape_of(flat)}, against float64"
