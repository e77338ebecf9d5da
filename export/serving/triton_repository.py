"""A model repository for Triton Inference Server: the ONNX file, and how to serve it.

::

    <directory>/<name>/config.pbtxt
    <directory>/<name>/labels.txt          where the classes' names are known
    <directory>/<name>/<version>/model.onnx
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastres.errors import OptionError, VerificationError
from fastres.export.conversion import to_onnx
from fastres.export.report import OnnxReport
from fastres.export.serving import triton_config
from fastres.export.serving.running import Session, TensorSpec
from fastres.export.serving.session import session
from fastres.export.serving.triton_config import TYPES, Settings, preferred_sizes
from fastres.optimized import OptimizedModule
from fastres.system.files import as_path, refuse_null, temporary_folder
from fastres.system.plain_tensors import refuse_under_tracing
from fastres.system.threads import safe_threads


@dataclass(frozen=True)
class TritonReport:
    """The model's folder in the repository, and the checks that it passed.

    Attributes:
        path: the model's folder in the repository.
        version: the one that was written.
        config: text of ``config.pbtxt``.
        onnx: the report on the ONNX file.
        checks: a sentence each, on the configuration.
    """

    path: Path
    version: int
    config: str
    onnx: OnnxReport
    checks: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{self.path}, version {self.version}", *(f"  checked: {c}" for c in self.checks)]
        return "\n".join([*lines, str(self.onnx)])


@safe_threads()
def triton_server(
    model: nn.Module,
    directory: str | Path,
    *,
    name: str | None = None,
    version: int = 1,
    versions: str | Sequence[int] = "latest",
    max_batch_size: int = 8,
    preferred_batch_sizes: Sequence[int] | None = None,
    max_queue_delay_us: int = 100,
    instance_count: int = 1,
    kind: str = "auto",
    gpus: Sequence[int] = (),
    tensorrt: bool = False,
    threads: int | None = None,
    labels: Sequence[str] | None = None,
    **options: Any,
) -> TritonReport:
    """Write a model, or a new version of it, into a model repository of Triton Inference Server.

    Written to a folder of its own, checked, and then moved to its place. The configuration is
    parsed into the server's own message where the package tritonclient is installed, and the file
    is run in ONNX Runtime with the names, dtypes and shapes that the configuration declares, at
    every batch size of the warm-up.

    Args:
        model: as for :func:`fastres.export.to_onnx`.
        directory: the repository; created if it is not there. A server that polls it may see the
            folder that is being written; load models explicitly, or write elsewhere and move.
        name: of the model: letters, digits, ``_``, ``.`` and ``-``. Default: the name of the
            model's class, in small letters.
        version: to write; an existing one is refused.
        versions: which are served: ``"latest"``, ``"all"``, or a list.
        max_batch_size: the largest batch that requests are joined to; 0 for no batching.
        preferred_batch_sizes: sizes to aim at; default: half of the largest, and the largest.
        max_queue_delay_us: microseconds that a request may wait for others.
        instance_count: copies of the model that run at the same time.
        kind: ``"auto"``, ``"cpu"`` or ``"gpu"``.
        gpus: indices of the GPUs, with ``kind="gpu"``; default: all.
        tensorrt: let TensorRT compile the model on the server's GPU, in the file's precision.
        threads: per instance on a CPU; default: the server's choice.
        labels: names of the classes; they are written to ``labels.txt`` too, which the server looks
            into where the first output has a number for each class.
        options: of :func:`fastres.export.to_onnx` (``precision``, ``dynamic_size`` and so on).

    Raises:
        OptionError: an argument is not one of those, the version exists, or the model's folder
            has another configuration than this one.
        VerificationError: the configuration does not fit the file.
        FastresError: as for ``to_onnx``.
    """
    if name is None:
        name = _name_of(model)
    settings = Settings(
        name=name,
        version=version,
        versions=tuple(versions) if isinstance(versions, (list, tuple)) else versions,  # type: ignore[arg-type]
        max_batch_size=max_batch_size,
        preferred=preferred_sizes(preferred_batch_sizes, max_batch_size),
        queue_delay=max_queue_delay_us,
        count=instance_count,
        kind=kind,
        gpus=tuple(gpus),
        tensorrt=tensorrt,
        threads=threads,
    )
    refuse_under_tracing("triton_server")
    repository = as_path(directory)
    model_folder = repository / name
    if os.path.lexists(model_folder / str(version)):
        raise OptionError(
            f"{model_folder / str(version)}: this version exists; write "
            f"version={_next(model_folder)}, or remove it"
        )
    with _temporary_folder(repository) as temporary:
        folder = temporary / str(version)
        folder.mkdir()
        report = to_onnx(model, folder / "model.onnx", labels=labels, **options)
        loaded = session(folder / "model.onnx", providers="cpu")
        class_names = _labels(loaded)
        settings = replace(
            settings,
            float16=report.precision == "float16",
            labels=class_names is not None and loaded.outputs[0].sizes[1:] == (len(class_names),),
        )
        if max_batch_size:
            _check_batched(loaded)
        example = _example(loaded, report)
        text = triton_config.text(settings, loaded.inputs, loaded.outputs, example)
        checks = [
            *_check_config(text, settings, loaded),
            *_run_as_declared(loaded, settings, example),
        ]
        (temporary / "config.pbtxt").write_text(text, encoding="utf-8")
        if class_names is not None:
            (temporary / "labels.txt").write_text("\n".join(class_names) + "\n", encoding="utf-8")
        _move(temporary, model_folder, version)
    return TritonReport(model_folder, version, text, report, tuple(checks))


def _name_of(model: nn.Module) -> str:
    kind = model.report.model if isinstance(model, OptimizedModule) else type(model).__name__
    return kind.lower()


def _next(model_folder: Path) -> int:
    found = [int(each.name) for each in model_folder.iterdir() if re.fullmatch("[0-9]+", each.name)]
    return max(found, default=0) + 1


@contextlib.contextmanager
def _temporary_folder(directory: Path) -> Iterator[Path]:
    """A folder inside the repository, gone afterwards; the repository too if it was made here."""
    with contextlib.ExitStack() as stack:
        try:
            refuse_null(directory)
            if not directory.exists():
                directory.mkdir(parents=True, exist_ok=True)
                stack.callback(_remove_if_empty, directory)
            folder = stack.enter_context(temporary_folder(directory / "fastres"))
        except OSError as error:
            raise OptionError(
                f"{directory}: cannot be written to: {error.strerror or error}"
            ) from error
        yield folder


def _remove_if_empty(directory: Path) -> None:
    with contextlib.suppress(OSError):  # not empty: the model is in it
        directory.rmdir()


def _labels(loaded: Session) -> list[str] | None:
    import json

    listed = loaded.metadata.get("fastres.labels")
    if listed is None:
        return None
    names = list(json.loads(listed))
    broken = [name for name in names if name.splitlines() != [name]]
    if broken:
        raise OptionError(f"labels: {broken[0]!r} is not one line, as every name in labels.txt is")
    return names


def _check_batched(loaded: Session) -> None:
    """With a batch size, Triton takes the first size of everything for the batch."""
    for spec in (*loaded.inputs, *loaded.outputs):
        if not spec.sizes or not str(spec.sizes[0]).startswith("batch"):
            raise OptionError(
                f"max_batch_size: {spec} has no open batch as its first size, which Triton needs "
                "to join requests; give max_batch_size=0"
            )


def _example(loaded: Session, report: OnnxReport) -> list[list[int]]:
    """Numbers for the open sizes of each input: those that the file was exported with."""
    return [
        [size if isinstance(size, int) else report.example.get(str(size), 1) for size in p.sizes]
        for p in loaded.inputs
    ]


def _check_config(text: str, settings: Settings, loaded: Session) -> list[str]:
    """Parse the configuration into the server's own message, and compare its names and batch size.

    Raises:
        VerificationError: it cannot be parsed, or declares something else than the file.
    """
    if find_spec("tritonclient") is None or find_spec("grpc") is None:
        return ["config.pbtxt was not parsed: pip install tritonclient[grpc] for that"]
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    config = model_config_pb2.ModelConfig()
    try:
        text_format.Parse(text, config)
    except text_format.ParseError as error:
        raise VerificationError(f"config.pbtxt cannot be parsed: {error}") from error
    expected = [spec.name for spec in (*loaded.inputs, *loaded.outputs)]
    got = [spec.name for spec in (*config.input, *config.output)]
    if got != expected or config.max_batch_size != settings.max_batch_size:
        raise VerificationError(f"config.pbtxt declares {got}, the file has {expected}")
    return ["config.pbtxt parsed into Triton's own message"]


def _run_as_declared(
    loaded: Session, settings: Settings, example: Sequence[Sequence[int]]
) -> list[str]:
    """Run the file as the configuration declares it.

    Raises:
        VerificationError: an output is not what is declared.
    """
    batches = sorted({1, *settings.preferred}) if settings.max_batch_size else [0]
    for batch in batches:
        tensors = [
            torch.zeros(
                [batch, *sizes[1:]] if batch else list(sizes), dtype=spec.dtype, device="cpu"
            )
            for spec, sizes in zip(loaded.inputs, example, strict=True)
        ]
        outputs = loaded(*tensors)
        results = [outputs] if isinstance(outputs, Tensor) else list(outputs.values())
        for spec, result in zip(loaded.outputs, results, strict=True):
            _check_result(spec, result, batch)
    tried = ", ".join(str(batch or "fixed") for batch in batches)
    return [f"run in ONNX Runtime as declared, batches {tried}"]


def _check_result(spec: TensorSpec, result: Tensor, batch: int) -> None:
    fits = result.dtype == spec.dtype and result.dim() == len(spec.sizes)
    sizes = [batch if batch and axis == 0 else size for axis, size in enumerate(spec.sizes)]
    for size, got in zip(sizes, result.shape, strict=False):
        fits = fits and (not isinstance(size, int) or size == got)
    if not fits:
        raise VerificationError(
            f"{spec.name} is {TYPES.get(result.dtype)} {list(result.shape)}, declared as {spec}"
        )


def _move(temporary: Path, model_folder: Path, version: int) -> None:
    """Move the new model's folder into the repository, or the version into an existing folder.

    Raises:
        OptionError: the folder has another configuration, which would hold for this version too.
    """
    if not model_folder.exists():
        new_folder = temporary / "model"
        new_folder.mkdir()
        for each in list(temporary.iterdir()):
            if each != new_folder:
                each.rename(new_folder / each.name)
        new_folder.rename(model_folder)
        return
    for name in ("config.pbtxt", "labels.txt"):
        existing, new = model_folder / name, temporary / name
        if not new.exists() and not existing.exists():
            continue
        if not (new.exists() and existing.is_file() and existing.read_bytes() == new.read_bytes()):
            state = "another than that" if existing.exists() else "not there, and part"
            raise OptionError(
                f"{existing}: it is {state} of this version, and all versions share it; use "
                "another name, the same settings, or edit it and add the version by hand"
            )
    (temporary / str(version)).rename(model_folder / str(version))
