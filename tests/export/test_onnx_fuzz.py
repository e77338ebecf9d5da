"""Files that somebody damaged, or made to do harm, only ever raise errors of fastres.

Nothing here may crash, hang, or read what lies outside of the file's own directory.
"""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from fastres.errors import ArtifactError, FastresError
from fastres.export import session, to_onnx
from tests.support.small import EXAMPLE, Exported, small_model

CASES = int(os.environ.get("FASTRES_FUZZ_CASES", "120"))
"""How many damaged files of each kind."""


def outcome(path: Path) -> str:
    """What loading and one call end in; anything but an answer or our own error fails the test."""
    try:
        ready = session(path, providers="cpu", threads=1)
        shape = [s if isinstance(s, int) and s > 0 else 40 for s in ready.inputs[0].sizes]
        if ready.inputs and len(shape) == 4 and max(shape) < 1000:
            ready(torch.zeros([1, *shape[1:]], dtype=ready.inputs[0].dtype))
    except FastresError as error:
        return type(error).__name__
    return "loaded"


def told(kind: str, counts: Counter[str], capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        listed = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
        print(f"\n{kind}: {sum(counts.values())} files: {listed}")


@pytest.mark.campaign
def test_flipped_bits(
    exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, path = exported.path.read_bytes(), tmp_path / "m.onnx"
    counts: Counter[str] = Counter()
    drawn = random.Random(1)
    for case in range(CASES):
        damaged = bytearray(whole)
        for _ in range(1 + case % 3):
            # Half of them among the operators and the description, where few bytes are weights.
            place = drawn.randrange(len(whole)) if case % 2 else drawn.randrange(4000)
            damaged[place if case % 4 else -1 - place] ^= 1 << drawn.randrange(8)
        path.write_bytes(damaged)
        counts[outcome(path)] += 1
    told("bits flipped", counts, capsys)
    # What still loads has its operators and weights intact: the checksum says so.
    assert counts["ArtifactError"] > 0.8 * CASES


@pytest.mark.campaign
def test_every_flipped_weight_is_found(exported: Exported, tmp_path: Path) -> None:
    whole, path = exported.path.read_bytes(), tmp_path / "m.onnx"
    proto = onnx.load(exported.path)
    drawn = random.Random(2)
    for tensor in proto.graph.initializer:
        start = whole.index(tensor.raw_data)
        damaged = bytearray(whole)
        damaged[start + drawn.randrange(len(tensor.raw_data))] ^= 1 << drawn.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(ArtifactError, match="not those that fastres wrote"):
            session(path)


@pytest.mark.campaign
def test_truncated(exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, path = exported.path.read_bytes(), tmp_path / "m.onnx"
    counts: Counter[str] = Counter()
    drawn = random.Random(3)
    for length in [0, 1, 7, len(whole) - 1, *(drawn.randrange(len(whole)) for _ in range(CASES))]:
        path.write_bytes(whole[:length])
        counts[outcome(path)] += 1
    told("truncated", counts, capsys)
    assert counts["loaded"] == 0


@pytest.mark.campaign
def test_noise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, counts, drawn = tmp_path / "m.onnx", Counter[str](), random.Random(4)
    for case in range(CASES):
        path.write_bytes(drawn.randbytes(case * 7))
        counts[outcome(path)] += 1
    told("noise", counts, capsys)
    assert counts["loaded"] == 0


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model whose weights lie beside it."""
    folder = tmp_path_factory.mktemp("outside") / "models"
    folder.mkdir()
    report = to_onnx(small_model(), folder / "m.onnx", example_input=EXAMPLE, external_data=True)
    assert report.data is not None
    return folder


@pytest.fixture
def outside(written: Path, tmp_path: Path) -> tuple[Path, onnx.ModelProto]:
    """A copy of it that a test may spoil, and a secret next to its directory."""
    folder = shutil.copytree(written, tmp_path / "models")
    path = folder / "m.onnx"
    (weights,) = (each for each in folder.iterdir() if each != path)
    shutil.copy(weights, tmp_path / "secret")
    return path, onnx.load_model(str(path), load_external_data=False)


LOCATIONS = (
    "../secret",
    "./../secret",
    "a/../../secret",
    "..\\secret",
    "/etc/passwd",
    "../../../../../../../../etc/passwd",
    "C:\\Windows\\win.ini",
    "\\\\host\\share\\x",
    "",
    ".",
    "..",
    "/proc/self/mem",
    "/dev/zero",
    "no-such-file",
    "m.onnx\0.data",
)


@pytest.mark.parametrize("location", LOCATIONS)
def test_weights_outside_of_the_directory_are_not_read(
    location: str, outside: tuple[Path, onnx.ModelProto]
) -> None:
    path, proto = outside
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    onnx.save_model(proto, str(path))
    with pytest.raises(ArtifactError, match=r"its weights|onnx|location"):
        session(path)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_links_out_of_the_directory_are_not_followed(
    kind: str, outside: tuple[Path, onnx.ModelProto], tmp_path: Path
) -> None:
    path, proto = outside
    link = path.parent / "link"
    link.symlink_to(tmp_path / "secret" if kind == "file" else tmp_path)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "link" if kind == "file" else "link/secret"
    onnx.save_model(proto, str(path))
    with pytest.raises(ArtifactError, match="no plain file in its own directory"):
        session(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("offset", v) for v in ("-1", "99999999999", "x", str(2**63), str(2**70))),
        *(("length", v) for v in ("0", "-4", "4", "99999999999", "1e3", str(2**64))),
    ],
)
def test_places_in_the_second_file_that_are_not_there(
    key: str, value: str, outside: tuple[Path, onnx.ModelProto]
) -> None:
    path, proto = outside
    external = [t for t in proto.graph.initializer if t.external_data]
    for entry in external[0].external_data:
        if entry.key == key:
            entry.value = value
    onnx.save_model(proto, str(path))
    with pytest.raises(ArtifactError):
        session(path)


def test_a_second_file_that_was_damaged(outside: tuple[Path, onnx.ModelProto]) -> None:
    path, _ = outside
    (data,) = path.parent.glob("*.data")
    whole = bytearray(data.read_bytes())
    whole[len(whole) // 2] ^= 4
    data.write_bytes(whole)
    with pytest.raises(ArtifactError, match="checksum"):
        session(path)
    data.write_bytes(whole[:-1])
    with pytest.raises(ArtifactError, match="is said to be"):
        session(path)
    data.unlink()
    with pytest.raises(ArtifactError, match="are not there"):
        session(path)


def tampered(exported: Exported, path: Path, change: Any) -> Path:
    """A file with a change by somebody who took the checksum out."""
    proto = onnx.load(exported.path)
    del proto.metadata_props[:]
    change(proto)
    onnx.save_model(proto, str(path))
    return path


@pytest.mark.campaign
def test_absurd_sizes(
    exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sizes of tensors, of inputs, and in attributes, each for itself."""
    proto = onnx.load(exported.path)
    counts: Counter[str] = Counter()
    numbers = (-1, 0, 1, 3, 2**16, 2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1, -(2**63))
    path = tmp_path / "m.onnx"

    def of_tensor(index: int, size: int) -> Any:
        def change(proto: onnx.ModelProto) -> None:
            proto.graph.initializer[index].dims[0] = size

        return change

    def of_input(axis: int, size: int) -> Any:
        def change(proto: onnx.ModelProto) -> None:
            proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = size

        return change

    def of_attribute(node: int, name: str, size: int) -> Any:
        def change(proto: onnx.ModelProto) -> None:
            (found,) = (a for a in proto.graph.node[node].attribute if a.name == name)
            if found.ints:
                found.ints[0] = size
            else:
                found.i = size

        return change

    changes = [of_tensor(i, n) for i in (0, 1, 9) for n in numbers]
    changes += [of_input(axis, n) for axis in (0, 1, 2) for n in numbers]
    changes += [
        of_attribute(place, each.name, n)
        for place, op in enumerate(proto.graph.node)
        if op.name in ("conv1", "pool", "fc")
        for each in op.attribute
        for n in numbers
        if each.ints or each.type == onnx.AttributeProto.INT
    ]
    for change in changes:
        counts[outcome(tampered(exported, path, change))] += 1
    told("absurd sizes", counts, capsys)
    assert counts["loaded"] < 0.5 * len(changes)


def test_a_tensor_of_many_bytes_and_no_data(exported: Exported, tmp_path: Path) -> None:
    def huge(proto: onnx.ModelProto) -> None:
        proto.graph.initializer.append(
            TensorProto(name="huge", data_type=TensorProto.FLOAT, dims=[2**40])
        )

    with pytest.raises(ArtifactError, match="huge"):
        session(tampered(exported, tmp_path / "m.onnx", huge))


def test_weights_in_attributes_are_looked_at_too(exported: Exported, tmp_path: Path) -> None:
    def outside(proto: onnx.ModelProto) -> None:
        tensor = numpy_helper.from_array(torch.zeros(5).numpy(), "c")
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", "/etc/passwd"
        proto.graph.node.insert(0, helper.make_node("Constant", [], ["c"], value=tensor))

    with pytest.raises(ArtifactError, match=r"/etc/passwd|location"):
        session(tampered(exported, tmp_path / "m.onnx", outside))


def test_what_is_no_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.onnx", Path("/dev/null")):
        with pytest.raises(ArtifactError, match="there is no such file"):
            session(path)
