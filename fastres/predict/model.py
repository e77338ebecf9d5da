"""The classifier for ``--model`` and ``--weights``, with the transforms of its images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from fastres.errors import OptionError
from fastres.loading import load
from fastres.models import available
from fastres.models import checkpoint as weight_files
from fastres.optimization import optimize
from fastres.predict.calibration import CalibrationImages
from fastres.predict.classifier import Classifier
from fastres.system.regular import read_text
from fastres.transforms import Transforms
from fastres.workload import model_source as sources
from fastres.workload.model_source import Source


@dataclass(frozen=True)
class ModelSettings:
    """What the command line says about the model; the names are those of ``--help``."""

    model: str
    weights: Path | None
    classes: int | None
    transforms: Path | None
    size: int | None
    labels: Sequence[str] | None
    top_k: int
    precision: str | None
    calibration: CalibrationImages | None
    device: str | None
    threads: int | None


def make(settings: ModelSettings) -> Classifier:
    """The classifier, ready to be called.

    Raises:
        FastresError: there is no such model, the weights are not its own, the options do not go
            together, or it cannot be optimised.
    """
    if settings.model not in available() and Path(settings.model).is_file():
        return _saved(settings)
    chosen = sources.parse(settings.model)
    if settings.weights is None and chosen.has_random_weights:
        raise OptionError(
            f"--model {settings.model} without --weights: its weights would be random, which "
            "predict nothing; give a file of trained ones (.safetensors, .pth)"
        )
    model = sources.build(chosen, seed=0, classes=settings.classes)
    if settings.weights is not None:
        weight_files.load_into(model, settings.weights)
    transforms = _transforms(settings, chosen, model)
    calibration = settings.calibration
    fast = optimize(
        model,
        device=settings.device,
        precision=settings.precision,
        threads=settings.threads,
        input_format="uint8_nhwc",
        transforms=transforms,
        softmax=True,
        calibration=None if calibration is None else calibration.batches(transforms),
    )
    labels = settings.labels
    if labels is None and settings.classes is None:
        labels = _published_labels(chosen)
    return Classifier(fast, None, labels, settings.top_k)


def _saved(settings: ModelSettings) -> Classifier:
    for option, value in (
        ("--weights", settings.weights),
        ("--classes", settings.classes),
        ("--precision", settings.precision),
    ):
        if value is not None:
            raise OptionError(f"{option} with --model {settings.model}: a saved model has its own")
    fast = load(settings.model, device=settings.device, threads=settings.threads)
    transforms = None
    if settings.transforms is not None:
        transforms = _resized(_read(settings.transforms), settings.size)
    elif settings.size is not None:
        raise OptionError("--size with a saved model needs --transforms")
    return Classifier(fast, transforms, settings.labels, settings.top_k)


def _transforms(settings: ModelSettings, chosen: Source, model: nn.Module) -> Transforms:
    if settings.transforms is not None:
        return _resized(_read(settings.transforms), settings.size)
    if chosen.kind == "torchvision":
        return _resized(_torchvision_transforms(chosen.name, settings.weights), settings.size)
    if chosen.kind == "timm":
        return _resized(_timm_transforms(model), settings.size)
    if chosen.kind == "fastres" and not chosen.name.startswith("cifar"):
        return _resized(Transforms(), settings.size)
    raise OptionError(
        f"--model {chosen} does not say how its images were prepared: give --transforms, a JSON "
        "file like " + json.dumps(Transforms(resize=32, crop=32).to_dict())
    )


def _resized(transforms: Transforms, size: int | None) -> Transforms:
    """The same view of an image in another number of pixels."""
    if size is None:
        return transforms
    if transforms.resize is None or transforms.crop is None:
        raise OptionError(f"--size {size}: the transforms do not resize and crop")
    return replace(transforms, resize=round(size * transforms.resize / transforms.crop), crop=size)


def _read(path: Path) -> Transforms:
    try:
        data: Any = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise OptionError(f"--transforms {path}: cannot be read as JSON: {error}") from error
    if not isinstance(data, dict):
        raise OptionError(f"--transforms {path}: expected a mapping, as Transforms.to_dict gives")
    return Transforms.of(data)


def _torchvision_transforms(name: str, weights: Path | None) -> Transforms:
    """Those of the published weights that the file is named after, else of the newest."""
    published = list(_published(name))
    if not published:
        raise OptionError(f"--model torchvision:{name}: give --transforms, it has no preset")
    for entry in published:
        if weights is not None and str(entry.url).rpartition("/")[2] == weights.name:
            return Transforms.of(entry.transforms())
    return Transforms.of(published[-1].transforms())


def _timm_transforms(model: nn.Module) -> Transforms:
    import timm

    data: Any = timm.data
    return Transforms.of(data.resolve_data_config(model=model))


def _published(name: str) -> Any:
    """The published weights of one of torchvision's models, oldest first."""
    import torchvision

    return torchvision.models.get_model_weights(name)


def _published_labels(chosen: Source) -> list[str] | None:
    """The names that torchvision publishes with its weights."""
    if chosen.kind != "torchvision":
        return None
    published = list(_published(chosen.name))
    return list(published[-1].meta["categories"]) if published else None
