"""The tuning cache: private, atomic, shared by processes, not believed when it looks wrong."""

from __future__ import annotations

import json
import os
import random
import stat
import subprocess
import sys
import threading
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from fastres.errors import FastresWarning
from fastres.runtime.triton.tuning_cache import (
    Identity,
    TuningCache,
    default_folder,
    source_hash,
)

IDENTITY = Identity("NVIDIA A100-SXM4-80GB", "535.104.05", "3.8.0", "91900", "0123456789abcdef")
RESULT: dict[str, Any] = {"tactic": "kernel", "config": {"block_m": 64}, "nanoseconds": 1200}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "cache"


def file_of(folder: Path) -> Path:
    (file,) = folder.glob("*.json")
    return file


def test_results_outlive_the_process(folder: Path) -> None:
    cache = TuningCache(IDENTITY, folder)
    assert cache.get("conv") is None
    cache.put("conv", RESULT)
    assert cache.get("conv") == RESULT
    again = TuningCache(IDENTITY, folder)
    assert (again.get("conv"), len(again), again.note) == (RESULT, 1, None)


def test_the_folder_and_the_file_are_private(folder: Path) -> None:
    TuningCache(IDENTITY, folder).put("conv", RESULT)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_a_file_for_each_gpu_driver_triton_library_and_kernel_source(folder: Path) -> None:
    others = [
        Identity(*(f"{value}x" if name == changed else value for name, value in FIELDS.items()))
        for changed in FIELDS
    ]
    for number, identity in enumerate([IDENTITY, *others]):
        cache = TuningCache(identity, folder)
        assert cache.get("conv") is None
        cache.put("conv", {**RESULT, "nanoseconds": number})
    assert len(list(folder.glob("*.json"))) == 6
    assert TuningCache(IDENTITY, folder).get("conv") == {**RESULT, "nanoseconds": 0}
    assert file_of_first(folder).startswith("tactics-nvidia-a100-sxm4-80gb-")


FIELDS = {"gpu": "A100", "driver": "535", "triton": "3.8", "library": "91900", "kernels": "01"}


def file_of_first(folder: Path) -> str:
    return sorted(path.name for path in folder.glob("*.json"))[-1]


WRONG: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "it is not JSON"),
    "garbage": (b"\x00\xff\xfe garbage", "it is not text"),
    "other JSON": (b"[1, 2, 3]", "it has no entries"),
    "no entries": (b'{"format": 1}', "it has no entries"),
    "entries of a wrong kind": (b'{"format": 1, "entries": []}', "it has no entries"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_ignored_with_a_warning_and_overwritten(folder: Path, name: str) -> None:
    content, reason = WRONG[name]
    TuningCache(IDENTITY, folder).put("old", RESULT)
    file_of(folder).write_bytes(content)
    with pytest.warns(FastresWarning, match=f"is ignored: {reason}"):
        cache = TuningCache(IDENTITY, folder)
    assert len(cache) == 0
    with pytest.warns(FastresWarning, match=reason):
        cache.put("conv", RESULT)
    assert TuningCache(IDENTITY, folder).get("conv") == RESULT


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_ignored(folder: Path, share: float) -> None:
    TuningCache(IDENTITY, folder).put("conv", RESULT)
    file = file_of(folder)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * share)])
    with pytest.warns(FastresWarning, match="it is not JSON"):
        assert TuningCache(IDENTITY, folder).get("conv") is None


@pytest.mark.parametrize("field", ["format", "gpu", "driver", "triton", "kernels"])
def test_a_file_of_something_else_is_ignored(folder: Path, field: str) -> None:
    TuningCache(IDENTITY, folder).put("conv", RESULT)
    content = json.loads(file_of(folder).read_text(encoding="utf-8"))
    file_of(folder).write_text(json.dumps({**content, field: "else"}), encoding="utf-8")
    with pytest.warns(FastresWarning, match=f"it is for {field} 'else', this is"):
        assert TuningCache(IDENTITY, folder).get("conv") is None


def test_damaged_files_are_ignored_or_read(folder: Path) -> None:
    """Bits that flip, runs that are overwritten, brackets without end: a warning at most."""
    TuningCache(IDENTITY, folder).put("conv", RESULT)
    file = file_of(folder)
    whole = file.read_bytes()
    random.seed(0)
    ignored = 0
    for _ in range(500):
        damaged = bytearray(whole)
        if random.random() < 0.5:
            damaged[random.randrange(len(whole))] ^= 1 << random.randrange(8)
        else:
            start = random.randrange(len(whole))
            damaged[start : start + random.randrange(40)] = random.randbytes(random.randrange(40))
        file.write_bytes(damaged)
        ignored += is_ignored(folder)
    for text in ("[" * 100_000, '{"entries":' * 50_000, "9" * 5000, "NaN", "", "\x00"):
        file.write_text(text, encoding="utf-8")
        assert is_ignored(folder), text[:20]
    assert ignored > 250


