"""Images for the calibration of ``--precision int8`` or ``fp16``: a folder's, or those at hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fastres.errors import OptionError
from fastres.predict import images
from fastres.predict.results import as_text
from fastres.quantization.folder import evenly
from fastres.quantization.settings import CALIBRATED
from fastres.system import target
from fastres.transforms import Transforms

OWN_IMAGES = 128
"""Of the images to classify, where no others are given: as many as ranges need, and no longer."""

BATCH = 8


@dataclass
class CalibrationImages:
    """Image files for a calibration.

    Attributes:
        paths: the files; those that cannot be read are left out.
        origin: where they come from, for messages.
        exif: turn them as their EXIF data asks.
        count: how many were read so far.
    """

    paths: Sequence[Path]
    origin: str
    exif: bool
    count: int = 0

    def batches(self, transforms: Transforms) -> Iterator[Tensor]:
        """Batches uint8 [N, H, W, C] of images of one shape, decoded ahead.

        Raises:
            OptionError: no image can be read.
        """
        workers = min(target.cpu_threads(), 8)
        decoded = images.decode(self.paths, transforms, self.exif, workers, 2 * BATCH)
        for batch in images.in_batches(decoded, BATCH):
            for group in images.by_shape(batch):
                chosen = [batch[index].pixels for index in group]
                self.count += len(chosen)
                yield torch.stack([pixels for pixels in chosen if pixels is not None])
        if not self.count:
            raise OptionError(
                f"calibration: none of {self.origin} can be read; give others with --calibration"
            )

    def __str__(self) -> str:
        return f"calibrated on {self.count} images, {self.origin}"


def chosen(
    precision: str | None, folder: Path | None, paths: Sequence[Path], exif: bool
) -> CalibrationImages | None:
    """What the command line asks for; None where nothing is calibrated.

    float16 is calibrated only where there is a folder, int8 always.

    Args:
        precision: of ``--precision``.
        folder: of ``--calibration``.
        paths: the images to classify.

    Raises:
        OptionError: the precision is not calibrated, or the folder holds no image.
    """
    if folder is not None:
        if precision not in CALIBRATED:
            raise OptionError(
                f"--calibration {folder}: got with "
                f"{'no --precision' if precision is None else f'--precision {precision}'}, "
                f"expected --precision {' or '.join(CALIBRATED)}; nothing else is calibrated"
            )
        if not folder.is_dir():
            raise OptionError(f"--calibration {folder}: expected a folder of images")
        origin = f"those in {as_text(str(folder))}"
        return CalibrationImages(evenly(images.find([folder])), origin, exif)
    if precision != "int8":
        return None
    return CalibrationImages(paths[:OWN_IMAGES], "the first of these", exif)
