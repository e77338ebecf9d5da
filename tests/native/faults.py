"""Seeded faults in the native engine, and the small checks that are to notice each of them.

A fault is a replacement in a C++ source or in the planner. Libraries with one fault each are
compiled without much optimisation, and share what they do not change. One process runs the checks
with all of them, each in a child of its own, because a fault may crash.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from fastres.ir import ops
from fastres.kernels.spec import ConvSpec
from fastres.runtime.native import pack, pack_groups, packed_weights, plan_builder, schedule
from fastres.runtime.native.library import Library
from fastres.runtime.nonfinite import NonFinite
from tests.support.cxx import COMPILER, SOURCES, settings
from tests.support.native import by_hand, emulator
from tests.support.native.by_hand import SETS, Convolution, arguments_of, check, subgraph
from tests.support.native.examined import Examined
from tests.support.oracle import PRECISIONS, assert_as_accurate
from tests.support.separate import separately

aten = torch.ops.aten

AROUND = (1, 1, 1, 1)


@dataclass(frozen=True)
class Fault:
    """A mistake that somebody could make.

    Attributes:
        file: of ``kernels/cpu``.
        what: is wrong, in a few words.
        old, new: the text to be replaced, found exactly once in the file, and what replaces it.
        units: the sources to be compiled for it; the file itself where that is one.
    """

    file: str
    what: str
    old: str
    new: str
    units: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """For the test's name."""
        return f"{self.file}: {self.what}"


ROWS = ("elementwise_avx2.cpp", "elementwise_avx512.cpp", "elementwise_avx512_bf16.cpp")

