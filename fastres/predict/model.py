"""The model behind ``--model`` and ``--weights``: built, loaded, and how its images should look."""

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
from fastres.predict.classifier import Classifier
from fastres.system.regular import read_text
from fastres.transforms import Transforms
from fastres.workload import model_source as sources
from fastres.workload.model_source import Source


@dataclass(frozen=True)
class Wanted:
    """What the command line says about the model; the names are those of ``--help``."""

    model: str
    weights: Path | None
    classes: int | None
    transforms: Path | None
    size: int | None
    labels: Sequence[str] | None
    top_k: int
    precision: str | None
    device: str | None
    threads: int | None


def make(wanted: Wanted) -> Classifier:
    """The classifier, ready to be called.

    Raises:
        FastresError: there is no such model, the weights are not its own, the options do not go
            together, or it cannot be optimised.
    """
    if wanted.model not in available() and Path(wanted.model).is_file():
        return _saved(wanted)
    chosen = sources.parse(wanted.model)
    if wanted.weights is None and chosen.has_random_weights:
        raise OptionError(
            f"--model {wanted.model} without --weights: its weights would be random, which predict "
            "nothing; give a file of trained ones (.safetensors, .pth)"
        )
    model = sources.build(chosen, seed=0, classes=wanted.classes)
    if wanted.weights is not None:
        weight_files.load_into(model, wanted.weights)
    transforms = _transforms(wanted, chosen, model)
    fast = optimize(
        model,
        device=wanted.device,
        precision=wanted.precision,
        threads=wanted.threads,
        input_format="uint8_nhwc",
        transforms=transforms,
        softmax=True,
    )
    labels = wanted.labels
    if labels is None and wanted.classes is None:
        labels = _own_labels(chosen)
    return Classifier(fast, None, labels, wanted.top_k)


def _saved(wanted: Wanted) -> Classifier:
    for option, value in (
        ("--weights", wanted.weights),
        ("--classes", wanted.classes),
        ("--precision", wanted.precision),
    ):
        if value is not None:
            raise OptionError(f"{option} with --model {wanted.model}: a saved model has its own")
    fast = load(wanted.model, device=wanted.device, threads=wanted.threads)
    given = None
    if wanted.transforms is not None:
        given = _resized(_read(wanted.transforms), wanted.size)
    elif wanted.size is not None:
        raise OptionError("--size with a saved model needs --transforms")
    return Classifier(fast, given, wanted.labels, wanted.top_k)


def _transforms(wanted: Wanted, chosen: Source, model: nn.Module) -> Transforms:
    if wanted.transforms is not None:
        return _resized(_read(wanted.transforms), wanted.size)
    if chosen.kind == "torchvision":
        return _resized(_torchvisions(chosen.name, wanted.weights), wanted.size)
    if chosen.kind == "timm":
        return _resized(_timms(model), wanted.size)
    if chosen.kind == "fastres" and not chosen.name.startswith("cifar"):
        return _resized(Transforms(), wanted.size)
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
        given: Any = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise OptionError(f"--transforms {path}: cannot be read as JSON: {error}") from error
    if not isinstance(given, dict):
        raise OptionError(f"--transforms {path}: expected a mapping, as Transforms.to_dict gives")
    return Transforms.of(given)


def _torchvisions(name: str, weights: Path | None) -> Transforms:
    """Those of the published weights that the file is named after, else of the newest."""
    published = list(_published(name))
    if not published:
        raise OptionError(f"--model torchvision:{name}: give --transforms, it has no preset")
    for entry in published:
        if weights is not None and str(entry.url).rpartition("/")[2] == weights.name:
            return Transforms.of(entry.transforms())
    return Transforms.of(published[-1].transforms())


def _timms(model: nn.Module) -> Transforms:
    import timm

    data: Any = timm.data
    return Transforms.of(data.resolve_data_config(model=model))


def _published(name: str) -> Any:
    """The published weights of one of torchvision's models, oldest first."""
    import torchvision

    return torchvision.models.get_model_weights(name)


def _own_labels(chosen: Source) -> list[str] | None:
    """The names that torchvision publishes with its weights."""
    if chosen.kind != "torchvision":
        return None
    published = list(_published(chosen.name))
    return list(published[-1].meta["categories"]) if published else None
