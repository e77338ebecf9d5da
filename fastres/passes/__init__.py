"""The rewriting of a captured graph, pass by pass; each file is one pass.

A pass is ``run(module, context)``: it changes the graph in place and writes what it refused, with a
sentence, to the receipt. The order matters where a comment says so.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx

from fastres.passes import (
    absorb_padding,
    affine,
    channels_first,
    drop,
    finish,
    fold_batch_norm,
    fold_batch_norm_ahead,
    fold_constants,
    fold_input,
    fuse,
    normalise,
    unstack,
    wide_head,
)
from fastres.passes.context import Context
from fastres.report import Report

PASSES: tuple[Callable[[fx.GraphModule, Context], None], ...] = (
    fold_constants.run,  # first: frozen BatchNorms and standardised weights become constants
    drop.run,  # before normalise, which looks at neighbours
    channels_first.run,  # before normalise, which then sees its convolutions like all others
    unstack.run,  # likewise
    normalise.run,  # one spelling per operation, for all that follow
    absorb_padding.run,  # before folding ahead, which asks whether a convolution pads
    affine.run,  # after normalise: merges with the BatchNorms found there
    fold_batch_norm.run,  # before fuse: an activation between would be in the way
    fold_input.run,  # after affine, which may have merged it with a BatchNorm
    fold_batch_norm_ahead.run,  # after folding backwards, which costs nothing at the border
    fuse.run,
)
"""Every pass but the last, in order, with the reason for its place."""


def rewrite(
    module: fx.GraphModule,
    report: Report,
    model_dtype: torch.dtype,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Run all passes on a captured graph, in place.

    Args:
        module: the captured graph; it owns its constants afterwards.
        report: the receipt to write to.
        model_dtype: dtype of the user's model.
        dtype: dtype to compute in.
        device: where it will run.
    """
    context = Context(report, dtype, wide_head.is_wanted(dtype, device))
    for run in PASSES:
        run(module, context)
    finish.run(module, context, model_dtype)
