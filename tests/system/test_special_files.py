"""Files that are no files: pipes, sockets, devices, names that cannot be; and what is in them."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import fastres
from fastres.artifact import operators
from fastres.errors import ArtifactError, FastresError, InputError, OptionError
from fastres.models import checkpoint, labels
from fastres.preprocess import list_images, load_pixels
from fastres.system import files
from fastres.system.regular import open_regular
from tests.support import ROOT
from tests.support.predicting import Setting, make
from tests.support.separate import not_under_sanitizers

IMAGE = torch.zeros(2, 3, 12, 10)


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()


pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="has no such files")


def _pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def _socket(path: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))
    return path


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def _loop(path: Path) -> Path:
    path.symlink_to(path.name)
    return path


MAKE: dict[str, Callable[[Path], Path]] = {
    "pipe": _pipe,
    "socket": _socket,
    "folder": _folder,
    "loop": _loop,
    "device": lambda path: Path("/dev/zero"),
    "null": lambda path: path.with_name("a\0b" + path.suffix),
    "too long": lambda path: path.with_name("a" * 300 + path.suffix),
}


@pytest.fixture(autouse=True)
def nobody_waits() -> Iterator[None]:
    """A reader that waits for a pipe's writer is interrupted."""

    def end(*_: Any) -> None:
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("kind", MAKE)
def test_each_reader_refuses_it(kind: str, tmp_path: Path) -> None:
    readers: list[tuple[str, Callable[[Any], Any], type[FastresError]]] = [
        ("a.fastres", fastres.load, ArtifactError),
        ("a.safetensors", checkpoint.read, OptionError),
        ("a.pth", checkpoint.read, OptionError),
        ("a.txt", labels.read, OptionError),
        ("a.json", labels.read, OptionError),
        ("a.png", load_pixels, InputError),
    ]
    for name, read, error in readers:
        path = MAKE[kind](tmp_path / name)
        with pytest.raises(error):
            read(path)
        with pytest.raises(error):
            read(str(path))
    with pytest.raises(OSError, match=r"expected a|null|symbolic|too long"):
        open_regular(MAKE[kind](tmp_path / "b"))


def test_only_documented_formats_are_decoded(tmp_path: Path) -> None:
    """By content: Pillow would run Ghostscript for one of these."""
    (tmp_path / "photo.jpg").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n"
    )
    image = Image.new("RGB", (8, 8))
    image.save(tmp_path / "icon.png", format="ICO", sizes=[(8, 8)])
    image.save(tmp_path / "old.png", format="PCX")
    for name in ("photo.jpg", "icon.png", "old.png"):
        with pytest.raises(InputError, match=f"{name} is no image in one of the formats BMP, GIF"):
            load_pixels(tmp_path / name)
    for format in ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"):
        image.save(tmp_path / "any.name", format=format)
        assert load_pixels(tmp_path / "any.name").shape == (224, 224, 3)


def test_a_folder_of_strange_things(tmp_path: Path) -> None:
    """What is called like an image is listed, so that it is reported; folders never are."""
    for name in ("pipe", "socket", "loop", "folder"):
        MAKE[name](tmp_path / f"{name}.png")
    (tmp_path / "itself").symlink_to(tmp_path)
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    names = [path.name for path in list_images(tmp_path)]
    assert names == ["good.png", "loop.png", "pipe.png", "socket.png"]


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return make(tmp_path_factory.mktemp("predict"))


