"""The kernels for AArch64, compiled as for there and run by an emulator, against the same judges.

Plans are made here by the planner, for NEON. What remains unproven is that hardware does what its
manual says, and how fast: nothing of this was ever timed.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from fastres.kernels.activations import ACTIVATIONS
from fastres.runtime.native import engine, library, schedule
from fastres.runtime.native.engine import NativeEngine
from fastres.runtime.nonfinite import NonFinite
from tests.native import test_native_convolutions as convolutions
from tests.native import test_native_memory as memory
from tests.native import test_native_operators as operators
from tests.native import test_tiles as tiles
from tests.native import test_uint8_plans as uint8_plans
from tests.native import test_uint8_tiles as uint8_tiles
from tests.native.test_native_convolutions import SHAPES, WINOGRAD, always
from tests.native.test_native_engine import block_net
from tests.support.native.aarch64 import Emulated, Program, build, needs_tools
from tests.support.native.awkward_cases import CASES
from tests.support.native.by_hand import Convolution, arguments_of, check, subgraph
from tests.support.native.examined import Examined
from tests.support.native.one_convolution import FUNCTIONS, Case, pixels
from tests.support.native.one_uint8_convolution import uint8_case
from tests.support.optimizing import optimize
from tests.support.oracle import PRECISIONS
from tests.support.small import assert_right, images

pytestmark = pytest.mark.campaign

OLD = "cortex-a53"
"""A processor of Armv8.0, without instructions for bfloat16 and int8."""

SETS = (("fp32", "neon"), ("bf16", "neon_bf16"))

OPERATORS = [(name, *SETS[0 if index % 3 else 1]) for index, name in enumerate(operators.CASES)]
"""Each in one of them: the rows of both are one text."""

each_set = pytest.mark.parametrize(("precision", "isa"), SETS, ids=[isa for _, isa in SETS])
each_float = pytest.mark.parametrize("isa", [isa for _, isa in SETS])


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    needs_tools()
    return build(tmp_path_factory.mktemp("aarch64"))


@pytest.fixture(autouse=True)
def emulated(program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Emulated:
    """The library of every test here."""
    return use(Emulated(Program(program), tmp_path), monkeypatch)


def use(made: Emulated, monkeypatch: pytest.MonkeyPatch) -> Emulated:
    """For what looks for the library."""
    monkeypatch.setattr(library, "load", lambda: made)
    monkeypatch.setattr(engine, "load", lambda: made)
    return made


def test_what_a_processor_has(
    emulated: Emulated, program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what it is limited to, in the order of the sets of one architecture."""
    assert emulated.isas == {"neon", "neon_bf16", "neon_i8mm"}
    assert Emulated(Program(program, OLD), tmp_path).isas == {"neon"}
    for limit, isas in (("neon_bf16", {"neon", "neon_bf16"}), ("neon", {"neon"}), ("avx2", set())):
        monkeypatch.setenv("FASTRES_NATIVE_ISA", limit)
        assert emulated.isas == isas


def test_what_reaches_outside_is_noticed(emulated: Emulated) -> None:
    """The plan's check is made over there, too."""
    spec = SHAPES["groups of 5"]
    model = Convolution(spec)
    given = arguments_of(spec, False)
    native = subgraph(model, model.graph(False), given, "neon")
    compiled = native.plans[1]
    assert compiled is not None
    emulated._plans[compiled.handle].arena_bytes = 64
    with pytest.raises(AssertionError, match="status 101"):
        native(*given)


# One convolution by hand.


@each_float
@pytest.mark.parametrize("name", CASES)
def test_tiles(name: str, isa: str) -> None:
    tiles.run(CASES[name], isa)


@each_float
@pytest.mark.parametrize("units", [16, 14, 3])
@pytest.mark.parametrize("count", range(1, 7))
def test_tiles_of_each_size(count: int, units: int, isa: str) -> None:
    for channels in (16, 41):
        case = Case(pixels(count), channels, 3, units, residual=True, after="relu6", scale=3.0)
        tiles.run(case, isa)
        tiles.run(Case(pixels(count), channels, 3, units, rows=True), isa)


@each_float
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str, isa: str) -> None:
    """On sums of all sizes, on either side of a residual."""
    for scale, side in itertools.product((0.01, 1.0, 30.0), ("before", "after")):
        sides: dict[str, Any] = {side: name}
        tiles.run(Case(pixels(19), channels=40, residual=True, scale=scale, **sides), isa)


@each_float
@pytest.mark.parametrize("after", ACTIVATIONS)
def test_not_a_number_stays_where_it_is(after: str, isa: str) -> None:
    tiles.test_not_a_number_stays_where_it_is(20, after, isa)


def test_rounding_does_not_grow_with_the_length_of_a_sum() -> None:
    tiles.test_rounding_does_not_grow_with_the_length_of_a_sum(16, "neon")


@pytest.mark.parametrize("name", CASES)
def test_uint8_tiles(name: str) -> None:
    uint8_tiles.run("neon_i8mm", uint8_case(CASES[name]))


@pytest.mark.parametrize("units", [16, 8, 5])
@pytest.mark.parametrize("count", range(1, 7))
def test_uint8_tiles_of_each_size(count: int, units: int) -> None:
    for channels in (16, 41):
        sizes = (count, channels, 3, units)
        residual = uint8_tiles.sized(*sizes, residual=True, after="relu6")
        uint8_tiles.run("neon_i8mm", residual, uint8_tiles.sized(*sizes, rows=True))


