"""What every value of a fused graph is for given inputs: fake tensors, and numbers for sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from fastres.errors import InputError
from fastres.ir.graph import arguments
from fastres.system.torch_logs import silence_torch_logs


def propagate(module: fx.GraphModule, inputs: Sequence[Any]) -> dict[fx.Node, Any]:
    """Run ``module`` on fake tensors of the inputs' shapes; no data is read or computed.

    Returns:
        For each node a FakeTensor (shape, dtype, strides), a number, or another plain value.

    Raises:
        InputError: an operator cannot take these sizes, for example an image too small for a
            pooling window; the message names the module.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    mode.cache_enabled = False  # torch's cache of shapes has no bound and would grow with ours
    facts: dict[fx.Node, Any] = {}
    values = iter(inputs)
    with mode, torch.no_grad(), silence_torch_logs():
        for node in module.graph.nodes:
            if node.op == "placeholder":
                facts[node] = _fake(mode, next(values))
            elif node.op == "get_attr":
                facts[node] = _fake(mode, getattr(module, str(node.target)))
            elif node.op == "call_function":
                args, kwargs = fx.node.map_arg((arguments(node), node.kwargs), facts.__getitem__)
                try:
                    function = getattr(node.target, "shape_formula", node.target)
                    facts[node] = function(*args, **kwargs)
                except (RuntimeError, ValueError, ZeroDivisionError) as error:
                    shapes = [list(value.shape) for value in inputs if isinstance(value, Tensor)]
                    raise InputError(
                        f"input {', '.join(map(str, shapes))} does not fit at module "
                        f"{node.meta.get('module') or '(the model itself)'} ({node.target}): "
                        f"{str(error).splitlines()[0]}; use another image size, or check what "
                        "the model expects"
                    ) from error
    return facts


def _fake(mode: FakeTensorMode, value: Any) -> Any:
    if isinstance(value, Tensor) and not isinstance(value, FakeTensor):
        return mode.from_tensor(value, static_shapes=True)
    return value
