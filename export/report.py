"""What ``to_onnx`` gives back: what was written, from what, and what was checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn


@dataclass(frozen=True)
class Source:
    """Where a file's weights come from: the user's model if it is known, and their checksum."""

    model: nn.Module | None
    sha256: str


@dataclass(frozen=True)
class OnnxReport:
    """What was written, and what was checked before it was.

    Attributes:
        path: the file.
        opset: version of the standard operators.
        precision: what it computes in, ``"float32"``, ``"float16"`` or ``"int8"``.
        inputs, outputs: e.g. ``x float32 [batch, 3, 224, 224]``.
        operators: how many nodes there are of each kind.
        errors: per floating-point output (error, PyTorch's own error, the first as a multiple of
            the second), relative root-mean-square against float64; of an int8 file, against
            float64 from the file's own integers on.
        images, agreeing: of how many images, and on how many the first choice was float64's, or the
            int8 model's.
        bytes: size of the file, and of the weights beside it.
        data: the file beside it that holds the weights, or None.
        source_sha256: checksum of the weights it was made from, as in its metadata.
        checks: a sentence each.
        not_in_tensorrt: operators that TensorRT's documentation does not list.
        notes: what else one should know.
        example: what the open sizes were in the example.
        seconds: time per stage.
    """

    path: Path
    opset: int
    precision: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    operators: Mapping[str, int]
    errors: Mapping[str, tuple[float, float, float]]
    images: int
    agreeing: int
    bytes: int
    data: Path | None
    source_sha256: str
    checks: tuple[str, ...]
    not_in_tensorrt: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    example: Mapping[str, int] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def top1_agreement(self) -> float:
        """Share of images on which the first choice was float64's, or the int8 model's."""
        return self.agreeing / max(self.images, 1)

    @property
    def first_choices_of(self) -> str:
        """Whose first choices the file's were counted against."""
        return "the int8 model" if self.precision == "int8" else "float64"

    def __str__(self) -> str:
        counted = ", ".join(f"{count} {name}" for name, count in self.operators.items())
        lines = [
            f"{self.path}: {self.bytes / 1e6:.1f} MB, opset {self.opset}, {self.precision}",
            f"  {'; '.join(self.inputs)} -> {'; '.join(self.outputs)}",
            f"  {counted}",
        ]
        lines += [
            f"  {name}: error {error:.2e} against float64, {ratio:.2f}x PyTorch's own"
            for name, (error, _, ratio) in self.errors.items()
        ]
        if self.images:
            lines.append(
                f"  first choice as in {self.first_choices_of} on {self.agreeing} of {self.images} "
                "images"
            )
        lines += [f"  checked: {sentence}" for sentence in self.checks]
        lines += [f"  note: {sentence}" for sentence in self.notes]
        return "\n".join(lines)