FAULTS = [
    Fault(
        *("convolution.cpp", "a larger tile computed as a smaller one"),
        *("function_for(op, smaller + 1)", "function_for(op, smaller)"),
    ),
    Fault(
        *("convolution.cpp", "no residual"),
        *("op.has_residual ? work.at(op.residual) : nullptr", "nullptr"),
    ),
    Fault(
        *("convolution.cpp", "the last panel forgotten"),
        *("op.chunk_panels, op.panels)", "op.chunk_panels, op.panels - 1)"),
    ),
    Fault(
        *("convolution.cpp", "groups read the first block"),
        *("(int64_t)op.panel_input[panel] * 4", "0"),
    ),
    Fault(
        *("convolution.cpp", "half a panel taken for a whole one"),
        *("std::min(32, op.output.channels - panel * 32)", "32"),
    ),
    Fault(
        *("winograd.cpp", "a sign"),
        *("fourth = b - d", "fourth = b + d"),
    ),
    Fault(
        *("winograd.cpp", "half a tile written into the border"),
        *("if (cursor.column * 2 + x >= op.output.width) continue;", ""),
    ),
    Fault(
        *("winograd.cpp", "the residual of another row"),
        *("addend + y * op.residual.row", "addend + 0 * op.residual.row"),
    ),
    Fault(
        *("pooling_rows.h", "a pooling that sees the border"),
        *("x >= op.input.width", "x > op.input.width"),
        ROWS,
    ),
    Fault(
        *("pooling_rows.h", "a mean over one pixel less"),
        "(float)op.input.height * (float)op.input.width;\n    for (int v = 0; v < kVectors<DTYPE>;",
        "(float)op.input.height;\n    for (int v = 0; v < kVectors<DTYPE>;",
        ROWS,
    ),
    Fault(
        *("edge_rows.h", "all blocks imported into the first"),
        *("line + channel / N::kLanes * to.plane", "line"),
        ROWS,
    ),
    Fault(
        *("tiles_avx2.cpp", "the second half of a panel forgotten"),
        *("if (t.channels > 16) pass<M, 2, UNITS>(t, 2, 0);", ""),
    ),
    Fault(
        *("tiles_avx2.cpp", "no residual in whole panels"),
        *("t.residual ? t.residual + (int64_t)t.residual_px[i] * 4 : nullptr;", "nullptr;"),
    ),
    Fault(
        *("tiles_avx512.cpp", "the first half's bias in both"),
        *("high = _mm512_loadu_ps(bias + 16);", "high = _mm512_loadu_ps(bias);"),
    ),
    Fault(
        *("finish_avx512.h", "lanes without a channel not cleared"),
        *(
            "_mm512_maskz_mov_ps(low_lanes, activate(t, t.after, 0, low))",
            "activate(t, t.after, 0, low)",
        ),
        ("tiles_avx512.cpp",),
    ),
    Fault(
        *("tiles_depthwise_avx512.cpp", "the first line in both halves of a panel"),
        *("t.channels > 16 ? t.input_plane : 0", "0"),
    ),
    Fault(
        *("tiles_depthwise_avx512.cpp", "two taps of pairs exchanged"),
        *("(__m512bh)_mm512_unpackhi_epi16(a, b)", "(__m512bh)_mm512_unpackhi_epi16(b, a)"),
    ),
    Fault(
        *("tiles_depthwise_avx512.cpp", "parts of a sum forgotten"),
        *("            if (first) {\n", "            if (false) {\n"),
    ),
    Fault(
        *("tiles_grouped_avx512.cpp", "one unit for all"),
        *("_mm512_permutexvar_epi32(index[u], line)", "_mm512_permutexvar_epi32(index[0], line)"),
    ),
    Fault(
        *("tiles_grouped_avx512.cpp", "products counted twice"),
        *("                    sum[i] = T::zero();\n", ""),
    ),
    Fault(
        *("tiles_grouped_avx512.cpp", "the second vector reads what the first does"),
        *(
            "const char *input = t.input + (int64_t)*read * 4;",
            "const char *input = t.input + (int64_t)t.reads[r] * 4;",
        ),
    ),
    Fault(
        *("tiles_depthwise_avx2.cpp", "the second half of a panel forgotten"),
        *("line < (t.channels > 16 ? 2 : 1)", "line < 1"),
    ),
    Fault(
        *("tiles_grouped_avx2.cpp", "the bias of the first vector for all"),
        *(
            "_mm256_loadu_ps((const float *)t.bias + v * 8)",
            "_mm256_loadu_ps((const float *)t.bias)",
        ),
    ),
    Fault(
        *("map_rows.h", "a summand's factor forgotten"),
        *("others[i] * op.residual_multiplier", "others[i]"),
        ROWS,
    ),
    Fault(
        *("map_rows.h", "one channel for the first lane only"),
        *("for (Lanes &each : to) each = Lanes{} + each[0];", "(void)to;"),
        ROWS,
    ),
    Fault(
        *("map_rows.h", "one row read as many"),
        *("if (tensor.height > 1) line", "line"),
        ROWS,
    ),
    Fault(
        *("map_rows.h", "numbers in lanes without a channel"),
        *("                keep_first(present - 16 * v, values[i]);\n", ""),
        ROWS,
    ),
    Fault(
        *("map_rows.h", "a shift forgotten"),
        *("multiply_add(value, scale, shift);", "value *= scale;"),
        ROWS,
    ),
    Fault(
        *("map_rows.h", "a row's last pixels forgotten"),
        *("for (; column < op.output.width; column++)", "for (; column < 0; column++)"),
        ROWS,
    ),
    Fault(
        *("norm_rows.h", "lanes without a channel in a pixel's variance"),
        *("        keep_first(tensor.channels - channel, value);\n", ""),
        ROWS,
    ),
    Fault(
        *("norm_rows.h", "the first sixteen's weights for all of a pixel"),
        *(
            "std::memcpy(&weight, op.scale + channel, 64);\n                value",
            "std::memcpy(&weight, op.scale, 64);\n                value",
        ),
        ROWS,
    ),
    Fault(
        *("functions.h", "the far part of a function for all"),
        *("x = size < one ? near : beyond;", "x = beyond;"),
        ROWS,
    ),
    Fault(
        *("functions.h", "half of a power of two forgotten"),
        *("x = (p + 1.0f) * first * second;", "x = (p + 1.0f) * first * first;"),
        ROWS,
    ),
    Fault(
        *("pooling_rows.h", "the padding counted"),
        *("op.counts_padding ? last - first : end - begin", "last - first"),
        ROWS,
    ),
    Fault(
        *("pooling_rows.h", "even windows that end early"),
        *("(index + 1) * size + outputs - 1", "(index + 1) * size"),
        ROWS,
    ),
    Fault(
        *("moving_rows.h", "rows' shares for columns"),
        *("across = op.column_shares[column]", "across = down"),
        ROWS,
    ),
    Fault(
        *("moving_rows.h", "what lies around the image for zeros"),
        *("is_outside || left < 0", "false"),
        ROWS,
    ),
    Fault(
        *("moving_rows.h", "every copy to the beginning"),
        *("copy(to + written + x", "copy(to + x"),
        ROWS,
    ),
    Fault(
        *("moving_rows.h", "neighbours on one side"),
        *("channel + k - op.padding[0]", "channel + k"),
        ROWS,
    ),
]


