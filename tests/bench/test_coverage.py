"""The command that measures how much of an architecture is native: its parts, rows and tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.coverage import __main__ as command
from benchmarks.coverage import children, measuring, networks, record, table
from benchmarks.coverage.architectures import ARCHITECTURES, Architecture, chosen
from benchmarks.coverage.operators import ALONE, Left, Parts, parts_of
from benchmarks.coverage.record import Contender, Coverage, Record, Row, Speed
from fastres.errors import OptionError
from fastres.runtime.native.library import load
from fastres.workload.model_source import Source
from tests.support.optimizing import optimize

CHILD = "tests.support.ending_child"
HAS_NATIVE = not isinstance(load(), str)


class Rolls(nn.Module):
    """Two runs of convolutions with an operator between that no engine has."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.roll(self.first(x).relu(), 1, 3)
        result: Tensor = self.fc(self.second(x).relu().mean((2, 3)))
        return result


def small(name: str = "small") -> Architecture:
    return Architecture(Source("function", f"nowhere:{name}"), 32)


PARTS = Parts(
    operators=10,
    native_operators=8,
    subgraphs=2,
    native_share=0.75,
    edge_share=0.05,
    call_ns=1_000_000,
    left=(
        Left("aten.roll", "the native engine has no such operation", "torch", 2, 0.15, "[1], 1"),
        Left("aten.roll", "another", "torch", 1, 0.05, "[2], 1"),
    ),
)
WHOLE = replace(PARTS, native_operators=10, subgraphs=1, native_share=1.0, edge_share=0.0, left=())


def contender(name: str, precision: str, *samples_ns: int, reason: str | None = None) -> Contender:
    return Contender(name, f"title of {name}", precision, reason, 1.0, samples_ns)


SPEED = Speed(
    None,
    8,
    0.1,
    (
        contender("eager", "fp32", 30, 30, 30),
        contender("channels-last", "fp32", 20, 40, 60),
        contender("compile", "fp32", reason="it broke"),
        contender("openvino", "fp32", 10, 10, 5),
        contender("fastres", "fp32", 10, 20, 10),
    ),
)
ROWS = (
    Row(
        "resnet18",
        "torchvision",
        224,
        11,
        "abc",
        coverage={"fp32": Coverage(None, "native", WHOLE, 1e-6, 0.91, 2.0)},
        speed={1: SPEED},
    ),
    Row(
        "UNet",
        "benchmarks",
        224,
        failed="ended by SIGABRT, while coverage in int8",
        coverage={
            "fp32": Coverage(None, "native", PARTS, 1e-6, 1.25, 2.0),
            "int8": Coverage("VerificationError: it differs"),
        },
    ),
)
RECORD = Record({"cpu": "some"}, 2, 8.0, ROWS)


def test_there_are_forty_architectures_of_different_names() -> None:
    names = [each.name for each in ARCHITECTURES]
    assert len(names) == len(set(names)) >= 40
    assert [each.name for each in chosen(["UNet", "resnet18"])] == ["resnet18", "UNet"]
    assert {each.origin for each in ARCHITECTURES} == {"torchvision", "timm", "benchmarks"}
    with pytest.raises(OptionError, match="--only resnet17: there is no such architecture"):
        chosen(["resnet17"])


@pytest.mark.campaign
@pytest.mark.parametrize(
    ("make", "size", "parameters", "shape"),
    [
        (networks.UNet, 64, 24.44, (2, 21, 64, 64)),
        (networks.FPN, 64, 26.12, (2, 21, 64, 64)),
        (networks.FaceResNet, 112, 43.59, (2, 512)),
        (networks.ibn_resnet50, 64, 25.56, (2, 1000)),
        (networks.PreActivationResNet, 64, 25.55, (2, 1000)),
    ],
)
def test_networks_written_here_are_as_large_as_their_models(
    make: Any, size: int, parameters: float, shape: tuple[int, ...]
) -> None:
    model = make().eval()
    millions = sum(each.numel() for each in model.parameters()) / 1e6
    assert millions == pytest.approx(parameters, abs=0.01)
    with torch.no_grad():
        assert tuple(model(torch.randn(2, 3, size, size)).shape) == shape


