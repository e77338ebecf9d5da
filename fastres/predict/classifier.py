"""An optimised model that takes decoded images and gives probabilities, whatever it came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fastres.errors import OptionError
from fastres.optimized import OptimizedModule
from fastres.predict.results import Choice
from fastres.transforms import Preprocessing, Transforms


class Classifier:
    """Calls an optimised model with decoded images.

    Attributes:
        decoding: the transforms that images need before they are given to the classifier.

    Raises:
        OptionError: the model needs transforms, or its answers are not enough for ``top_k``.
    """

    def __init__(
        self,
        fast: OptimizedModule,
        transforms: Transforms | None,
        labels: Sequence[str] | None,
        top_k: int,
    ) -> None:
        self.fast = fast
        self.inside = fast.preprocessing or Preprocessing()
        self.labels = self.inside.labels if labels is None else labels
        self.top_k = top_k
        chosen = self.inside.transforms or transforms
        if chosen is None:
            raise OptionError(
                "--model: the saved model takes normalised images and does not say how; give "
                "--transforms, or optimise it with input_format and transforms"
            )
        if self.inside.transforms is not None and transforms is not None:
            raise OptionError("--transforms: the saved model has its own")
        self.transforms = chosen
        self.decoding = replace(chosen, resize=None, crop=None) if self.inside.resize else chosen
        self._check_outputs()

    def _check_outputs(self) -> None:
        built_in_top_k = self.inside.top_k
        if built_in_top_k is None:
            return
        if built_in_top_k < self.top_k:
            raise OptionError(
                f"--top-k {self.top_k}: the saved model answers {built_in_top_k} classes"
            )
        if not self.inside.softmax:
            raise OptionError(
                "--model: the saved model answers its largest numbers without the others, so there "
                "are no probabilities; optimise it with softmax=True too"
            )

    def __call__(self, images: Sequence[Tensor]) -> list[tuple[Choice, ...]]:
        """The likeliest classes of each image, the likeliest first.

        Args:
            images: uint8 [H, W, C], all of one shape.

        Raises:
            InputError: the model does not take images of this size.
            OptionError: the answers are no classes, or there is another number of labels.
        """
        with torch.no_grad():
            outputs = self.fast(self._batch(torch.stack(list(images))))
            values, indices = self._largest(outputs)
        rows = zip(values.cpu().tolist(), indices.cpu().tolist(), strict=True)
        return [
            tuple(
                Choice(index, None if self.labels is None else self.labels[index], value)
                for value, index in zip(*row, strict=True)
            )
            for row in rows
        ]

    def _batch(self, pixels: Tensor) -> Tensor:
        batch = pixels.to(self.fast.report.device)
        if self.inside.input_format == "uint8_nhwc":
            return batch
        batch = batch.permute(0, 3, 1, 2).contiguous()
        if self.inside.input_format == "uint8_nchw":
            return batch
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device=batch.device).view(1, -1, 1, 1)
            for values in (self.transforms.mean, self.transforms.std)
        )
        image = batch.float().div_(self.transforms.divisor).sub_(mean).div_(std)
        return image.to(self._dtype())

    def _dtype(self) -> torch.dtype:
        """Of the images that a model takes which does not preprocess them."""
        leaves = pytree.tree_leaves(self.fast.example)
        return next((x.dtype for x in leaves if isinstance(x, Tensor)), torch.float32)

    def _largest(self, outputs: object) -> tuple[Tensor, Tensor]:
        if self.inside.top_k is not None:
            assert isinstance(outputs, tuple)
            values, indices = outputs
            self._check_labels(int(indices.max()) + 1 if len(indices) else 0, exactly=False)
            return values[:, : self.top_k].float(), indices[:, : self.top_k]
        if not isinstance(outputs, Tensor) or outputs.dim() != 2:
            raise OptionError("--model: it does not answer one row of classes per image")
        self._check_labels(outputs.shape[1], exactly=True)
        chances = outputs.float() if self.inside.softmax else torch.softmax(outputs.float(), 1)
        values, indices = torch.topk(chances, min(self.top_k, outputs.shape[1]), dim=1)
        return values, indices

    def _check_labels(self, classes: int, exactly: bool) -> None:
        label_count = None if self.labels is None else len(self.labels)
        if label_count is not None and (
            label_count != classes if exactly else label_count < classes
        ):
            raise OptionError(f"--labels: {label_count} names for a model of {classes} classes")
