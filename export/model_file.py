"""ONNX files on disk: written whole or not at all, and read without trusting them.

A file of ours carries a checksum over its operators and weights in its metadata, so that a flipped
bit in a weight does not pass for another model.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import re
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto, helper
from onnx.external_data_helper import ExternalDataInfo, convert_model_to_external_data

from fastres.errors import ArtifactError, OptionError
from fastres.export.metadata import CHECKSUM
from fastres.system import files

LIMIT = 2**31 - 2**20
"""Bytes that one protobuf file may have, less room for what is not weights."""

_EXTERNAL_FROM = 1024
_CHUNK = 1 << 22


@contextlib.contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """A new folder next to ``path``, gone afterwards whatever happens.

    Raises:
        OptionError: the directory is not there or cannot be written to.
    """
    parent = path.parent
    if not parent.is_dir():
        raise OptionError(f"{path}: there is no directory {parent}")
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(files.temporary_folder(path))
        except OSError as error:
            raise OptionError(f"{path}: cannot write to {parent}: {error.strerror}") from error
        yield folder


def weight_bytes(proto: ModelProto) -> int:
    """Bytes of all weights."""
    return sum(len(tensor.raw_data) for tensor in proto.graph.initializer)


def write(proto: ModelProto, file: Path, external: bool) -> Path | None:
    """Store a model, with its checksum, and sync it to the disk.

    Args:
        proto: changed: it gets the checksum, and with ``external`` loses the weights.
        file: a new file.
        external: put weights into a second file beside it.

    Returns:
        The second file, called after the contents, so that another export of the same name does not
        touch it before its own main file replaces this one's.
    """
    digest = checksum(proto, file.parent)
    helper.set_model_props(
        proto, {**{p.key: p.value for p in proto.metadata_props}, CHECKSUM: digest}
    )
    data = file.parent / f"{_plain(file.name)}.{digest[:12]}.data" if external else None
    if data is not None:
        convert_model_to_external_data(
            proto, location=data.name, size_threshold=_EXTERNAL_FROM, convert_attribute=False
        )
    onnx.save_model(proto, str(file))
    for each in (file, data):
        if each is not None and each.exists():
            files.flush(each)
    return data if data is not None and data.exists() else None


def _plain(name: str) -> str:
    """A name that is one part of a path on every system, without the two dots that onnx refuses."""
    return re.sub(r"[:\\]|\.(?=\.|$)", "_", name)


def publish(file: Path, data: Path | None, path: Path) -> None:
    """Move a written and checked file to its place, weights first, and drop the weights before.

    Both get the permissions of the file that was there: whoever could not read that one cannot
    read its successor.

    Raises:
        ArtifactError: the place cannot be written to.
    """
    try:
        old = [other for other in path.parent.iterdir() if _is_fastres_file(other, path)]
        if path.exists():
            mode = stat.S_IMODE(path.stat().st_mode)
            for each in filter(None, (data, file)):
                each.chmod(mode)
        if data is not None:
            data.replace(path.parent / data.name)
        file.replace(path)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be written: {error.strerror}") from error
    files.flush(path.parent)
    for other in old:
        if data is None or other.name != data.name:
            other.unlink(missing_ok=True)


def _is_fastres_file(data: Path, path: Path) -> bool:
    return (
        re.fullmatch(re.escape(_plain(path.name)) + r"\.[0-9a-f]{12}\.data", data.name) is not None
    )


def read(path: Path) -> ModelProto:
    """Read a model's graph and make sure that it may be given to a runtime.

    Weights outside are neither loaded nor looked for outside of the file's own directory.

    Raises:
        ArtifactError: no such file, no ONNX model, a tensor whose data does not fit its shape,
            weights outside of the directory, or a checksum that does not fit the contents.
    """
    try:
        there = path.is_file()
    except OSError as error:  # a name that is too long
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from error
    if not there:
        raise ArtifactError(f"{str(path)!a}: there is no such file")
    try:
        proto = onnx.load_model(str(path), load_external_data=False)
    except (DecodeError, OSError, ValueError, RuntimeError) as error:
        raise _damaged(path, f"it is no ONNX model ({_first_line(error)})") from error
    if not proto.graph.node and not proto.graph.output:
        raise _damaged(path, "it holds no graph")
    for tensor in tensors(proto):
        _check_tensor(path, tensor)
    try:
        onnx.checker.check_model(str(path))
    except (onnx.checker.ValidationError, RuntimeError, ValueError) as error:
        raise _damaged(path, _first_line(error)) from error
    required = {prop.key: prop.value for prop in proto.metadata_props}.get(CHECKSUM)
    if required is not None and checksum(proto, path.parent) != required:
        raise _damaged(path, "its contents are not those that fastres wrote (checksum)")
    return proto


def _damaged(path: Path, why: str) -> ArtifactError:
    return ArtifactError(f"{path} cannot be used: {why}; export it again, or get another copy")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def tensors(proto: ModelProto) -> Iterator[TensorProto]:
    """Every tensor of a model, in subgraphs and attributes too."""
    stack: list[Any] = [proto.graph, *proto.functions]
    while stack:
        graph = stack.pop()
        yield from getattr(graph, "initializer", ())
        for sparse in getattr(graph, "sparse_initializer", ()):
            yield from (sparse.values, sparse.indices)
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors
                stack += [attribute.g] if attribute.HasField("g") else []
                stack += attribute.graphs


def _check_tensor(path: Path, tensor: TensorProto) -> None:
    name = tensor.name or "a constant"
    if any(size < 0 for size in tensor.dims):
        raise _damaged(path, f"{name} has the shape {list(tensor.dims)}")
    try:
        item = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, f"{name} has an unknown dtype {tensor.data_type}") from error
    expected = math.prod(tensor.dims) * item
    if tensor.data_location == TensorProto.EXTERNAL:
        _check_external(path, tensor, expected)
    elif tensor.HasField("raw_data"):
        got = len(tensor.raw_data)
        packed = tensor.data_type in _PACKED
        if got != expected and not (packed and got <= expected):
            raise _damaged(path, f"{name} {list(tensor.dims)} has {got} bytes, expected {expected}")
    elif expected > LIMIT:
        raise _damaged(path, f"{name} has the shape {list(tensor.dims)} and no data")


_PACKED = {TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1}
"""Dtypes of which a byte holds two."""


def _check_external(path: Path, tensor: TensorProto, expected: int) -> None:
    """Weights may only lie in a regular file below the model's own directory."""
    try:
        info = ExternalDataInfo(tensor)
        offset, length = int(info.offset or 0), int(info.length or expected)
    except (ValueError, TypeError) as error:
        raise _damaged(path, f"{tensor.name}: {_first_line(error)}") from error
    data = _external_file(path, info.location)
    size = data.stat().st_size
    if length != expected or offset < 0 or offset + length > size:
        raise _damaged(
            path,
            f"{tensor.name} is said to be {length} bytes from {offset} on in {data.name}, which "
            f"has {size}; its shape {list(tensor.dims)} needs {expected}",
        )


