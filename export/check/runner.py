"""Run a written file in ONNX Runtime: its outputs, and its intermediate values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from fastres.errors import VerificationError
from fastres.export.graph import Converted
from fastres.export.requirements import keep_sums_whole, need_onnxruntime
from fastres.system import target


class OutputsDiffer(Exception):
    """Raised inside the check: a tensor of the file differs from the reference."""


def runner(file: Path, optimise: bool = True) -> Callable[[dict[str, Any]], list[Any]]:
    """A function from named arrays to the file's answers, by ONNX Runtime on the CPU.

    Raises:
        VerificationError: ONNX Runtime does not load the file.
    """
    runtime = need_onnxruntime()
    settings = runtime.SessionOptions()
    settings.intra_op_num_threads = target.cpu_threads()
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 4
    keep_sums_whole(settings)
    if not optimise:
        settings.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = runtime.InferenceSession(str(file), settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own types have no common base
        raise VerificationError(f"ONNX Runtime does not load the exported file: {error}") from error

    def run(feeds: dict[str, Any]) -> list[Any]:
        try:
            return list(session.run(None, feeds))
        except Exception as error:  # likewise
            raise OutputsDiffer(f"ONNX Runtime fails: {str(error).splitlines()[0]}") from error

    return run


def feed(flat: Sequence[Any], converted: Converted, proto: onnx.ModelProto) -> dict[str, Any]:
    """The arrays that the file takes, in its dtypes."""
    types = {info.name: info.type.tensor_type.elem_type for info in proto.graph.input}
    fed = {}
    for index, name in converted.inputs:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(types[name])
        fed[name] = flat[index].numpy().astype(dtype, copy=False)
    return fed


def exposed(file: Path, names: Sequence[str]) -> tuple[Path, list[str], list[str]]:
    """A copy of a file that also gives values inside it.

    Args:
        file: it; the copy is written beside it.
        names: of tensors in it.

    Returns:
        The copy, its outputs, and those of ``names`` that are there.
    """
    proto = onnx.load_model(str(file))
    computed = {name for node in proto.graph.node for name in node.output}
    there = {output.name for output in proto.graph.output}
    seen = [name for name in names if name in computed]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in seen if name not in there)
    outputs = [output.name for output in proto.graph.output]
    copy = file.with_name(f"{file.name}.values.onnx")
    for old in (copy, copy.with_name(f"{copy.name}.data")):
        old.unlink(missing_ok=True)
    onnx.save_model(proto, str(copy), save_as_external_data=True, location=f"{copy.name}.data")
    return copy, outputs, seen


def viewer(
    file: Path, names: Sequence[str], optimise: bool = False
) -> tuple[list[str], Callable[[dict[str, Any]], dict[str, Tensor]]]:
    """A look at values inside a file.

    Args:
        file: it; a copy with more outputs is written beside it.
        names: of tensors in it.
        optimise: as ONNX Runtime rewrites it, else each operator by itself as it is written.

    Returns:
        Those of ``names`` that are there, and a function from named arrays to their values.

    Raises:
        VerificationError: ONNX Runtime does not load the copy.
    """
    copy, outputs, seen = exposed(file, names)
    run = runner(copy, optimise)

    def look(feeds: dict[str, Any]) -> dict[str, Tensor]:
        values = dict(zip(outputs, run(feeds), strict=True))
        return {name: torch.from_numpy(np.array(values[name])) for name in seen}

    return seen, look
