"""Files for images of any size, where the example's sizes happen to look alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastres.errors import ArtifactError, ModelError
from fastres.export import session, to_onnx
from tests.support.small import Net, PairNet, conv, net
from tests.zoo.same_padding import same_pad

SQUARE = torch.zeros(1, 4, 32, 32)


def reshaped(y: Tensor) -> tuple[Tensor, ...]:
    n, c, h, w = y.shape
    return (
        *(y, y.transpose(2, 3), y.reshape(n, c * h, w), y.permute(0, 3, 1, 2).reshape(n, w, c * h)),
        *(y.view(n, c, h * w), y.mean(2, keepdim=True).expand(-1, -1, w, -1) + 0),
    )


def turned(y: Tensor) -> Tensor:
    return F.interpolate(y, size=(y.shape[3], y.shape[2]), mode="bilinear")


def halves(y: Tensor) -> Tensor:
    return y[:, :, : y.shape[2] // 2, -(y.shape[3] // 2) :] + 0


def padded_to_a_multiple(y: Tensor) -> Tensor:
    """By what is missing after two strides: 0 to 3 pixels, which few sizes show."""
    rows, columns = (-size % 4 for size in y.shape[2:])
    return F.max_pool2d(F.pad(y, (0, columns, rows, 0)), 4)


def rounded_down(y: Tensor) -> Tensor:
    """Negative numbers, which Python and ONNX divide differently."""
    h, w = y.shape[2:]
    return F.pad(y, (w // 4, 0, 0, (h - w) // 4 + 20))


def rounded_up(y: Tensor) -> Tensor:
    """By a division of negative numbers, as padding of the kind "same" often has it."""
    h, w = y.shape[2:]
    rows, columns = -(h // -2) * 2 - h, -(w // -3) * 3 - w
    return F.max_pool2d(F.pad(y, (0, columns, 0, rows)), (2, 3))


FUNCTIONS = (reshaped, turned, halves, padded_to_a_multiple, rounded_down, rounded_up)
NETWORKS = {f.__name__: f for f in FUNCTIONS}
SHAPES = ((2, 4, 32, 40), (3, 4, 50, 41), (1, 4, 64, 30), (2, 4, 35, 35), (1, 4, 33, 47))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_square_example(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = net(lambda m, x: NETWORKS[name](m.conv(x)), conv=conv())
    to_onnx(model, tmp_path / "m.onnx", example_input=SQUARE, dynamic_size=True)
    ready = session(tmp_path / "m.onnx", providers="cpu")
    for shape in SHAPES:
        images = torch.randn(shape)
        with torch.no_grad():
            wanted = model(images)
        got = ready(images)
        answers = list(got.values()) if isinstance(got, dict) else [got]
        by_torch = list(wanted) if isinstance(wanted, tuple) else [wanted]
        torch.testing.assert_close(answers, by_torch, rtol=1e-4, atol=1e-4)


def test_sizes_are_named_after_those_that_they_are(tmp_path: Path) -> None:
    model = net(lambda m, x: (m.conv(x), m.conv(x).transpose(2, 3)), conv=conv(4, 6))
    report = to_onnx(model, tmp_path / "m.onnx", example_input=SQUARE, dynamic_size=True)
    assert [text.split(" ", 2)[2] for text in report.outputs] == [
        "[batch, 6, height, width]",
        "[batch, 6, width, height]",
    ]


def test_two_batches_are_two(tmp_path: Path) -> None:
    model = PairNet(lambda m, x, y: (m.conv(x), m.conv(y)), conv=conv(4, 6)).eval()
    example = (torch.zeros(2, 4, 8, 8), torch.zeros(2, 4, 8, 8))
    report = to_onnx(model, tmp_path / "m.onnx", example_input=example)
    assert report.outputs[1].endswith("[batch_2, 6, 8, 8]")
    answers = session(tmp_path / "m.onnx", providers="cpu")(
        torch.zeros(3, 4, 8, 8), torch.zeros(5, 4, 8, 8)
    )
    assert isinstance(answers, dict)
    assert [len(answer) for answer in answers.values()] == [3, 5]


def test_tied_sizes_still_grow_together(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Net(lambda m, x: m.conv(x) + m.conv(x).transpose(2, 3), conv=conv()).eval()
    to_onnx(model, tmp_path / "m.onnx", example_input=SQUARE, dynamic_size=True)
    images = torch.randn(2, 4, 45, 45)
    torch.testing.assert_close(
        session(tmp_path / "m.onnx", providers="cpu")(images), model(images).detach()
    )


@pytest.mark.campaign
def test_tensorflows_padding_of_any_size(tmp_path: Path) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y: Tensor = m.second(same_pad(torch.relu(m.first(same_pad(x, 3, 2))), 5, 2))
        return y

    parts = {"first": nn.Conv2d(4, 6, 3, 2), "second": nn.Conv2d(6, 5, 5, 2)}
    torch.manual_seed(0)
    model = Net(forward, **parts).eval()
    report = to_onnx(model, tmp_path / "m.onnx", example_input=SQUARE, dynamic_size=True)
    assert report.operators["Pad"] == 2
    assert report.not_in_tensorrt == ()
    ready = session(tmp_path / "m.onnx", providers="cpu")
    for shape in SHAPES:
        images = torch.randn(shape)
        torch.testing.assert_close(ready(images), model(images).detach(), rtol=1e-4, atol=1e-5)


def test_a_decision_on_the_size_is_told(tmp_path: Path) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y: Tensor = m.conv(x)
        return F.avg_pool2d(y, 2) if x.shape[2] > 300 else y

    model = net(forward, conv=conv())
    report = to_onnx(model, tmp_path / "m.onnx", example_input=SQUARE, dynamic_size=True)
    (limit, decision) = report.notes
    assert limit.startswith("height is meant to be 0 to 300, and the file does not look")
    assert "height <= 300 (test_onnx_sizes.py:" in decision
    fixed = to_onnx(model, tmp_path / "m.onnx", example_input=SQUARE)
    assert fixed.notes == ()


@pytest.mark.parametrize("mode", ["reflect", "circular"])
def test_padding_that_repeats_needs_known_sides(mode: str, tmp_path: Path) -> None:
    model = net(lambda m, x: F.pad(m.conv(x), (0, x.shape[3] // 4, 0, 0), mode=mode), conv=conv())
    with pytest.raises(ModelError, match="by a padding that depends on the input"):
        to_onnx(model, tmp_path / "m.onnx", example_input=SQUARE, dynamic_size=True)


def test_a_file_whose_results_are_not_as_declared_is_no_lack_of_memory(tmp_path: Path) -> None:
    import onnx

    place = onnx.helper.make_tensor_value_info
    floats = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Transpose", ["x"], ["y"], perm=[1, 0])],
        "wrong",
        [place("x", floats, ["a", "b"])],
        [place("y", floats, ["a", "b"])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
    model.ir_version = 9
    onnx.save_model(model, str(tmp_path / "m.onnx"))
    with pytest.raises(ArtifactError, match="failed in ONNX Runtime"):
        session(tmp_path / "m.onnx", providers="cpu")(torch.zeros(2, 3))
