"""OpenVINO's time for each convolution, by the name of the user's module."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fastres.bench.peers import nncf_peer, openvino_peer
from fastres.bench.peers.peer import QUANTIZED


def why_unavailable(precision: str) -> str | None:
    """Why it cannot be measured in a precision here, or None."""
    peer = nncf_peer if precision in QUANTIZED else openvino_peer
    missing = peer.missing("cpu")
    if missing is not None:
        return f"OpenVINO is not here: {missing}"
    if precision in QUANTIZED:
        return None
    refusal = openvino_peer.refuses(precision, "cpu")
    return None if refusal is None else f"OpenVINO: {refusal}"


def profiled(
    model: nn.Module,
    images: Tensor,
    precision: str,
    threads: int,
    calibration: Tensor | None = None,
) -> Callable[[], dict[str, int]]:
    """A call of the model in one stream, with its own profiler on.

    Args:
        calibration: images [N, C, H, W] that NNCF quantises the model with.

    Returns:
        A function that runs it and gives nanoseconds by module, for each convolution that OpenVINO
        ran under its own name. Its clock ticks in microseconds.
    """
    import openvino

    converted = openvino_peer.converted(folded(model, images), images)
    if calibration is not None:
        converted = nncf_peer.quantized(converted, calibration)
    converted.reshape(list(images.shape))
    compiled = openvino.Core().compile_model(
        converted,
        "CPU",
        {
            "PERF_COUNT": True,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            **openvino_peer.precision_hint(precision),
        },
    )
    request = compiled.create_infer_request()
    modules = modules_of(compiled.get_runtime_model().get_ops())

    def call() -> dict[str, int]:
        request.infer([images.numpy()], share_inputs=True)
        return by_module(request.profiling_info, modules)

    return call


def by_module(nodes: Any, modules: Mapping[str, str]) -> dict[str, int]:
    """Nanoseconds of the convolutions among OpenVINO's profiled nodes, by the user's module.

    Args:
        nodes: what its profiler tells.
        modules: from `modules_of`, for nodes that have another's name.
    """
    times: Counter[str] = Counter()
    for node in nodes:
        if node.node_type not in ("Convolution", "GroupConvolution"):
            continue
        module = _module(node.node_name) or modules.get(node.node_name)
        if module is not None:
            times[module] += round(node.real_time.total_seconds() * 1e9)
    return dict(times)


def modules_of(nodes: Any) -> dict[str, str]:
    """The user's module of each convolution of an execution graph, by the node's name.

    A quantised convolution is called after what scales its sums. Which nodes it was made of says
    its ``originalLayersNames``; the convolution among them has its module's name.
    """
    modules = {}
    for node in nodes:
        info = node.get_rt_info()
        if "layerType" in info and str(info["layerType"].astype(str)) == "Convolution":
            names = str(info["originalLayersNames"].astype(str)).split(",")
            found = {_module(name) for name in names if "onvolution" in name} - {None}
            if len(found) == 1:
                modules[node.get_friendly_name()] = str(found.pop())
    return modules


def _module(name: str) -> str | None:
    """The user's, of a node that came from torch, which is called ``__module.PATH/OPERATOR``."""
    path, slash, _ = name.partition("/")
    return path.removeprefix("__module.") if slash and path.startswith("__module.") else None


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
