"""The model as an ONNX file, written by torch's own exporter, for runtimes that read such files."""

from __future__ import annotations

import copy
import time
import warnings
from pathlib import Path

import torch
from torch import nn

from fastres.bench.gate import leaves
from fastres.bench.peers.peer import Job
from fastres.dtypes import PRECISIONS


class _Casting(nn.Module):
    """A model in another precision whose images and answers stay float32."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self.dtype = dtype

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [tensor.float() for tensor in leaves(self.model(images.to(self.dtype)))]


def write(job: Job, *, one_file: bool = False) -> tuple[Path, float]:
    """Export for the job's one shape and precision; inputs and outputs are float32.

    What is quantised afterwards, by others' tools, is written in float32.

    Args:
        one_file: whether the weights are in the file too, as it must not be beyond 2 GB then.

    Returns:
        The file, and the seconds that it took.
    """
    path = job.folder / "model.onnx"
    dtype = PRECISIONS[job.precision].folded
    model = job.model
    if dtype != torch.float32:
        model = _Casting(copy.deepcopy(model).to(dtype), dtype).eval()
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's, about itself
        torch.onnx.export(
            model,
            (job.example.cpu(),),
            str(path),
            dynamo=True,
            verbose=False,
            external_data=not one_file,
        )
    return path, time.perf_counter() - began