@pytest.mark.skipif(not HAS_NATIVE, reason="the library of the native engine is not built here")
def test_what_is_left_is_counted_with_its_reason_and_time() -> None:
    torch.manual_seed(0)
    images = torch.randn(1, 3, 24, 24)
    fast = optimize(Rolls().eval(), images, engine="native")
    found = parts_of(fast, [images])
    assert found.subgraphs == 2
    (left,) = found.left
    assert (left.operator, left.runs_in, left.count) == ("aten.roll", "torch", 1)
    assert left.reason == "the native engine has no such operation"
    assert left.example.startswith("[1,16,24,24], [1], [3]")
    assert found.operators == found.native_operators + 1
    assert 0 < found.native_share < 1
    assert 0 < left.share < 1
    total = found.native_share + found.edge_share + left.share
    assert total == pytest.approx(1)
    assert not Coverage(None, "native", found).is_whole


@pytest.mark.skipif(not HAS_NATIVE, reason="the library of the native engine is not built here")
def test_a_run_without_a_convolution_is_left_and_says_so() -> None:
    torch.manual_seed(0)

    class Pooled(Rolls):
        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.fc(torch.roll(self.first(x), 1, 3).mean((2, 3)))
            return result

    images = torch.randn(1, 3, 24, 24)
    found = parts_of(optimize(Pooled().eval(), images, engine="native"), [images])
    reasons = {left.operator: left.reason for left in found.left}
    assert reasons.pop("aten.roll") == "the native engine has no such operation"
    assert set(reasons.values()) == {ALONE}


def test_another_engine_leaves_everything_and_says_which() -> None:
    torch.manual_seed(0)
    images = torch.randn(1, 3, 24, 24)
    found = parts_of(optimize(Rolls().eval(), images, engine="onednn"), [images])
    assert found.native_operators == found.subgraphs == found.native_share == 0
    assert {left.reason for left in found.left} == {
        "the engine is onednn: it was asked for by name"
    }
    assert {left.runs_in for left in found.left if "conv2d" in left.operator} == {"oneDNN"}
    assert sum(left.count for left in found.left) == found.operators


@pytest.mark.skipif(not HAS_NATIVE, reason="the library of the native engine is not built here")
def test_numbers_that_are_not_finite_leave_everything_to_torch() -> None:
    torch.manual_seed(0)
    images = torch.randn(1, 3, 24, 24)
    fast = optimize(Rolls().eval(), images, engine="native")
    found = parts_of(fast, [images * torch.inf])
    assert found.subgraphs == 0
    (reason,) = {left.reason for left in found.left}
    assert reason == (
        "the engine is eager: the native library met a number that is not finite, or huge"
    )


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("crashes", "ended by SIGABRT, while coverage in bf16"),
        ("sleeps", "ended after 0.5 seconds, while coverage in bf16"),
        ("raises", "MemoryError: the system refused memory, while coverage in bf16"),
    ],
)
def test_a_process_that_ends_badly_is_a_row(name: str, reason: str) -> None:
    known = replace(ROWS[0], name=name, stage="coverage in bf16")
    row = children.run(small(name), known, ("fp32",), (), 1, 0.0, 0.5, CHILD)
    assert row == replace(known, failed=reason)
    assert row.missing(["fp32"], []), "it is to be measured again"


