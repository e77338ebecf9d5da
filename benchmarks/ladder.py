"""What each technique is worth: one per row, each row with all those above it.

=============  ===================================================================================
row            what is new in it
=============  ===================================================================================
eager          nothing: the model as its user has it, NCHW
channels-last  images and weights in channels-last order
folded         BatchNorm folded into the convolutions' weights and biases
fused          bias, residual addition and ReLU inside oneDNN's convolution
prepacked      weights in the layout that oneDNN's kernels read, made once instead of in each call
planned        a straight-line program for this shape: prebound calls, sums written over the
               residual, every buffer freed after its last use
own kernels    the engine ``native`` in oneDNN's place: convolutions of our own on activations in
               lines of 64 bytes, the network planned as a whole and run in one call
winograd       3x3 convolutions by F(2x2, 3x3) where the engine's cost model finds that it pays
bf16           weights and activations in bfloat16; Winograd again where the model finds it pays
int8           eight bits: activations in uint8 by the ranges of calibration images, weights in int8
=============  ===================================================================================

Where the native engine is missing, its rows are and say why. The rows take turns call by call and
pass the same check of their answers as in ``fastres.bench``, whose records this writes as well.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

import fastres
from benchmarks import native
from fastres.bench import measure, record, run, settings, table
from fastres.bench.peers import catalogue, fastres_peer, torch_peers
from fastres.bench.peers.peer import FASTRES_BOUND, Job, Peer, Ready
from fastres.bench.record import Batch
from fastres.ir import ops
from fastres.ir.graph import arguments, constant
from fastres.ir.propagate import propagate
from fastres.kernels import reference
from fastres.system.progress import Progress

Convolution = Callable[..., Tensor]


def folded(job: Job) -> Ready:
    """torch's own operators on folded weights."""
    return Ready(_run(_fused_graph(job)))


def fused(job: Job) -> Ready:
    """oneDNN's fused convolution on plain weights, which it reorders in every call."""
    module = _fused_graph(job)
    _replace_convolutions(module, _onednn)
    return Ready(_run(module))


def prepacked(job: Job) -> Ready:
    """The same on weights that were reordered once."""
    module = _fused_graph(job)
    _pack(module, job.example)
    _replace_convolutions(module, _onednn)
    return Ready(_run(module))


def planned(job: Job) -> Ready:
    """fastres itself, with its oneDNN engine."""
    return Ready(
        fastres.optimize(
            job.model, job.example, engine="onednn", precision=job.precision, threads=job.threads
        )
    )


def own_kernels(job: Job) -> Ready:
    """fastres with its native engine, every convolution multiplied directly."""
    with native.without_winograd():
        ready = winograd(job)
        ready.call(job.example)  # the plan for this shape
    return ready


def winograd(job: Job) -> Ready:
    """fastres with its native engine as it is."""
    return fastres_peer.prepare_native(job)


def _native_refuses(precision: str, device: str) -> str | None:
    """Why the native engine's rows are missing."""
    return native.why_unavailable(precision)


RUNGS = (
    (catalogue.REFERENCE, "fp32"),
    (Peer("channels-last", "+ channels-last", torch_peers.channels_last), "fp32"),
    (Peer("folded", "+ BatchNorm folded", folded, bound=FASTRES_BOUND), "fp32"),
    (Peer("fused", "+ bias, add, ReLU fused", fused, bound=FASTRES_BOUND), "fp32"),
    (Peer("prepacked", "+ weights prepacked", prepacked, bound=FASTRES_BOUND), "fp32"),
    (Peer("planned", "+ planned (fastres)", planned, bound=FASTRES_BOUND), "fp32"),
    (
        Peer(
            "own-kernels",
            "+ own kernels (fastres)",
            own_kernels,
            refuses=_native_refuses,
            bound=FASTRES_BOUND,
        ),
        "fp32",
    ),
    (
        Peer(
            "native", "+ Winograd (fastres)", winograd, refuses=_native_refuses, bound=FASTRES_BOUND
        ),
        "fp32",
    ),
    (
        Peer(
            "native", "+ bfloat16 (fastres)", winograd, refuses=_native_refuses, bound=FASTRES_BOUND
        ),
        "bf16",
    ),
    (
        Peer("native", "+ int8 (fastres)", winograd, refuses=_native_refuses, bound=FASTRES_BOUND),
        "int8",
    ),
)


