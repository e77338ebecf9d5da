"""``config.pbtxt`` of a model for Triton Inference Server, as text.

Source: https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/model_configuration.html
and, for the accelerator, https://github.com/triton-inference-server/onnxruntime_backend.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from fastres.checks import is_integer, refusal, require_integer, require_one_of
from fastres.errors import OptionError
from fastres.export.serving.running import TensorSpec

TYPES: dict[torch.dtype, str] = {
    torch.float32: "TYPE_FP32",
    torch.float16: "TYPE_FP16",
    torch.float64: "TYPE_FP64",
    torch.uint8: "TYPE_UINT8",
    torch.int8: "TYPE_INT8",
    torch.int16: "TYPE_INT16",
    torch.int32: "TYPE_INT32",
    torch.int64: "TYPE_INT64",
    torch.bool: "TYPE_BOOL",
}
"""Triton's names for dtypes."""

KINDS = {"auto": "KIND_AUTO", "cpu": "KIND_CPU", "gpu": "KIND_GPU"}
"""Where instances of a model may run."""

WORKSPACE_BYTES = 1 << 30
"""What TensorRT may use while it builds."""


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


@dataclass(frozen=True)
class Settings:
    """What the configuration says beside the model's inputs and outputs.

    Attributes:
        name: of the model.
        version: that is written.
        versions: ``"latest"``, ``"all"``, or the versions that are served.
        max_batch_size: 0 for a model whose batch is fixed.
        preferred: batch sizes that requests are joined to.
        queue_delay: microseconds that a request may wait for others.
        count, kind, gpus: instances of the model, where, and on which GPUs.
        tensorrt: let TensorRT compile the model on the server.
        threads: per instance on a CPU, None for the server's choice.
        float16: whether the file computes in float16.
        labels: whether a file of labels lies beside it.

    Raises:
        OptionError: a value is not one of those.
    """

    name: str
    version: int
    versions: str | tuple[int, ...]
    max_batch_size: int
    preferred: tuple[int, ...]
    queue_delay: int
    count: int
    kind: str
    gpus: tuple[int, ...]
    tensorrt: bool
    threads: int | None
    float16: bool = False
    labels: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise refusal("name", self.name, "letters, digits, '_', '.' and '-'")
        listed = isinstance(self.versions, tuple) and bool(self.versions)
        if self.versions not in ("latest", "all") and not (
            listed and all(is_integer(each) for each in self.versions)
        ):
            raise refusal("versions", self.versions, "'latest', 'all' or a list of versions")
        for what, value, least in (
            ("version", self.version, 1),
            ("max_batch_size", self.max_batch_size, 0),
            ("max_queue_delay_us", self.queue_delay, 0),
            ("instance_count", self.count, 1),
            ("threads", 1 if self.threads is None else self.threads, 1),
        ):
            require_integer(what, value, least=least)
        require_one_of("kind", self.kind, KINDS)
        if not isinstance(self.tensorrt, bool) or (self.tensorrt and self.kind == "cpu"):
            raise OptionError(
                f"tensorrt={self.tensorrt!r} with kind={self.kind!r}: TensorRT runs on GPUs"
            )
        if not all(is_integer(each, 0) for each in self.gpus) or (self.gpus and self.kind != "gpu"):
            raise refusal("gpus", list(self.gpus), "indices of GPUs, with kind='gpu'")


