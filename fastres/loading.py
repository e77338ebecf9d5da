"""``load``: an optimised model from its file, without its code and without capturing it."""

from __future__ import annotations

import os
import time
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fastres.artifact.container import File
from fastres.artifact.document import Description, Parts
from fastres.artifact.receipt import options_from_json
from fastres.artifact.recipe import Recipe
from fastres.capture.capture import Captured
from fastres.errors import ArtifactError, FastresError, TargetError
from fastres.optimized import OptimizedModule
from fastres.options import Options
from fastres.runtime.autocast import without_autocast
from fastres.system.device import checked_device
from fastres.system.files import as_path
from fastres.system.plain_tensors import refuse_under_tracing
from fastres.system.threads import preparing


def load(
    path: str | os.PathLike[str],
    *,
    device: torch.device | str | None = None,
    engine: str = "auto",
    threads: int | None = None,
    streams: int | None = None,
) -> OptimizedModule:
    """The optimised model that :meth:`OptimizedModule.save` wrote.

    Nothing in the file is run or imported, and the model's class need not exist. The weights keep
    their precision. What the file holds is checked: its checksums, every name, operator and
    argument, and that the graph fits the shapes it was captured with.

    Args:
        path: the file.
        device: where to run; default: where it ran when it was saved.
        engine: as in :func:`fastres.optimize`; it need not be the one it was saved from.
        threads, streams: as in :func:`fastres.optimize`.

    Returns:
        The optimised module, prepared for the shapes of the captured call; its receipt says where
        it came from. ``verify`` and ``refresh`` work as ever.

    Raises:
        ArtifactError: there is no such file, it is damaged or changed, it is no saved model, it was
            written by a newer fastres, or its graph holds something that is not allowed.
        OptionError: device, engine, threads or streams is none.
        TargetError: the device or the engine is not there.
    """
    refuse_under_tracing("load")
    path = as_path(path)
    place = checked_device(device)
    anew: dict[str, Any] = {
        "device": place,
        "engine": engine,
        "threads": threads,
        "streams": streams,
    }
    Options(**anew)
    try:
        with preparing(), torch.no_grad(), torch.inference_mode(False), without_autocast():
            return _load(path, place, anew)
    except ArtifactError as error:
        raise ArtifactError(f"{os.fspath(path)}: {error}") from error


def _load(
    path: str | os.PathLike[str], place: torch.device | None, anew: dict[str, Any]
) -> OptimizedModule:
    started = time.perf_counter()
    file = File(path)
    description = Description(file.description)
    device = place or _saved_device(description.device)

    def options(values: Any) -> Options:
        return options_from_json(values, **anew)

    try:
        parts = description.parts(file.tensors(description.weights), device, options)
        fast = _optimized(parts, device, path)
    except FastresError:
        raise
    except Exception as error:  # torch's functions raise whatever they like on a strange graph
        raise _strange(error) from error
    report = fast.report
    loaded_at = time.perf_counter()
    left, notes = _prepare(fast)
    report.add_engine(left, [*fast.passed_over, *notes])
    report.threads = fast.threads if device.type == "cpu" else None
    report.seconds = {"load": loaded_at - started, "first shape": time.perf_counter() - loaded_at}
    saved = description.report
    versions = " and ".join(f"{name} {version}" for name, version in description.made_by.items())
    report.notes.append(
        f"loaded from {os.fspath(path)}, saved by {versions} from the {saved.engine} engine on "
        f"{saved.device}; the error above was measured there, when the model was optimised"
    )
    return fast


def _optimized(parts: Parts, device: torch.device, path: str | os.PathLike[str]) -> OptimizedModule:
    report = parts.report.without_engine()
    report.device = str(next((b.device for b in parts.module.buffers()), device))
    captured = Captured(
        parts.module,
        parts.contract,
        parts.in_spec,
        parts.out_spec,
        parts.signature,
        parts.example,
    )
    recipe: Recipe | str = "the file holds none"
    if parts.recipe is not None:
        recipe = Recipe(*parts.recipe)
    fast = OptimizedModule(
        captured, parts.options, report, parts.preprocessing, recipe, parts.calibrated
    )
    report.engine = fast.engine
    fast.loaded_from = os.fspath(path)
    return fast


def _prepare(fast: OptimizedModule) -> Any:
    """Build what the captured shapes need: it is wanted first, and it tells a strange graph."""
    try:
        return fast.engine_remarks(pytree.tree_leaves(fast.example))
    except FastresError as error:
        if isinstance(error, (TargetError, MemoryError)):
            raise
        raise ArtifactError(
            f"its graph does not fit the shapes it was captured with: {error}"
        ) from error
    except Exception as error:  # as above
        raise _strange(error) from error


def _strange(error: Exception) -> ArtifactError:
    first = (str(error).strip().splitlines() or [""])[0]
    return ArtifactError(
        f"its graph cannot be prepared ({type(error).__name__}: {first[:200]}): the file was "
        "changed, or needs another version of torch; optimise the model again"
    )


def _saved_device(name: str) -> torch.device:
    try:
        device = checked_device(name)
    except TargetError as error:
        raise TargetError(
            f"it was saved from {name}, which is not here; pass device='cpu' to run it there"
        ) from error
    assert device is not None
    return device
