"""The GPU's day without a GPU: its files, judgement, page, and rehearsals with faults put in."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.gpu_day import (
    __main__,
    answers,
    compiling,
    day,
    faults,
    fit,
    hard_cases,
    kernel_cases,
    layers,
    page,
    report_tests,
    stages,
    tables,
)
from benchmarks.gpu_day.results import DeviceIsGone, Job, Results
from benchmarks.gpu_day.settings import GPU
from benchmarks.gpu_day.stages import STAGES
from fastres.bench.record import anonymous_record
from fastres.errors import InputError
from fastres.kernels.launch.elementwise import add_relu
from fastres.kernels.tuning.conv2d import choose_conv2d
from fastres.kernels.tuning.gpus import by_name
from fastres.system import versions
from tests.support import ROOT

RECORDS = ROOT / "benchmarks" / "results" / "gpu_day"


@pytest.fixture(autouse=True)
def no_faults_left() -> Any:
    yield
    faults.seed("")


def raises() -> dict[str, Any]:
    add_relu(torch.zeros(2, dtype=torch.float32), torch.zeros(3, dtype=torch.float32))
    return {}


def test_what_raised_is_a_result_that_says_where_and_with_what(tmp_path: Path) -> None:
    results = Results(tmp_path, "stage")
    job = Job("one", raises, {"x": (2, 3)})
    results.run([job, Job("two", lambda: {"ok": True})])
    record = Results(tmp_path, "stage").records["one"]
    assert record["failed"].startswith(InputError.__name__)
    assert record["at"].startswith("kernels/")
    assert (record["seed"], record["arguments"]) == (job.seed, {"x": [2, 3]})
    assert [each["key"] for each in results.wrong] == ["one"]
    assert (results.planned, results.done("one"), results.done("two")) == (2, False, True)


def test_wrong_and_failed_results_are_made_again_and_right_ones_are_not(tmp_path: Path) -> None:
    made: list[str] = []

    def work(key: str) -> Any:
        def make() -> dict[str, Any]:
            made.append(key)
            return {"ok": key != "wrong"}

        return make

    jobs = [Job(key, work(key)) for key in ("right", "wrong")]
    Results(tmp_path, "stage").run([*jobs, Job("raises", raises)])
    with (tmp_path / "stage.jsonl").open("a") as file:
        file.write('{"key": "rig')  # killed while it wrote
    other = tmp_path / "other"
    other.mkdir()
    Results(other, "stage", tmp_path).run([*jobs, Job("more", work("more"))])
    assert made == ["right", "wrong", "wrong", "more"]
    assert set(Results(other, "stage").records) == {"right", "wrong", "raises", "more"}
    Results(other, "stage").run(jobs, again=True)
    assert made[4:] == [], "a process that goes on does not try again"


def test_a_result_alone_has_the_same_random_numbers(tmp_path: Path) -> None:
    def draw() -> dict[str, Any]:
        return {"drawn": float(torch.randn((), dtype=torch.float64))}

    jobs = [Job(key, draw) for key in ("a", "b")]
    one, other = (tmp_path / name for name in ("one", "other"))
    for folder, wanted in ((one, jobs), (other, jobs[1:])):
        folder.mkdir()
        Results(folder, "stage").run(wanted)
    drawn = [Results(folder, "stage").records["b"]["drawn"] for folder in (one, other)]
    assert drawn[0] == drawn[1]


def test_a_lost_device_ends_the_process_and_is_written_down(tmp_path: Path) -> None:
    def lost() -> dict[str, Any]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(DeviceIsGone):
        Results(tmp_path, "stage").run([Job("one", lost), Job("two", dict)])
    results = Results(tmp_path, "stage")
    assert list(results.records) == ["one"]
    results.run([Job("one", lost), Job("two", dict)], again=True)
    assert list(Results(tmp_path, "stage").records) == ["one", "two"]


# ------------------------------------------------------------------ judgement


def judged(ours: Tensor, exact: Tensor, theirs: Tensor | None = None, **more: Any) -> Any:
    same = exact.to(ours.dtype) if theirs is None else theirs

    def oracle(tensors: Any) -> Tensor:
        return exact.double() if tensors[0].dtype == torch.float64 else same

    more = {"length": 1, "precision": "fp16", **more}
    return answers.judge(ours, oracle, (torch.zeros(1, dtype=ours.dtype),), **more)


def test_all_zeros_are_right_and_anything_else_there_is_not() -> None:
    zero = torch.zeros(4, dtype=torch.float16)
    assert judged(zero, zero)["ok"]
    assert not judged(zero + 0.01, zero)["ok"]


@pytest.mark.parametrize("theirs", [math.nan, math.inf])
def test_where_torch_has_no_number_it_is_no_measure(theirs: float) -> None:
    exact = torch.tensor([1.0, 0.5], dtype=torch.float64)
    torchs = torch.tensor([theirs, 0.5], dtype=torch.float16)
    right = judged(exact.half(), exact, torchs)
    assert right["ok"] and right["torchs"] == 0.0
    assert not judged(exact.half() * 1.01, exact, torchs)["ok"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_number_must_be_in_the_same_places(value: float) -> None:
    exact = torch.tensor([value, 1.0], dtype=torch.float64)
    assert judged(exact.half(), exact)["ok"]
    for other in {math.nan, math.inf, -math.inf, 1.0} - {value}:
        assert not judged(torch.tensor([other, 1.0], dtype=torch.float16), exact)["ok"]


def test_float32_may_err_by_what_adding_up_costs_and_not_by_a_precision() -> None:
    exact = torch.ones(1, dtype=torch.float64)
    bound = {"precision": "fp32", "length": 9 * 128 + 128 + 256}

    def off(error: float) -> bool:
        ours = (exact + error).float()
        return bool(judged(ours, exact, (exact + 4.1e-7).float(), **bound)["ok"])

    assert off(8.2e-7), "seen on a GPU, where torch's own happened to be half of that"
    assert not off(2.0**-12), "products in TF32"
    assert not off(1.0 / bound["length"] ** 0.5), "a product that is missing"  # type: ignore[operator]


def test_float32_sums_of_random_products_stay_below_the_floor() -> None:
    for length in (16, 256, 4096):
        a, b = (torch.randn(512, length, dtype=torch.float32) for _ in range(2))
        one_by_one = torch.zeros(512, dtype=torch.float32)
        for i in range(length):
            one_by_one += a[:, i] * b[:, i]
        exact = (a.double() * b.double()).sum(1)
        error = float((one_by_one - exact).abs().max() / exact.abs().max())
        assert error < answers.floor("fp32", length) < 100 * error


def test_cases_have_names_of_their_own_and_every_operator_has_one() -> None:
    names = [case.name for case in hard_cases.EVERY]
    assert len(set(names)) == len(names)
    assert {case.operator for case in hard_cases.EVERY} == set(kernel_cases.OPERATORS)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("operator", sorted(set(kernel_cases.OPERATORS) - {"far"}))
def test_a_case_of_each_operator_is_right_and_a_spoilt_one_is_not(
    operator: str, device: str
) -> None:
    cases = [case for case in hard_cases.EVERY if case.operator == operator]
    case = min(cases, key=lambda case: case.work)
    found = kernel_cases.run_case(case, "fp16", device)
    assert found["ok"], found
    faults.seed("wrong")
    assert not kernel_cases.run_case(case, "fp16", device)["ok"]


def test_what_cannot_be_interpreted_is_not_rehearsed_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "REHEARSED", True)
    monkeypatch.setattr(versions, "why_not_interpreted", lambda: "numpy is too new")
    assert stages.run("kernels", stages.Options(tmp_path, most=3)) == 0
    records = Results(tmp_path, "kernels").records.values()
    assert [each["skipped"] for each in records] == ["cannot be rehearsed: numpy is too new"] * 3
    (line,) = (line for line in page.page(tmp_path) if line.startswith("kernels "))
    assert line.endswith("3 skipped (cannot be rehearsed: numpy is too new)")


# ------------------------------------------------------------------ layers, fit and page


def made_up(count: int) -> dict[str, Any]:
    found = {}
    for key, spec in layers.specs()[::count]:
        for name, config in list(layers.variants(spec).items())[:6]:
            each = f"{key}: {name}"
            us = layers._simulated_time(each, spec, config)
            found[each] = {"key": each, "us": us, "config": str(config)}
    return found


def test_constants_are_found_again() -> None:
    rows = fit.rows_of(made_up(4))
    found = fit.fitted(rows)
    assert found.rows == len(rows) > 80
    assert found.error_after < 0.03 < found.error_before
    for name, factor in layers.REAL.items():
        assert (found.after[name] > found.before[name]) == (factor > 1), name
    assert fit.constants() == found.before, "the model itself is not changed"
    assert "LAUNCH_S" in " ".join(fit.report_lines(found))


def test_keys_say_what_was_launched() -> None:
    for key, spec in layers.specs():
        assert fit.spec_of(f"{key}: chosen") == spec
        config = choose_conv2d(spec, "fp16", by_name(GPU))
        assert fit.config_of(str(config)) == config


@pytest.mark.parametrize("path", sorted(RECORDS.rglob("*.jsonl")), ids=lambda path: path.name)
def test_records_hold_no_absolute_paths(path: Path) -> None:
    for line in path.read_text(encoding="utf-8").splitlines():
        kept = json.loads(line)
        assert anonymous_record(kept) == kept


@pytest.mark.campaign
@pytest.mark.parametrize("name", ["2026-11-28a", "2026-11-28b"])
def test_earlier_records_are_shown(name: str) -> None:
    lines = page.page(RECORDS / name)
    assert len(lines) <= page.LINES
    assert max(map(len, lines)) <= page.WIDTH
    assert lines[0].startswith("NVIDIA H100")
    assert any("constants of the cost model that fit" in line for line in lines)


def test_what_failed_is_counted_as_wrong() -> None:
    text = "\n".join(page.page(RECORDS / "2026-11-28a"))
    assert "networks   15 results, 15 wrong" in text
    assert "resnet50 fp16 256: InputError" in text


def test_a_page_of_a_thousand_faults_is_a_page(tmp_path: Path) -> None:
    for stage in STAGES:
        results = Results(tmp_path, stage)
        for number in range(100):
            results.put(f"{number}", {"failed": "X" * 500, "at": "here"})
    lines = page.page(tmp_path)
    assert len(lines) <= page.LINES
    assert "wrong: 1300" in lines
    assert all(any(line.startswith(f"  {stage}: ") for line in lines) for stage in STAGES)


def test_models_become_a_table() -> None:
    lines = tables.markdown(RECORDS / "2026-11-28b").splitlines()
    assert "NVIDIA H100" in lines[0]
    assert lines[2] == "| model | precision | batch | fastres | eager | eager in a graph |"
    assert lines[4].startswith("| resnet50 | fp16 | 256 | 31,644 (8.57) | 13,778 (18.70) |")


# ------------------------------------------------------------------ tests under the plugin

SAMPLE = """
import time
import pytest

