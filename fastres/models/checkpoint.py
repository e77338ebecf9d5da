"""Weights from files, without running anybody's code.

Either ``.safetensors``, or ``.pth`` and ``.pt``, read with ``weights_only=True``.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastres.capture.wrappers import unprefixed
from fastres.errors import ModelError, OptionError
from fastres.system.regular import open_regular

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
"""What weights' files are called."""

_WRAPPERS = ("state_dict", "model_state_dict", "model", "state_dict_ema")


def read(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file by name, on the CPU.

    A checkpoint that holds the state dict under ``state_dict`` or ``model`` is unwrapped, and the
    prefixes that data-parallel training and torch.compile add to all names are taken off.

    Raises:
        OptionError: no such file, another kind of file, or one that holds no state dict.
    """
    file = Path(path)
    try:
        open_regular(file).close()
    except FileNotFoundError as error:
        raise OptionError(f"weights {file}: there is no such file") from error
    except OSError as error:
        raise OptionError(
            f"weights {file}: it cannot be read ({error.strerror or error})"
        ) from error
    if file.suffix not in SUFFIXES:
        raise OptionError(f"weights {file}: expected a file called {', '.join(SUFFIXES)}")
    state: Any = _safetensors(file) if file.suffix == ".safetensors" else _torch(file)
    for name in _WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(name), Mapping):
            state = state[name]
            break
    if not isinstance(state, Mapping) or not state:
        raise OptionError(f"weights {file}: expected a state dict, names to tensors")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise OptionError(
                f"weights {file}: {name!r} is a {type(value).__name__}; expected a state dict, "
                "names to tensors, as torch.save(model.state_dict(), path) writes it"
            )
        _require_real_dense(f"weights {file}: {name}", value)
    return unprefixed(dict(state))


def load_into(model: nn.Module, path: str | Path) -> None:
    """Give a model the weights of a file, all of them.

    Raises:
        OptionError: as :func:`read`.
        ModelError: names or shapes are not those of the model.
    """
    state = read(path)
    expected = model.state_dict()
    missing = [name for name in expected if name not in state]
    # Checkpoints from before BatchNorm counted its batches lack a number that nothing reads.
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    unknown = [name for name in state if name not in expected]
    if missing or unknown:
        raise ModelError(f"weights {path}: {_mismatch(missing, unknown, list(expected))}")
    for name, value in expected.items():  # in the model's order: a safetensors file has none
        if name in state and state[name].shape != value.shape:
            raise ModelError(
                f"weights {path}: {name} is {list(state[name].shape)}, and {list(value.shape)} in "
                "the model; another number of classes, or another model?"
            )
        if name in state and value.is_floating_point() and not state[name].is_floating_point():
            raise ModelError(
                f"weights {path}: {name} is of {state[name].dtype}, and of {value.dtype} in the "
                "model; store the weights as they were trained"
            )
    model.load_state_dict(state, strict=False)


def _require_real_dense(what: str, value: Tensor) -> None:
    """Raise an OptionError unless a tensor is dense, real and has values."""
    if value.is_meta:
        raise OptionError(f"{what} is on the meta device and has no values; store a whole model")
    if value.is_quantized or value.layout != torch.strided or type(value) not in _PLAIN:
        kind = str(value.layout) if value.layout != torch.strided else type(value).__name__
        raise OptionError(
            f"{what} is no plain tensor ({'quantised' if value.is_quantized else kind}); store "
            "dense numbers"
        )
    if value.is_complex():
        raise OptionError(f"{what} is of {value.dtype}; a network's weights are real numbers")


_PLAIN = (Tensor, nn.Parameter)


def _mismatch(missing: list[str], unknown: list[str], expected: list[str]) -> str:
    parts = []
    if missing:
        parts.append(f"{len(missing)} of the model's tensors are not there, first {missing[0]}")
    if unknown:
        close = difflib.get_close_matches(unknown[0], expected, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        parts.append(f"{len(unknown)} are not the model's, first {unknown[0]}{hint}")
    return "; ".join(parts) + "; name the model that they were trained for"


def _safetensors(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        with open_regular(file) as opened:  # not mapped: the file may be written over meanwhile
            return dict(load(opened.read()))
    except (SafetensorError, OSError, ValueError) as error:
        raise OptionError(f"weights {file}: it is no safetensors file ({error})") from error


def _torch(file: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what is refused right after
            with open_regular(file) as opened:
                return torch.load(opened, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's reader raises whatever a damaged file leads it to
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise OptionError(
            f"weights {file}: it cannot be read as tensors alone ({first}); store the state dict: "
            "torch.save(model.state_dict(), path), or safetensors"
        ) from error
