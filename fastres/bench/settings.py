"""The bench's command line, read and checked."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, TypeVar

import torch

from fastres.bench import device as devices
from fastres.bench.peers import catalogue
from fastres.bench.peers.peer import DTYPES, PRECISIONS
from fastres.errors import OptionError
from fastres.system import target
from fastres.workload import inputs, model_source

_T = TypeVar("_T")
Cold = Literal["first", "each", "none"]
_DEPTHS = (18, 34, 50, 101, 152)

_EPILOG = """\
Each contender gets the same float32 images and gives float32 answers. The reference, 1.00x, is
torch eager in float32 and NCHW: the model as its user has it. Exit status: 0, or 1 if fastres
failed the check of its answers, or 2 for options that cannot be.
"""


@dataclass(frozen=True)
class Settings:
    """What is measured, and where the result goes. The fields are those of ``--help``."""

    source: model_source.Source
    batches: tuple[int, ...]
    size: int
    device: torch.device
    precisions: tuple[str, ...]
    threads: int
    images: Path | None
    peers: tuple[str, ...]
    cold: Cold
    seconds: float
    seed: int
    reference: str
    json: Path | None
    plot: Path | None
    markdown: bool
    from_record: Path | None


def parse(argv: Sequence[str] | None) -> Settings:
    """Read the command line.

    Args:
        argv: arguments without the program's name; None takes them from ``sys.argv``.

    Raises:
        OptionError: a value that cannot be.
        SystemExit: for ``--help`` and what argparse rejects.
    """
    options = _parser().parse_args(argv)
    model = f"resnet{options.depth}" if options.depth else options.model or "resnet50"
    if options.images is not None and not options.images.is_dir():
        raise OptionError(f"--images {options.images}: expected a directory of images")
    if options.from_record is not None and options.json is not None:
        raise OptionError("--json writes what --from-record reads; leave one of them out")
    if options.plot is not None and find_spec("matplotlib") is None:
        raise OptionError("--plot needs matplotlib: pip install 'fastres[bench]'")
    for option, path in (("--json", options.json), ("--plot", options.plot)):
        if path is not None and not path.absolute().parent.is_dir():
            raise OptionError(f"{option} {path}: there is no directory {path.parent} to write to")
    device = devices.parse(options.device)
    precisions = _precisions(options.precision, device.type)
    return Settings(
        source=model_source.parse(model),
        batches=_distinct("--batch", options.batch),
        size=options.size,
        device=device,
        precisions=precisions,
        threads=options.threads or target.cpu_threads(),
        images=options.images,
        peers=_peers(options.peers, device.type, precisions),
        cold=options.cold,
        seconds=options.seconds,
        seed=options.seed,
        reference=options.reference,
        json=options.json,
        plot=options.plot,
        markdown=options.markdown,
        from_record=options.from_record,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fastres.bench",
        description="Time a model in fastres and elsewhere, side by side, after checking answers.",
        epilog=_EPILOG,
    )
    add = parser.add_argument
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--depth", type=int, choices=_DEPTHS, help="a ResNet of fastres.models")
    which.add_argument(
        "--model",
        metavar="NAME",
        help="a name in fastres.models, torchvision:NAME, timm:NAME, or module:function that "
        "returns the model (default: resnet50)",
    )
    add("--batch", type=_positive, nargs="+", default=[1, 8], metavar="N", help="default: 1 8")
    add("--size", type=_positive, default=224, help="pixels of a side (default: 224)")
    add("--device", default="cpu", metavar="D", help="cpu (default), cuda or cuda:NUMBER")
    add(
        "--precision",
        nargs="+",
        choices=DTYPES,
        help="default on a CPU: fp32, and bf16 where oneDNN has it on this processor; on a GPU: "
        "tf32, what torch itself does to float32 convolutions, and fp16; on both also int8, which "
        f"each contender's own tools make, with {inputs.CALIBRATION_IMAGES} calibration images (on "
        "a GPU fastres alone)",
    )
    add("--threads", type=_positive, metavar="N", help="default: what this process may use")
    add("--images", type=Path, metavar="DIR", help="photographs instead of synthetic images")
    add(
        "--peers",
        nargs="+",
        metavar="PEER",
        help=f"none, all, or some of {', '.join(catalogue.PEERS)} (default: all but "
        "fastres-onednn; the table names those that are not installed)",
    )
    add(
        "--cold",
        choices=("first", "each", "none"),
        default="first",
        help="measure cold start and peak memory, each contender in a process of its own, at the "
        "first batch size (the default), at each, or not",
    )
    add(
        "--seconds",
        type=_not_negative,
        default=15.0,
        metavar="S",
        help="time in turns for so long per batch size, at least 10 rounds (default: 15)",
    )
    add("--seed", type=int, default=0, help="of weights, images and order (default: 0)")
    add(
        "--reference",
        default="eager-fp32",
        metavar="KEY",
        help="contender and precision that the ratios are to, e.g. compile-bf16 (default: "
        "eager-fp32)",
    )
    add("--json", type=Path, metavar="PATH", help="write the record: every time, the environment")
    add("--plot", type=Path, metavar="PATH", help="draw images per second as a PNG")
    add("--markdown", action="store_true", help="print the tables as Markdown")
    add("--from-record", type=Path, metavar="PATH", help="measure nothing, print this record")
    return parser


def _precisions(requested: Sequence[str] | None, device: str) -> tuple[str, ...]:
    if not requested:
        if device == "cuda":
            return ("tf32", "fp16")
        return ("fp32", "bf16") if target.onednn_supports(torch.bfloat16) else ("fp32",)
    for precision in requested:
        if precision not in PRECISIONS[device]:
            others = {"cpu": "GPUs", "cuda": "CPUs"}[device]
            raise OptionError(f"--precision {precision}: only {others} have it; see --device")
    return _distinct("--precision", requested)


def _peers(
    requested: Sequence[str] | None, device: str, precisions: Sequence[str]
) -> tuple[str, ...]:
    """Names of peers; None for what a user would take instead of fastres.

    Those asked for by name must be there; others may not, the table says so.
    """
    known = catalogue.peers(device)
    fitting = {
        name: peer
        for name, peer in known.items()
        if not set(precisions).isdisjoint(peer.precisions)
    }
    if requested is None:
        return tuple(name for name, peer in fitting.items() if peer.alternative)
    words = _distinct("--peers", requested)
    for word in ("none", "all"):
        if word in words and len(words) > 1:
            raise OptionError(f"--peers {' '.join(requested)}: {word} stands alone")
    if words == ("none",):
        return ()
    if words == ("all",):
        return tuple(fitting)
    for word in words:
        if word not in known:
            raise OptionError(f"--peers {word}: expected none, all or some of {', '.join(known)}")
        if word not in fitting:
            raise OptionError(
                f"--peers {word}: it computes in {', '.join(known[word].precisions)}, and "
                f"--precision has {', '.join(precisions)}"
            )
        needs = known[word].missing(device)
        if needs is not None:
            raise OptionError(f"--peers {word}: it needs {needs}")
    return words


def _distinct(option: str, values: Sequence[_T]) -> tuple[_T, ...]:
    twice = [value for value in values if list(values).count(value) > 1]
    if twice:
        raise OptionError(f"{option}: {twice[0]} is there twice")
    return tuple(values)


def _number(text: str, kind: Callable[[str], float], minimum: float, expected: str) -> float:
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not minimum <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: expected {expected}")
    return value


def _positive(text: str) -> int:
    return int(_number(text, int, 1, "a whole number of at least 1"))


def _not_negative(text: str) -> float:
    return _number(text, float, 0, "a number of at least 0")
