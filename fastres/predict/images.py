"""Images from files, decoded by several threads while the network runs on the previous batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from torch import Tensor

from fastres.errors import InputError, OptionError
from fastres.preprocess import list_images, load_pixels
from fastres.transforms import Transforms


@dataclass(frozen=True)
class Decoded:
    """One image file: its pixels, uint8 [H, W, C], or what is wrong with it."""

    path: Path
    pixels: Tensor | None
    error: str | None = None


def find(paths: Iterable[Path]) -> list[Path]:
    """The files themselves, and the images in the folders and the folders in these.

    Raises:
        OptionError: a folder holds no image.
    """
    try:
        found = [list_images(path) if path.is_dir() else [path] for path in paths]
    except InputError as error:
        raise OptionError(str(error)) from error
    return [path for some in found for path in some]


def decode(
    paths: Sequence[Path], transforms: Transforms, exif: bool, workers: int, ahead: int
) -> Iterator[Decoded]:
    """Decode, resize and crop in order, at most ``ahead`` images before they are asked for.

    Pillow releases the interpreter's lock while it decodes, so threads are enough.
    """

    def one(path: Path) -> Decoded:
        try:
            return Decoded(path, load_pixels(path, transforms, exif_orientation=exif))
        except InputError as error:
            return Decoded(path, None, str(error))
        except Warning as warning:  # Pillow's, about a damaged file, under python -W error
            return Decoded(path, None, f"{path}: {warning}")
        except MemoryError:
            return Decoded(path, None, f"{path} is too large to decode in this memory")

    remaining = iter(paths)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="fastres-decode")
    try:
        waiting: deque[Future[Decoded]] = deque(
            pool.submit(one, path) for path in islice(remaining, ahead)
        )
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(one, path) for path in islice(remaining, 1))
            yield result
    finally:
        pool.shutdown(cancel_futures=True)


def in_batches(images: Iterable[Decoded], size: int) -> Iterator[list[Decoded]]:
    """Lists of ``size`` images; the last may be shorter."""
    remaining = iter(images)
    while batch := list(islice(remaining, size)):
        yield batch


def by_shape(images: Sequence[Decoded]) -> list[list[int]]:
    """Positions of the readable images, those of one shape together."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, image in enumerate(images):
        if image.pixels is not None:
            groups.setdefault(tuple(image.pixels.shape), []).append(index)
    return list(groups.values())
