"""Where Winograd's rounding errors would show: convolutions that have to be computed directly.

Winograd takes differences of neighbouring pixels and adds them up again. Its errors are those of
the largest product in a tile of 4x4 pixels, at every pixel of the tile, where a direct sum has at
each pixel those of its own products. That is no matter as long as the large answers are there to be
seen. It is where they are cut off (a ReLU6, a sigmoid) and what is left are small answers with the
errors of large ones, and where one tap of a filter is so far beyond the others that all they
compute is small.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx
from torch.utils.weak import WeakTensorKeyDictionary

from fastres.ir import ops
from fastres.ir.graph import MOVES_DATA
from fastres.ir.views import Conv2d, ScaleShift
from fastres.kernels.activations import ACTIVATIONS, BY_ATEN

aten = torch.ops.aten

OUTLYING = 200.0
"""How many times a filter's usual tap its largest may be; 10 in a Gaussian, 30 in a trained one.

Measured: up to 300 times, the error before a ReLU6 is as without the tap; at 1000 times it is 5
times eager's, and grows with it.
"""

_BOUNDING = frozenset(
    {
        *(overload for overload, row in BY_ATEN.items() if row.bounds_above),
        aten.hardtanh.default,
        aten.clamp.default,
        aten.clamp_max.default,
        aten.sigmoid.default,
        aten.hardsigmoid.default,
        aten.tanh.default,
        aten.erf.default,
        aten.clamp.Tensor,
        aten.clamp_max.Tensor,
        aten.minimum.default,
        aten.softmax.int,
    }
)
"""Operations that cut large numbers off."""

_ADDING = frozenset(
    {
        aten.add.Tensor,
        aten.sub.Tensor,
        aten.relu.default,
        aten.max_pool2d.default,
        ops.scale_shift,
        ops.add_relu,
        ops.max_pool2d,
        *MOVES_DATA,
    }
)
"""Operations behind which large numbers are as visible as before."""

_STEPS = 4
"""How many operations are followed to one that cuts off."""

_known = WeakTensorKeyDictionary()


def is_cut_off(node: fx.Node, steps: int = _STEPS) -> bool:
    """Whether the large ones among a node's results are cut off soon after."""
    applied: tuple[str, ...] = ()
    if node.target is ops.conv2d:
        applied = Conv2d.of(node).activations
    elif node.target is ops.scale_shift:
        applied = (ScaleShift.of(node).activation,)
    if any(ACTIVATIONS[name].bounds_above for name in applied):
        return True
    if node.target in _BOUNDING:
        return True
    if not steps or node.target not in (*_ADDING, ops.conv2d):
        return False
    return any(
        is_cut_off(user, steps - 1)
        for user in node.users
        if user.target is not ops.conv2d or Conv2d.of(user).residual is node
    )


def has_outlying_tap(weight: Tensor) -> bool:
    """Whether a filter of ``weight`` [K, C, R, S] has a tap far beyond the others."""
    found = _known.get(weight)
    if found is None:
        taps = weight.detach().abs().flatten(1)
        usual = taps.sqrt().mean(1).square()  # one large tap among many hardly raises this
        found = not bool((taps.amax(1) <= OUTLYING * usual).all())  # NaN is one, too
        _known[weight] = found
    return bool(found)
