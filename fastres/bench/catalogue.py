"""The contenders there are."""

from __future__ import annotations

from fastres.bench import (
    fastres_contender,
    onnxruntime_contender,
    openvino_contender,
    torch_contenders,
)
from fastres.bench.contender import OURS, Contender
from fastres.errors import OptionError

REFERENCE = Contender("eager", "torch eager NCHW", torch_contenders.eager)
"""What everything is compared with, in float32: the model as its user has it."""

PEERS = {
    contender.name: contender
    for contender in (
        REFERENCE,
        Contender("channels-last", "torch channels-last", torch_contenders.channels_last),
        Contender(
            "compile",
            "torch.compile frozen",
            torch_contenders.compiled,
            missing=torch_contenders.no_compiler,
        ),
        Contender(
            "onnxruntime",
            "ONNX Runtime",
            onnxruntime_contender.prepare,
            missing=onnxruntime_contender.missing,
            refuses=onnxruntime_contender.refuses,
        ),
        Contender(
            "openvino",
            "OpenVINO",
            openvino_contender.prepare,
            missing=openvino_contender.missing,
            refuses=openvino_contender.refuses,
        ),
    )
}

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
