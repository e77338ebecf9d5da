"""A model with its preprocessing and postprocessing as one module, in plain PyTorch.

::

    image[n, c, h, w] = resize_crop(pixels)[n, c, h, w] * scale[c] + shift[c]
        scale = 1 / (divisor * std),  shift = -mean / std        (float64, rounded once)
    output = top_k(softmax(model(image)))

``optimize`` captures this module instead of the model, and ``verify`` runs it as the reference. A
pixel is a whole number up to 255, which every floating-point dtype holds exactly, so it goes
straight to the dtype that the network computes in.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fastres.capture.capture import DEFAULT_IMAGE, as_arguments, derive_example, model_dtype
from fastres.checks import refusal
from fastres.errors import InputError, ModelError, OptionError
from fastres.ir import ops
from fastres.ir.graph import INNER
from fastres.transforms import InputFormat, Preprocessing, Transforms

MARGIN = (32, 96)
"""Height and width in pixels by which the derived example exceeds ``resize``: it is not square."""


class Pipeline(nn.Module):
    """The model, behind its preprocessing and before its softmax and top-k."""

    def __init__(self, model: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.preprocessing = preprocessing
        self.add_module(INNER, model)
        self.train(model.training) if model.training else super().train(False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The output for images in the format of ``preprocessing``.

        Arguments other than the image go to the model as they are.
        """
        model: nn.Module = getattr(self, INNER)
        preprocessing = self.preprocessing
        if preprocessing.input_format is not None:
            args, kwargs = self._with_image(args, kwargs)
        output = model(*args, **kwargs)
        return _postprocess(output, preprocessing)

    def _with_image(self, args: Any, kwargs: Any) -> Any:
        flat, spec = pytree.tree_flatten((args, kwargs))
        index = _first_tensor(flat)
        flat[index] = _image(flat[index], self.preprocessing, model_dtype(self))
        return pytree.tree_unflatten(flat, spec)


def requested_preprocessing(
    input_format: InputFormat | None,
    transforms: Any,
    resize: bool,
    softmax: bool,
    top_k: int | None,
    labels: Sequence[str] | None,
) -> Preprocessing | None:
    """What the options of ``optimize`` add to the model; None where they add nothing.

    Raises:
        OptionError: a value is invalid, or the options do not go together.
    """
    if isinstance(labels, str):
        raise refusal("labels", labels, "the names of the classes, in order")
    preprocessing = Preprocessing(
        input_format,
        None if transforms is None else Transforms.of(transforms),
        resize,
        softmax,
        top_k,
        None if labels is None else tuple(labels),
    )
    return None if preprocessing == Preprocessing() else preprocessing


def with_preprocessing(model: nn.Module, preprocessing: Preprocessing | None) -> nn.Module:
    """``model`` in a :class:`Pipeline`; the model itself without preprocessing.

    The result shares the model's parts, has its class's name and its forward's signature.
    """
    if preprocessing is None:
        return model
    signature = inspect.signature(model.forward)
    first = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = list(signature.parameters.values())
    if any(p.kind is inspect.Parameter.POSITIONAL_ONLY for p in parameters):
        first = first.replace(kind=inspect.Parameter.POSITIONAL_ONLY)

    def forward(self: Pipeline, *args: Any, **kwargs: Any) -> Any:
        return Pipeline.forward(self, *args, **kwargs)

    forward.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[first, *parameters]
    )
    kind = type(type(model).__name__, (Pipeline,), {"forward": forward})
    wrapped: nn.Module = kind(model, preprocessing)
    return wrapped


def example_for(model: nn.Module, preprocessing: Preprocessing | None, example_input: Any) -> Any:
    """The example input of a model with its preprocessing.

    Args:
        model: the user's model, without preprocessing.
        preprocessing: what ``optimize`` adds to it.
        example_input: the caller's; None derives one image from the first convolution and the
            transforms.

    Raises:
        OptionError: it is not in the input format, or the transforms have another number of
            channels than the first convolution.
    """
    if preprocessing is None or preprocessing.transforms is None:
        return example_input
    transforms, form = preprocessing.transforms, preprocessing.input_format
    if example_input is not None:
        try:
            image = pytree.tree_leaves(as_arguments(example_input))
            _check(image[_first_tensor(image)], preprocessing)
        except InputError as error:
            raise OptionError(f"example_input: {error}") from error
        return example_input
    derived = derive_example(model)
    channels = derived.shape[1]
    if channels != transforms.channels:
        raise OptionError(
            f"transforms has mean and std of {transforms.channels} channels, and the first "
            f"convolution takes {channels}: give one value per channel, or pass example_input"
        )
    height, width = _size(transforms, preprocessing.resize)
    shape = (1, height, width, channels) if form == "uint8_nhwc" else (1, channels, height, width)
    return torch.zeros(shape, dtype=torch.uint8, device=derived.device)


