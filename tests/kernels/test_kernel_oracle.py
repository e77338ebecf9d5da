"""The kernels' judge finds what it is there to find."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastres.kernels import reference
from tests.support import ROOT, kernel_oracle
from tests.support.kernel_oracle import PRECISIONS, assert_kernel_as_accurate

SHAPE = (2, 5, 3, 4)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_torchs_own_result_passes(precision: str) -> None:
    x = kernel_oracle.random_images(*SHAPE, precision=precision)
    weight = kernel_oracle.random_tensor(7, 5, 1, 1, precision=precision)
    arguments = (x, weight)
    got = torch.conv2d(*kernel_oracle.in_precision(arguments, precision))
    kernel_oracle.judge(got, torch.conv2d, arguments, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("ulps", [-4.0, 4.0])
def test_a_small_error_is_found(precision: str, ulps: float) -> None:
    exact = torch.ones(SHAPE, dtype=torch.float64)
    got = exact.to(PRECISIONS[precision]).clone()
    got[1, 4, 2, 3] += ulps * kernel_oracle.EPSILON[precision]
    with pytest.raises(AssertionError, match=r"1 of 120 elements are off, the worst at \(1, 4, 2"):
        assert_kernel_as_accurate(got, exact, exact, precision)


@pytest.mark.parametrize(
    ("value", "message"), [(math.nan, "NaN in 1"), (math.inf, r"\+inf in 1"), (-math.inf, "-inf")]
)
def test_a_special_number_in_the_wrong_place_is_found(value: float, message: str) -> None:
    exact = torch.ones(SHAPE, dtype=torch.float64)
    special = exact.clone()
    special[0, 1, 0, 2] = value
    moved = exact.clone()
    moved[0, 1, 0, 1] = value
    same = special.float()
    assert_kernel_as_accurate(special.float(), special, same, "fp32")
    for wrong in (exact, moved):
        with pytest.raises(AssertionError, match="places"):
            assert_kernel_as_accurate(wrong.float(), special, same, "fp32")
    with pytest.raises(AssertionError, match=message):
        assert_kernel_as_accurate(special.float(), exact, exact, "fp32")


def test_overflow_of_the_precision_is_expected() -> None:
    exact = torch.full(SHAPE, 1e5, dtype=torch.float64)
    assert_kernel_as_accurate(exact.half(), exact, exact.half(), "fp16")


def test_shape_and_dtype_count() -> None:
    exact = torch.ones(SHAPE, dtype=torch.float64)
    with pytest.raises(AssertionError, match="is not"):
        assert_kernel_as_accurate(exact[:1].float(), exact, exact, "fp32")
    with pytest.raises(AssertionError, match="is not"):
        assert_kernel_as_accurate(exact.half(), exact, exact, "fp32")


def test_empty_results_are_equal() -> None:
    exact = torch.ones(0, 3, 2, 2, dtype=torch.float64)
    assert_kernel_as_accurate(exact.float(), exact, exact, "fp32")


@pytest.mark.parametrize("shape", [SHAPE, (3, 1, 2, 2), (2, 4, 1, 1), (7,), (3, 5)])
def test_fenced_tensors_lie_between_nan(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    got = kernel_oracle.fenced(x)
    assert torch.equal(got, x)
    flat = torch.as_strided(got, (got.numel() + 2,), (1,), got.storage_offset() - 1)
    assert flat[0].isnan() and flat[-1].isnan() and not flat[1:-1].isnan().any()
    if len(shape) == 4:
        assert got.stride() == kernel_oracle.channels_last_strides(shape)
        assert got.is_contiguous(memory_format=torch.channels_last)


def write_beside_an_output(place: int) -> None:
    with kernel_oracle.guarded_output(*SHAPE, precision="fp16") as out:
        out.zero_()
        torch.as_strided(out, (1,), (1,), out.storage_offset() + place).zero_()


def test_a_write_around_an_output_is_found() -> None:
    write_beside_an_output(119)
    for place, side in ((-1, "before"), (120, "behind")):
        with pytest.raises(AssertionError, match=f"1 elements {side} the output"):
            write_beside_an_output(place)


def test_what_is_not_written_stays_nan() -> None:
    with kernel_oracle.guarded_output(*SHAPE) as out:
        out[1:] = 0.0
    assert out[0].isnan().all()


def test_layouts_hold_the_same_numbers() -> None:
    x = kernel_oracle.random_images(*SHAPE, precision="fp32")
    for name, other in kernel_oracle.layouts(x).items():
        assert torch.equal(other, x), name
        assert not other.is_contiguous(memory_format=torch.channels_last), name


def test_rounding_to_tf32() -> None:
    one_and_a_bit = torch.tensor([1 + 2**-11, 1 + 2**-12, -1 - 3 * 2**-11, math.inf, math.nan])
    got = kernel_oracle.rounded_to_tf32(one_and_a_bit)
    wanted = torch.tensor([1 + 2**-10, 1.0, -1 - 2**-9, math.inf, math.nan])
    assert torch.equal(got.nan_to_num(7.0), wanted.nan_to_num(7.0))


def test_references_know_relu() -> None:
    x = kernel_oracle.random_images(*SHAPE, precision="bf16")
    kernel_oracle.judge(x.relu(), lambda v: reference.activate(v, "relu"), (x,), "bf16")
    with pytest.raises(AssertionError, match="elements are off"):
        kernel_oracle.judge(x, lambda v: reference.activate(v, "relu"), (x,), "bf16")


def pytest_on(test: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run one test file under this repository's tests/conftest.py, without seeing any GPU."""
    conftest = (ROOT / "tests" / "conftest.py").read_text(encoding="utf-8")
    (folder / "conftest.py").write_text(conftest, encoding="utf-8")
    (folder / "test_some.py").write_text(test, encoding="utf-8")
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = gpu: a GPU\n", encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-ra", "-p", "no:cacheprovider", *options, "."]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    environment.pop("TRITON_INTERPRET", None)
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)