def _short_border(conv: ConvSpec, winograd: bool) -> tuple[int, int, int, int]:
    top, left, bottom, right = _border(conv, winograd)
    return top, left, max(bottom - 1, 0), right


def _swapped_pairs(weight: Tensor, lanes: int) -> Tensor:
    packed_ = _pack(weight, lanes)
    return packed_.flip(-1).contiguous() if weight.dtype == torch.bfloat16 else packed_


def _late_block(conv: Any, *_: Any) -> Any:
    spread, firsts = _spread_groups(conv, *_)
    return spread, firsts.flip(0)


def _in_order(unit: int) -> Tensor:
    return torch.arange(pack.PANEL, dtype=torch.int64)


def _one_tap_later(taps: list[int], unit: int) -> list[int]:
    return _steps(taps[1:] + taps[:1], unit)


_steps = pack_groups.steps
_border, _pack, _spread_groups = plan_builder._border, pack.pack, pack.spread_groups

PLANNER_FAULTS: dict[str, tuple[Any, str, Any]] = {
    "planner.py: a border too small": (plan_builder, "_border", _short_border),
    "weights.py: pairs of channels swapped": (pack, "pack", _swapped_pairs),
    "weights.py: blocks of groups in another order": (pack, "spread_groups", _late_block),
    "pack_groups.py: pairs of taps for channels in order": (pack_groups, "interleaved", _in_order),
    "pack_groups.py: taps in another order": (pack_groups, "steps", _one_tap_later),
    "pack_groups.py: every vector reads the first piece": (
        pack_groups.Reads, "offsets", lambda self, plane: np.zeros(self.piece.size, np.int64),
    ),
    "packed.py: no bias": (
        packed_weights.PackedWeights, "bias", lambda self, bias, k: pack.pack_vector(None, k),
    ),
}  # fmt: skip
"""What is wrong -> (owner, attribute, its replacement)."""


def run_checks() -> None:
    """Small convolutions, a network and what memory holds, on every instruction set here.

    Raises:
        AssertionError: something is wrong.
    """
    for precision, isa in SETS:
        if isa not in vars(by_hand)["loaded"]().isas:
            continue
        for spec in (
            ConvSpec(1, 40, 5, 5, 40, 3, 3, padding=AROUND),
            ConvSpec(2, 33, 5, 7, 32, 3, 3, padding=AROUND),
            ConvSpec(1, 3, 7, 9, 8, 3, 3, (2, 2), AROUND),
            ConvSpec(1, 96, 3, 5, 96, 1, 1, groups=3),
            ConvSpec(1, 40, 5, 6, 40, 3, 3, padding=AROUND, groups=40),
            ConvSpec(1, 4, 17, 18, 4, 17, 17, padding=(8, 8, 8, 8), groups=4),
            ConvSpec(1, 66, 5, 4, 88, 3, 3, (2, 1), AROUND, groups=22),
            ConvSpec(1, 48, 10, 9, 48, 9, 9, padding=(4, 4, 4, 4), groups=12),
        ):
            check(spec, precision, isa, residual=True, after="relu")
            _check_memory(spec, precision, isa)
        check(ConvSpec(1, 20, 4, 5, 17, 1, 1), precision, isa, before="relu6", residual=True)
        _check_network(precision, isa)
        _check_operators(precision, isa)
        _check_overflow(precision, isa)


def _check_memory(spec: ConvSpec, precision: str, isa: str) -> None:
    dtype = PRECISIONS[precision]
    model = Convolution(spec, after="relu")
    given = [x.to(dtype) for x in arguments_of(spec, True)]
    examined = Examined(subgraph(model.to(dtype), model.graph(True), given, isa), 1)
    examined.check(given)
    examined.close()


