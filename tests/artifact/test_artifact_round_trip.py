"""What comes out of a file is what went in: answers bitwise, errors, receipt, names."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision.models
from torch import Tensor, nn

import fastres
from fastres.errors import ArtifactError, FastresWarning, InputError, OptionError
from fastres.export import to_standard
from tests.networks.test_reference_families import FAMILIES
from tests.support.small import Net, conv, images, net
from tests.support.stored import (
    assert_equal,
    assert_same_module,
    optimized,
    other_weights,
    parts_of,
    there_and_back,
)
from tests.zoo.quirks import QUIRKS
from tests.zoo.quirks_signature import Answers
from tests.zoo.statistics import randomise_statistics

TORCHVISION = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext101_32x8d", "wide_resnet50_2"),
)
TIMM = ("resnet18", "resnet50d")


def small_network(**options: Any) -> tuple[nn.Module, fastres.OptimizedModule]:
    model = net(
        lambda m, x: m.head(torch.relu(m.norm(m.first(x)) + x).mean((2, 3))),
        first=conv(),
        norm=nn.BatchNorm2d(4),
        head=nn.Linear(4, 3),
    )
    return model, optimized(model, images(2), **options)


@pytest.mark.campaign
@pytest.mark.parametrize("name", FAMILIES)
def test_reference_families(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    model = family.model()
    fast = optimized(model, family.images(1))
    loaded = there_and_back(fast, tmp_path)
    for given in (family.images(2), family.images(1, 1, 13)):
        assert_equal(loaded(given), fast(given))
    assert loaded.report.found == fast.report.found
    assert loaded.report.done == fast.report.done
    other = randomise_statistics(copy.deepcopy(model), family.images(8, seed=3), seed=5)
    loaded.refresh(other.state_dict())
    wanted = optimized(other, family.images(1))
    assert_same_module(loaded, wanted)
    assert_equal(loaded(family.images(2)), wanted(family.images(2)))
    assert loaded.report.check is not None
    assert loaded.report.check.ratio <= 8.0


@pytest.mark.campaign
@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvisions_resnets(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = randomise_statistics(getattr(torchvision.models, name)(weights=None)).eval()
    fast = optimized(model, torch.randn(1, 3, 64, 64))
    loaded = there_and_back(fast, tmp_path)
    x = torch.randn(2, 3, 64, 71)
    assert_equal(loaded(x), fast(x))


@pytest.mark.campaign
@pytest.mark.parametrize("name", TIMM)
def test_timms_resnets_in_bfloat16(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = randomise_statistics(timm.create_model(name, pretrained=False)).eval()
    fast = optimized(model, torch.randn(1, 3, 64, 64), precision="bf16")
    loaded = there_and_back(fast, tmp_path)
    x = torch.randn(2, 3, 64, 71)
    assert_equal(loaded(x), fast(x))
    kept, read = (dict(each.graph_module.named_buffers()) for each in (fast, loaded))
    assert {name: b.dtype for name, b in read.items()} == {n: b.dtype for n, b in kept.items()}


@pytest.mark.sampled(8)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("quirk", QUIRKS, ids=lambda quirk: quirk.name)
def test_quirks(quirk: Any, tmp_path: Path) -> None:
    model = quirk.model()
    inputs, named = quirk.inputs()
    fast = optimized(model, (inputs, named))
    if quirk.name == "output: named tuple":
        with pytest.raises(ArtifactError, match=r"the model's results hold a .*Features.*no code"):
            fast.save(tmp_path / "model.fastres")
        assert list(tmp_path.iterdir()) == []
        return
    loaded = there_and_back(fast, tmp_path)
    assert_equal(loaded(*inputs, **named), fast(*inputs, **named))
    assert loaded.graph_module.code == fast.graph_module.code
    assert (loaded.report.refused, loaded.report.left) == (fast.report.refused, fast.report.left)
    assert loaded.report.notes[: len(fast.report.notes)] == fast.report.notes
    other = other_weights(model)
    keep_what_no_state_dict_has(model, other)
    loaded.refresh(other.state_dict())
    wanted = optimized(other, (inputs, named))
    assert_same_module(loaded, wanted)
    assert_equal(loaded(*inputs, **named), wanted(*inputs, **named))


def keep_what_no_state_dict_has(model: nn.Module, other: nn.Module) -> None:
    """Non-persistent buffers stay as they were: refresh cannot know new ones."""
    known = {value.data_ptr() for value in other.state_dict().values()}
    with torch.no_grad():
        for name, buffer in other.named_buffers():
            if buffer.data_ptr() not in known:
                buffer.copy_(model.get_buffer(name))


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("made", "used"), [("onednn", "eager"), ("eager", "onednn"), ("eager", "auto")]
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_another_engine(made: str, used: str, precision: str, tmp_path: Path) -> None:
    model, fast = small_network(engine=made, precision=precision)
    loaded = there_and_back(fast, tmp_path, engine=used)
    wanted = optimized(model, images(2), engine=used, precision=precision)
    assert loaded.report.engine == loaded.engine == wanted.engine
    x = images(3, height=11)
    assert_equal(loaded(x), wanted(x))
    assert f"from the {made} engine on cpu" in loaded.report.notes[-1]


def test_float16(tmp_path: Path) -> None:
    _, fast = small_network(precision="fp16")
    loaded = there_and_back(fast, tmp_path)
    assert loaded.report.precision == "float16"
    x = images(3)
    assert_equal(loaded(x), fast(x))


def test_the_receipt_says_where_it_came_from(tmp_path: Path) -> None:
    model = net(lambda m, x: torch.fft.rfft2(torch.relu(m.c(x))).abs(), c=conv(padding=(2, 1)))
    fast = optimized(model, images(2), threads=1)
    loaded = there_and_back(fast, tmp_path)
    assert not fast.report.complete
    assert loaded.report.left == fast.report.left
    assert loaded.report.check == fast.report.check
    assert loaded.report.layers == fast.report.layers
    assert loaded.report.engine_notes == fast.report.engine_notes
    (told,) = (note for note in loaded.report.notes if note not in fast.report.notes)
    assert told.startswith(f"loaded from {tmp_path / 'model.fastres'}, saved by fastres ")
    assert f"torch {torch.__version__}" in told
    assert set(loaded.report.seconds) == {"load", "first shape"}


def test_a_loaded_model_can_be_saved_again(tmp_path: Path) -> None:
    _, fast = small_network()
    loaded = there_and_back(fast, tmp_path)
    (tmp_path / "again").mkdir()
    again = there_and_back(loaded, tmp_path / "again")
    first, _, weights = parts_of(tmp_path / "model.fastres")
    second, _, others = parts_of(tmp_path / "again" / "model.fastres")
    assert first.keys() == second.keys()
    assert {k for k in first if first[k] != second[k]} == {"report"}
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    x = images(2)
    assert_equal(again(x), fast(x))


@pytest.mark.parametrize("way", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_loaded_model_is_an_optimised_module(way: Any, tmp_path: Path) -> None:
    model, fast = small_network()
    loaded = way(there_and_back(fast, tmp_path))
    x = images(3)
    assert isinstance(loaded, fastres.OptimizedModule)
    assert_equal(loaded(x), fast(x))
    assert fastres.verify(model, loaded, x).passed
    assert {layer.module for layer in loaded.profile(x, rounds=1).layers} == {
        layer.module for layer in fast.profile(x, rounds=1).layers
    }
    program = to_standard(loaded)
    torch.testing.assert_close(program.module()(x), fast(x))
    other, _ = small_network()
    loaded.refresh(other.state_dict())
    assert_equal(loaded(x), optimized(other, images(2))(x))


def test_a_layer_that_drifts_is_named_after_loading(tmp_path: Path) -> None:
    model, fast = small_network()
    loaded = there_and_back(fast, tmp_path)
    with torch.no_grad():
        loaded.graph_module.get_buffer("first_weight_folded").mul_(1.5)
    drift = fastres.verify(model, loaded, images(2)).first_drift
    assert drift is not None
    assert drift.module == "first"


class Fixed(nn.Module):
    """Its code asks for the image's size, and flattens it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 49, 2)

    def forward(self, x: Tensor, scale: float = 1.0) -> Any:
        y = self.first(x)
        if x.shape[2] > 40:
            y = nn.functional.avg_pool2d(y, 2)
        return y.relu() * scale


