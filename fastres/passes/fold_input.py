"""The normalisation of the input images into the first convolution, where that is exact.

::

    w * (scale * x) + b = (w * scale) * x + b           x: whole numbers, 0 to 255

The division and the standard deviation fold, in every precision, if there is no mean to subtract.
Checks beyond those of folding a BatchNorm forwards: *the shift is zero*. With one,

- a convolution that pads would be wrong at the border: it pads the normalised image with zeros, and
  in pixels these zeros are the mean, which is no whole number;
- one that does not pad would be right in real numbers only. ``w * scale * x`` and the bias
  ``sum of w * shift`` cancel where an image is near the mean, and leave the rounding errors of two
  sums over the whole filter, each larger than the answer; a pixel that is normalised first has its
  own alone.

A normalisation that stays is one multiply-add per pixel, in float32 for 16-bit networks, right at
every pixel. Folding its scale alone would not save that pass over the image. A fourth channel of
ones, padded with zeros like the others and with weights ``sum over C of w * shift``, is right at
the border too, cancels in the same way and is dearer: the channel has to be made and to be read.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from fastres.ir import ops
from fastres.ir.graph import add_constant, arguments, constant, erase_unused, module_of
from fastres.passes import fold_batch_norm_ahead
from fastres.passes.context import Context


def run(module: fx.GraphModule, context: Context) -> None:
    """Fold the normalisation that ``optimize`` added; a note says whether that was exact."""
    for node in module.graph.find_nodes(op="call_function", target=ops.scale_shift):
        if not node.meta.get("added"):
            continue
        _copy_constants(node)
        conv: Any = next(iter(node.users))
        refusal = (
            fold_batch_norm_ahead.refusal_of(node)
            or _cancels(node)
            or fold_batch_norm_ahead.fold(node, context)
        )
        context.report.notes.append(
            f"the images' normalisation is folded into {module_of(conv)}"
            if refusal is None
            else f"the images' normalisation runs as one multiply-add, not folded: {refusal}"
        )


def _copy_constants(node: fx.Node) -> None:
    """Replace the captured float64 constants by copies marked as folded, which ``finish`` casts."""
    old = arguments(node)[1:3]
    with node.graph.inserting_before(node):
        for index, name in ((1, "input_scale"), (2, "input_shift")):
            value = constant(arguments(node)[index])
            assert value is not None
            node.update_arg(index, add_constant(node.graph, name, value, folded=True))
    erase_unused(old)


def _cancels(node: fx.Node) -> str | None:
    shift = constant(arguments(node)[2])
    assert shift is not None
    if bool((shift != 0).any()):
        return "the folded mean and the pixels would cancel, and leave their rounding errors"
    return None
