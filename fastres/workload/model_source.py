"""The ``--model`` option: parse a model's name, and build the network of that name."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from fastres import models
from fastres.errors import OptionError

Kind = Literal["fastres", "torchvision", "timm", "function"]


@dataclass(frozen=True)
class Source:
    """A model by name.

    Attributes:
        kind: "fastres", "torchvision" and "timm" build the named network with random weights;
            "function" calls a function of the user's, which returns a network with its weights.
        name: the name there; for a function ``module:function``.
    """

    kind: Kind
    name: str

    def __str__(self) -> str:
        prefixed = self.kind in ("torchvision", "timm")
        return f"{self.kind}:{self.name}" if prefixed else self.name

    @property
    def has_random_weights(self) -> bool:
        """Whether the weights are random, so that the bench may make them behave."""
        return self.kind != "function"


def parse(text: str) -> Source:
    """Read a model's name as ``--model`` takes it. Nothing is imported or built yet.

    Raises:
        OptionError: no model can have such a name.
    """
    prefix, colon, name = text.partition(":")
    if not colon:
        return Source("fastres", _require_known(text, models.available(), "--model"))
    if not (prefix and name):
        raise OptionError(
            f"--model {text}: expected a name of fastres's own ({', '.join(models.available())}), "
            "torchvision:NAME, timm:NAME or module:function"
        )
    if prefix == "torchvision":
        return Source("torchvision", name)
    if prefix == "timm":
        return Source("timm", name)
    return Source("function", text)


def from_options(depth: int | None, model: str | None) -> Source:
    """What ``--depth`` or ``--model`` names; ResNet-50 where neither is given.

    Raises:
        OptionError: as :func:`parse`.
    """
    return parse(f"resnet{depth}" if depth is not None else model or "resnet50")


def build(source: Source, seed: int, classes: int | None = None) -> nn.Module:
    """Build the network, in evaluation mode.

    Args:
        source: the model's name and where it is defined.
        seed: of torch's generator while the weights are drawn; it is put back afterwards.
        classes: how many it tells apart; None for its default. Not for a function of the user's.

    Raises:
        OptionError: there is no such network or package, or what came is no float32 network on the
            CPU.
    """
    options = {} if classes is None else {"num_classes": classes}
    if options and source.kind == "function":
        raise OptionError(f"--classes: {source} takes no arguments, it decides itself")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _BUILDERS[source.kind](source.name, **options)
    if not isinstance(model, nn.Module):
        raise OptionError(
            f"--model {source}: returned {type(model).__name__}, expected a torch.nn.Module"
        )
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32 or parameter.device.type != "cpu":
            raise OptionError(
                f"--model {source}: {name} is {parameter.dtype} on {parameter.device}, expected "
                "float32 on the CPU, the reference that everything is compared with; --precision "
                "chooses what fastres and the peers compute in"
            )
    return model.eval()


def _fastres(name: str, **options: int) -> object:
    return models.build(name, **options)


def _torchvision(name: str, **options: int) -> object:
    try:
        import torchvision
    except ModuleNotFoundError as error:
        raise OptionError(f"--model torchvision:{name}: pip install torchvision") from error
    known = torchvision.models.list_models(module=torchvision.models)
    _require_known(name, known, "--model torchvision")
    return torchvision.models.get_model(name, weights=None, **options)


def _timm(name: str, **options: Any) -> object:
    try:
        import timm
    except ModuleNotFoundError as error:
        raise OptionError(f"--model timm:{name}: pip install timm") from error
    _require_known(name, timm.list_models(), "--model timm")
    return timm.create_model(name, pretrained=False, **options)


def _function(path: str) -> object:
    module_name, _, attribute = path.partition(":")
    working_directory = str(Path.cwd())
    if (
        working_directory not in sys.path
    ):  # the console script, unlike python -m, does not look here
        sys.path.append(working_directory)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # it is there, but something that it imports is not
        raise OptionError(
            f"--model {path}: there is no module {error.name}; expected an importable module, "
            "installed or in the current directory"
        ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise OptionError(
            f"--model {path}: {module_name} has no function {attribute}; expected one that takes "
            "no arguments and returns the model"
        )
    return function()


_BUILDERS: dict[str, Callable[..., object]] = {
    "fastres": _fastres,
    "torchvision": _torchvision,
    "timm": _timm,
    "function": _function,
}


def _require_known(name: str, names: Iterable[str], option: str) -> str:
    """The name, if it is one of these."""
    known = list(names)
    if name in known:
        return name
    close = difflib.get_close_matches(name, known, n=5) or known[:10]
    raise OptionError(f"{option}: there is no {name!r}; did you mean {', '.join(close)}?")