@pytest.mark.parametrize(
    "wrong",
    [
        lambda f: f(torch.randn(2, 3, 64, 32)),
        lambda f: f(torch.randn(2, 4, 32, 32)),
        lambda f: f(torch.randn(3, 32, 32)),
        lambda f: f(torch.randn(2, 3, 32, 32).double()),
        lambda f: f(torch.randn(2, 3, 32, 32), 3.0),
        lambda f: f(torch.randn(2, 3, 32, 32), scale=2.0, other=1),
        lambda f: f(),
    ],
)
def test_the_contract_holds_after_loading(wrong: Any, tmp_path: Path) -> None:
    fast = optimized(Fixed().eval(), (torch.randn(2, 3, 32, 32), 2.0))
    loaded = there_and_back(fast, tmp_path)
    with pytest.raises(InputError) as before:
        wrong(fast)
    with pytest.raises(InputError) as after:
        wrong(loaded)
    assert str(after.value) == str(before.value)
    assert_equal(loaded(torch.ones(5, 3, 37, 20), 2.0), fast(torch.ones(5, 3, 37, 20), 2.0))


def test_limits_and_ties_hold_after_loading(tmp_path: Path) -> None:
    model = Net(lambda m, x: m.c(x) + m.c(x.transpose(2, 3)), c=conv(bias=False)).eval()
    fast = optimized(model, images(2, height=8, width=8))
    loaded = there_and_back(fast, tmp_path)
    for shape in ((2, 4, 8, 9), (2, 4, 5, 5), (1, 4, 1, 1)):
        assert_equal(*(outcome(module, torch.ones(shape)) for module in (fast, loaded)))


