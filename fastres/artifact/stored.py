"""Files of safetensors: written deterministically, read into allocated memory instead of mapped.

The library maps a file, and a file that is written over while it is mapped ends the process. Here
every byte is read once, from one opened file: what is written over meanwhile has another checksum.
And the library writes metadata in another order each time. The format: 8 bytes with the size of a
header in JSON, the header, and the tensors behind it.
"""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastres.artifact.strict import count, of_type
from fastres.errors import ArtifactError
from fastres.system.regular import open_regular

MAX_HEADER_BYTES = 2**26
"""Bytes of the header of safetensors, which holds the description: 64 MiB. A ResNet-50 has 0.2."""

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a file.

    Args:
        tensors: on the CPU, contiguous.
        metadata: texts by name.

    Raises:
        OSError: it cannot be written.
        ArtifactError: the format has no such dtype.
    """
    # The largest numbers first, so that each lies at a multiple of its size.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in order:
        tensor = tensors[name]
        if tensor.dtype not in _NAMES:
            raise ArtifactError(f"{name} is {tensor.dtype}, which a file cannot hold")
        begin, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in order:
            if tensors[name].numel():
                file.write(tensors[name].reshape(-1).view(torch.uint8).numpy().data)


class Stored:
    """An opened safetensors file whose header is valid.

    Attributes:
        metadata: texts by name.

    Raises:
        ArtifactError: there is no such file, it may not be read, or it is no whole safetensors
            file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        try:
            self._file = open_regular(path)
            weakref.finalize(self, self._file.close)
            self._size = os.fstat(self._file.fileno()).st_size
            prefix = self._file.read(8)
            size = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or not 2 <= size <= self._size - 8:
                raise ArtifactError(
                    f"it is no safetensors file, or it is cut off ({self._size} bytes, of which "
                    f"the header would be {size})"
                )
            if size > MAX_HEADER_BYTES:
                raise ArtifactError(f"its header of {size} bytes is larger than {MAX_HEADER_BYTES}")
            header = self._file.read(size)
        except OSError as error:
            raise ArtifactError(f"it cannot be read ({error.strerror or error})") from error
        self._start = 8 + size
        try:
            entries = of_type(json.loads(header), dict, "its header")
        except (ValueError, RecursionError) as error:
            raise ArtifactError(f"it is no safetensors file, or it is damaged ({error})") from error
        metadata = of_type(entries.pop("__metadata__", {}), dict, "its metadata")
        self.metadata = {name: of_type(value, str, name) for name, value in metadata.items()}
        self._entries = {name: _Entry(name, entry) for name, entry in entries.items()}
        end = max((entry.end for entry in self._entries.values()), default=0)
        total = sum(entry.end - entry.begin for entry in self._entries.values())
        if not end == total == self._size - self._start:
            raise ArtifactError(
                f"it is damaged or cut off: {self._size - self._start} bytes behind its header, of "
                f"which the tensors would take {total}, up to {end}"
            )

    @property
    def names(self) -> set[str]:
        """The tensors' names."""
        return set(self._entries)

    def shape(self, name: str) -> list[int]:
        """The shape of a tensor."""
        return self._entries[name].shape

    def tensor(self, name: str) -> Tensor:
        """A tensor, in new memory.

        Raises:
            ArtifactError: the file has become shorter, or cannot be read any more.
        """
        entry = self._entries[name]
        tensor = torch.empty(entry.shape, dtype=entry.dtype, device="cpu")
        if not tensor.numel():
            return tensor
        memory = tensor.view(-1).view(torch.uint8).numpy().data
        try:
            self._file.seek(self._start + entry.begin)
            bytes_read = self._file.readinto(memory)  # type: ignore[attr-defined]
        except OSError as error:
            raise ArtifactError(f"it cannot be read ({error.strerror or error})") from error
        if bytes_read != len(memory):
            raise ArtifactError("it was cut off while it was being read")
        return tensor


class _Entry:
    """Where a tensor is: bytes ``begin`` to ``end`` behind the header."""

    def __init__(self, name: str, data: Any) -> None:
        entry = of_type(data, dict, ascii(name)[:80])
        if set(entry) != {"dtype", "shape", "data_offsets"}:
            raise ArtifactError(f"the tensor {ascii(name)[:80]} is not described in the header")
        dtype = entry["dtype"]
        if not isinstance(dtype, str) or dtype not in _DTYPES:
            raise ArtifactError(f"the tensor {ascii(name)[:80]} is of {ascii(dtype)[:40]}")
        self.dtype = _DTYPES[dtype]
        self.shape = [count(size, "shape") for size in of_type(entry["shape"], list, "shape")]
        offsets = of_type(entry["data_offsets"], list, "data_offsets")
        if len(offsets) != 2:
            raise ArtifactError(f"the tensor {ascii(name)[:80]} has no place in the file")
        self.begin, self.end = (count(offset, "data_offsets") for offset in offsets)
        size = self.dtype.itemsize
        for number in self.shape:
            size *= number
        if self.begin > self.end or self.end - self.begin != size:
            raise ArtifactError(f"the tensor {ascii(name)[:80]} has not the bytes of its shape")
