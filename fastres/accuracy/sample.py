"""Inputs to compare on where nobody gave any, and what can be said of inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx


def random_arguments(
    like: Sequence[Any], device: str, seed: int = 0, example: Sequence[Any] = ()
) -> list[Any]:
    """Flattened arguments of the shapes and dtypes of ``like``, the same for the same seed.

    Args:
        like: flattened arguments, whose tensors need have no values (meta tensors, say).
        device: where the tensors shall be.
        seed: of the random numbers, which are drawn on the CPU.
        example: arguments that were given once: tensors that hold neither images nor other
            floating-point numbers (indices, masks) keep its values where the shapes are the same.

    Returns:
        N(0, 1) for floating-point tensors, 0 to 255 for bytes, ``example``'s values or zero for
        other tensors, and everything that is no tensor as it is.
    """
    generator = torch.Generator().manual_seed(seed)
    examples = [*example, *(None for _ in range(len(like) - len(example)))]
    return [
        _drawn(leaf, other, generator).to(device) if isinstance(leaf, Tensor) else leaf
        for leaf, other in zip(like, examples, strict=True)
    ]


def _drawn(leaf: Tensor, example: Any, generator: torch.Generator) -> Tensor:
    if leaf.is_floating_point():
        noise = torch.randn(leaf.shape, generator=generator, dtype=torch.float32, device="cpu")
        return noise.to(leaf.dtype)
    if leaf.dtype == torch.uint8:
        return torch.randint(
            0, 256, leaf.shape, generator=generator, dtype=torch.uint8, device="cpu"
        )
    if isinstance(example, Tensor) and example.shape == leaf.shape and not example.is_meta:
        return example.cpu()
    return torch.zeros(leaf.shape, dtype=leaf.dtype, device="cpu")


def leading(sample: Sequence[Any], count: int) -> list[Any]:
    """The first ``count`` images of flattened arguments."""
    sizes = [leaf.shape[0] for leaf in sample if isinstance(leaf, Tensor) and leaf.dim() == 4]
    batch = sizes[0] if sizes else 0

    def first(leaf: Any) -> Any:
        batched = isinstance(leaf, Tensor) and leaf.dim() >= 2 and leaf.shape[0] == batch
        return leaf[:count] if batched else leaf

    return [first(leaf) for leaf in sample]


def on_device(flat: Sequence[Any], device: str) -> list[Any]:
    """Tensors on a device, everything else as it is."""
    return [leaf.to(device) if isinstance(leaf, Tensor) else leaf for leaf in flat]


def shapes_of(flat: Sequence[Any]) -> str:
    """The tensors' shapes, to be read."""
    return ", ".join(str(list(leaf.shape)) for leaf in flat if isinstance(leaf, Tensor))


def draws_random_numbers(module: fx.GraphModule) -> bool:
    """Whether two calls of a graph answer differently, so that there is nothing to compare."""
    return any(
        torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        for node in module.graph.nodes
    )
