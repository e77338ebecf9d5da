"""The contenders there are."""

from __future__ import annotations

from fastres.bench.peers import (
    export_peer,
    fastres_peer,
    onnxruntime_peer,
    openvino_peer,
    tensorrt_peer,
    torch_peers,
)
from fastres.bench.peers.peer import OURS, Contender
from fastres.errors import OptionError

ONEDNN = Contender(
    "fastres-onednn",
    "fastres, oneDNN engine",
    fastres_peer.prepare_onednn,
    refuses=fastres_peer.onednn_refuses,
    devices=("cpu",),
    bound=OURS,
    alternative=False,
)
"""fastres without kernels of its own, to see what those are worth."""

REFERENCE = Contender("eager", "torch eager NCHW", torch_peers.eager)
"""What everything is compared with, in float32: the model as its user has it."""

PEERS = {
    contender.name: contender
    for contender in (
        REFERENCE,
        Contender("channels-last", "torch channels-last", torch_peers.channels_last),
        Contender(
            "cuda-graph",
            "torch channels-last in a CUDA graph",
            torch_peers.graphed,
            devices=("cuda",),
        ),
        Contender(
            "compile",
            "torch.compile frozen",
            torch_peers.compiled,
            missing=torch_peers.no_compiler,
        ),
        Contender(
            "compile-replayed",
            "torch.compile reduce-overhead",
            torch_peers.compiled_replayed,
            missing=torch_peers.no_compiler,
            devices=("cuda",),
        ),
        Contender(
            "compile-max",
            "torch.compile max-autotune",
            torch_peers.compiled_max,
            missing=torch_peers.no_compiler,
            devices=("cuda",),
        ),
        Contender(
            "onnxruntime",
            "ONNX Runtime",
            onnxruntime_peer.prepare,
            missing=onnxruntime_peer.missing,
            refuses=onnxruntime_peer.refuses,
        ),
        Contender(
            "onnxruntime-export",
            "ONNX Runtime, fastres export",
            export_peer.prepare,
            missing=export_peer.missing,
            refuses=export_peer.refuses,
        ),
        Contender(
            "openvino",
            "OpenVINO",
            openvino_peer.prepare,
            missing=openvino_peer.missing,
            refuses=openvino_peer.refuses,
            devices=("cpu",),
        ),
        Contender(
            "tensorrt",
            "TensorRT",
            tensorrt_peer.prepare,
            missing=tensorrt_peer.missing,
            devices=("cuda",),
        ),
        Contender(
            "torch-tensorrt",
            "Torch-TensorRT",
            tensorrt_peer.prepare_in_torch,
            missing=tensorrt_peer.missing_in_torch,
            devices=("cuda",),
        ),
        ONEDNN,
    )
}


def peers(device: str) -> dict[str, Contender]:
    """Those for a kind of device, by name."""
    return {name: peer for name, peer in PEERS.items() if device in peer.devices}


FASTRES = Contender("fastres", "fastres", fastres_peer.prepare, bound=OURS)


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
