"""A pool of images, and random weights under which a network's outputs differ between them.

No trained weights are at hand offline, and a newly initialised network tests little: its BatchNorms
are the identity, timm sets the last one of every block to zero, activations grow from block to
block, and a thousand almost equal logits make the first choice a matter of rounding. So for
networks with random weights (never for one that the user's own function returned)
`calibrate_random_weights` draws

- BatchNorm's weight from U(0.5, 1.5), the last of a residual block's from U(0.1, 0.3), because
  training leaves the branch small beside the shortcut; its bias from N(0, 0.1);
- BatchNorm's running statistics from the pool itself, so that activations keep their scale;
- the classifier's rows from the pool's own features, one image a class, as far as there are
  classes, so that each image has a clear first choice, as after training.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from fastres import preprocess
from fastres.errors import OptionError

CALIBRATION_IMAGES = 32
"""How many the ranges of activations are taken from, where a precision needs such."""

CALIBRATION_SEED = 1000
"""Added to the seed, these images are others than those that are timed."""

_CHUNK = 16  # images per pass over the pool: enough for statistics, little enough for memory
_LOGIT = 10.0  # what an image's own class gets, beside about N(0, 1) for the others


def pool_size(batches: tuple[int, ...], minimum: int = 16) -> int:
    """How many images make whole batches of every size and at least ``minimum`` each time."""
    return max(images_checked(batch, minimum) for batch in batches)


def images_checked(batch: int, minimum: int = 16) -> int:
    """How many images of the pool are checked at this batch size: whole batches of it."""
    return -(-minimum // batch) * batch


def synthetic_images(count: int, channels: int, size: int, seed: int) -> torch.Tensor:
    """Draw images as uneven as photographs are: large blotches under fine noise.

    Plain white noise would not do: averaged over its pixels, every such image is the same.

    Returns:
        float32, ``[count, channels, size, size]``.
    """
    generator = torch.Generator().manual_seed(seed)
    blotches = torch.randn(
        (count, channels, 7, 7), generator=generator, dtype=torch.float32, device="cpu"
    )
    images = F.interpolate(blotches, size=(size, size), mode="bilinear", align_corners=False)
    noise = torch.randn(
        (count, channels, size, size), generator=generator, dtype=torch.float32, device="cpu"
    )
    return images.add_(noise, alpha=0.3).contiguous()


def photographs(folder: Path, count: int, size: int) -> tuple[torch.Tensor, int]:
    """Load photographs as ImageNet's evaluation does, the shorter side resized to 256/224 of size.

    Args:
        folder: the directory with the image files.
        count: how many are needed; if there are fewer, they repeat.
        size: pixels of a side.

    Returns:
        float32, ``[count, 3, size, size]``, and how many different ones that are.

    Raises:
        InputError: there is none, or one cannot be read.
    """
    paths = preprocess.list_images(folder)[:count]
    transforms = preprocess.Transforms(resize=round(size * 256 / 224), crop=size)
    images = preprocess.load_images(paths, transforms)
    repeated = torch.arange(count, dtype=torch.int64, device="cpu") % len(paths)
    return images[repeated].contiguous(), len(paths)


def input_channels(model: nn.Module) -> int:
    """Channels of the images that the model takes, by its first convolution.

    Raises:
        OptionError: there is no convolution.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    raise OptionError("the model has no torch.nn.Conv2d; the bench is for networks on images")


@torch.no_grad()
def calibrate_random_weights(model: nn.Module, pool: torch.Tensor, seed: int) -> list[str]:
    """Give a network with random weights the weights described above, in place.

    Args:
        model: the network, in evaluation mode.
        pool: the images, ``[N, C, H, W]``.
        seed: of what is drawn.

    Returns:
        What was done, as sentences for the record.
    """
    generator = torch.Generator().manual_seed(seed)
    sentences = [f"convolutions drawn by the model's own initialiser, seed {seed}"]
    norms = [m for m in model.modules() if isinstance(m, (nn.BatchNorm2d, nn.BatchNorm1d))]
    last_of_blocks = _last_of_blocks(model)
    for norm in norms:
        if norm.affine:
            low, high = (0.1, 0.3) if norm in last_of_blocks else (0.5, 1.5)
            norm.weight.uniform_(low, high, generator=generator)
            norm.bias.normal_(0.0, 0.1, generator=generator)
    if norms:
        sentences.append(
            f"{len(norms)} BatchNorms: weight U(0.5, 1.5), U(0.1, 0.3) in the "
            f"{len(last_of_blocks)} that end a block, bias N(0, 0.1), seed {seed}; running "
            "statistics of the bench's own images"
        )
        with _gathering_statistics(norms):
            for images in _chunks(pool):
                model(images)
    classes = _calibrate_classifier(model, pool, generator)
    if classes:
        sentences.append(
            f"classifier: rows of {classes} classes from the features of as many images"
        )
    return sentences


def _chunks(pool: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The pool in chunks of about equal size: BatchNorm takes no statistics of a single image."""
    return pool.tensor_split(max(1, len(pool) // _CHUNK))


def _last_of_blocks(model: nn.Module) -> set[nn.Module]:
    """The BatchNorms before residual additions, by the names that all ResNets share."""
    last: set[nn.Module] = set()
    for block in model.modules():
        if hasattr(block, "downsample"):
            named = {n: m for n, m in block.named_children() if re.fullmatch(r"bn\d", n)}
            if named:
                last.add(named[max(named)])
    return last


@contextmanager
def _gathering_statistics(norms: list[nn.BatchNorm2d | nn.BatchNorm1d]) -> Iterator[None]:
    """Let the BatchNorms, and nothing else (dropout), average what passes through them."""
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average over all passes
        norm.train()
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.eval()
            norm.momentum = momentum


def _calibrate_classifier(model: nn.Module, pool: torch.Tensor, generator: torch.Generator) -> int:
    """Set the classifier's rows to the normalised features of the pool's images.

    Returns:
        How many rows, or 0 if the model does not end in a linear layer with bias.
    """
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linears:
        return 0
    classifier = linears[-1]
    features_of_chunks: list[torch.Tensor] = []
    handle = classifier.register_forward_pre_hook(
        lambda _, inputs: features_of_chunks.append(inputs[0])
    )
    try:
        outputs_of_chunks = [model(images) for images in _chunks(pool)]
    finally:
        handle.remove()
    ends_there = all(
        isinstance(output, torch.Tensor) and output.shape[1:] == (classifier.out_features,)
        for output in outputs_of_chunks
    )
    if (
        classifier.bias is None
        or not ends_there
        or len(features_of_chunks) != len(outputs_of_chunks)
    ):
        return 0
    features = torch.cat(features_of_chunks)
    mean = features.mean(0)
    centred = features - mean
    length = centred.norm(dim=1).mean()
    classes = min(len(features), classifier.out_features)
    noise = torch.randn(
        classifier.weight.shape, generator=generator, dtype=torch.float32, device="cpu"
    )
    rows = F.normalize(noise, dim=1)
    rows[:classes] = F.normalize(centred[:classes], dim=1)
    classifier.weight.copy_(rows * (_LOGIT / length))
    classifier.bias.copy_(-(classifier.weight @ mean))
    return classes
