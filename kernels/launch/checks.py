"""What launch code asks of tensors, with one wording for every refusal."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastres.dtypes import FLOATING
from fastres.errors import InputError, OptionError
from fastres.kernels.activations import ACTIVATIONS
from fastres.kernels.launch.call import INT32_ELEMENTS, needs_int64

"""The dtypes of images and weights."""


def described(tensor: Tensor) -> str:
    """Shape, dtype and device for a message."""
    return f"{list(tensor.shape)} of {tensor.dtype} on {tensor.device}"


def check_tensor(
    name: str, tensor: Tensor, like: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None
) -> None:
    """Refuse a tensor that is not of ``shape``, not of ``like``'s device and dtype, or not dense.

    Args:
        name: what messages call the tensor.
        tensor: it. Tensors of four axes are [N, C, H, W] in channels-last memory, others row-major.
        like: gives the device, and the dtype unless ``dtype`` is given.
        shape: the one expected.
        dtype: the one expected.

    Raises:
        InputError: with what was got and what was expected.
    """
    dtype = dtype or like.dtype
    if tuple(tensor.shape) != tuple(shape) or tensor.dtype != dtype:
        raise InputError(f"{name} is {described(tensor)}: expected {list(shape)} of {dtype}")
    if tensor.device != like.device:
        raise InputError(
            f"{name} is on {tensor.device}: expected {like.device} as the others; move it there"
        )
    if not (channels_innermost(tensor) if tensor.dim() == 4 else tensor.is_contiguous()):
        order = "channels-last" if tensor.dim() == 4 else "row-major"
        raise InputError(
            f"{name} {list(tensor.shape)} has strides {tensor.stride()}: expected dense {order} "
            "memory; make it contiguous first"
        )


def check_floating(name: str, tensor: Tensor) -> None:
    """Refuse dtypes that the kernels do not compute with.

    Raises:
        InputError: as it says.
    """
    if tensor.dtype not in FLOATING:
        raise InputError(f"{name} of {tensor.dtype}: expected float16, bfloat16 or float32")


def check_images(name: str, tensor: Tensor, *, uint8: bool = False) -> None:
    """Refuse what is not [N, C, H, W] in one of the kernels' dtypes.

    Args:
        uint8: whether that is one of them too.

    Raises:
        InputError: as it says.
    """
    if tensor.dim() != 4:
        raise InputError(f"{name} has {tensor.dim()} axes: expected four, [N, C, H, W]")
    if not (uint8 and tensor.dtype == torch.uint8):
        check_floating(name, tensor)


def check_activation(name: str) -> None:
    """Refuse an unknown activation.

    Raises:
        OptionError: as it says.
    """
    if name not in ACTIVATIONS:
        raise OptionError(f"activation {name!r}: expected one of {', '.join(ACTIVATIONS)}")


def channels_innermost(tensor: Tensor) -> bool:
    """Whether [N, C, ...] is dense with channels next to each other."""
    return tensor.movedim(1, -1).is_contiguous()


def wide(last: int, *tensors: Tensor | None) -> bool:
    """Whether a kernel that counts up to ``last`` and addresses ``tensors`` needs 64-bit numbers.

    A block's masked lanes count beyond the tensor's end. Wrapped around to a negative number, they
    would pass for existing ones, so ``last`` is to include them.
    """
    return needs_int64(*tensors) or last >= INT32_ELEMENTS


def power_of_two_divisor(size: int, most: int = 16) -> int:
    """The largest power of two that divides ``size``, up to ``most``."""
    return math.gcd(size, most)
