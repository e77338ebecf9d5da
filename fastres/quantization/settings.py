"""What the caller of ``optimize`` asked for about int8, checked at the door."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastres.checks import refusal, require_bool, require_one_of
from fastres.errors import OptionError
from fastres.quantization.observers import OBSERVERS

CALIBRATED = ("int8", "fp16")
"""Precisions whose ranges end where activations may be."""

WIDER = ("fp32", "bf16")
"""Precisions that single layers can keep."""


@dataclass(frozen=True)
class Quantization:
    """How a model is quantised.

    Attributes:
        observer: how an activation's range is chosen, one of
            :data:`fastres.quantization.observers.OBSERVERS`.
        bias_correction: let each bias make up for the mean error of its layer's rounded weights
            (Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction",
            2019).
        equalization: before, even out the ranges of neighbouring layers' channels (the same).
        keep: dotted names of modules that stay wider, with all that they hold, and the precision.

    Raises:
        OptionError: a value is not one of those.
    """

    observer: str = "mse"
    bias_correction: bool = True
    equalization: bool = False
    keep: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_one_of("observer", self.observer, OBSERVERS)
        require_bool("bias_correction", self.bias_correction)
        require_bool("equalization", self.equalization)
        if not isinstance(self.keep, Mapping) or not all(
            isinstance(name, str) for name in self.keep
        ):
            raise refusal("keep", self.keep, "a dict of module names and precisions", _KEEP)
        for name, precision in self.keep.items():
            require_one_of(f"keep[{name!r}]", precision, WIDER)

    def keeps(self, module: str) -> bool:
        """Whether a module stays wider, by itself or as a part of one that does."""
        return any(module == name or module.startswith(f"{name}.") for name in self.keep)


_KEEP = 'for example keep={"fc": "fp32"}'


def requested(
    precision: str | None, calibration: Any, options: Mapping[str, Any]
) -> Quantization | None:
    """The settings of an ``optimize`` call, None where it is not about int8.

    Calibration data without such settings is float16's.

    Args:
        options: those of :class:`Quantization` that were passed, None where they were not.

    Raises:
        OptionError: int8 without calibration data, or options of int8 for another precision.
    """
    passed = {name: value for name, value in options.items() if value is not None}
    if precision == "int8":
        if calibration is None:
            raise OptionError(
                "precision='int8' needs calibration=...: images as the model will see them, from "
                "which the ranges of its activations are taken. Pass an iterable of batches "
                "[N, C, H, W] (a list of tensors, a DataLoader); 100 to 500 images are enough"
            )
        return Quantization(**passed)
    if passed:
        raise OptionError(
            f"{', '.join(passed)}: got with precision={precision!r}, expected precision='int8'; "
            "nothing else is quantised."
        )
    if calibration is not None and precision not in CALIBRATED:
        raise OptionError(
            f"calibration: got with precision={precision!r}, expected precision='int8' or 'fp16'; "
            "other precisions have the range of float32."
        )
    return None