def steps(batch: Batch) -> list[str]:
    """Each row's ratio to the row above it."""
    timed = [row for row in batch.rows if row.samples_ns]
    sentences = []
    for before, row in itertools.pairwise(timed):
        ratio = measure.paired_ratio(before.samples_ns, row.samples_ns)
        sentences.append(
            f"batch {batch.batch}, {row.title}: {ratio.median:.2f}x "
            f"({ratio.low:.2f}–{ratio.high:.2f}) the row above"
        )
    return sentences


def main(argv: Sequence[str] | None = None) -> int:
    """Climb the ladder; the exit status is 1 if a row fails its check."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ladder", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", default="resnet50", help="as for fastres.bench")
    parser.add_argument("--batch", nargs="+", default=["1", "8"])
    parser.add_argument("--size", default="224")
    parser.add_argument("--seconds", default="15")
    parser.add_argument("--threads", default=None)
    parser.add_argument("--json", type=Path, help="write the record")
    options = parser.parse_args(argv)
    words = ["--model", options.model, "--size", options.size, "--seconds", options.seconds]
    words += ["--cold", "none", "--precision", "fp32", "bf16", "int8", "--batch", *options.batch]
    words += ["--threads", options.threads] if options.threads else []
    command = sys.argv[1:] if argv is None else argv
    with Progress() as progress:
        result = run.run(settings.parse(words), command, progress, RUNGS)
    if options.json is not None:
        record.write(result, options.json)
    table.show(result, "eager-fp32")
    for batch in result.batches:
        print("\n".join(steps(batch)))
    return int(any(row.status == "failed" for batch in result.batches for row in batch.rows))


def _fused_graph(job: Job) -> fx.GraphModule:
    """The graph after all of fastres's passes, its operators not yet those of an engine.

    Every operator of fastres is replaced by its meaning in torch; weights are channels-last.
    """
    module = fastres.optimize(job.model, job.example, engine="eager").graph_module
    for name, weight in list(module.named_buffers()):
        if weight.ndim == 4:
            setattr(module, name, weight.contiguous(memory_format=torch.channels_last))
    for node in module.graph.nodes:
        if node.target in ops.REFERENCE:
            node.target = ops.REFERENCE[node.target]
    module.recompile()
    return module


def _replace_convolutions(module: fx.GraphModule, function: Convolution) -> None:
    for node in module.graph.nodes:
        if node.target is reference.conv2d:
            node.target = function
    module.recompile()


def _pack(module: fx.GraphModule, example: Tensor) -> None:
    """Let oneDNN reorder every convolution's weight for the sizes it will see."""
    facts = propagate(module, [example])
    for node in module.graph.nodes:
        if node.target is not reference.conv2d:
            continue
        image, weight, _, _, stride, padding, dilation, groups, *_ = arguments(node)
        unpacked = constant(weight)
        assert unpacked is not None
        packed = torch.ops.mkldnn._reorder_convolution_weight(
            unpacked, padding[:2], stride, dilation, groups, list(facts[image].shape)
        )
        setattr(module, str(weight.target), packed)


def _onednn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    pre_activation: str,
    activation: str,
) -> Tensor:
    """`reference.conv2d` in one call of oneDNN, for what ResNets have of it."""
    top, left, bottom, right = padding
    if pre_activation != "none" or (top, left) != (bottom, right):
        raise NotImplementedError(f"padding {padding}, activation {pre_activation} before the sum")
    geometry = ([top, left], stride, dilation, groups)
    if residual is None:
        result: Any = torch.ops.mkldnn._convolution_pointwise(
            x, weight, bias, *geometry, activation, [], ""
        )
    else:
        activation_attribute = None if activation == "none" else activation
        result = torch.ops.mkldnn._convolution_pointwise.binary(
            x, residual, weight, bias, *geometry, "add", 1.0, activation_attribute, [], ""
        )
    assert isinstance(result, Tensor)
    return result


def _run(module: fx.GraphModule) -> Callable[[Tensor], object]:
    def call(images: Tensor) -> object:
        with torch.inference_mode():
            return module(images.contiguous(memory_format=torch.channels_last))

    return call


if __name__ == "__main__":
    sys.exit(main())
