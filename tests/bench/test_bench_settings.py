"""The command line: what it means, and what it says to what cannot be."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fastres import bench, models
from fastres.bench import settings
from fastres.bench.peers import catalogue
from fastres.bench.peers.peer import Peer
from fastres.errors import OptionError
from fastres.system import target
from fastres.workload import model_source
from fastres.workload.model_source import Source

HERE = Path(__file__).parent


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "cpu_threads", lambda: 3)
    given = settings.parse([])
    assert given.source == Source("fastres", "resnet50")
    assert given.batches == (1, 8)
    assert given.size == 224
    assert given.threads == 3
    assert given.device == torch.device("cpu")
    quantizing = ("onnxruntime-qdq", "openvino-nncf")
    floating = [name for name in catalogue.peers("cpu") if name not in quantizing]
    assert [*given.peers, "fastres-onednn"] == floating
    assert given.reference == "eager-fp32"
    assert given.precisions[0] == "fp32"
    assert ("bf16" in given.precisions) == target.onednn_supports(torch.bfloat16)


def test_everything_given(tmp_path: Path) -> None:
    record, picture = tmp_path / "r.json", tmp_path / "p.png"
    words = f"""--depth 18 --batch 1 8 32 --size 160 --precision bf16 --threads 1
        --images {tmp_path} --peers eager --cold each --seconds 2.5 --seed 7
        --reference eager-bf16 --markdown --json {record} --plot {picture}"""
    assert settings.parse(words.split()) == settings.Settings(
        source=Source("fastres", "resnet18"),
        batches=(1, 8, 32),
        size=160,
        device=torch.device("cpu"),
        precisions=("bf16",),
        threads=1,
        images=tmp_path,
        peers=("eager",),
        cold="each",
        seconds=2.5,
        seed=7,
        reference="eager-bf16",
        json=record,
        plot=picture,
        markdown=True,
        from_record=None,
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--model resnet51", "did you mean resnet50"),
        ("--model :f", "expected a name of fastres's own"),
        ("--model torchvision:", "expected a name of fastres's own"),
        ("--batch 1 8 1", "--batch: 1 is there twice"),
        ("--precision fp32 fp32", "--precision: fp32 is there twice"),
        ("--peers tensorrt", f"none, all or some of {', '.join(catalogue.peers('cpu'))}"),
        ("--peers none eager", "none stands alone"),
        ("--precision fp32 --peers openvino-nncf", "it computes in int8, and --precision has fp32"),
        ("--precision int8 --peers openvino", "computes in fp32, tf32, bf16, fp16, and"),
        ("--peers eager eager", "--peers: eager is there twice"),
        ("--images no/such/folder", "expected a directory of images"),
        ("--json no/such/folder/r.json", "there is no directory no/such/folder"),
        ("--plot no/such/folder/p.png", "there is no directory no/such/folder"),
        ("--from-record a.json --json b.json", "leave one of them out"),
        ("--from-record no-such.json", "no-such.json cannot be read"),
        ("--reference nobody-fp32 --peers none", "expected one of eager-fp32, fastres-"),
        ("--model no_such_module:f", "there is no module no_such_module"),
        ("--model os:no_such_function", "os has no function no_such_function"),
        ("--model os:getcwd", "returned str, expected a torch.nn.Module"),
        ("--model torchvision:resnet51", "did you mean"),
        ("--model timm:resnet51x", "did you mean"),
    ],
)
def test_what_cannot_be(words: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(words.split()) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("fastres bench: ")
    assert says in said.err
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--depth 51", "invalid choice"),
        ("--depth 50 --model resnet50", "not allowed with"),
        ("--batch 0", "expected a whole number of at least 1"),
        ("--batch 1.5", "expected a whole number of at least 1"),
        ("--size -3", "expected a whole number of at least 1"),
        ("--threads none", "expected a whole number of at least 1"),
        ("--seconds -1", "expected a number of at least 0"),
        ("--seconds nan", "expected a number of at least 0"),
        ("--seconds inf", "expected a number of at least 0"),
        ("--precision fp8", "invalid choice"),
        ("--device", "expected one argument"),
        ("--cold hot", "invalid choice"),
        ("--no-such-option", "unrecognized arguments"),
    ],
)
def test_what_the_parser_rejects(words: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        bench.main(words.split())
    assert raised.value.code == 2
    assert says in capsys.readouterr().err


def test_help_names_all_peers(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        bench.main(["--help"])
    assert raised.value.code == 0
    said = "".join(capsys.readouterr().out.split())  # lines are broken at hyphens too
    assert all(name in said for name in catalogue.PEERS)


def test_our_other_engine_takes_part_where_it_is_asked_for() -> None:
    name = catalogue.ONEDNN.name
    assert name not in settings.parse([]).peers
    assert settings.parse(["--peers", name]).peers == (name,)
    assert name in settings.parse(["--peers", "all"]).peers
    assert name not in catalogue.peers("cuda")
    assert catalogue.find_peer(name) is catalogue.ONEDNN
    assert catalogue.ONEDNN.bound == catalogue.FASTRES.bound


def test_a_peer_asked_for_by_name_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = Peer(
        "openvino",
        "OpenVINO",
        catalogue.FASTRES.prepare,
        missing=lambda device: "pip install openvino",
    )
    monkeypatch.setitem(catalogue.PEERS, "openvino", absent)
    with pytest.raises(OptionError, match="it needs pip install openvino"):
        settings.parse(["--peers", "openvino"])
    assert "openvino" in settings.parse(["--peers", "all"]).peers


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("resnext50_32x4d", Source("fastres", "resnext50_32x4d")),
        ("torchvision:densenet121", Source("torchvision", "densenet121")),
        ("timm:seresnet50", Source("timm", "seresnet50")),
        ("package.module:make", Source("function", "package.module:make")),
    ],
)
def test_names_of_models(name: str, parsed: Source) -> None:
    assert model_source.parse(name) == parsed
    assert str(parsed) == name
    assert parsed.has_random_weights is (parsed.kind != "function")


def test_a_depth_or_a_model_or_resnet50() -> None:
    assert (
        model_source.from_options(None, None)
        == model_source.from_options(50, None)
        == model_source.parse("resnet50")
    )
    assert model_source.from_options(None, "timm:vgg11") == model_source.parse("timm:vgg11")
    with pytest.raises(OptionError, match="there is no 'resnet0'"):
        model_source.from_options(0, None)


def test_own_models_are_those_of_the_seed() -> None:
    state = torch.random.get_rng_state()
    one, same, other = (
        model_source.build(model_source.parse("resnet18"), seed) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    assert isinstance(one, models.ResNet)
    assert not one.training
    weight = one.conv1.weight
    assert torch.equal(weight, same.get_parameter("conv1.weight"))
    assert not torch.equal(weight, other.get_parameter("conv1.weight"))


def test_torchvision_and_timm() -> None:
    for name in ("torchvision:resnet18", "timm:resnet18"):
        built = model_source.build(model_source.parse(name), seed=0)
        assert sum(parameter.numel() for parameter in built.parameters()) == 11_689_512


def test_a_function_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_network.py").write_text(
        "from torch import nn\n"
        "def make():\n    return nn.Conv2d(3, 4, 3)\n"
        "def half():\n    return nn.Conv2d(3, 4, 3).bfloat16()\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "their_network", raising=False)
    assert isinstance(model_source.build(model_source.parse("their_network:make"), 0), nn.Conv2d)
    with pytest.raises(OptionError, match=r"weight is torch.bfloat16 on cpu, expected float32"):
        model_source.build(model_source.parse("their_network:half"), 0)


def test_a_module_that_fails_to_import_something_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half_there.py").write_text("import surely_not_installed\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(ModuleNotFoundError, match="surely_not_installed"):
        model_source.build(model_source.parse("half_there:make"), 0)


def test_int8_is_measured_where_it_is_asked_for() -> None:
    assert "int8" not in settings.parse([]).precisions
    given = settings.parse(["--precision", "int8"])
    assert given.precisions == ("int8",)
    assert given.peers == ("onnxruntime-qdq", "openvino-nncf")
    assert settings.parse(["--precision", "int8", "--peers", "all"]).peers == given.peers
    both = settings.parse(["--precision", "int8", "fp32"])
    assert {"eager", "openvino", *given.peers} <= set(both.peers)