@pytest.mark.parametrize("extreme", list(itertools.product((-127, 127), (0, 255))))
def test_largest_products(extreme: tuple[int, int]) -> None:
    """No sum of products saturates."""
    uint8_tiles.run("neon_i8mm", uint8_tiles.sized(32, steps=64, extreme=extreme))


@pytest.mark.parametrize(("before", "after"), list(itertools.product(uint8_tiles.EXACT, repeat=2)))
def test_uint8_activations(before: str, after: str) -> None:
    for residual in (False, True):
        case = uint8_tiles.sized(19, 40, before=before, after=after, residual=residual, scale=3.0)
        uint8_tiles.run("neon_i8mm", case)


# Convolutions and graphs as they are planned.


@each_set
@pytest.mark.parametrize("name", SHAPES)
def test_convolutions(name: str, precision: str, isa: str) -> None:
    """Dense, grouped and depthwise; between pages that nobody may touch."""
    check(SHAPES[name], precision, isa)
    check(SHAPES[name], precision, isa, residual=True, after="relu", guarded=True)


@each_set
@pytest.mark.parametrize("name", WINOGRAD)
def test_winograd(name: str, precision: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "winograd_pays", always)
    check(WINOGRAD[name], precision, isa, guarded=True)
    check(WINOGRAD[name], precision, isa, residual=True, before="relu6", after="silu", threads=3)


@each_set
@pytest.mark.parametrize("name", ["groups of 5", "dilation and stride", "1x6, 32 -> 33, batch 2"])
def test_what_memory_held_does_not_matter(
    name: str, precision: str, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "winograd_pays", always)
    spec = {**SHAPES, **WINOGRAD}[name]
    native, given = memory.convolution(spec, precision, isa, 1)
    examined = Examined(native, 1)
    examined.check(given)
    examined.close()


@each_set
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("threads", [2, 3])
def test_batches_and_threads(precision: str, isa: str, batch: int, threads: int) -> None:
    convolutions.test_batches_and_threads(precision, isa, batch, threads)


@each_set
def test_what_is_not_ordinary_is_given_up(precision: str, isa: str) -> None:
    native = convolutions.one_channel(precision, isa)
    x = torch.zeros(2, 40, 2, 3, dtype=PRECISIONS[precision])
    native(x)
    x[1, 39, 1, 2] = torch.nan
    with pytest.raises(NonFinite):
        native(x)


@pytest.mark.parametrize(("name", "precision", "isa"), OPERATORS)
def test_operators(name: str, precision: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    operators.test_operators(name, precision, isa, monkeypatch)


@pytest.mark.parametrize("name", uint8_plans.GRAPHS)
def test_uint8_graphs(name: str) -> None:
    """To the bit, on clean and on filled memory."""
    building, module = uint8_plans.made(name)
    uint8_plans.check(module, building.inputs, "neon_i8mm")


@pytest.mark.parametrize("name", SHAPES)
def test_uint8_convolutions(name: str) -> None:
    for residual, turn in ((False, 0), (True, 1)):
        building, module = uint8_plans.convolution(SHAPES[name], residual, turn)
        uint8_plans.check(module, building.inputs, "neon_i8mm")


# As a user meets it.


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_network(precision: str, emulated: Emulated) -> None:
    model, x = block_net(), images(2, 3, 17, 19)
    fast = optimize(model, x, engine="native", precision=precision)
    before = emulated.runs
    for given in (x, images(5, 3, 23, 16)):
        assert_right(model, fast, given, precision=precision)
    assert emulated.runs > before


def test_an_int8_network_answers_as_by_definition(emulated: Emulated) -> None:
    model, x = block_net(), images(4, 3, 17, 19)
    options: dict[str, Any] = {"precision": "int8", "calibration": [x]}
    fast = optimize(model, x, engine="native", **options)
    before = emulated.runs
    answers = fast(x)
    assert emulated.runs > before
    wanted = optimize(model, x, engine="eager", **options)(x)
    assert all(map(torch.equal, answers, wanted))


def test_an_older_processor(program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 meets no instruction that it lacks; what needs others is refused."""
    use(Emulated(Program(program, OLD), tmp_path), monkeypatch)
    model, x = block_net(), images(2, 3, 17, 19)
    fast = optimize(model, x, engine="native")
    assert_right(model, fast, x)
    for name in ("depthwise", "ResNeXt 32x4d", "five channels, 7x7, stride 2"):
        check(SHAPES[name], "fp32", "neon", residual=True, after="silu")
    monkeypatch.setattr(schedule, "winograd_pays", always)
    check(WINOGRAD["7x7, 64 -> 64, batch 2"], "fp32", "neon")
    module = torch.fx.GraphModule(torch.nn.Module(), torch.fx.Graph())
    for dtype, computed in ((torch.bfloat16, torch.bfloat16), (torch.int8, torch.uint8)):
        module.register_buffer("weight", torch.zeros(1, dtype=dtype))
        assert NativeEngine().refusal(module) == (
            f"this processor has no instructions for {computed} that it knows"
        )
    assert optimize(model, x, precision="int8", calibration=[x]).engine == "onednn"
