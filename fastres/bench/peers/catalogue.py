"""Every peer, by name."""

from __future__ import annotations

from fastres.bench.peers import (
    export_peer,
    fastres_peer,
    nncf_peer,
    onnxruntime_peer,
    openvino_peer,
    tensorrt_peer,
    torch_peers,
)
from fastres.bench.peers.peer import DTYPES, FASTRES_BOUND, QUANTIZED, Peer
from fastres.errors import OptionError

ONEDNN = Peer(
    "fastres-onednn",
    "fastres, oneDNN engine",
    fastres_peer.prepare_onednn,
    refuses=fastres_peer.onednn_refuses,
    devices=("cpu",),
    bound=FASTRES_BOUND,
    alternative=False,
)
"""fastres on oneDNN's kernels, to see how much faster its own are."""

REFERENCE = Peer("eager", "torch eager NCHW", torch_peers.eager)
"""In float32 the row that others are compared with: the model as its user has it."""

PEERS = {
    peer.name: peer
    for peer in (
        REFERENCE,
        Peer("channels-last", "torch channels-last", torch_peers.channels_last),
        Peer(
            "cuda-graph",
            "torch channels-last in a CUDA graph",
            torch_peers.cuda_graph,
            devices=("cuda",),
        ),
        Peer(
            "compile",
            "torch.compile frozen",
            torch_peers.compiled,
            missing=torch_peers.missing_compiler,
        ),
        Peer(
            "compile-replayed",
            "torch.compile reduce-overhead",
            torch_peers.compiled_reduce_overhead,
            missing=torch_peers.missing_compiler,
            devices=("cuda",),
        ),
        Peer(
            "compile-max",
            "torch.compile max-autotune",
            torch_peers.compiled_max_autotune,
            missing=torch_peers.missing_compiler,
            devices=("cuda",),
        ),
        Peer(
            "onnxruntime",
            "ONNX Runtime",
            onnxruntime_peer.prepare,
            missing=onnxruntime_peer.missing,
            refuses=onnxruntime_peer.refuses,
        ),
        Peer(
            "onnxruntime-export",
            "ONNX Runtime, fastres export",
            export_peer.prepare,
            missing=export_peer.missing,
            refuses=export_peer.refuses,
        ),
        Peer(
            "openvino",
            "OpenVINO",
            openvino_peer.prepare,
            missing=openvino_peer.missing,
            refuses=openvino_peer.refuses,
            devices=("cpu",),
        ),
        Peer(
            "onnxruntime-qdq",
            "ONNX Runtime (QDQ, per channel)",
            onnxruntime_peer.prepare_quantized,
            missing=onnxruntime_peer.missing,
            devices=("cpu",),
            precisions=QUANTIZED,
        ),
        Peer(
            "openvino-nncf",
            "OpenVINO (NNCF)",
            nncf_peer.prepare,
            missing=nncf_peer.missing,
            devices=("cpu",),
            precisions=QUANTIZED,
        ),
        Peer(
            "tensorrt",
            "TensorRT",
            tensorrt_peer.prepare,
            missing=tensorrt_peer.missing,
            devices=("cuda",),
        ),
        Peer(
            "torch-tensorrt",
            "Torch-TensorRT",
            tensorrt_peer.prepare_in_torch,
            missing=tensorrt_peer.missing_in_torch,
            devices=("cuda",),
        ),
        ONEDNN,
    )
}


def peers(device: str) -> dict[str, Peer]:
    """The peers for a kind of device, by name."""
    return {name: peer for name, peer in PEERS.items() if device in peer.devices}


FASTRES = Peer(
    "fastres",
    "fastres",
    fastres_peer.prepare,
    precisions=tuple(DTYPES),
    bound=FASTRES_BOUND,
)


def find_peer(name: str) -> Peer:
    """The peer called ``name``.

    Raises:
        OptionError: no peer is.
    """
    if name == FASTRES.name:
        return FASTRES
    if name in PEERS:
        return PEERS[name]
    raise OptionError(f"there is no contender {name!r}; expected one of {', '.join(PEERS)}")
