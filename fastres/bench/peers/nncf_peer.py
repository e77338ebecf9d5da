"""OpenVINO in int8, its model quantised by NNCF, which OpenVINO's documentation names for that."""

from __future__ import annotations

import contextlib
import io
import logging
import time
from importlib.util import find_spec
from typing import Any

import torch

from fastres.bench.peers import openvino_peer
from fastres.bench.peers.peer import Job, Ready
from fastres.bench.peers.torch_peers import environment_variable, without_cuda_warnings


def missing(device: str) -> str | None:
    """What to install before it works, or None."""
    absent = [name for name in ("nncf", "openvino") if find_spec(name) is None]
    return f"pip install {' '.join(absent)}" if absent else None


def prepare(job: Job) -> Ready:
    """Convert, quantise by NNCF's defaults, compile, and pick the mode.

    Raises:
        RuntimeError: the plugin compiled convolutions in something else than integers.
    """
    assert job.calibration is not None
    began = time.perf_counter()
    model = quantized(openvino_peer.converted(job.model, job.example), job.calibration)
    seconds = time.perf_counter() - began
    return openvino_peer.ready(model, job, seconds, (f"quantised by NNCF {_version()}",))


def quantized(model: Any, calibration: torch.Tensor) -> Any:
    """What NNCF makes of a converted model and images, one at a time, as in its tutorials."""
    images = [image.numpy() for image in calibration.split(1)]
    # Bars and remarks are for its own users, and nobody is to be told that it was used here.
    with (
        contextlib.redirect_stdout(io.StringIO()),
        environment_variable("NNCF_CI", "1"),
        without_cuda_warnings(),
    ):
        import nncf

        nncf.set_log_level(logging.ERROR)
        return nncf.quantize(
            model,
            nncf.Dataset(images),
            subset_size=len(images),
            target_device=nncf.TargetDevice.CPU,
        )


def _version() -> str:
    import nncf

    return str(nncf.__version__)
