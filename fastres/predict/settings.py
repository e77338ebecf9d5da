"""The command line of ``python -m fastres.predict``."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastres.dtypes import REQUESTABLE
from fastres.predict.calibration import OWN_IMAGES

_EPILOG = """\
Weights are read without running code: .safetensors, or .pth of which only tensors are taken. How
images are resized, cropped and normalised comes from the model: from torchvision's weights (those
that the file is named after, else the newest), from timm, from a saved model; for fastres's own
ImageNet networks the shorter side is resized to 256 and the central 224 x 224 pixels are kept.
Exit status: 0, or 1 if an image could not be classified, or 2 for options that cannot be.
"""


def parser() -> argparse.ArgumentParser:
    """The parser; its namespace's names are those of the options."""
    command_parser = argparse.ArgumentParser(
        prog="python -m fastres.predict",
        description="Classify image files: the likeliest classes of each, with probabilities.",
        epilog=_EPILOG,
    )
    add = command_parser.add_argument
    add("images", nargs="+", type=Path, metavar="IMAGE|DIR", help="files, or folders of images")
    add(
        "--model",
        required=True,
        metavar="NAME",
        help="a name in fastres.models, torchvision:NAME, timm:NAME, module:function that returns "
        "the model with its weights, or a file that fast.save() wrote",
    )
    add("--weights", type=Path, metavar="FILE", help="trained weights: .safetensors, .pth, .pt")
    add("--classes", type=_positive, metavar="N", help="of the model, where it is not its default")
    add("--labels", type=Path, metavar="FILE", help="classes' names: a line each, or JSON")
    add("--top-k", type=_positive, default=5, metavar="K", help="classes to show (default: 5)")
    add("--batch", type=_positive, default=32, metavar="N", help="images at a time (default: 32)")
    add("--size", type=_positive, metavar="N", help="pixels of a side, where not the model's own")
    add("--transforms", type=Path, metavar="FILE", help="how images are prepared, as JSON")
    add("--exif", action="store_true", help="turn images as their EXIF data asks")
    add(
        "--precision",
        choices=REQUESTABLE,
        help=f"default: the model's own; int8 takes its ranges from the first {OWN_IMAGES} images "
        "if there is no --calibration",
    )
    add(
        "--calibration",
        type=Path,
        metavar="DIR",
        help="images for the ranges of int8, or of fp16, where layers that would overflow then "
        "stay float32",
    )
    add("--device", metavar="D", help="cpu, cuda or cuda:NUMBER (default: the model's own)")
    add("--threads", type=_positive, metavar="N", help="default: what this process may use")
    add("--csv", type=Path, metavar="PATH", help="write a row per image and class")
    add("--json", type=Path, metavar="PATH", help="write an entry per image")
    add("--parquet", type=Path, metavar="PATH", help="as --csv, in Parquet (needs pyarrow)")
    add("--quiet", action="store_true", help="print no results, only what went wrong")
    return command_parser


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 1")
    return value
