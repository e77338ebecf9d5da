"""Every translated operator, alone among the results of a small network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastres.errors import ModelError
from fastres.export import to_onnx
from fastres.export.rules.table import RULES
from fastres.export.tensorrt_operators import OPERATORS
from fastres.ir import ops
from fastres.ir.propagate import propagate
from fastres.runtime.triton import fuse_blocks
from fastres.transforms import Transforms
from tests.support.onnx_nets import IMAGE, NETWORKS, fixed_pooling, network
from tests.support.optimizing import optimize
from tests.support.small import Net, conv, net

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


@pytest.mark.sampled(6)
@pytest.mark.parametrize("dynamic", [False, True], ids=["fixed size", "any size"])
@pytest.mark.parametrize("name", NETWORKS)
def test_results_are_the_models(name: str, dynamic: bool, tmp_path: Path) -> None:
    function, parts = NETWORKS[name]
    model = network(function, **parts)
    report = to_onnx(
        model, tmp_path / "m.onnx", example_input=torch.zeros(IMAGE), dynamic_size=dynamic
    )
    results = function(model, torch.rand(2, 6, *IMAGE[2:]))
    assert len(report.outputs) == sum(
        len(value) if isinstance(value, list) else 1 for value in results.values()
    )
    assert set(report.operators) <= OPERATORS, report.not_in_tensorrt
    assert all(ratio <= 2 for _, _, ratio in report.errors.values())


def test_results_that_need_a_fixed_image_size(tmp_path: Path) -> None:
    model = network(fixed_pooling)
    report = to_onnx(model, tmp_path / "m.onnx", example_input=torch.zeros(IMAGE))
    assert len(report.outputs) == 11
    assert set(report.operators) <= OPERATORS


@pytest.mark.sampled(3)
@pytest.mark.parametrize("opset", [13, 17, 18, 23])
def test_every_opset_has_what_is_written(opset: int, tmp_path: Path) -> None:
    function, parts = NETWORKS["reduction"]
    report = to_onnx(
        network(function, **parts),
        tmp_path / "m.onnx",
        example_input=torch.zeros(IMAGE),
        opset=opset,
    )
    assert report.opset == opset
    (imported,) = onnx.load(tmp_path / "m.onnx").opset_import
    assert (imported.domain, imported.version) == ("", opset)


def test_every_operator_of_fastres_has_a_translation() -> None:
    assert ops.REFERENCE.keys() - RULES.keys() == set()


@pytest.mark.parametrize("uint8", [False, True])
def test_a_stem_as_one_operator(uint8: bool, tmp_path: Path) -> None:
    """Engines make it, from the graph that is exported; here it is exported itself."""
    x = torch.rand(2, 3, 13, 12)
    given: dict[str, Any] = {}
    if uint8:
        x = torch.randint(0, 256, (2, 13, 12, 3), dtype=torch.uint8)
        given = {"input_format": "uint8_nhwc", "transforms": Transforms()}
    model = nn.Sequential(nn.Conv2d(3, 8, 7, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1)).eval()
    fast = optimize(model, x, engine="eager", **given)
    graph = fast.graph_module
    fuse_blocks.run(graph, fuse_blocks.BlockContext(propagate(graph, [x]), lambda spec: None))
    (node,) = graph.graph.find_nodes(op="call_function", target=ops.conv2d_max_pool2d)
    assert (node.args[-1] is not None) == uint8
    report = to_onnx(fast, tmp_path / "m.onnx")
    assert all(ratio <= 2 for _, _, ratio in report.errors.values())


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda m, x: torch.cumsum(m.conv(x), 1), r"\(the model itself\): aten.cumsum.default has"),
        (
            lambda m, x: F.softplus(m.conv(x), beta=2),
            r"aten.softplus.default cannot be written to ONNX: it has a beta other than 1",
        ),
        (
            lambda m, x: F.adaptive_max_pool2d(m.conv(x), 3, return_indices=True)[1],
            "aten.adaptive_max_pool2d.default cannot .* positions of the largest values",
        ),
    ],
)
def test_what_has_no_translation_is_named(function: object, says: str, tmp_path: Path) -> None:
    model = net(function, conv=conv())  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=says):
        to_onnx(model, tmp_path / "m.onnx", example_input=torch.zeros(1, 4, 9, 9))
    assert list(tmp_path.iterdir()) == []


def test_the_module_of_what_has_no_translation_is_named(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3), Net(lambda m, x: x.cumsum(1)))
    with pytest.raises(ModelError, match=r"1: aten\.cumsum\.default has no translation"):
        to_onnx(model.eval(), tmp_path / "m.onnx", example_input=torch.zeros(1, 4, 9, 9))


def test_a_form_that_nobody_thought_of_is_named_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rule(b: object, node: object) -> str:
        raise TypeError("unexpected")

    monkeypatch.setitem(RULES, torch.ops.aten.tanh.default, rule)
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Tanh()).eval()
    with pytest.raises(ModelError, match=r"1: aten\.tanh\.default cannot be written .*unexpected"):
        to_onnx(model, tmp_path / "m.onnx", example_input=torch.zeros(1, 4, 9, 9))


def test_pooling_to_a_number_of_pixels_needs_a_fixed_size(tmp_path: Path) -> None:
    model = net(lambda m, x: F.adaptive_avg_pool2d(m.conv(x), 3), conv=conv())
    with pytest.raises(ModelError, match="export without dynamic_size"):
        to_onnx(
            model, tmp_path / "m.onnx", example_input=torch.zeros(1, 4, 9, 9), dynamic_size=True
        )


class GeM(nn.Module):
    """Generalised-mean pooling (Radenovic, Tolias and Chum, 2018), as image retrieval has it."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.full((count, 1, 1), 3.0))

    def forward(self, x: Tensor) -> Tensor:
        powers = x.clamp(min=1e-6).pow(self.p)
        return F.avg_pool2d(powers, powers.shape[2:]).pow(1.0 / self.p).flatten(1)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize("dynamic", [False, True])
def test_an_embedding_by_powers_that_are_learned(count: int, dynamic: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), GeM(count), nn.BatchNorm1d(8)).eval()
    example = torch.randn(2, 3, 20, 14)
    report = to_onnx(model, tmp_path / "m.onnx", example_input=example, dynamic_size=dynamic)
    assert "Pow" in report.operators
