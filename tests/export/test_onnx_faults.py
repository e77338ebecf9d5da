"""A file that is wrong is never written, and the first wrong tensor is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, numpy_helper
from torch import nn

from fastres.errors import ArtifactError, VerificationError
from fastres.export import to_onnx, write
from fastres.export.graph import Converted, convert
from tests.support.small import EXAMPLE, small_model
from tests.zoo.resblk import ConcatenationNetwork
from tests.zoo.statistics import randomise_statistics


def node(proto: ModelProto, name: str) -> onnx.NodeProto:
    found: list[onnx.NodeProto] = [n for n in proto.graph.node if n.name == name]
    (one,) = found
    return one


def change_weight(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[..., None]:
    """A fault in one initializer."""

    def fault(proto: ModelProto) -> None:
        (tensor,) = (t for t in proto.graph.initializer if t.name == name)
        changed = change(numpy_helper.to_array(tensor).copy())
        tensor.CopyFrom(numpy_helper.from_array(changed.astype(np.float32), name))

    return fault


def one_weight(values: np.ndarray) -> np.ndarray:
    values.reshape(-1)[7] += 0.05
    return values


def attribute(name: str, key: str, values: list[int]) -> Callable[[ModelProto], None]:
    def fault(proto: ModelProto) -> None:
        (found,) = (a for a in node(proto, name).attribute if a.name == key)
        del found.ints[:]
        found.ints.extend(values)

    return fault


def bypass(name: str) -> Callable[[ModelProto], None]:
    """Let the readers of a node read its first input."""

    def fault(proto: ModelProto) -> None:
        gone = node(proto, name)
        for other in proto.graph.node:
            for index, given in enumerate(other.input):
                if given == gone.output[0]:
                    other.input[index] = gone.input[0]
        proto.graph.node.remove(gone)

    return fault


def foreign(proto: ModelProto) -> None:
    node(proto, "conv1/Relu").domain = "com.example"
    proto.opset_import.append(onnx.helper.make_opsetid("com.example", 1))


FAULTS: dict[str, tuple[Callable[[ModelProto], None], str]] = {
    "one weight is off": (
        change_weight("layer1.conv2.weight", one_weight),
        r"first tensor that differs is 'layer1\.conv2.*' \(layer1\.conv2, fastres\.conv2d",
    ),
    "a bias is lost, and with it a BatchNorm's shift": (
        change_weight("layer2.conv1.bias", lambda v: v * 0),
        r"first tensor that differs is 'layer2\.conv1",
    ),
    "a BatchNorm's scale is not in the weights": (
        change_weight("conv1.weight", lambda v: v / np.abs(v).max()),
        r"first tensor that differs is 'conv1",
    ),
    "padding on the wrong side": (
        attribute("conv1", "pads", [0, 0, 2, 2]),
        r"first tensor that differs is 'conv1/Relu'",
    ),
    "padding forgotten": (
        attribute("layer1.conv1", "pads", [0, 0, 0, 0]),
        r"onnx.checker refuses|first tensor that differs is 'layer1\.conv1",
    ),
    "a ReLU is lost": (bypass("layer2.conv1/Relu"), r"first tensor that differs is 'layer2\.conv"),
    "an addition is lost": (
        bypass("layer1.conv2/Add"),
        r"first tensor that differs is 'layer",
    ),
    "the classes are in another order": (
        change_weight("fc.weight", lambda v: v[::-1]),
        r"first tensor that differs is 'output' \(fc, fastres\.linear",
    ),
    "NaN": (
        change_weight("fc.bias", lambda v: v * np.nan),
        r"output has an error of inf.*first tensor that differs is 'output'",
    ),
    "an operator of somebody else": (foreign, r"onnx.checker refuses|operators of \['com.example'"),
}


def seed(monkeypatch: pytest.MonkeyPatch, fault: Callable[[ModelProto], None]) -> None:
    """Let every conversion end with the fault."""

    def faulty(*args: object) -> Converted:
        converted = convert(*args)  # type: ignore[arg-type]
        fault(converted.proto)
        return converted

    monkeypatch.setattr(write, "convert", faulty)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("case", "external"),
    [*((case, False) for case in FAULTS), ("one weight is off", True), ("NaN", True)],
)
def test_a_fault_leaves_no_file_and_names_the_tensor(
    case: str, external: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault, says = FAULTS[case]
    path = tmp_path / "m.onnx"
    path.write_bytes(b"what was there before")
    seed(monkeypatch, fault)
    with pytest.raises(VerificationError, match=says):
        to_onnx(small_model(), path, example_input=EXAMPLE, external_data=external)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"what was there before"


@pytest.mark.campaign
def test_a_lost_batch_norm_that_stood_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = randomise_statistics(ConcatenationNetwork(), torch.randn(8, 3, 32, 32)).eval()
    example = torch.zeros(1, 3, 32, 32)
    proto: list[ModelProto] = []
    seed(monkeypatch, proto.append)
    to_onnx(model, tmp_path / "m.onnx", example_input=example)
    (scaling, *_) = (n.name for n in proto[0].graph.node if n.op_type == "Mul")
    seed(monkeypatch, bypass(scaling))
    (tmp_path / "m.onnx").unlink()
    with pytest.raises(VerificationError, match=rf"first tensor that differs is '{scaling}"):
        to_onnx(model, tmp_path / "m.onnx", example_input=example)
    assert list(tmp_path.iterdir()) == []


def test_a_fault_that_only_another_size_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pooling of the example's whole image is not a global one."""

    def pool(proto: ModelProto) -> None:
        pooled = node(proto, "1")
        pooled.op_type = "AveragePool"
        pooled.attribute.append(onnx.helper.make_attribute("kernel_shape", [8, 8]))

    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 2, 1)).eval()
    example = torch.zeros(1, 3, 8, 8)
    seed(monkeypatch, pool)
    to_onnx(model, tmp_path / "fixed.onnx", example_input=example)
    with pytest.raises(VerificationError, match=r"'1' \(1, fastres.global_avg_pool.default\)"):
        to_onnx(model, tmp_path / "any.onnx", example_input=example, dynamic_size=True)
    assert [each.name for each in tmp_path.iterdir()] == ["fixed.onnx"]


def test_what_cannot_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(onnx, "save_model", full)
    with pytest.raises(ArtifactError, match=r"m\.onnx cannot be written: No space left"):
        to_onnx(small_model(), tmp_path / "m.onnx", example_input=EXAMPLE)
    assert list(tmp_path.iterdir()) == []
