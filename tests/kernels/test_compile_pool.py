"""Launches compiled by other processes: each once, then in the cache, no process in vain."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

PROGRAM = """
import dataclasses, os, sys, threading
import torch
from fastres.kernels.launch import compile_pool
from fastres.kernels.launch.compile_pool import CompilePool, distinct
from fastres.kernels.launch.elementwise import add_relu_calls
from fastres.kernels.tuning.gpus import architecture
from fastres.kernels.inspection.compiling import compiled
import triton

def call(number, dtype, **more):
    x = torch.empty(8, 16 * number, dtype=dtype, device="meta")
    (made,) = add_relu_calls(x, x, torch.empty_like(x))
    return dataclasses.replace(made, **more)

sm_90 = architecture("sm_90")
calls = [call(n, d) for d in (torch.float16, torch.float32, torch.bfloat16) for n in (4, 8)]
kinds = distinct(calls)
assert len(kinds) == 3, len(kinds)
assert len(distinct([calls[0], call(4, torch.float16, grid=(0, 1, 1))])) == 1
assert len(distinct([call(4, torch.float16), call(4, torch.float16, chained=True)])) == 2
with CompilePool(sm_90, workers=2) as pool:
    pool.compile(calls)
    started = list(pool._all)
    assert 1 <= len(started) <= 2, started
    pool.compile(calls)
    assert pool._all == started
assert [process.returncode for process in started] == [0] * len(started)
before = len(os.listdir(os.environ["TRITON_CACHE_DIR"]))
for each in kinds:
    compiled(each, sm_90)
assert len(os.listdir(os.environ["TRITON_CACHE_DIR"])) == before
with CompilePool(sm_90, workers=2) as pool:  # all there: no process is started
    pool.compile(calls)
    assert pool._all == []
chained = compiled(call(4, torch.float16, chained=True), sm_90)
assert "griddepcontrol.wait" in chained.asm["ptx"] and chained.metadata.launch_pdl
assert "griddepcontrol" not in compiled(calls[0], sm_90).asm["ptx"]
sys.executable = "/nowhere"  # without processes the launches compile for themselves
with CompilePool(sm_90, workers=2) as pool:
    pool.compile([call(4, torch.float16, num_warps=2), call(8, torch.float32, num_warps=8)])
print("right")
"""


@pytest.mark.campaign
def test_the_pool(tmp_path: Path) -> None:
    """In a process of its own, since this one interprets kernels."""
    environment = {
        "TRITON_CACHE_DIR": str(tmp_path),
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.stdout.strip() == "right", done.stderr[-3000:]


def test_options_say_what_is_compiled_differently() -> None:
    from fastres.kernels.launch.call import KernelCall

    call = KernelCall(None, (1, 1, 1), {}, {}, num_warps=8, num_stages=2)
    assert call.options == {"num_warps": 8, "num_stages": 2}
    chained = dataclasses.replace(call, chained=True)
    assert chained.options == {**call.options, "CHAINED": True, "launch_pdl": True}


@pytest.mark.parametrize(
    "kernel", ["conv2d", "pointwise", "tiled", "bottleneck", "stem", "pooling", "elementwise"]
)
def test_every_kernel_waits_before_it_reads_and_lets_the_next_one_start(kernel: str) -> None:
    """A launch that may start early and does not wait would read what is not written yet."""
    text = (ROOT / "kernels" / "triton" / f"{kernel}.py").read_text()
    for source in text.split("@triton.jit\n")[1:]:
        if source.partition("(")[0].endswith("_kernel"):
            assert "CHAINED: tl.constexpr = False" in source
            waits, starts = source.index("await_inputs(CHAINED)"), source.index("let_next_start(")
            assert waits < starts
