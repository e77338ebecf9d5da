"""``python -m fastres.verify``: optimise a model and compare it with the original.

In Python, ``fastres.verify`` is the function, not this module, which is a program only.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fastres.accuracy.bounds import BOUND
from fastres.dtypes import REQUESTABLE
from fastres.errors import FastresError, OptionError
from fastres.optimization import optimize
from fastres.verification import verify
from fastres.workload import inputs, model_source

if __name__ != "__main__":
    raise ImportError("run it as python -m fastres.verify; the function is fastres.verify()")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: arguments without the program's name; None takes them from ``sys.argv``.

    Returns:
        0 within the bound, 1 beyond it, 2 for arguments that cannot be.
    """
    options = _parser().parse_args(argv)
    try:
        return _run(options)
    except FastresError as error:
        print(f"fastres verify: {error}", file=sys.stderr)
        return 2


def _run(options: argparse.Namespace) -> int:
    if options.images is not None and not options.images.is_dir():
        raise OptionError(f"--images {options.images}: expected a directory of images")
    if options.count < 1 or options.size < 1 or not options.bound > 0:
        raise OptionError("--count, --size and --bound: expected positive numbers")
    chosen = model_source.from_options(options.depth, options.model)
    model = model_source.build(chosen, options.seed)
    if options.images is not None:
        images, different = inputs.photographs(options.images, options.count, options.size)
        data = f"{different} photographs"
    else:
        channels = inputs.input_channels(model)
        images = inputs.synthetic_images(options.count, channels, options.size, options.seed)
        data = f"{options.count} synthetic images"
    if chosen.has_random_weights:
        for sentence in inputs.calibrate_random_weights(model, images, options.seed):
            print(sentence)
    calibration = images.split(8) if options.precision == "int8" else None
    fast = optimize(
        model,
        images[:1],
        precision=options.precision,
        engine=options.engine,
        calibration=calibration,
    )
    print(fast.report)
    result = verify(model, fast, images.split(8), bound=options.bound)
    print(f"{data} of {list(images.shape[1:])}:\n{result}")
    return 0 if result.passed else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fastres.verify",
        description="Optimise a model and compare its answers with the model's own in float64.",
        epilog="Exit status: 0 within the bound, 1 beyond it, 2 for arguments that cannot be.",
    )
    add = parser.add_argument
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--depth", type=int, help="a ResNet of fastres.models, e.g. 50")
    which.add_argument(
        "--model", metavar="NAME", help="own name, torchvision:NAME, timm:NAME or module:function"
    )
    add(
        "--precision",
        choices=sorted(REQUESTABLE),
        help="default: the model's own; int8 is calibrated on the same images",
    )
    add("--engine", default="auto", help="default: auto")
    add("--images", type=Path, metavar="DIR", help="photographs instead of synthetic images")
    add("--count", type=int, default=16, help="number of images (default: 16)")
    add("--size", type=int, default=224, help="pixels of a side (default: 224)")
    add("--seed", type=int, default=0, help="of weights and synthetic images (default: 0)")
    add(
        "--bound",
        type=float,
        default=BOUND,
        help=f"largest allowed multiple of torch eager's own error (default: {BOUND:g})",
    )
    return parser


sys.exit(main())
