"""Calls on a GPU: torch's TF32 flags for their precision, and synchronisation at their end.

A launch returns before the work is done, so a call counts as over when its device is idle. The
flags decide whether torch computes float32 convolutions and products in TF32; torch's defaults
differ between the two, and a row is to be what its label says.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from fastres.errors import OptionError, TargetError

Call = Callable[[torch.Tensor], object]


def parse(text: str) -> torch.device:
    """``cpu``, ``cuda`` or ``cuda:1``, if it is there.

    Raises:
        OptionError: it is no such name.
        TargetError: torch sees no such device.
    """
    try:
        device = torch.device(text)
    except RuntimeError as error:
        raise OptionError(f"--device {text}: expected cpu, cuda or cuda:NUMBER") from error
    if device.type not in ("cpu", "cuda"):
        raise OptionError(f"--device {text}: expected cpu, cuda or cuda:NUMBER")
    if device.type == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if not count:
        raise TargetError(
            f"--device {text}: torch sees no GPU here; run this where there is one, or leave "
            "--device out to measure the CPU"
        )
    index = torch.cuda.current_device() if device.index is None else device.index
    if index >= count:
        raise TargetError(f"--device {text}: torch sees {count} GPUs, cuda:0 to cuda:{count - 1}")
    return torch.device("cuda", index)


def synchronized(call: Call, precision: str, device: torch.device) -> Call:
    """``call`` with the precision's TF32 flags and a wait for the GPU; on a CPU, as it is."""
    if device.type == "cpu":
        return call

    def call_and_wait(images: torch.Tensor) -> object:
        allow_tf32(precision == "tf32")
        with torch.cuda.device(device):
            output = call(images)
            torch.cuda.synchronize(device)
        return output

    return call_and_wait


def allow_tf32(allowed: bool) -> None:
    """Let torch's convolutions and matrix products on GPUs use TF32, or not."""
    torch.backends.cudnn.allow_tf32 = allowed
    torch.backends.cuda.matmul.allow_tf32 = allowed


def used_bytes(device: torch.device) -> int:
    """Memory of a GPU that is not free, this process's context and caches included."""
    free, total = torch.cuda.mem_get_info(device)
    return total - free
