"""The file: safetensors, with the description as text in its metadata and a checksum for all of it.

The metadata has these texts: ``format`` ("fastres"), ``format_version``, ``description`` (JSON),
``description_sha256``. The description holds the SHA-256 of every tensor. It tells damage from
data; it does not tell who wrote a file.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from fastres.artifact import stored
from fastres.artifact.arguments import dtype_from_json
from fastres.artifact.strict import count, of_type, text
from fastres.errors import ArtifactError
from fastres.system.files import atomic_write
from fastres.system.target import cpu_threads

FORMAT_VERSION = 1
"""Grows with every change that an older fastres would misread."""

_METADATA = {"format", "format_version", "description", "description_sha256"}


def write(
    path: str | os.PathLike[str], description: str, tensors: Mapping[str, Tensor], check: Any
) -> None:
    """Write the file atomically: on an error, the file that was there before stays.

    Args:
        tensors: on the CPU, dense, without shared memory.
        check: called with the path of the temporary file, before it takes its place.

    Raises:
        ArtifactError: the file cannot be written.
    """
    metadata = {
        "format": "fastres",
        "format_version": str(FORMAT_VERSION),
        "description": description,
        "description_sha256": _digest(description.encode()),
    }
    try:
        with atomic_write(path) as temporary:
            stored.write(temporary, tensors, metadata)
            check(temporary)
    except OSError as error:
        raise ArtifactError(
            f"{os.fspath(path)} cannot be written ({error}); nothing was left behind"
        ) from error


class File:
    """An opened file whose header is valid.

    Attributes:
        description: its JSON text, as it was written.

    Raises:
        ArtifactError: there is no such file, it may not be read, it is not one of ours, it is
            damaged, or it was made by a newer fastres.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._stored = stored.Stored(path)
        metadata = self._stored.metadata
        _check_version(metadata)
        self.description = metadata["description"]
        if _digest(self.description.encode()) != metadata["description_sha256"]:
            raise ArtifactError("its description does not have the checksum it was written with")

    def tensors(self, expected: Mapping[str, Any]) -> dict[str, Tensor]:
        """All tensors, in newly allocated memory, after comparing their checksums.

        Args:
            expected: what :func:`tensors_to_json` wrote.

        Raises:
            ArtifactError: one is missing, more than was written, or changed.
        """
        names = self._stored.names
        if names != set(expected):
            odd = min(names ^ set(expected))
            raise ArtifactError(f"the tensor {ascii(odd)[:80]} is {_where(odd in names)}")
        tensors = {name: self._read(name, entry) for name, entry in expected.items()}
        digests = dict(zip(tensors, _digests(tensors.values()), strict=True))
        for name, entry in expected.items():
            if digests[name] != entry[2]:
                raise ArtifactError(f"the tensor {name} does not have the checksum it had")
        return tensors

    def _read(self, name: str, entry: Any) -> Tensor:
        parts = of_type(entry, list, "tensors")
        if len(parts) != 3:
            raise ArtifactError(f"the tensor {ascii(name)[:80]} is not described")
        shape = [count(size, "tensors") for size in of_type(parts[1], list, "tensors")]
        text(parts[2], "tensors")
        data = self._stored.shape(name)
        if data != shape:
            raise ArtifactError(f"the tensor {name} is {data}, expected {shape}")
        found = self._stored.tensor(name)
        if found.dtype != dtype_from_json(parts[0], "tensors"):
            raise ArtifactError(f"the tensor {name} is {found.dtype}, expected {parts[0]}")
        return found


def _where(in_file: bool) -> str:
    return "in the file, but not in its description" if in_file else "missing"


def _check_version(metadata: Mapping[str, str]) -> None:
    if metadata.get("format") != "fastres":
        raise ArtifactError(
            "it is a safetensors file, but no saved model of fastres: weights alone go into a "
            "model by load_state_dict, and into an optimised one by refresh()"
        )
    version = metadata.get("format_version", "")
    plain = version.isascii() and version.isdecimal() and len(version) <= 9
    if not plain or int(version) < 1:
        raise ArtifactError(f"its format_version is {ascii(version)[:40]}")
    if int(version) > FORMAT_VERSION:
        raise ArtifactError(
            f"its format is version {int(version)}, and this fastres reads up to {FORMAT_VERSION}: "
            "it was saved by a newer one; update fastres, or save it again with this one"
        )
    if set(metadata) != _METADATA:
        odd = min(set(metadata) ^ _METADATA)
        raise ArtifactError(f"its metadata have {'an unknown' if odd in metadata else 'no'} {odd}")


def tensors_to_json(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """dtype, shape and checksum of every tensor."""
    digests = _digests(tensors.values())
    return {
        name: [str(value.dtype).removeprefix("torch."), list(value.shape), digest]
        for (name, value), digest in zip(tensors.items(), digests, strict=True)
    }


def _digests(tensors: Iterable[Tensor]) -> list[str]:
    """SHA-256 of each tensor's bytes; hashlib lets other threads run meanwhile."""
    with ThreadPoolExecutor(min(cpu_threads(), 8)) as pool:
        return list(pool.map(_tensor_digest, tensors))


def _tensor_digest(value: Tensor) -> str:
    return _digest(value.reshape(-1).view(torch.uint8).numpy()) if value.numel() else _digest(b"")


def _digest(data: Any) -> str:
    return hashlib.sha256(data).hexdigest()
