"""Load an ONNX file in ONNX Runtime with fitting providers, threads and memory settings.

A provider that does not load is reported, by a warning or an error.

On a CPU this is tested. What concerns GPUs follows ONNX Runtime's documentation
(https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html) and was never run
where it was written.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fastres.checks import require_bool, require_integer
from fastres.errors import (
    ArtifactError,
    FastresError,
    FastresWarning,
    OptionError,
    TargetError,
)
from fastres.export.requirements import keep_sums_whole, need_onnx, need_onnxruntime
from fastres.export.serving.running import Session
from fastres.system import target
from fastres.system.files import as_path

PREFERRED: tuple[str, ...] = (
    "TensorrtExecutionProvider",
    "CUDAExecutionProvider",
    "CPUExecutionProvider",
)
"""ONNX Runtime's providers, fastest first; the short names are ``tensorrt``, ``cuda``, ``cpu``."""

_SHORT = {"tensorrt": PREFERRED[0], "cuda": PREFERRED[1], "cpu": PREFERRED[2]}


def session(
    path: str | Path,
    *,
    providers: str | Sequence[str] | None = None,
    strict: bool = False,
    threads: int | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> Session:
    """Load an ONNX file for inference.

    The file is checked before ONNX Runtime sees it: format, shapes against bytes, weights inside of
    its own directory only, and the checksum where fastres wrote it.

    Args:
        path: of the file.
        providers: ``"tensorrt"``, ``"cuda"``, ``"cpu"`` or ONNX Runtime's full names, in the order
            wanted; one or several. Default: of TensorRT, CUDA and the CPU, those that the
            installed package has, GPUs only where the machine has one. A warning names a GPU that
            the package has no provider for.
        strict: raise where a provider does not load, or where one of the listed leaves an operator
            to the CPU without the CPU being listed. Otherwise the first is a warning, and the
            second happens silently in ONNX Runtime.
        threads: per call; default: what CPU affinity and cgroup quota grant.
        options: settings per provider, e.g. ``{"cuda": {"device_id": 1}}``.

    Raises:
        OptionError: an argument is not one of those.
        TargetError: ONNX Runtime is missing or installed twice; under ``strict``, a provider did
            not load.
        ArtifactError: the file is not there, damaged, not ONNX, or reaches outside of its folder.
    """
    need_onnx()
    runtime = need_onnxruntime()
    from fastres.export import model_file

    file = as_path(path)
    if threads is not None:
        require_integer(
            "threads",
            threads,
            "more than the processors that the process may use only take turns",
            most=target.most_threads(),
        )
    require_bool("strict", strict)
    requested_names = _requested_providers(runtime, providers)
    if providers is None and _has_gpu() and requested_names == [PREFERRED[2]]:
        sentence = (
            "this machine has a GPU, and the ONNX Runtime installed here only has the CPU: "
            "install onnxruntime-gpu in its place, or ask for providers='cpu'"
        )
        if strict:
            raise TargetError(f"strict=True: {sentence}")
        warnings.warn(sentence, FastresWarning, stacklevel=2)
    began = time.perf_counter()
    model_file.read(file)
    settings = runtime.SessionOptions()
    settings.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    settings.intra_op_num_threads = threads or target.cpu_threads()
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 4  # what fails is raised, or told by a warning below
    keep_sums_whole(settings)
    listed_cpu = PREFERRED[2] in requested_names
    if strict and not listed_cpu:
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    if requested_names[0] != PREFERRED[2] and hasattr(runtime, "preload_dlls"):
        runtime.preload_dlls()  # CUDA's libraries from torch's packages
    provider_options = {_full(name): dict(value) for name, value in (options or {}).items()}
    requested = [(name, provider_options.get(name, {})) for name in requested_names]
    try:
        loaded = runtime.InferenceSession(str(file), settings, providers=requested)
    except Exception as error:  # ONNX Runtime's own types have no common base
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        if strict and not listed_cpu and "fallback" in str(error):
            raise TargetError(
                f"strict=True: {', '.join(requested_names)} cannot run all of {file.name}: "
                f"{first}; list "
                '"cpu" too, or leave strict out'
            ) from error
        raise ArtifactError(f"{file} cannot be loaded by ONNX Runtime: {first}") from error
    missing = [name for name in requested_names if name not in loaded.get_providers()]
    if missing:
        sentence = (
            f"asked for {', '.join(requested_names)}, ONNX Runtime loaded "
            f"{', '.join(loaded.get_providers())}: the libraries or the device of "
            f"{missing[0]} are not here"
        )
        if strict:
            raise TargetError(f"strict=True: {sentence}; see its installation page")
        warnings.warn(sentence, FastresWarning, stacklevel=2)
    try:
        return Session(file, loaded, time.perf_counter() - began)
    except FastresError:
        raise
    except Exception as error:  # names and shapes come from the file and may be anything
        raise ArtifactError(f"{file} cannot be used: {str(error).splitlines()[0]}") from error


def _full(name: str) -> str:
    return _SHORT.get(name, name)


def _has_gpu() -> bool:
    return torch.cuda.is_available() or target.gpu_driver() != "unknown"


def _requested_providers(runtime: Any, providers: str | Sequence[str] | None) -> list[str]:
    available = list(runtime.get_available_providers())
    if providers is None:
        gpu = _has_gpu()
        return [name for name in PREFERRED if name in available and (gpu or name == PREFERRED[2])]
    names = [providers] if isinstance(providers, str) else list(providers)
    if not names or not all(isinstance(name, str) for name in names):
        raise OptionError(f"providers={providers!r}: expected names such as 'cuda' and 'cpu'")
    requested = [_full(name) for name in names]
    for name, full in zip(names, requested, strict=True):
        if full not in available:
            hint = (
                "; the package onnxruntime-gpu has the first two of tensorrt, cuda, cpu"
                if full in PREFERRED
                else ""
            )
            raise OptionError(
                f"providers: this ONNX Runtime has no {name!r}, only {', '.join(available)}{hint}"
            )
    return list(dict.fromkeys(requested))