SOME_TESTS = """
import os, pytest

def test_kernel(device):
    assert device == "cpu" and os.environ["TRITON_INTERPRET"] == "1"

@pytest.mark.gpu
def test_on_a_device():
    raise AssertionError
"""


@pytest.mark.campaign
def test_without_a_gpu_kernels_are_interpreted(tmp_path: Path) -> None:
    done = pytest_on(SOME_TESTS, tmp_path)
    assert done.returncode == 0, done.stdout
    assert "1 passed, 1 deselected" in done.stdout
    assert "kernels: interpreted on the CPU; pytest -m gpu runs them on a GPU" in done.stdout


@pytest.mark.campaign
def test_a_gpu_run_without_a_gpu_is_one_clear_error(tmp_path: Path) -> None:
    done = pytest_on(SOME_TESTS, tmp_path, "-m", "gpu")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "passed" not in done.stdout
    message = (done.stdout + done.stderr).strip()
    assert message.startswith("ERROR: -m gpu: torch sees no CUDA device here, so nothing")
    assert len(message.splitlines()) == 1


@pytest.mark.campaign
def test_a_gpu_run_takes_the_tests_of_kernels(tmp_path: Path) -> None:
    seen = "import torch\ntorch.cuda.is_available = lambda: True\n"
    seen += "torch.cuda.get_device_name = lambda: 'a GPU'\n"
    seen += SOME_TESTS.replace('== "cpu"', '== "cuda"').replace(
        'os.environ["TRITON_INTERPRET"] == "1"', '"TRITON_INTERPRET" not in os.environ'
    )
    # The plugin option is read before any conftest.py.
    (tmp_path / "seen.py").write_text(seen.split("import os")[0], encoding="utf-8")
    more = "\ndef test_nothing_to_do_with_gpus():\n    raise AssertionError\n"
    done = pytest_on(seen + more, tmp_path, "-m", "gpu", "-p", "seen")
    assert "1 failed, 1 passed, 1 deselected" in done.stdout, done.stdout + done.stderr
    assert "kernels: compiled for and run on a GPU" in done.stdout
