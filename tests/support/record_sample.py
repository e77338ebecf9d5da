"""A record of the bench with every kind of row, for the tests of what is made from records."""

from __future__ import annotations

from dataclasses import replace

from fastres.bench.record import Batch, ColdStart, Record, Row
from fastres.system import target


def sample() -> Record:
    """A record with every kind of row."""
    fresh = ColdStart(1.25, 0.5, None, 700 << 20, 600 << 20, "VmHWM")
    exported = ColdStart(4.0, None, 3.0, 900 << 20, 600 << 20, "VmHWM")
    eager = Row(
        name="eager",
        title="torch eager NCHW",
        precision="fp32",
        status="timed",
        error=5e-7,
        error_ratio=1.0,
        top1=1.0,
        fresh=fresh,
        samples_ns=tuple(range(40_000_000, 50_000_000, 500_000)),
    )
    ours = replace(
        eager,
        name="fastres",
        title="fastres",
        notes=("engine onednn",),
        samples_ns=tuple(ns // 2 for ns in eager.samples_ns),
    )
    failed = Row("liar", "Liar [beta]", "fp32", "failed", "error 1.0e+00", error=1.0, top1=0.0)
    absent = Row("onnxruntime", "ONNX Runtime", "bf16", "unavailable", "no bfloat16 convolution")
    peer = replace(eager, name="peer", title="Peer", fresh=exported)
    return Record(
        created="2025-01-01T00:00:00+00:00",
        command=("--depth", "50"),
        revision=None,
        environment=target.environment(),
        settings={"size": 224, "threads": 2, "seed": 0},
        model={"name": "resnet50", "parameters": 25_557_032, "weights": [], "images": "16"},
        batches=(
            Batch(1, 16, 0.25, (eager, peer, ours, failed, absent)),
            Batch(8, 16, None, (replace(eager, fresh=None), replace(ours, fresh=None))),
        ),
    )
