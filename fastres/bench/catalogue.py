"""The contenders there are."""

from __future__ import annotations

from fastres.bench import (
    export_contender,
    fastres_contender,
    onnxruntime_contender,
    openvino_contender,
    tensorrt_contender,
    torch_contenders,
)
from fastres.bench.contender import OURS, Contender
from fastres.errors import OptionError

ONEDNN = Contender(
    "fastres-onednn",
    "fastres, oneDNN engine",
    fastres_contender.prepare_onednn,
    refuses=fastres_contender.onednn_refuses,
    devices=("cpu",),
    bound=OURS,
    alternative=False,
)
"""fastres without kernels of its own, to see what those are worth."""

REFERENCE = Contender("eager", "torch eager NCHW", torch_contenders.eager)
"""What everything is compared with, in float32: the model as its user has it."""

PEERS = {
    contender.name: contender
    for contender in (
        REFERENCE,
        Contender("channels-last", "torch channels-last", torch_contenders.channels_last),
        Contender(
            "cuda-graph",
            "torch channels-last in a CUDA graph",
            torch_contenders.graphed,
            devices=("cuda",),
        ),
        Contender(
            "compile",
            "torch.compile frozen",
            torch_contenders.compiled,
            missing=torch_contenders.no_compiler,
        ),
        Contender(
            "compile-replayed",
            "torch.compile reduce-overhead",
            torch_contenders.compiled_replayed,
            missing=torch_contenders.no_compiler,
            devices=("cuda",),
        ),
        Contender(
            "compile-max",
            "torch.compile max-autotune",
            torch_contenders.compiled_max,
            missing=torch_contenders.no_compiler,
            devices=("cuda",),
        ),
        Contender(
            "onnxruntime",
            "ONNX Runtime",
            onnxruntime_contender.prepare,
            missing=onnxruntime_contender.missing,
            refuses=onnxruntime_contender.refuses,
        ),
        Contender(
            "onnxruntime-export",
            "ONNX Runtime, fastres export",
            export_contender.prepare,
            missing=export_contender.missing,
            refuses=export_contender.refuses,
        ),
        Contender(
            "openvino",
            "OpenVINO",
            openvino_contender.prepare,
            missing=openvino_contender.missing,
            refuses=openvino_contender.refuses,
            devices=("cpu",),
        ),
        Contender(
            "tensorrt",
            "TensorRT",
            tensorrt_contender.prepare,
            missing=tensorrt_contender.missing,
            devices=("cuda",),
        ),
        Contender(
            "torch-tensorrt",
            "Torch-TensorRT",
            tensorrt_contender.prepare_in_torch,
            missing=tensorrt_contender.missing_in_torch,
            devices=("cuda",),
        ),
        ONEDNN,
    )
}


def peers(device: str) -> dict[str, Contender]:
    """Those for a kind of device, by name."""
    return {name: peer for name, peer in PEERS.items() if device in peer.devices}


FASTRES = Contender("fastres", "fastres", fastres_contender.prepare, bound=OURS)


def find(name: str) -> Contender:
    """The contender of that name.

    Raises:
        OptionError: there is none.
    """
    if name == FASTRES.name:
        return FASTRES
    if name in PEERS:
        return PEERS[name]
    raise OptionError(f"there is no contender {name!r}; expected one of {', '.join(PEERS)}")