def test_a_process_that_ends_well_leaves_its_row() -> None:
    row = children.run(small(), ROWS[1], ("fp32",), (), 1, 0.0, 30.0, CHILD)
    assert row == replace(ROWS[1], failed=None)
    assert children.run(small(), None, (), (), 1, 0.0, 30.0, CHILD) == Row(
        "small", "benchmarks", 32
    )


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "coverage.json"
    record.write(RECORD, path)
    assert record.read(path) == RECORD
    order = ["resnet18", "dla34", "UNet"]
    new = Row("dla34", "timm", 224)
    assert [row.name for row in record.with_row(RECORD, new, order).rows] == order
    path.write_text(path.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(OptionError, match="of version 2, expected"):
        record.read(path)
    path.write_text("{")
    with pytest.raises(OptionError, match="cannot be read as a record"):
        record.read(path)


def test_the_tables_say_what_the_record_does() -> None:
    lines = table.markdown(RECORD).splitlines()
    assert lines[0] == "Wholly native: 1 of 2 in float32, 0 of 1 in int8."
    assert lines[4:6] == [
        "| resnet18 | 10 | whole | 0.91x | - | - | nothing |",
        "| UNet | 10 | 75% of the time in 2 | 1.25x | failed | - | 3 roll 20% |",
    ]
    nearly = replace(PARTS, native_share=0.999, left=(replace(PARTS.left[0], share=0.001),))
    row = replace(ROWS[1], coverage={"fp32": Coverage(None, "native", nearly, 1e-6, 1.0, 2.0)})
    line = table.markdown(replace(RECORD, rows=(row,))).splitlines()[4]
    assert line == "| UNet | 10 | >99% of the time in 2 | 1.00x | 2 roll <1% |"
    # By rounds eager took 2, 2 and 6 times as long, OpenVINO 1, 0.5 and 0.5 times.
    assert lines[7] == "Batch 1: faster in float32 than eager in 1 of 1, OpenVINO in 0 of 1."
    assert lines[11] == "| resnet18 | 0.0 | 2.00x | - | 0.50x |"
    assert lines[13:] == [
        "- resnet18: batch 1: title of compile fp32: it broke",
        "- UNet: ended by SIGABRT, while coverage in int8",
        "- UNet: int8: VerificationError: it differs",
    ]


def test_only_what_a_record_lacks_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "coverage.json"
    record.write(RECORD, path)
    asked: list[tuple[str, Row | None]] = []

    def run(architecture: Architecture, known: Row | None, *_: Any) -> Row:
        asked.append((architecture.name, known))
        return Row(architecture.name, architecture.origin, architecture.size)

    monkeypatch.setattr(children, "run", run)
    words = ["--only", "resnet18", "dla34", "UNet", "--precision", "fp32", "--no-speed"]
    assert command.main([*words, "--resume", "--json", str(path)]) == 0
    assert asked == [("dla34", None), ("UNet", ROWS[1])]
    assert [row.name for row in record.read(path).rows] == ["resnet18", "dla34", "UNet"]
    assert command.main(["--from-record", str(path)]) == 0
    assert "| dla34 |" in capsys.readouterr().out


def test_options_that_cannot_be(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert command.main(["--only", "resnet17"]) == 2
    assert command.main(["--only", "UNet", "--resume"]) == 2
    assert command.main(["--from-record", str(tmp_path / "none.json")]) == 2
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    assert command.main(["--only", "dla34", "UNet"]) == 2
    assert "timm not installed" in capsys.readouterr().err


@pytest.mark.campaign
def test_an_architecture_from_beginning_to_end(tmp_path: Path) -> None:
    path = tmp_path / "coverage.json"
    words = ["--only", "squeezenet1_1", "--seconds", "0", "--json", str(path)]
    assert command.main(words) == 0
    (row,) = record.read(path).rows
    assert row.failed is None
    assert set(row.coverage) == set(command.PRECISIONS)
    assert all(each.failed is None for each in row.coverage.values())
    assert row.coverage["fp32"].error_ratio is not None
    assert row.coverage["fp32"].error_ratio < 2
    (speed,) = row.speed.values()
    assert speed.failed is None
    timed = {(each.name, each.precision) for each in speed.contenders if each.samples_ns}
    assert {(name, "fp32") for name in ("fastres", *measuring.PEERS)} <= timed


def test_a_network_that_cannot_be_optimised_is_a_sentence() -> None:
    class Ends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            if float(x.sum()) > 0:  # control flow on data
                return x
            result: Tensor = self.conv(x)
            return result

    found = measuring.covered(Ends().eval(), torch.randn(2, 3, 8, 8), "fp32", 1)
    assert found.failed is not None and found.failed.startswith("CaptureError: ")
    assert found.parts is None and not found.is_whole