def is_ignored(folder: Path) -> bool:
    """Whether the file is warned of; nothing else may happen."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cache = TuningCache(IDENTITY, folder)
    assert all(issubclass(warning.category, FastresWarning) for warning in caught)
    assert not caught or len(cache) == 0
    return bool(caught)


def test_an_entry_without_a_tactic_is_ignored(folder: Path) -> None:
    TuningCache(IDENTITY, folder).put("conv", {"nanoseconds": 5})
    with pytest.warns(FastresWarning, match="an entry has no tactic"):
        assert TuningCache(IDENTITY, folder).get("conv") is None


def test_a_write_that_fails_leaves_the_old_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = TuningCache(IDENTITY, folder)
    cache.put("conv", RESULT)
    before = file_of(folder).read_bytes()

    def full(content: Any, file: Any, **options: Any) -> None:
        file.write('{"half": ')
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("json.dump", full)
    cache.put("other", RESULT)
    assert cache.note is not None and "No space left" in cache.note
    assert cache.get("other") == RESULT
    assert file_of(folder).read_bytes() == before
    assert list(folder.glob("*.tmp")) == []


def test_a_write_that_is_interrupted_leaves_the_old_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = TuningCache(IDENTITY, folder)
    cache.put("conv", RESULT)
    before = file_of(folder).read_bytes()

    def interrupted(*_: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("json.dump", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cache.put("other", RESULT)
    assert file_of(folder).read_bytes() == before
    assert list(folder.glob("*.tmp")) == []
    monkeypatch.undo()
    cache.put("third", RESULT)  # the lock was given back
    assert len(TuningCache(IDENTITY, folder)) == 3


def read_only(folder: Path) -> None:
    """Make a folder that nobody can write into, root included."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.write_text("a file where the folder should be", encoding="utf-8")


def test_a_folder_that_cannot_be_written_leaves_results_in_memory(folder: Path) -> None:
    read_only(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache = TuningCache(IDENTITY, folder)
        cache.put("conv", RESULT)
    assert cache.get("conv") == RESULT
    assert cache.note is not None
    assert cache.note.startswith("tuning results are kept in memory only: ")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_home_is_respected(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    cache = TuningCache(IDENTITY, tmp_path / "cache")
    cache.put("conv", RESULT)
    tmp_path.chmod(0o700)
    assert cache.note is not None and "Permission denied" in cache.note
    assert list(tmp_path.iterdir()) == []


def test_without_a_home_results_stay_in_memory() -> None:
    cache = TuningCache(IDENTITY, None)
    cache.put("conv", RESULT)
    assert cache.get("conv") == RESULT
    assert cache.note == "tuning results are kept in memory only: there is no home directory"


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_folder_that_others_may_write_into_is_not_believed(folder: Path, mode: int) -> None:
    TuningCache(IDENTITY, folder).put("conv", RESULT)
    folder.chmod(mode)
    cache = TuningCache(IDENTITY, folder)
    assert cache.get("conv") is None
    assert cache.note is not None and f"others may write into {folder}" in cache.note


@pytest.mark.skipif(os.name != "posix", reason="owners are POSIX's")
def test_a_folder_of_somebody_else_is_not_believed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    TuningCache(IDENTITY, folder).put("conv", RESULT)
    owner = folder.stat().st_uid
    monkeypatch.setattr("os.getuid", lambda: owner + 1)
    cache = TuningCache(IDENTITY, folder)
    assert cache.get("conv") is None
    assert cache.note is not None and "belongs to another user" in cache.note


WRITER = """
import sys
from pathlib import Path
from fastres.runtime.triton.tuning_cache import Identity, TuningCache
cache = TuningCache(Identity(*sys.argv[3:]), Path(sys.argv[1]))
for number in range(20):
    cache.put(f"layer {sys.argv[2]} {number}", {"tactic": "library", "nanoseconds": number})
assert cache.note is None, cache.note
"""


@pytest.mark.campaign
def test_processes_that_write_at_once_lose_nothing(folder: Path) -> None:
    identity = [*asdict(IDENTITY).values()]
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(folder), str(writer), *identity])
        for writer in range(3)
    ]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert len(TuningCache(IDENTITY, folder)) == 60
    assert list(folder.glob("*.tmp")) == []


def test_threads_that_write_at_once_lose_nothing(folder: Path) -> None:
    caches = [TuningCache(IDENTITY, folder) for _ in range(2)]  # two models in one process

    def write(writer: int) -> None:
        for number in range(10):
            caches[writer % 2].put(f"{writer} {number}", RESULT)

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(TuningCache(IDENTITY, folder)) == 40


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({"FASTRES_CACHE_DIR": "/a", "XDG_CACHE_HOME": "/b"}, Path("/a")),
        ({"XDG_CACHE_HOME": "/b"}, Path("/b/fastres")),
        ({"XDG_CACHE_HOME": "relative"}, None),
        ({"FASTRES_CACHE_DIR": ""}, None),
        ({}, None),
    ],
)
def test_where_it_lives(environment: dict[str, str], wanted: Path | None) -> None:
    assert default_folder(environment) == (wanted or Path.home() / ".cache" / "fastres")


def test_no_home_is_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("pathlib.Path.home", homeless)
    assert default_folder({}) is None


def test_the_source_hash_sees_content_and_names(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1", encoding="utf-8")
    (tmp_path / "notes.txt").write_text("x", encoding="utf-8")
    first = source_hash([tmp_path])
    (tmp_path / "notes.txt").write_text("y", encoding="utf-8")
    assert source_hash([tmp_path]) == first
    (tmp_path / "a.py").write_text("x = 2", encoding="utf-8")
    second = source_hash([tmp_path])
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert len({first, second, source_hash([tmp_path])}) == 3
