"""The table of precisions against everything that has a fact for each."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from fastres import dtypes
from fastres.bench import gate
from fastres.dtypes import BY_DTYPE, FLOATING, NATIVE, PRECISIONS, REQUESTABLE, Precision
from fastres.errors import OptionError
from fastres.kernels.tuning import gpus
from fastres.options import Options
from fastres.runtime.native import abi

ROOT = Path(__file__).parent.parent


@pytest.fixture(params=dtypes.ROWS, ids=list(PRECISIONS))
def row(request: pytest.FixtureRequest) -> Precision:
    found: Precision = request.param
    return found


def test_rows(row: Precision) -> None:
    assert PRECISIONS[row.name] is row
    assert row.bytes == torch.empty(1, dtype=row.dtype, device="cpu").element_size()
    assert row.label == str(row.dtype).split(".")[1]
    assert row.lanes * row.bytes == 64
    assert row.group * row.bytes == 4
    if row.quantized:
        assert torch.iinfo(row.accumulator).max >= 2**15 * torch.iinfo(row.dtype).max
    else:
        assert torch.finfo(row.accumulator).eps <= torch.finfo(row.dtype).eps


def test_a_dtype_has_one_row_that_may_be_asked_for() -> None:
    assert [PRECISIONS[name].dtype for name in REQUESTABLE] == list(BY_DTYPE)
    assert set(FLOATING) == {dtype for dtype, row in BY_DTYPE.items() if not row.quantized}
    for name in PRECISIONS:
        if name in REQUESTABLE:
            assert Options(precision=name).dtype(torch.float64) == PRECISIONS[name].folded
        else:
            with pytest.raises(OptionError, match="precision: got"):
                Options(precision=name)


def test_data_sheets_and_the_bench_know_each() -> None:
    on_gpus = {name for name, row in PRECISIONS.items() if "cuda" in row.devices}
    assert set(gpus.PRECISIONS) == on_gpus
    assert set(gate.ABSOLUTE) == set(PRECISIONS)


def test_native_codes_are_those_of_the_header() -> None:
    header = (ROOT / "kernels" / "cpu" / "native.h").read_text()
    (listed,) = re.findall(r"enum fr_dtype \{(.*?)\}", header, re.DOTALL)
    codes = dict(re.findall(r"FR_(\w+) = (\d+)", listed))
    assert {BY_DTYPE[each].label.upper(): str(BY_DTYPE[each].native_code) for each in NATIVE} == (
        codes
    )


def test_instruction_sets_are_the_librarys() -> None:
    assert {isa for row in dtypes.ROWS for isa in row.instruction_sets} == set(abi.ISAS)
    for row in dtypes.ROWS:
        assert bool(row.instruction_sets) == (row.native_code is not None)
