"""Launches that may start early, in their code for sm_90: they wait before they touch memory.

Interpreted, launches follow one another anyway: only compiled code can be right or wrong.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

PROGRAM = """
import dataclasses, importlib.util, sys
from pathlib import Path
import torch

old, new, folder = sys.argv[1:]
source = Path("kernels/triton/chain.py").read_text()
assert source.count(old) == 1, source.count(old)
file = Path(folder, "chain.py")
file.write_text(source.replace(old, new))
spec = importlib.util.spec_from_file_location("fastres.kernels.triton.chain", file)
module = importlib.util.module_from_spec(spec)
sys.modules["fastres.kernels.triton.chain"] = module
spec.loader.exec_module(module)

from fastres.kernels.launch.conv2d import conv2d_calls
from fastres.kernels.tuning.conv2d import Conv2dConfig
from fastres.kernels.launch.elementwise import add_relu_calls
from fastres.kernels.tuning.gpus import architecture
from fastres.kernels.inspection.compiling import compiled
from fastres.kernels.packing import packed_shape
from fastres.kernels.spec import ConvSpec

half = {"dtype": torch.float16, "device": "meta"}
rows = torch.empty(8, 64, **half)
calls = add_relu_calls(rows, rows, torch.empty_like(rows))
spec = ConvSpec(1, 64, 8, 8, 64, 1, 1)
image, out = (torch.empty(1, 8, 8, 64, **half).permute(0, 3, 1, 2) for _ in range(2))
weight = torch.empty(packed_shape(64, 64, 1, 1, 1), **half)
for descriptors in (False, True):
    config = Conv2dConfig(64, 64, 64, descriptors=descriptors)
    geometry = (spec, "none", "relu", config, "fp16", None)
    calls += conv2d_calls(image, weight, None, None, out, *geometry)
spec = ConvSpec(1, 64, 8, 8, 64, 3, 3, padding=(1, 1, 1, 1))
weight = torch.empty(packed_shape(64, 64, 3, 3, 1), **half)
config = Conv2dConfig(64, 64, 64, descriptors=True, box_h=8, box_w=8)
calls += conv2d_calls(image, weight, None, None, out, spec, "none", "relu", config, "fp16", None)
assert calls[-1].name == "tiled_conv2d_kernel"
wrong = []
for call in calls:
    ptx = compiled(dataclasses.replace(call, chained=True), architecture("sm_90")).asm["ptx"]
    waits, starts = ptx.find("griddepcontrol.wait"), ptx.find("griddepcontrol.launch_dependents")
    reads = min(at for at in map(ptx.find, ("ld.global", "cp.async", "st.global")) if at > 0)
    if not 0 < waits < reads or not waits < starts:
        wrong.append(call.name)
print(" ".join(wrong) or "right")
"""


def found(old: str, new: str, folder: Path) -> str:
    """Launches that go wrong with a replacement in the chain kernel; ``right`` where none does."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(folder / "cache")}
    environment |= {"PYTHONPATH": str(ROOT)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, old, new, str(folder)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


@pytest.mark.campaign
def test_they_wait_before_they_read_and_then_let_the_next_one_start(tmp_path: Path) -> None:
    assert found("        gdc_wait()\n", "        gdc_wait()\n", tmp_path) == "right"


@pytest.mark.campaign
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("        gdc_wait()\n", "        gdc_launch_dependents()\n"),
        ("        gdc_launch_dependents()\n", "        gdc_wait()\n"),
    ],
    ids=["no wait", "no start"],
)
def test_a_seeded_fault_is_noticed(old: str, new: str, tmp_path: Path) -> None:
    assert found(old, new, tmp_path) != "right"