def preferred_sizes(sizes: Sequence[int] | None, most: int) -> tuple[int, ...]:
    """The preferred batch sizes in order; by default half of the largest, and the largest.

    Raises:
        OptionError: one is beyond the largest.
    """
    require_integer("max_batch_size", most, least=0)
    if sizes is None:
        return tuple(sorted({size for size in (most // 2, most) if size > 1}))
    chosen = tuple(sizes)
    if not all(is_integer(size, most=most) for size in chosen):
        raise refusal(
            "preferred_batch_sizes", list(chosen), f"sizes from 1 to max_batch_size={most}"
        )
    return tuple(sorted(set(chosen)))


def text(
    settings: Settings,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    example: Sequence[Sequence[int]],
) -> str:
    """The text of ``config.pbtxt``.

    Args:
        settings: checked :class:`Settings`.
        inputs, outputs: as the ONNX file has them.
        example: numbers for all sizes of each input, for the warm-up.
    """
    batched = settings.max_batch_size > 0
    parts = [
        f"name: {_quoted(settings.name)}",
        'backend: "onnxruntime"',
        'default_model_filename: "model.onnx"',
        f"max_batch_size: {settings.max_batch_size}",
        *(_block("input", _tensor_lines(spec, batched)) for spec in inputs),
        *(
            _block("output", [*_tensor_lines(spec, batched), *_labels(settings, index)])
            for index, spec in enumerate(outputs)
        ),
        _versions(settings.versions),
        _instances(settings),
    ]
    if batched:
        parts.append(_batching(settings))
        warm = sorted({1, *settings.preferred})
        parts += [_warm_up(inputs, example, batch) for batch in warm]
    else:
        parts.append(_warm_up(inputs, example, 0))
    if settings.tensorrt:
        parts.append(_tensorrt(settings.float16))
    if settings.threads is not None:
        value = _block("value", [f'string_value: "{settings.threads}"'])
        parts.append(_block("parameters", ['key: "intra_op_thread_count"', value]))
    return "\n".join(parts) + "\n"


def _quoted(name: str) -> str:
    return json.dumps(name, ensure_ascii=False)


def _block(name: str, lines: Iterable[str]) -> str:
    inner = "\n".join(lines).replace("\n", "\n  ")
    return f"{name} {{\n  {inner}\n}}"


def _list(name: str, numbers: Iterable[int]) -> str:
    return f"{name}: [ {', '.join(map(str, numbers))} ]"


def _tensor_lines(spec: TensorSpec, batched: bool) -> list[str]:
    """Name, dtype and sizes; the batch is not among the sizes, and no size at all is written 1."""
    sizes = [size if isinstance(size, int) else -1 for size in spec.sizes[int(batched) :]]
    shape = ["dims: [ 1 ]", "reshape { shape: [ ] }"] if not sizes else [_list("dims", sizes)]
    return [f"name: {_quoted(spec.name)}", f"data_type: {TYPES[spec.dtype]}", *shape]


def _labels(settings: Settings, index: int) -> list[str]:
    return ['label_filename: "labels.txt"'] if settings.labels and index == 0 else []


def _versions(versions: str | tuple[int, ...]) -> str:
    if versions == "latest":
        policy = "latest { num_versions: 1 }"
    elif versions == "all":
        policy = "all { }"
    else:
        assert isinstance(versions, tuple)
        policy = f"specific {{ {_list('versions', versions)} }}"
    return f"version_policy {{ {policy} }}"


def _instances(settings: Settings) -> str:
    lines = [f"count: {settings.count}", f"kind: {KINDS[settings.kind]}"]
    if settings.gpus:
        lines.append(_list("gpus", settings.gpus))
    return _block("instance_group", lines)


def _batching(settings: Settings) -> str:
    lines = [f"max_queue_delay_microseconds: {settings.queue_delay}"]
    if settings.preferred:
        lines.insert(0, _list("preferred_batch_size", settings.preferred))
    return _block("dynamic_batching", lines)


def _warm_up(inputs: Sequence[TensorSpec], example: Sequence[Sequence[int]], batch: int) -> str:
    """One request of zeros; the first of a shape is slow, and no user should be the one to send it.

    A batch of 0 stands for a model that has none: all sizes are then the request's.
    """
    lines = [f"name: {_quoted(f'batch of {batch}' if batch else 'one request')}"]
    lines.append(f"batch_size: {batch}")
    for spec, sizes in zip(inputs, example, strict=True):
        shape = _list("dims", sizes[1:] if batch else sizes)
        value = _block("value", [f"data_type: {TYPES[spec.dtype]}", shape, "zero_data: true"])
        lines.append(_block("inputs", [f"key: {_quoted(spec.name)}", value]))
    return _block("model_warmup", lines)


def _tensorrt(float16: bool) -> str:
    """In the file's own precision: FP16 for a float32 model would be less exact unasked."""
    settings = {
        "precision_mode": "FP16" if float16 else "FP32",
        "max_workspace_size_bytes": str(WORKSPACE_BYTES),
    }
    lines = ['name: "tensorrt"']
    lines += [
        _block("parameters", [f'key: "{key}"', f'value: "{value}"'])
        for key, value in settings.items()
    ]
    accelerator = _block("gpu_execution_accelerator", lines)
    return _block("optimization", [_block("execution_accelerators", [accelerator])])
