"""The names of classes, from files."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastres.errors import OptionError
from fastres.models import labels


@pytest.mark.parametrize(
    ("name", "text", "names"),
    [
        ("l.txt", "cat\ndog \n\n", ["cat", "dog"]),
        ("l.txt", "\ufeffcat\r\ndog", ["cat", "dog"]),
        ("l.json", '["cat", "dog"]', ["cat", "dog"]),
        ("l.json", '{"1": "dog", "0": "cat"}', ["cat", "dog"]),
        ("l.json", '{"0": ["n01", "cat"], "1": ["n02", "dog"]}', ["cat", "dog"]),
    ],
)
def test_labels(tmp_path: Path, name: str, text: str, names: list[str]) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert labels.read(tmp_path / name) == names


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.txt", b"", "the file is empty"),
        ("l.txt", b"cat\n\ndog\n", "line 2 is empty"),
        ("l.txt", b"\xff\xfe", "cannot be read"),
        ("l.json", b"[", "it is no JSON"),
        ("l.json", b"3", "expected a list of names"),
        ("l.json", b"[]", "expected a list of names"),
        ("l.json", b'["cat", 3]', "expected a name for class 1, got 3"),
        ("l.json", b'{"0": "cat", "2": "dog"}', "expected a name for class 1, got None"),
    ],
)
def test_labels_that_are_none(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(OptionError, match=message):
        labels.read(tmp_path / name)
    with pytest.raises(OptionError, match=r"no\.txt: cannot be read"):
        labels.read(tmp_path / "no.txt")
