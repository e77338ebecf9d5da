"""What differs between the releases of torch and Triton that are supported; nobody else asks.

torch 2.9 to 2.14 and Triton 3.5 to 3.8. The floor is where ``torch.backends.*.fp32_precision`` came
(2.9), which says whether float32 products may be TF32, and Triton's ``tl.range(disable_licm=...)``
(3.5), without which the grouped bottleneck spills registers. Each question names the first release
with the newer answer.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping

import numpy as np
import torch
from torch.export.graph_signature import OutputKind

STATE_WRITES = frozenset(
    getattr(OutputKind, name)
    for name in ("BUFFER_MUTATION", "PARAMETER_MUTATION")
    if hasattr(OutputKind, name)  # the second since torch 2.9, and not in all builds of it
)
"""Outputs of an exported program that are written into the model's own state."""


def release(version: str) -> tuple[int, int]:
    """Major and minor number of a version such as ``2.11.0+cu130``."""
    found = re.match(r"(\d+)\.(\d+)", version)
    assert found is not None, version
    return int(found.group(1)), int(found.group(2))


def cpu_capabilities() -> Mapping[str, object]:
    """What torch says of the processor's instructions; nothing before torch 2.10."""
    return getattr(torch.cpu, "get_capabilities", dict)()


def stand_in_for_a_gpu() -> None:
    """Have a CUDA build of torch make what it uses where there is no GPU; none before 2.11."""
    getattr(torch._C, "_ensureCUDADeviceGuardSet", _nothing)()


def _nothing() -> None:
    pass


@functools.cache
def descriptors_round() -> bool:
    """Whether tensor descriptors can round float32 to TF32 while they copy, from Triton 3.7 on."""
    import dataclasses

    from triton.tools.tensor_descriptor import TensorDescriptor

    fields = dataclasses.fields(TensorDescriptor)
    return any(field.name == "round_f32_to_tf32" for field in fields)


@functools.cache
def why_not_interpreted() -> str | None:
    """Why Triton's interpreter cannot run here; None where it can.

    Before Triton 3.6 it counts the strides of tensor descriptors in numbers where they are bytes,
    and before 3.7 it takes an array of one element for a number, which numpy 2.4 no longer does.
    """
    import triton

    if release(triton.__version__) < (3, 6):
        return (
            f"the interpreter of Triton {triton.__version__} refuses tensor descriptors that GPUs "
            "take; use Triton 3.6 or later to interpret kernels"
        )
    if release(triton.__version__) >= (3, 7) or release(np.__version__) < (2, 4):
        return None
    return (
        f"the interpreter of Triton {triton.__version__} fails with numpy {np.__version__}; "
        "pip install 'numpy<2.4', or Triton 3.7 or later"
    )
