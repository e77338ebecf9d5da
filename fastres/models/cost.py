"""How large a model is and how much it computes, without computing anything."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastres.checks import require_integer, require_integers
from fastres.errors import ModelError, OptionError

__all__ = ["Cost", "count"]


class Cost(NamedTuple):
    """Parameters of a model, and multiply-adds for one image; plain numbers, not millions."""

    parameters: int
    multiply_adds: int


def count(
    model: nn.Module, image_size: int | tuple[int, int], *, in_channels: int | None = None
) -> Cost:
    """Count parameters, and the multiply-adds of convolutions and matrix products.

    A convolution costs ``N * K * P * Q * (C / groups) * R * S`` multiply-adds (output N, K, P, Q; C
    input channels; R x S filter), a linear layer ``N * inputs * outputs``; here N = 1. Biases,
    BatchNorm, additions, activations and pooling are not counted, padding is, as in the figures
    that papers and torchvision give. A parameter that several modules share counts once;
    BatchNorm's running statistics are no parameters.

    The shapes come from running a copy of the model, in evaluation mode, on the meta device: no
    memory for weights or activations is needed, and the model itself is not touched. Hooks run on
    the copy.

    Args:
        model: any module that maps one image tensor (1, C, H, W) to something; on any device.
        image_size: height and width in pixels, or one number for both.
        in_channels: C; by default that of the model's first convolution.

    Raises:
        OptionError: for an image size or number of channels below 1, or where there is no
            convolution to take the number of channels from.
        ModelError: if the model does not run on such an image or not without its data.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    require_integers("image_size", size, 2, "height and width in pixels, ImageNet has (224, 224)")
    if in_channels is None:
        first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
        if first is None:
            raise OptionError(
                f"in_channels: got None, expected a number, because {type(model).__name__} has "
                "no Conv2d to take it from; pass in_channels=."
            )
        in_channels = first.in_channels
    require_integer("in_channels", in_channels, "a colour image has 3")
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    image = torch.empty(1, in_channels, *size, dtype=dtype, device="meta")
    shadow = _on_meta(model).eval()
    from torch.utils.flop_counter import FlopCounterMode  # imports triton

    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), counter:
            shadow(image)
    except RuntimeError as error:
        raise ModelError(
            f"count: {type(model).__name__} does not run on an image of shape "
            f"{tuple(image.shape)} on the meta device: {error}. Check image_size and in_channels; "
            "a model whose path depends on the values in its tensors cannot be counted."
        ) from error
    parameters = sum(parameter.numel() for parameter in model.parameters())
    # torch counts a multiply-add as two operations.
    return Cost(parameters, counter.get_total_flops() // 2)


def _on_meta(model: nn.Module) -> nn.Module:
    """A copy whose parameters and buffers are on the meta device; no weight is copied."""
    memo: dict[int, Tensor] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(
            torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad
        )
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    # deepcopy takes what the memo has for an object instead of copying that object.
    return copy.deepcopy(model, memo)
