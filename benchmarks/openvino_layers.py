"""OpenVINO's time for each convolution, by the name of the user's module."""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fastres.bench.peers import openvino_peer

_HINTS = {"fp32": "f32", "bf16": "bf16"}


def why_unavailable(precision: str) -> str | None:
    """Why it cannot be measured in a precision here, or None."""
    missing = openvino_peer.missing("cpu")
    if missing is not None:
        return f"OpenVINO is not here: {missing}"
    refusal = openvino_peer.refuses(precision, "cpu")
    return None if refusal is None else f"OpenVINO: {refusal}"


def profiled(
    model: nn.Module, images: Tensor, precision: str, threads: int
) -> Callable[[], dict[str, int]]:
    """A call of the model in one stream, with its own profiler on.

    Returns:
        A function that runs it and gives nanoseconds by module, for each convolution that OpenVINO
        ran under its own name. Its clock ticks in microseconds.
    """
    import openvino

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about the tracing that the converter does
        converted = openvino.convert_model(folded(model, images), example_input=images)
    converted.reshape(list(images.shape))
    compiled = openvino.Core().compile_model(
        converted,
        "CPU",
        {
            "PERF_COUNT": True,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
        },
    )
    request = compiled.create_infer_request()

    def call() -> dict[str, int]:
        request.infer([images.numpy()], share_inputs=True)
        return by_module(request.profiling_info)

    return call


def by_module(nodes: Any) -> dict[str, int]:
    """Nanoseconds of the convolutions among OpenVINO's profiled nodes, by the user's module.

    A node that came from torch is called ``__module.PATH/OPERATOR``.
    """
    times: Counter[str] = Counter()
    for node in nodes:
        path, slash, _ = node.node_name.partition("/")
        if node.node_type == "Convolution" and slash and path.startswith("__module."):
            times[path.removeprefix("__module.")] += round(node.real_time.total_seconds() * 1e9)
    return dict(times)


def folded(model: nn.Module, images: Tensor) -> nn.Module:
    """A copy whose convolutions hold the BatchNorms that read nothing else's results.

    OpenVINO folds them itself, into convolutions that have lost their modules' names.
    """
    model = copy.deepcopy(model)
    producers: dict[int, tuple[str, Tensor]] = {}  # by the result's identity, which it keeps alive
    pairs: dict[str, str] = {}
    calls: Counter[str] = Counter()
    hooks = []
    for name, module in model.named_modules():

        def behind(module: nn.Module, inputs: Any, output: Tensor, name: str = name) -> None:
            calls[name] += 1
            producers[id(output)] = (name, output)

        def before(module: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
            calls[name] += 1
            if id(inputs[0]) in producers:
                pairs[name] = producers[id(inputs[0])][0]

        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(behind))
        elif isinstance(module, nn.BatchNorm2d):
            hooks.append(module.register_forward_pre_hook(before))
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    readers = Counter(pairs.values())
    for norm_name, name in pairs.items():
        convolution, norm = model.get_submodule(name), model.get_submodule(norm_name)
        if calls[name] == calls[norm_name] == readers[name] == 1:
            assert isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
            _replace(model, name, fuse_conv_bn_eval(convolution, norm))
            _replace(model, norm_name, nn.Identity())
    return model


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)
