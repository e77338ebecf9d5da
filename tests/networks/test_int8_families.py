"""The reference families in int8: the native engine's answers are the eager engine's, to the bit.

How near int8 comes to float32 is the business of other tests.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastres.runtime.native.subgraph import NativeSubgraph
from tests.native.test_native_engine import block_net
from tests.networks.test_reference_families import FAMILIES, Family
from tests.support.native.emulator import emulated
from tests.support.optimizing import optimize
from tests.support.small import images

SEVERAL = ("one channel, no head", "ResBlk", "functional pooling", "configurable ResNeXt-50")


def quantised(family: Family, engine: str, threads: int = 1) -> Any:
    """Calibrated with the same two batches each time."""
    batches = [family.images(2, seed) for seed in (3, 4)]
    return optimize(
        family.model(), family.images(1), precision="int8", calibration=batches, engine=engine,
        threads=threads,
    )  # fmt: skip


@pytest.mark.campaign
def test_a_small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums, a residual that is read again, activations on both sides, groups, two results."""
    model, x = block_net(), images(2, 3, 17, 19)
    options: dict[str, Any] = {"precision": "int8", "calibration": [x], "threads": 1}
    wanted = optimize(model, x, engine="eager", **options)(x)
    for isa in ("avx2", "avx512_vnni"):
        monkeypatch.setenv("FASTRES_NATIVE_ISA", isa)
        with emulated(isa):
            got = optimize(model, x, engine="native", **options)(x)
        assert all(map(torch.equal, got, wanted))


@pytest.mark.campaign
@pytest.mark.parametrize("name", SEVERAL)
def test_native_answers_are_the_eager_ones(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of another batch and another size too, by every instruction set and two threads."""
    family = FAMILIES[name]
    batches = [family.images(1, 7), family.images(3, 8), family.images(2, 9, grow=5)]
    eager = quantised(family, "eager")
    wanted = [eager(x) for x in batches]
    for isa, threads in (("avx2", 1), ("avx512_vnni", 2)):
        monkeypatch.setenv("FASTRES_NATIVE_ISA", isa)
        with emulated(isa):
            fast = quantised(family, "native", threads)
            assert fast.engine == "native"
            for x, y in zip(batches, wanted, strict=True):
                assert torch.equal(fast(x), y)
            steps = fast._runner.executable([batches[0]])._steps
        subgraphs = [s.function for s in steps if isinstance(s.function, NativeSubgraph)]
        assert any(torch.uint8 in each.lowered.dtypes for each in subgraphs)
        used = {compiled.plan.isa for each in subgraphs for compiled in each.plans if compiled}
        assert {each for isas in used for each in isas.split(", ")} <= {"avx512", isa}
