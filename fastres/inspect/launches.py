"""The distinct kernel launches of a model on a GPU, from the engine's plans; no GPU is needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from fastres.kernels.launch.call import KernelCall
from fastres.kernels.tuning.fusing import as_if_ours
from fastres.kernels.tuning.gpus import GPUS, Architecture, Gpu
from fastres.roofline.layers import images_for
from fastres.runtime.triton.arithmetic import Arithmetic
from fastres.runtime.triton.lower import Planned, plan_for
from fastres.runtime.triton.plan import TorchStep, fetch
from fastres.runtime.triton.tactics import Tactics


@dataclass(frozen=True)
class Launch:
    """A launch and the layers that it is for.

    Attributes:
        layers: names of the user's modules, each once.
        operation: e.g. ``fastres.conv2d``.
        call: the kernel and its arguments, tensors on the meta device.
    """

    layers: tuple[str, ...]
    operation: str
    call: KernelCall


def representative(architecture: Architecture) -> Gpu:
    """The product whose configurations stand for an architecture: the first in the list."""
    return next(gpu for gpu in GPUS.values() if gpu.architecture == architecture)


def launches(
    module: fx.GraphModule, batch: int, size: int, precision: str, gpu: Gpu
) -> list[Launch]:
    """The launches of a graph, of its layers one by one and then with blocks fused.

    Where products are the library's (sm_75), our kernels' are taken, so that it can be seen why.

    Args:
        module: of ``roofline.layers.graph_of``, in the dtype of ``precision``.
        batch: images per call.
        size: pixels of a side.
        precision: a key of :data:`fastres.dtypes.PRECISIONS`.
        gpu: the GPU that launches are configured for.
    """
    precision = gpu.architecture.computed_in(precision)
    numbers = Arithmetic(precision, precision) if precision in ("tf32", "fp32") else Arithmetic()
    tactics = Tactics(as_if_ours(gpu))
    images = images_for(module, batch, size)
    return [
        launch
        for policy in (_no_fusion, None)
        for launch in _of_plan(plan_for(module, images, tactics, numbers, policy))
    ]


def merged(launches_of: Mapping[str, Sequence[Launch]]) -> list[Launch]:
    """The distinct launches of several models; layers are named ``model: module``."""
    distinct: dict[Any, Launch] = {}
    for model, model_launches in launches_of.items():
        for launch in model_launches:
            key = _identity(launch.call)
            previous = distinct.get(key)
            layers = tuple(f"{model}: {layer}" for layer in launch.layers)
            if previous is not None:
                layers = tuple(dict.fromkeys((*previous.layers, *layers)))
            distinct[key] = replace(previous or launch, layers=layers)
    return list(distinct.values())


def _no_fusion(spec: object) -> str:
    return "not asked for"


def _of_plan(planned: Planned) -> Iterator[Launch]:
    """The launches of a plan, its tensors without memory."""
    plan = planned.plan
    no_memory = torch.empty(0, dtype=torch.uint8, device="meta")
    tensors: dict[str, Any] = {
        name: value.within(no_memory, 0) for name, value in plan.values.items()
    }
    for step in plan.steps:
        for constant in step.constants:
            sources = (getattr(planned.module, name).to("meta") for name in constant.sources)
            tensors[constant.name] = constant.make(*sources)
        if isinstance(step, TorchStep):
            args, kwargs = fetch(step.args, tensors), fetch(step.kwargs, tensors)
            tensors[step.result] = step.function(*args, **kwargs)
            continue
        for call in step.calls(tensors):
            yield Launch((step.module,), step.operation, call)


def _identity(call: KernelCall) -> tuple[Any, ...]:
    """A key of all that the compiled kernel depends on: dtypes, constants, warps, stages."""
    arguments = tuple(sorted((name, _kind(value)) for name, value in call.arguments.items()))
    constants = tuple(sorted((name, str(value)) for name, value in call.constants.items()))
    return call.kernel.fn.__name__, constants, arguments, *call.options.items()


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return str(value.dtype)
    block: Sequence[int] | None = getattr(value, "block_shape", None)
    if block is not None:
        return f"{value.base.dtype} {list(block)}"
    if isinstance(value, int):
        return "1" if value == 1 else "16" if value % 16 == 0 else "int"
    if isinstance(value, float):
        return "float"
    return str(value)