@pytest.mark.campaign
def test_the_command_reports_and_goes_on(
    setting: Setting, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("pipe", "loop"):
        MAKE[name](tmp_path / f"{name}.png")
    (tmp_path / "itself").symlink_to(tmp_path)
    (tmp_path / "photo.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")
    (tmp_path / "good.png").symlink_to(setting.images[0])
    table = tmp_path / "out.csv"
    assert setting.run(tmp_path, "--csv", table) == 1
    said = capsys.readouterr().err
    assert "1 image in" in said and "3 could not be classified" in said
    assert len(table.read_text().splitlines()) == 1 + 3 + 5


@pytest.mark.campaign
@not_under_sanitizers
@pytest.mark.parametrize("closing", ["| head -1", ">&- 2>&-", "> /dev/full"])
def test_the_file_is_complete_whoever_listens(
    closing: str, setting: Setting, tmp_path: Path
) -> None:
    table = tmp_path / "out.csv"
    options = [option for option in setting.options() if option != "--quiet"]
    command = [sys.executable, "-m", "fastres.predict", *map(str, setting.images[:40])]
    quoted = " ".join(f"'{part}'" for part in [*command, *options, "--csv", str(table)])
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {quoted} --batch 8 {closing}"],
        cwd=ROOT, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr
    assert len(table.read_text().splitlines()) == 1 + 40 * 5


def test_tensors_that_hold_no_real_numbers(tmp_path: Path) -> None:
    strange = {
        "sparse": torch.eye(3).to_sparse(),
        "meta": torch.empty(3, device="meta"),
        "complex": torch.zeros(3, dtype=torch.complex64),
    }
    for name, tensor in strange.items():
        torch.save({"w": tensor}, tmp_path / "w.pth")
        with pytest.raises(OptionError, match=r"w\.pth: w is .*(sparse|meta|complex)"):
            checkpoint.read(tmp_path / "w.pth")
        assert name
    save_file({"w": strange["complex"]}, tmp_path / "w.safetensors")
    with pytest.raises(OptionError, match="complex"):
        checkpoint.read(tmp_path / "w.safetensors")


def test_a_file_that_is_written_over_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``cp`` does: shortened and filled again, in place."""
    from fastres.artifact import container

    path = tmp_path / "model.fastres"
    fastres.optimize(small(), IMAGE).save(path)
    whole = path.read_bytes()
    real = container.File.tensors

    def meanwhile(self: Any, expected: Any) -> Any:
        with path.open("r+b") as file:
            file.truncate(0)
        return real(self, expected)

    monkeypatch.setattr(container.File, "tensors", meanwhile)
    with pytest.raises(ArtifactError, match=r"cut off while it was being read|checksum"):
        fastres.load(path)
    monkeypatch.undo()
    path.write_bytes(whole)
    fast = fastres.load(path)
    path.write_bytes(b"")
    assert fast(IMAGE).shape[0] == len(IMAGE)


def test_permissions_are_kept(tmp_path: Path) -> None:
    fast = fastres.optimize(small(), IMAGE)
    fast.save(tmp_path / "new")
    (tmp_path / "plain").touch()
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "plain").stat().st_mode
    (tmp_path / "new").chmod(0o600)
    fast.save(tmp_path / "new")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o600


def test_two_files_of_one_model_are_the_same(tmp_path: Path) -> None:
    fast = fastres.optimize(small(), IMAGE)
    for name in ("one", "two"):
        fast.save(tmp_path / name)
    fastres.load(tmp_path / "one").save(tmp_path / "three")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.campaign
@not_under_sanitizers
def test_what_a_killed_process_leaves_goes_with_the_next(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom fastres.system.files import atomic_write\n"
        "with atomic_write(sys.argv[1]) as temporary:\n"
        "    temporary.write_text('half')\n    print('there', flush=True)\n    time.sleep(100)\n"
    )
    target = tmp_path / "we[ir]d*.fastres"
    command = [sys.executable, "-c", code, str(target)]
    with (
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as killed,
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as other,
    ):
        for process in (killed, other):
            assert process.stdout is not None and process.stdout.readline()
        killed.kill()
        killed.wait()
        assert len(list(tmp_path.iterdir())) == 2
        with files.atomic_write(target) as temporary:
            temporary.write_text("whole")
        left = [path for path in tmp_path.iterdir() if path != target]
        assert len(left) == 1  # of the process that still lives
        other.kill()
    with files.atomic_write(target) as temporary:
        temporary.write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


@pytest.mark.parametrize(
    "name", ["empty.memory_format", "empty_like.default", "new_empty.default", "resize.default"]
)
def test_memory_as_it_is_found_is_not_part_of_a_file(name: str) -> None:
    with pytest.raises(ArtifactError, match="memory that nobody has written to"):
        operators.resolve(f"aten::{name}")


def test_every_operator_that_gives_memory_as_it_is_found_is_known() -> None:
    """By their schemas: those that torch itself calls nondeterministic for it, and their kin."""
    for overload in torch._C._dispatch_get_all_op_names():
        library, _, rest = overload.partition("::")
        base = rest.partition(".")[0]
        if library == "aten" and "empty" in base and not base.startswith("_"):
            with pytest.raises(ArtifactError):
                operators.resolve(overload if "." in rest else f"{overload}.default")