def notes(preprocessing: Preprocessing | None) -> list[str]:
    """Sentences for the receipt."""
    if preprocessing is None or preprocessing.transforms is None:
        return []
    transforms = preprocessing.transforms
    if preprocessing.resize:
        sizes = f"resizes them to {transforms.resize} and crops them to {transforms.crop}"
        return [f"the model takes {preprocessing.input_format} images of any size, and {sizes}"]
    steps = [
        f"{verb} to {size}"
        for verb, size in (("resized", transforms.resize), ("cropped", transforms.crop))
        if size is not None
    ]
    expected = f", {' and '.join(steps)} beforehand (resize=True does that too)" if steps else ""
    return [f"the model takes {preprocessing.input_format} images{expected}"]


def _size(transforms: Transforms, resize: bool) -> tuple[int, int]:
    if resize and transforms.resize is not None:
        return transforms.resize + MARGIN[0], transforms.resize + MARGIN[1]
    side = transforms.crop or transforms.resize or DEFAULT_IMAGE
    return side, side


def _first_tensor(flat: list[Any]) -> int:
    """The index of the image among flattened arguments: the first tensor."""
    for index, leaf in enumerate(flat):
        if isinstance(leaf, Tensor):
            return index
    raise InputError("got no tensor: the first tensor argument of the model is its image")


def _image(pixels: Tensor, preprocessing: Preprocessing, dtype: torch.dtype) -> Tensor:
    """The normalised image [N, C, H, W] in ``dtype``, resized where asked for, of uint8 pixels."""
    _check(pixels, preprocessing)
    transforms = preprocessing.transforms
    assert transforms is not None
    image = pixels.permute(0, 3, 1, 2) if preprocessing.input_format == "uint8_nhwc" else pixels
    if preprocessing.resize:
        assert transforms.resize is not None and transforms.crop is not None
        size = (transforms.resize, transforms.crop)
        image = ops.resize_crop(image, *size, transforms.interpolation, transforms.antialias)
    scale, shift = (
        torch.tensor(values, dtype=torch.float64, device=pixels.device)
        for values in (transforms.scale, transforms.shift)
    )
    result: Tensor = ops.scale_shift(image.to(dtype), scale, shift, "none")
    return result


def _check(pixels: Tensor, preprocessing: Preprocessing) -> None:
    transforms, form = preprocessing.transforms, str(preprocessing.input_format)
    assert transforms is not None
    order = "[N, H, W, C]" if form == "uint8_nhwc" else "[N, C, H, W]"
    axis = 3 if form == "uint8_nhwc" else 1
    channels = transforms.channels
    if pixels.dtype != torch.uint8 or pixels.dim() != 4 or pixels.shape[axis] != channels:
        raise InputError(
            f"got {pixels.dtype} {list(pixels.shape)}, expected torch.uint8 {order} with C = "
            f"{channels}, as input_format={form!r} and transforms say: the pixels as they are "
            "decoded, not normalised"
        )


def _postprocess(output: Any, preprocessing: Preprocessing) -> Any:
    """Softmax and top-k over the classes, at least in float32."""
    if not preprocessing.softmax and preprocessing.top_k is None and preprocessing.labels is None:
        return output
    if not isinstance(output, Tensor) or output.dim() != 2:
        got = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ModelError(
            f"softmax, top_k and labels need a model that answers one tensor [N, classes]; this "
            f"one answers {got}: leave them out"
        )
    classes = output.shape[1]
    if preprocessing.labels is not None and len(preprocessing.labels) != classes:
        raise OptionError(
            f"got {len(preprocessing.labels)} labels for a model of {classes} classes"
        )
    if preprocessing.softmax:
        wide = torch.promote_types(output.dtype, torch.float32)
        output = torch.softmax(output, 1, dtype=wide)
    if preprocessing.top_k is None:
        return output
    if preprocessing.top_k > classes:
        raise OptionError(f"top_k={preprocessing.top_k}: the model has {classes} classes")
    values, indices = torch.topk(output, preprocessing.top_k, dim=1)
    return values, indices