def outcome(module: Any, x: Tensor) -> Any:
    """The answer, or the sentence of the refusal."""
    try:
        return module(x)
    except InputError as error:
        return str(error)


@pytest.mark.parametrize("form", ["input", "view of the input", "views of each other"])
def test_results_alias_nothing_after_loading(form: str, tmp_path: Path) -> None:
    model = randomise_statistics(Answers(form), images(2, height=12, width=12)).eval()
    loaded = there_and_back(optimized(model, images(2, height=12, width=12)), tmp_path)
    x = images(2, height=12, width=12)
    before = x.clone()
    first = loaded(x)
    kept = [y.clone() for y in first]
    for y in first:
        y.add_(1.0)
    assert torch.equal(x, before)
    for y, wanted in zip(loaded(x), kept, strict=True):
        assert torch.equal(y, wanted)


def test_nan_stays_nan_after_loading(tmp_path: Path) -> None:
    _, fast = small_network()
    loaded = there_and_back(fast, tmp_path)
    x = images(2)
    x[0, 0, 0, 0] = float("nan")
    assert loaded(x)[0].isnan().all()
    assert_equal(loaded(x), fast(x))


def test_preprocessing_comes_back(tmp_path: Path) -> None:
    transforms = fastres.transforms.Transforms(mean=(0.5,) * 4, std=(0.25,) * 4)
    model, _ = small_network()
    fast = fastres.optimize(
        model,
        torch.zeros(2, 9, 8, 4, dtype=torch.uint8),
        input_format="uint8_nhwc",
        transforms=transforms,
        softmax=True,
        top_k=2,
        labels=("a", "b", "c"),
    )
    loaded = there_and_back(fast, tmp_path)
    assert loaded.preprocessing == fast.preprocessing
    pixels = torch.randint(0, 256, (3, 10, 12, 4), dtype=torch.uint8)
    assert_equal(loaded(pixels), fast(pixels))
    assert fastres.verify(model, loaded, pixels).passed
    other, _ = small_network()
    loaded.refresh(other.state_dict())
    assert not torch.equal(loaded(pixels)[0], fast(pixels)[0])


def test_threads_call_a_loaded_model(tmp_path: Path) -> None:
    _, fast = small_network()
    loaded = there_and_back(fast, tmp_path)
    given = [images(1 + i % 3, height=6 + i % 5) for i in range(12)]
    wanted = [fast(x) for x in given]
    right: list[bool] = []

    def call(index: int) -> None:
        right.extend(torch.equal(loaded(given[index]), wanted[index]) for _ in range(5))

    threads = [threading.Thread(target=call, args=(index,)) for index in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 60


@pytest.mark.campaign
def test_in_a_process_without_the_class(tmp_path: Path) -> None:
    model, fast = small_network(precision="bf16")
    path = tmp_path / "model.fastres"
    fast.save(path)
    x = images(3)
    torch.save((x, fast(x), model.state_dict()), tmp_path / "data.pt")
    code = f"""
import sys, torch, fastres
fast = fastres.load({str(path)!r})
x, wanted, state = torch.load({str(tmp_path / "data.pt")!r}, weights_only=True)
assert torch.equal(fast(x), wanted)
heavy = [m for m in ("sympy", "torch._dynamo", "torchvision", "small") if m in sys.modules]
assert heavy == [], heavy
fast.refresh(state)
assert torch.equal(fast(x), wanted)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_options_of_load(tmp_path: Path) -> None:
    _, fast = small_network()
    fast.save(tmp_path / "m")
    assert fastres.load(tmp_path / "m", threads=1).threads == 1
    with pytest.raises(OptionError, match="threads: got 0"):
        fastres.load(tmp_path / "m", threads=0)
    with pytest.raises(OptionError, match="engine: got 'fast'"):
        fastres.load(tmp_path / "m", engine="fast")
    with pytest.raises(OptionError, match="device='meta'"):
        fastres.load(tmp_path / "m", device="meta")
    if not torch.cuda.is_available():
        with pytest.raises(fastres.TargetError, match="no CUDA device"):
            fastres.load(tmp_path / "m", device="cuda")


def test_a_default_that_no_file_holds_is_shown(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c = conv()

        def forward(self, x: Tensor, how: Any = nn.functional.relu) -> Any:
            return self.c(x)

    fast = optimized(Odd().eval(), images(2))
    loaded = there_and_back(fast, tmp_path)
    x = images(3)
    assert_equal(loaded(x), fast(x))
    assert "how=<function relu" in str(loaded._signature)


def test_strict_and_warnings_are_not_repeated(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    model = net(lambda m, x: torch.fft.rfft2(m.c(x)).abs(), c=conv())
    with pytest.warns(FastresWarning):
        fast = fastres.optimize(model, images(2))
    recwarn.clear()
    there_and_back(fast, tmp_path)
    assert list(recwarn) == []