def test_passes(): pass

def test_fails():
    assert 1 == 2, "as it should"

def test_skipped():
    pytest.skip("not here")

def test_never_ends():
    print("at it", flush=True)
    time.sleep(100)
"""


@pytest.mark.campaign
def test_failed_tests_are_known_when_pytest_is_killed(tmp_path: Path) -> None:
    (tmp_path / "test_sample.py").write_text(SAMPLE)
    report = tmp_path / "tests.jsonl"
    command = [sys.executable, "-m", "pytest", "-p", "benchmarks.gpu_day.report_tests"]
    command += ["-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path)]
    environment = {**os.environ, report_tests.FILE: str(report)}
    process = subprocess.Popen(
        [*command, "-n", "1"], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    until = time.monotonic() + 60
    while len(Results(tmp_path, "tests").records) < 3 and time.monotonic() < until:
        time.sleep(0.2)
    day.end_group(process)
    found = Results(tmp_path, "tests")
    assert found.planned == 5
    (wrong,) = found.wrong
    assert wrong["key"].endswith("::test_fails") and "as it should" in wrong["text"]

    done = [key for key in found.records if found.done(key)]
    report_tests.done_beside(report).write_text(
        "\n".join([*done, "test_sample.py::test_never_ends"])
    )
    report.unlink()
    subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, check=False)
    again = Results(tmp_path, "tests").records
    assert sorted(key.split("::")[1] for key in again) == ["test_fails", "test_skipped"]


# ------------------------------------------------------------------ days


def test_a_stage_is_ended_with_all_it_started(tmp_path: Path) -> None:
    inner = "import time, sys; open(sys.argv[1], 'w').close(); time.sleep(100)"
    outer = (
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}, sys.argv[1]])"
    )
    started = tmp_path / "started"
    process = subprocess.Popen([sys.executable, "-c", outer, str(started)], start_new_session=True)
    while not started.exists():
        time.sleep(0.05)
    day.end_group(process)
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert str(started) not in listed.stdout


def test_faults_are_for_stages_that_exist() -> None:
    assert __main__.seeded(["layers:time"]) == {"layers": "time"}
    assert __main__.seeded(["all"])["ncu"] == "wrong,exception,time"
    for text in ("layer", "layers:slow"):
        with pytest.raises(SystemExit):
            __main__.parsed(["run", "--out", "x", "--seed-fault", text])


def test_a_process_that_dies_is_named_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = Results(tmp_path, "kernels")
    codes = iter(["-11", "9", "1"])
    begun = iter(["first", "", ""])

    def start(self: day.Running, options: stages.Options) -> subprocess.Popen[bytes]:
        started.append(options.again)
        if key := next(begun):
            results._now.write_text(key)
        code = next(codes)
        end = f"import os; os.kill(os.getpid(), {code[1:]})" if code[0] == "-" else f"exit({code})"
        return subprocess.Popen([sys.executable, "-c", end], start_new_session=True)

    started: list[bool] = []
    monkeypatch.setattr(day.Running, "_start", start)
    whole = day.Day(stages.Options(tmp_path))
    with (tmp_path / "log.txt").open("w") as log:
        for _ in range(2):
            running = day.Running("kernels", whole, log, 60.0)
            while not running.over:
                running.watch()
    found = Results(tmp_path, "kernels")
    assert started == [False, True, False], "what cannot begin is not started again"
    assert found.records["first"]["failed"] == "the process ended in it: signal 11"
    assert found.records["compute-sanitizer"]["ok"] is False
    assert found.ended == ["signal 11, in: first", "compute-sanitizer found errors", "exit 1"]
    text = "\n".join(page.page(tmp_path))
    assert "wrong: 3\n  kernels: its process ended: exit 1\n" in text


def test_what_a_part_compiles_is_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "triton"
    (cache / "key").mkdir(parents=True)
    for name in ("k.cubin", "k.json", "k.ptx"):
        (cache / "key" / name).write_text(name)
    monkeypatch.setattr(compiling, "TRITON", cache)
    monkeypatch.setattr(compiling, "ROOT", tmp_path)
    assert compiling.pack(tmp_path / "packed" / "cache.tar") > 0
    monkeypatch.setattr(compiling, "ROOT", tmp_path / "there")
    assert compiling.unpack(tmp_path / "packed" / "cache.tar")
    found = sorted(path.name for path in (tmp_path / "there").rglob("k.*"))
    assert found == ["k.cubin", "k.json"]
    assert not compiling.unpack(tmp_path / "no such file")


@pytest.mark.parametrize("kind", compiling.KINDS)
def test_each_part_has_launches(kind: str) -> None:
    smallest = {
        "network": compiling.Part("network", "tiny", "fp16", 1),
        "case": compiling.Part("case", "linear, odd sizes", "bf16"),
        "layers": compiling.parts(("layers",))[-1],
    }
    calls = compiling.calls_of(smallest[kind])
    assert calls
    assert all(call.chained for call in calls) == (kind == "network")


def test_the_examples_batch_is_prepared() -> None:
    parts = compiling.parts(("network",))
    assert {("resnet50", "bf16", 1), ("resnet18", "fp16", 1)} <= {part[1:] for part in parts}
    assert len(set(parts)) == len(parts)


def rehearse(folder: Path, *options: str) -> str:
    command = [sys.executable, "-m", "benchmarks.gpu_day", "run", "--out", str(folder)]
    done = subprocess.run(
        [*command, "--rehearse", *options], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.campaign
def test_a_fault_in_each_stage_is_on_the_page(tmp_path: Path) -> None:
    folder = tmp_path / "day"
    rehearse(folder, "--at-most", "2", "--seed-fault", "all")
    lines = page.page(folder)
    text = (folder / "page.txt").read_text()
    assert text == "\n".join(lines) + "\n"
    for stage in STAGES:
        (line,) = (line for line in lines if line.startswith(f"{stage} "))
        assert "its time was over" in line, line
        results = Results(folder, stage)
        assert f", {len(results.wrong)} wrong" in line, line
        told = [json.dumps(each) for each in results.wrong]
        assert any("SeededFault" in each for each in told), stage
        assert any("SeededFault" not in each for each in told), stage
    assert (tmp_path / "day.tar.gz").stat().st_size > 1000


@pytest.mark.campaign
def test_a_rehearsal_without_faults_has_nothing_wrong(tmp_path: Path) -> None:
    wanted = ["facts", "kernels", "layers"]
    text = rehearse(tmp_path / "day", "--at-most", "2", "--only", *wanted)
    assert "A REHEARSAL, without a GPU" in text
    assert "\nwrong: none\n" in text
    for stage in wanted:
        assert f"\n{stage:10} 2 of 2 results, 0 wrong" in text
