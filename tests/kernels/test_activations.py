"""The table of activations against every implementation that has a column in it."""

from __future__ import annotations

import re
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

import fastres
from fastres.errors import OptionError
from fastres.export import to_onnx
from fastres.export.rules import activations as onnx_activations
from fastres.export.rules.table import RULES
from fastres.ir.graph import activation_of
from fastres.kernels import reference
from fastres.kernels.activations import ACTIVATIONS, BY_ATEN, Activation
from fastres.kernels.launch.checks import check_activation
from fastres.runtime.native import abi
from fastres.runtime.nonfinite import LARGEST, may_break
from tests.kernels.fault_table import FAULTS
from tests.passes.test_fuse import ACTIVATIONS as FUSED
from tests.support import ROOT, loops


@pytest.fixture(params=ACTIVATIONS.values(), ids=list(ACTIVATIONS))
def row(request: pytest.FixtureRequest) -> Activation:
    found: Activation = request.param
    return found


def values(dtype: torch.dtype = torch.float32) -> Tensor:
    edges = [-8.0, -6.0, -3.0, -0.5, -0.0, 0.0, 0.5, 3.0, 6.0, 8.0, torch.inf, torch.nan]
    spread = torch.randn(500, dtype=torch.float64, device="cpu") * 6
    return torch.cat([torch.tensor(edges, dtype=torch.float64, device="cpu"), spread]).to(dtype)


def test_names_are_the_keys() -> None:
    assert [row.name for row in ACTIVATIONS.values()] == list(ACTIVATIONS)
    assert next(iter(ACTIVATIONS)) == "none"  # what an operator without an activation says


def test_reference_is_what_the_loops_say(row: Activation) -> None:
    assert set(loops.ACTIVATIONS) == set(ACTIVATIONS)
    x = values(torch.float64)
    finite = x[x.isfinite()]
    torch.testing.assert_close(row.reference(finite), loops.activate(finite, row.name))
    torch.testing.assert_close(reference.activate(x, row.name), row.reference(x), equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_in_place_is_the_same(row: Activation, dtype: torch.dtype) -> None:
    x = values(dtype)
    expected, copy = row.reference(x), x.clone()
    given = row.in_place(copy)
    assert given is copy
    torch.testing.assert_close(given, expected, rtol=0, atol=0, equal_nan=True)


def test_nan_stays_and_numbers_stay_ordinary(row: Activation) -> None:
    assert bool(row.reference(torch.tensor([torch.nan], device="cpu")).isnan().all())
    largest = torch.tensor([LARGEST, -LARGEST], dtype=torch.float64, device="cpu")
    assert float(row.reference(largest).abs().max()) <= LARGEST
    assert not any(may_break(overload) for overload in row.aten)


def test_bounds_above(row: Activation) -> None:
    answers = row.reference(torch.tensor([1e3, 1e6], dtype=torch.float64, device="cpu"))
    assert row.bounds_above == bool(answers[0] == answers[1])


def test_atens_operators_are_recognised(row: Activation) -> None:
    x, graph = values(), torch.fx.Graph()
    image = graph.placeholder("image")
    for overload in row.aten:
        assert BY_ATEN[overload] is row
        torch.testing.assert_close(overload(x), row.reference(x), equal_nan=True)
        assert activation_of(graph.call_function(overload, (image,))) == row.name


def test_onednn_computes_it(row: Activation) -> None:
    x = torch.randn(2, 3, 6, 6, dtype=torch.float32, device="cpu") * 5
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float32, device="cpu")
    if isinstance(row.onednn, str):
        assert len(row.onednn.split()) > 3  # why not
        return
    attribute, scalars = row.onednn
    shape = ([1, 1], [1, 1], [1, 1], 1)
    given = torch.ops.mkldnn._convolution_pointwise.default(
        x, weight, None, *shape, attribute, list(scalars), ""
    )
    exact = row.reference(torch.conv2d(x.double(), weight.double(), None, *shape))
    torch.testing.assert_close(given.double(), exact, rtol=1e-4, atol=1e-4)
    if row.onednn_sum:
        other = torch.randn_like(given)
        name = None if row.name == "none" else attribute
        given = torch.ops.mkldnn._convolution_pointwise.binary(
            x, other, weight, None, *shape, "add", 1.0, name, [], ""
        )
        exact = row.reference(
            torch.conv2d(x.double(), weight.double(), None, *shape) + other.double()
        )
        torch.testing.assert_close(given.double(), exact, rtol=1e-4, atol=1e-4)


def test_native_codes_are_those_of_the_header() -> None:
    header = (ROOT / "kernels" / "cpu" / "native.h").read_text()
    (listed,) = re.findall(r"enum fr_activation \{(.*?)\}", header, re.DOTALL)
    codes = dict(re.findall(r"FR_(\w+) = (\d+)", listed))
    assert {name.upper(): str(code) for name, code in abi.ACTIVATIONS.items()} == codes
    assert set(ACTIVATIONS) <= set(abi.ACTIVATIONS)


def test_the_triton_function_has_a_branch_for_each() -> None:
    """What the branches compute is held against the reference by the tests of each kernel."""
    source = (ROOT / "kernels" / "triton" / "activations.py").read_text()
    branches = re.findall(r'ACTIVATION == "(\w+)"', source)
    assert sorted(branches) == sorted(set(ACTIVATIONS) - {"none"})


class Net(nn.Module):
    def __init__(self, row: Activation) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.second = nn.Conv2d(8, 4, 1)
        self.row = row

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for overload in self.row.aten:
            x = overload(x)
        y: Tensor = self.second(x)
        return y


def test_the_export_writes_its_operators(row: Activation, tmp_path: Path) -> None:
    assert set(onnx_activations.RULES) == set(ACTIVATIONS)
    images = torch.randn(2, 3, 9, 9, dtype=torch.float32, device="cpu")
    to_onnx(fastres.optimize(Net(row).eval(), images), tmp_path / "net.onnx")
    proto = onnx.load(tmp_path / "net.onnx")
    written = tuple(node.op_type for node in proto.graph.node)
    assert written == ("Conv", *row.onnx, "Conv")


def test_alone_it_is_exported_by_its_row(row: Activation) -> None:
    for overload in row.aten:
        assert RULES[overload].__qualname__.startswith("_activation.")  # no other rule over it


def test_every_row_is_in_the_tests_of_passes_and_of_faults() -> None:
    applied = set(ACTIVATIONS) - {"none"}
    assert {name for name, _ in FUSED.values()} == applied
    broken = "\n".join(fault.old for fault in FAULTS if fault.module == "activations")
    source = (ROOT / "kernels" / "triton" / "activations.py").read_text()
    branches = re.split(r'ACTIVATION == "(\w+)":\n', source)[1:]
    faulty = {
        name
        for name, code in zip(branches[::2], branches[1::2], strict=True)
        if any(line.strip() and line in broken for line in code.splitlines())
        or any(fault.old in code for fault in FAULTS if fault.module == "activations")
    }
    assert faulty == applied


def test_unknown_names_are_refused() -> None:
    with pytest.raises(OptionError, match="expected one of none, relu"):
        check_activation("gelu")
