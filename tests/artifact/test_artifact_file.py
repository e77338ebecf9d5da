"""The file: written whole or not at all, and refused when it is not what it says."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import fastres
from fastres.artifact import container, saving, stored
from fastres.artifact.document import describe
from fastres.errors import ArtifactError
from tests.support.small import conv, images, net
from tests.support.stored import changed, optimized, parts_of, with_text


@pytest.fixture(scope="module")
def fast() -> Any:
    torch.manual_seed(0)
    model = net(lambda m, x: m.norm(m.first(x)).relu(), first=conv(), norm=nn.BatchNorm2d(4))
    return optimized(model, images(2))


@pytest.fixture
def file(fast: Any, tmp_path: Path) -> Path:
    path = tmp_path / "model.fastres"
    fast.save(path)
    return path


def refusal(path: Any) -> str:
    with pytest.raises(ArtifactError) as caught:
        fastres.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


def test_it_is_plain_safetensors(file: Path, fast: Any) -> None:
    description, metadata, tensors = parts_of(file)
    assert metadata["format"] == "fastres"
    assert metadata["format_version"] == "1"
    assert description["made_by"] == {"fastres": fastres.__version__, "torch": torch.__version__}
    assert set(tensors) == {f"weights.{n}" for n, _ in fast.graph_module.named_buffers()}
    assert "pickle" not in file.read_bytes()[:20_000].decode("latin-1")


def test_paths_that_are_no_file(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "none")
    assert "No such file" in refusal(tmp_path / "folder" / "none")
    assert "it is a directory" in refusal(tmp_path)
    (tmp_path / "empty").touch()
    assert "cut off (0 bytes" in refusal(tmp_path / "empty")
    (tmp_path / "text").write_text("not safetensors at all, but long enough to have a header")
    assert "no safetensors file" in refusal(tmp_path / "text")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(file: Path) -> None:
    file.chmod(0)
    assert "Permission denied" in refusal(file)


def test_weights_alone(tmp_path: Path) -> None:
    save_file({"conv.weight": torch.zeros(2)}, tmp_path / "weights.safetensors")
    assert "no saved model of fastres" in refusal(tmp_path / "weights.safetensors")


@pytest.mark.parametrize("version", ["2", "17", "999999999"])
def test_a_newer_format(version: str, file: Path) -> None:
    description, _, tensors = parts_of(file)
    with_text(file, json.dumps(description), tensors, format_version=version)
    assert f"its format is version {version}, and this fastres reads up to 1" in refusal(file)


def test_a_newer_format_is_told_before_anything_else(file: Path) -> None:
    _, _, tensors = parts_of(file)
    with_text(file, "something else", tensors, format_version="2", other="field")
    assert "it was saved by a newer one" in refusal(file)


@pytest.mark.parametrize("version", ["", "0", "-1", "1.0", "one", "9" * 30, "\u0661"])
def test_no_version(version: str, file: Path) -> None:
    description, _, tensors = parts_of(file)
    with_text(file, json.dumps(description), tensors, format_version=version)
    assert "its format_version is" in refusal(file)


def test_other_metadata(file: Path) -> None:
    description, _, tensors = parts_of(file)
    with_text(file, json.dumps(description), tensors, extra="1")
    assert "its metadata have an unknown extra" in refusal(file)


def test_wrong_checksums(file: Path) -> None:
    description, _, tensors = parts_of(file)
    with_text(file, json.dumps(description), tensors, description_sha256="0" * 64)
    assert "its description does not have the checksum" in refusal(file)
    name = "weights.first_weight_folded"
    with_text(file, json.dumps(description), {**tensors, name: tensors[name] + 1})
    assert f"the tensor {name} does not have the checksum it had" in refusal(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("weights.first_weight_folded"), "weights.first_weight_folded' is missing"),
        (lambda t: t.update(more=torch.zeros(1)), "'more' is in the file, but not in its"),
        (lambda t: t.update({"weights.first_weight_folded": torch.zeros(2, 2)}), "is [2, 2], expe"),
        (
            lambda t: t.update({"weights.first_bias_folded": torch.zeros(4).half()}),
            "is torch.float16, expected float32",
        ),
    ],
)
def test_other_tensors(change: Any, message: str, file: Path) -> None:
    description, _, tensors = parts_of(file)
    change(tensors)
    with_text(file, json.dumps(description), tensors)
    assert message in refusal(file)


def test_fields_of_the_description(file: Path) -> None:
    description, _, tensors = parts_of(file)
    path = file.with_name("changed")
    for name in description:
        with_text(path, json.dumps({k: v for k, v in description.items() if k != name}), tensors)
        assert f"no field '{name}'" in refusal(path)
    path = changed(file, file.with_name("changed"), lambda d: d.update(code="import os"))
    assert "an unknown field 'code'" in refusal(path)


def test_saving_where_it_cannot(fast: Any, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none" / "model", tmp_path / ("x" * 300)):
        with pytest.raises(ArtifactError, match=r"cannot be written .*nothing was left behind"):
            fast.save(path)
    assert list(tmp_path.iterdir()) == []


def test_what_was_there_stays_when_saving_fails(
    fast: Any, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = file.read_bytes()

    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stored, "write", full)
    with pytest.raises(ArtifactError, match="No space left on device"):
        fast.save(file)
    assert file.read_bytes() == before
    assert [entry.name for entry in file.parent.iterdir()] == [file.name]


def test_what_does_not_read_back_is_not_kept(
    fast: Any, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault in writing is found by reading: here the receipt loses its notes."""
    before = file.read_bytes()

    def forgetful(parts: Any, made_by: Any) -> Any:
        text, tensors = describe(parts, made_by)
        given = json.loads(text)
        given["contract"]["guards"].append([False, "nowhere"])
        return json.dumps(given), tensors

    monkeypatch.setattr(saving, "describe", forgetful)
    with pytest.raises(ArtifactError, match="does not read back as it was"):
        fast.save(file)
    assert file.read_bytes() == before
    assert [entry.name for entry in file.parent.iterdir()] == [file.name]


def test_bytes_lost_on_the_way_are_found(
    fast: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = stored.write

    def lossy(path: Path, tensors: Any, metadata: Any) -> None:
        write(path, tensors, metadata)
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)

    monkeypatch.setattr(stored, "write", lossy)
    with pytest.raises(ArtifactError, match="does not have the checksum"):
        fast.save(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_the_users(fast: Any, tmp_path: Path) -> None:
    """Its permissions are the usual ones, and a link keeps pointing where it did."""
    mask = os.umask(0o022)
    try:
        target, link = tmp_path / "target", tmp_path / "link"
        link.symlink_to(target)
        fast.save(link)
    finally:
        os.umask(mask)
    assert link.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o644
    fastres.load(link)


def test_loading_does_not_keep_the_file(fast: Any, file: Path) -> None:
    """What happens to the file later does not reach a model that was loaded."""
    loaded = fastres.load(file)
    x = images(2)
    with file.open("r+b") as opened:
        opened.write(b"\0" * file.stat().st_size)
    assert torch.equal(loaded(x), fast(x))


def test_limits_are_those_of_the_documentation() -> None:
    assert container.FORMAT_VERSION == 1
    assert stored.MAX_HEADER_BYTES == 2**26
