"""The guard's decision on made-up times, and the guard itself on small networks."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from torch import nn

import fastres
from benchmarks import guard, native
from fastres.bench import measure
from tests.support import ROOT

ROUNDS = 60


def noisy(nanoseconds: float, spread: float, seed: int) -> list[int]:
    """Times around a median, a tenth of them far too long."""
    random = np.random.default_rng(seed)
    times = nanoseconds * np.exp(spread * random.standard_normal(ROUNDS))
    late = random.random(ROUNDS) < 0.1
    return [int(time) for time in np.where(late, times * 3, times)]


@pytest.mark.parametrize("spread", [0.0, 0.05, 0.2])
def test_faster_passes(spread: float) -> None:
    verdict = guard.judge(noisy(2e6, spread, 1), noisy(1e6, spread, 2))
    assert not verdict.is_slower
    assert verdict.low > 1
    assert verdict.low <= verdict.median <= verdict.high
    assert verdict.median == pytest.approx(2.0, rel=0.3)


@pytest.mark.parametrize("spread", [0.0, 0.05, 0.2])
def test_slower_fails(spread: float) -> None:
    verdict = guard.judge(noisy(1e6, spread, 1), noisy(1.5e6, spread, 2))
    assert verdict.is_slower
    assert verdict.high < 1


@pytest.mark.parametrize("seed", range(20))
def test_equal_passes(seed: int) -> None:
    verdict = guard.judge(noisy(1e6, 0.2, seed), noisy(1e6, 0.2, seed + 100))
    assert not verdict.is_slower


def test_a_little_slower_is_told_from_noise_by_pairs() -> None:
    drifting = 1e6 * np.exp(0.5 * np.random.default_rng(0).standard_normal(ROUNDS))
    slower = [int(time) for time in drifting * 1.05]
    assert guard.judge([int(time) for time in drifting], slower).is_slower
    assert not guard.judge(slower, [int(time) for time in drifting]).is_slower


def test_exactly_equal_is_not_slower() -> None:
    assert guard.judge([5, 7, 9], [5, 7, 9]) == guard.Verdict(1.0, 1.0, 1.0)
    assert not guard.judge([5, 7, 9], [5, 7, 9]).is_slower


def test_the_same_times_get_the_same_verdict() -> None:
    one, other = noisy(1e6, 0.2, 1), noisy(1e6, 0.2, 2)
    assert guard.judge(one, other) == guard.judge(one, other)


@pytest.mark.parametrize(("one", "other"), [([], []), ([1], []), ([1, 2], [1])])
def test_times_without_partners(one: list[int], other: list[int]) -> None:
    with pytest.raises(ValueError, match="expected one each per round"):
        guard.judge(one, other)


def run(monkeypatch: pytest.MonkeyPatch, onednn: Sequence[int], ours: Sequence[int]) -> int:
    """The guard's exit status where all processors take these times."""
    monkeypatch.setattr(native, "why_unavailable", lambda precision: None)
    times = {"onednn": list(onednn), "native": list(ours)}
    monkeypatch.setattr(guard, "interleaved", lambda case, plan: times)
    return guard.main([])


def test_the_exit_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, [300] * 10, [200] * 10) == 0
    said = capsys.readouterr().out
    assert said.count("native 1.50x the oneDNN engine (1.50 to 1.50 with 99 %, 10 rounds)\n") == 3
    assert run(monkeypatch, [200] * 10, [300] * 10) == 1
    assert capsys.readouterr().out.count(": SLOWER\n") == 3


def test_one_slower_case_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(case: guard.Case, plan: measure.Plan) -> dict[str, list[int]]:
        ours = 300 if case.model == "resnet18" else 100
        return {"onednn": [200] * 10, "native": [ours] * 10}

    monkeypatch.setattr(native, "why_unavailable", lambda precision: None)
    monkeypatch.setattr(guard, "interleaved", timed)
    assert guard.main([]) == 1


def test_where_there_is_no_engine_there_is_nothing_to_compare(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(native, "load", lambda: "its library was not built")
    assert guard.main([]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said == [
        f"{precision}: nothing to compare: no native engine: its library was not built"
        for precision in ("fp32", "bf16")
    ]


@pytest.mark.campaign
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_both_engines_are_timed(precision: str) -> None:
    reason = native.why_unavailable(precision)
    if reason is not None:
        pytest.skip(reason)
    case = guard.Case("resnet18", 2, 64, precision)
    times = guard.interleaved(case, measure.Plan(seconds=0, min_rounds=2, warmup=1))
    assert {name: len(samples) for name, samples in times.items()} == {"onednn": 2, "native": 2}


@pytest.mark.campaign
def test_wrong_answers_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    if native.why_unavailable("fp32") is not None:
        pytest.skip(str(native.why_unavailable("fp32")))
    optimize = fastres.optimize

    def wrong(model: nn.Module, *args: Any, engine: str, **options: Any) -> Any:
        fast = optimize(model, *args, engine=engine, **options)
        return (lambda images: fast(images) * 1.01) if engine == "native" else fast

    monkeypatch.setattr(fastres, "optimize", wrong)
    with pytest.raises(RuntimeError, match="resnet18, batch 1, 64x64, fp32: the engines' answers"):
        guard.interleaved(
            guard.Case("resnet18", 1, 64, "fp32"), measure.Plan(seconds=0, min_rounds=1)
        )


def test_ci_runs_it_in_the_main_jobs_environment() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "python -m benchmarks.guard" in script
    assert script.index('step "main job"') < script.index('step "guard"')
    assert script.index('step "guard"') < script.index('step "checks"')
    subprocess.run(["bash", "-n", str(ROOT / ".ci" / "run")], check=True)