def _check_network(precision: str, isa: str) -> None:
    """``mean(max_pool(x))``, with numbers below zero at the edges."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    pooled = graph.call_function(ops.max_pool2d, (x, [3, 3], [2, 2], [1, 1], [1, 1], False))
    mean = graph.call_function(ops.global_avg_pool, (pooled, True))
    graph.output((pooled, mean))
    module = fx.GraphModule(nn.Module(), graph)
    image = -torch.rand(2, 40, 6, 7).bfloat16().float() - 1
    given = image.to(PRECISIONS[precision])
    run = subgraph(module, module.graph, [given], isa)
    assert_as_accurate(module, lambda _: run(given), image, precision=precision)


def _check_operators(precision: str, isa: str) -> None:
    """One of each kind that is no convolution, side by side."""
    root, graph = nn.Module(), fx.Graph()
    x, gate, pixels = (graph.placeholder(name) for name in ("x", "gate", "pixels"))

    def constant(name: str, value: Tensor) -> fx.Node:
        root.register_buffer(name, value)
        return graph.get_attr(name)

    def call(target: Any, *args: Any, **named: Any) -> fx.Node:
        return graph.call_function(target, args, named)

    scale, shift = constant("scale", torch.rand(40)), constant("shift", torch.rand(40))
    product = call(aten.mul.Tensor, call(aten.gelu.default, x), gate)
    vector = call(aten.reshape.default, gate, [2, 1, 40])
    graph.output((
        call(aten.add.Tensor, product, x, alpha=-0.5),
        call(aten.mul.Tensor, call(aten.sigmoid.default, x), pixels),
        call(ops.scale_shift, x, scale, shift, "none"),
        call(ops.layer_norm2d, x, scale, shift, 1e-5),
        call(aten.avg_pool2d.default, x, [3, 3], [2, 2], [1, 1], False, False),
        call(aten.adaptive_avg_pool2d.default, x, [4, 5]),
        call(aten.upsample_bilinear2d.vec, x, [9, 13], False, None),
        call(aten.constant_pad_nd.default, x, [1, 0, 2, 1], 0.0),
        call(aten.cat.default, [x, product, x], 1),
        call(aten.slice.Tensor, x, 1, 3, 20),
        call(aten.channel_shuffle.default, x, 4),
        call(aten.conv1d.default, vector, constant("taps", torch.randn(1, 1, 3)), None, [1], [1]),
    ))  # fmt: skip
    dtype = PRECISIONS[precision]
    sizes = ((2, 40, 6, 11), (2, 40, 1, 1), (2, 1, 6, 11))
    inputs = [torch.randn(size).bfloat16().float() for size in sizes]
    for name, value in root.named_buffers():
        root.register_buffer(name, value.bfloat16().float())
    module = fx.GraphModule(root, graph)
    given = [each.to(dtype) for each in inputs]
    native = subgraph(fx.GraphModule(root, graph).to(dtype), graph, given, isa)
    assert_as_accurate(module.float(), lambda *_: native(*given), *inputs, precision=precision)
    examined = Examined(native, 1)
    examined.check(given)
    examined.close()


def _check_overflow(precision: str, isa: str) -> None:
    """Finite in, infinite in the middle, finite out: empty lanes are multiplied by infinity."""
    root, graph = nn.Module(), fx.Graph()
    value = graph.placeholder("x")
    for name, k, c, scale, after in (
        *(("large", 5, 9, 2.0**100, "none"), ("larger", 5, 5, 1.0, "relu6")),
        ("last", 3, 5, 1.0, "none"),
    ):
        root.register_buffer(name, torch.full((k, c, 1, 1), scale))
        call = (value, graph.get_attr(name), None, None, [1, 1], [0] * 4, [1, 1], 1, "none", after)
        value = graph.call_function(ops.conv2d, call)
    graph.output((value,))
    dtype = PRECISIONS[precision]
    x = torch.full((1, 9, 2, 2), 2.0**60).to(dtype)
    run = subgraph(root.to(dtype), graph, [x], isa)
    assert torch.equal(run(x), torch.full((1, 3, 2, 2), 30.0, dtype=dtype))


def compiled(faults: list[Fault], folder: Path) -> dict[str, Path]:
    """A library without a fault, under the name "none", and one for each.

    Raises:
        AssertionError: a text to be replaced is not found exactly once; it does not compile.
    """
    for fault in faults:
        found = (SOURCES / fault.file).read_text(encoding="utf-8").count(fault.old)
        assert found == 1, f"found {found} times in {fault.file}: {fault.old!r}"
    sources = [Path(source).name for source in settings()["sources"]]
    right = folder / "right"
    shutil.copytree(SOURCES, right)
    for source in sources:
        _compile(right / source)
    objects = {source: (right / source).with_suffix(".o") for source in sources}
    libraries = {"none": _link(objects, right)}
    for number, fault in enumerate(faults):
        wrong = folder / f"fault{number}"
        shutil.copytree(SOURCES, wrong)
        path = wrong / fault.file
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(fault.old, fault.new), encoding="utf-8")
        changed = fault.units or (fault.file,)
        for unit in changed:
            _compile(wrong / unit)
        mixed = objects | {unit: (wrong / unit).with_suffix(".o") for unit in changed}
        libraries[fault.name] = _link(mixed, wrong)
    return libraries


def outcomes_of(module: str, faults: list[Fault], folder: Path) -> dict[str, str]:
    """What the checks of a module of faults say of each, and of "none".

    Args:
        module: its ``main`` takes ``name=library`` pairs and prints ``name=outcome`` lines.
        folder: for the libraries.
    """
    emulator.loaded()
    pairs = [f"{name}={path}" for name, path in compiled(faults, folder).items()]
    said = separately(f"from {module} import main; main({pairs!r})").splitlines()
    return {name: text for name, _, text in (line.partition("=") for line in said)}


def untrue_texts(faults: list[Fault]) -> dict[str, int]:
    """How often each text that is to be replaced is there, where that is not once."""
    counts = {
        fault.name: (SOURCES / fault.file).read_text(encoding="utf-8").count(fault.old)
        for fault in faults
    }
    return {name: count for name, count in counts.items() if count != 1}


def _compile(source: Path) -> None:
    flags = [flag for flag in settings()["extra-compile-args"] if not flag.startswith("-O")]
    _call(*flags, "-O1", "-w", "-fPIC", "-c", str(source), "-o", str(source.with_suffix(".o")))


def _link(objects: dict[str, Path], folder: Path) -> Path:
    output = folder / "native.so"
    _call("-shared", "-pthread", *map(str, objects.values()), "-o", str(output))
    return output


def _call(*arguments: str) -> None:
    assert COMPILER
    done = subprocess.run([COMPILER, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def outcome(
    name: str,
    library: Path,
    planner_faults: Mapping[str, tuple[Any, str, Any]] = PLANNER_FAULTS,
    checks: Callable[[], None] = run_checks,
    users: Sequence[Any] = (by_hand, emulator),
) -> str:
    """What the checks say in a child: "passed", or how they noticed the fault.

    Args:
        users: modules that ask for the library by the name ``loaded``.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        said = "passed"
        try:
            torch.manual_seed(0)
            here = Library(library)
            for module in users:
                module.__dict__["loaded"] = lambda: here
            schedule.__dict__["winograd_pays"] = lambda spec, itemsize: True
            if name in planner_faults:
                setattr(*planner_faults[name])
            checks()
        except (AssertionError, NonFinite) as error:
            said = f"noticed: {(str(error) or type(error).__name__).splitlines()[0]}"
        except BaseException as error:  # noqa: BLE001 - the child must not go on as its parent
            said = f"broken: {type(error).__name__}: {error}"
        finally:
            os.write(write, said.encode()[:4000])
            os._exit(0)
    os.close(write)
    with os.fdopen(read, encoding="utf-8", errors="replace") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    return said or f"crashed by signal {os.WTERMSIG(status)}"


def main(arguments: list[str]) -> None:
    """For ``name=library`` pairs, and the planner's faults with the first library: the outcomes."""
    torch.set_num_threads(1)
    pairs = [tuple(argument.split("=", 1)) for argument in arguments]
    first = pairs[0][1]
    for name, library in [*pairs, *((name, first) for name in PLANNER_FAULTS)]:
        print(f"{name}={outcome(name, Path(library))}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