def _external_file(path: Path, location: str) -> Path:
    parts = PurePosixPath(location).parts + PureWindowsPath(location).parts
    outside = (
        not location
        or "\0" in location
        or ".." in parts
        or PurePosixPath(location).is_absolute()
        or PureWindowsPath(location).is_absolute()
        or bool(PureWindowsPath(location).drive)
    )
    if not outside:
        data = path.parent / location
        try:
            here = path.parent.resolve(strict=True)
            linked = any(p.is_symlink() for p in (data, *data.parents) if here in p.parents)
            outside = linked or not data.resolve(strict=True).is_relative_to(here)
        except (OSError, RuntimeError) as error:
            raise _damaged(path, f"its weights in {location!r} are not there") from error
        if not outside and data.is_file():
            return data
    raise _damaged(
        path,
        f"its weights are said to lie in {location!r}, which is no plain file in its own directory",
    )


def checksum(proto: ModelProto, folder: Path) -> str:
    """SHA-256 of the operators, inputs, outputs and weights; the same wherever weights are kept."""
    digest = hashlib.sha256()
    graph = proto.graph
    for message in (*graph.node, *graph.input, *graph.output, *proto.opset_import):
        encoded = message.SerializeToString(deterministic=True)
        digest.update(f"{len(encoded)}\n".encode())
        digest.update(encoded)
    for tensor in graph.initializer:
        head = f"{tensor.name!r} {tensor.data_type} {list(tensor.dims)}\n"
        digest.update(head.encode())
        if tensor.data_location == TensorProto.EXTERNAL:
            _hash_external(digest, tensor, folder)
        else:
            digest.update(tensor.raw_data)
    return digest.hexdigest()


def _hash_external(digest: Any, tensor: TensorProto, folder: Path) -> None:
    info = ExternalDataInfo(tensor)
    left = int(info.length or 0)
    with (folder / info.location).open("rb") as data:
        data.seek(int(info.offset or 0))
        while left > 0:
            block = data.read(min(_CHUNK, left))
            if not block:
                break
            digest.update(block)
            left -= len(block)
