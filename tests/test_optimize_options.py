"""What optimize() may be asked for: options, strictness, forms of the example, and surroundings."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastres
from fastres.errors import ModelError, NotOptimizedError, OptionError, TargetError
from fastres.system.versions import release
from tests.support.optimizing import optimize
from tests.support.oracle import unchanged
from tests.support.small import assert_right, conv, images, measured


def small_model() -> nn.Module:
    layers = (conv(), nn.BatchNorm2d(4), nn.ReLU(), conv(channels=2))
    return measured(nn.Sequential(*layers))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"precision": "int4"}, "precision: got 'int4', expected one of 'fp"),
        ({"precision": torch.bfloat16}, "precision: got torch.bfloat16, expected one of"),
        ({"engine": "fast"}, "engine: got 'fast', expected one of 'auto', 'triton', 'nativ"),
        ({"strict": "yes"}, "strict: got 'yes', expected True or False"),
        ({"tune": 1}, "tune: got 1, expected True or False"),
        ({"batch_buckets": 8}, "batch_buckets: got 8, expected a sequence of integers"),
        ({"batch_buckets": (8, 0)}, "batch_buckets: got (8, 0), expected a sequence of integers"),
        ({"batch_buckets": [True]}, "batch_buckets: got (True,), expected a sequence"),
        ({"threads": 0}, "threads: got 0, expected an integer from 1 to "),
        ({"threads": 1.5}, "threads: got 1.5, expected an integer"),
        ({"threads": True}, "threads: got True, expected an integer"),
        ({"device": "nonsense"}, "device='nonsense': "),
        ({"device": 3.5}, "device=3.5"),
        ({"device": "meta"}, "device='meta'"),
        ({"example_input": 5}, "example_input is a int: expected a tensor, a tuple"),
        ({"example_input": "image"}, "example_input is a str: expected a tensor"),
        ({"example_input": (images(2), 1, 2)}, "example_input does not fit Sequential.forward"),
        ({"example_input": {"image": 1}}, "example_input does not fit Sequential.forward(input)"),
        ({"example_input": ()}, "missing a required argument: 'input'"),
    ],
    ids=[
        *("precision", "precision as a dtype", "engine", "strict", "tune", "buckets as a number"),
        *("bucket 0", "bucket True", "threads 0", "threads 1.5", "threads True"),
        *("device", "device as a number", "device meta", "example number"),
        *("example string", "too many arguments", "wrong keyword", "no argument"),
    ],
)
def test_options(options: dict[str, Any], text: str) -> None:
    model = small_model()
    with unchanged(model), pytest.raises(OptionError, match=re.escape(text)) as caught:
        fastres.optimize(model, **options)
    assert isinstance(caught.value, ValueError)


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TargetError, match="device='cuda': torch sees no CUDA device here; leave"):
        fastres.optimize(small_model(), images(2), device="cuda")


def test_an_engine_that_cannot_run_the_model() -> None:
    model = small_model().double()
    example = images(2).double()
    with pytest.raises(TargetError) as caught:
        fastres.optimize(model, example, engine="onednn")
    text = str(caught.value)
    assert "engine='onednn' cannot run this model here: oneDNN has no torch.float64" in text
    assert text.endswith("use engine='auto'")
    assert fastres.optimize(model, example).engine == "eager"


def test_weights_that_are_not_numbers() -> None:
    model = small_model()
    with torch.no_grad():
        next(model.parameters())[0, 0, 0, 0] = torch.nan
    fast = fastres.optimize(model, images(2))
    assert fast.engine == "eager"
    assert any("holds NaN or infinity" in note for note in fast.report.notes)
    assert bool(fast(images(2)).isnan().any())


def test_strict_raises_with_module_and_reason() -> None:
    layers = (conv(), nn.ReLU(), nn.BatchNorm2d(4), nn.ReLU())
    model = measured(nn.Sequential(*layers))
    with unchanged(model), pytest.raises(NotOptimizedError) as caught:
        fastres.optimize(model, images(2), strict=True)
    error = caught.value
    assert isinstance(error, ModelError)
    assert error.module == "2"
    assert "BatchNorm: not folded backwards: there is no convolution" in error.reason
    assert str(error).startswith("strict=True: 2: BatchNorm: not folded")
    assert "call optimize() without strict" in str(error)


def test_strict_raises_for_what_is_left_to_torch() -> None:
    model = nn.Sequential(conv(), nn.Softplus()).eval()
    with pytest.raises(NotOptimizedError, match=r"^strict=True: 1: aten\.softplus\.default: no op"):
        fastres.optimize(model, images(2), strict=True)


def test_strict_is_content_with_a_complete_model() -> None:
    fast = fastres.optimize(small_model(), images(2), strict=True)
    assert fast.report.complete


@pytest.mark.parametrize(
    "example",
    [
        None,
        images(1),
        images(3),
        images(0),
        (images(2),),
        [images(2)],
        {"input": images(2)},
        images(2).requires_grad_(),
        images(2).contiguous(memory_format=torch.channels_last),
        images(2).to(torch.float32).expand(2, 4, 9, 8),
    ],
    ids=[
        *("none", "one image", "three images", "no image", "tuple", "list", "keywords"),
        *("gradient", "channels last", "expanded"),
    ],
)
def test_forms_of_example_input(example: Any) -> None:
    model = small_model()
    kept = example.clone() if isinstance(example, Tensor) else None
    with unchanged(model):
        fast = fastres.optimize(model, example)
    if kept is not None:
        assert torch.equal(example, kept)
    for x in (images(2), images(1, height=17, width=3)):
        assert_right(model, fast, x)
    assert fast.report.check is not None


class Signature(nn.Module):
    """All kinds of arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()

    def forward(self, x: Tensor, *more: Tensor, scale: float = 1.0, **named: Tensor) -> Tensor:
        y: Tensor = self.conv(x) * scale
        for other in (*more, *named.values()):
            y = y + other
        return F.relu(y)


def test_every_kind_of_argument() -> None:
    model, x, other = Signature().eval(), images(2), images(2)
    calls: list[tuple[Any, tuple[Tensor, ...], dict[str, Any]]] = [
        (x, (x,), {}),
        ((x, other), (x, other), {}),
        ((x, other, x), (x, other, x), {}),
        ({"x": x, "scale": 2.0}, (x,), {"scale": 2.0}),
    ]
    if release(torch.__version__) >= (2, 14):  # torch.export does not match **named before
        calls.append(({"x": x, "mask": other}, (x,), {"mask": other}))
    for example, args, kwargs in calls:
        fast = optimize(model, example)
        torch.testing.assert_close(fast(*args, **kwargs), model(*args, **kwargs).detach())


def test_a_model_in_a_wrapper_of_torchs() -> None:
    model = nn.DataParallel(small_model()).eval()
    fast = fastres.optimize(model, images(2))
    assert_right(model, fast, images(3))


def test_the_process_is_left_as_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    model, x = small_model(), images(2)
    before = (
        torch.get_rng_state(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(),
    )
    fast = fastres.optimize(model)
    fast(x)
    after = (
        torch.get_rng_state(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(),
    )
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_under_inference_mode(mode: Any) -> None:
    model, x = small_model(), images(2)
    with mode():
        fast = fastres.optimize(model, x)
        first = fast(x)
    assert torch.equal(fast(x), first)
    assert_right(model, fast, x)
    outside = fastres.optimize(model, x)
    with mode():
        assert torch.equal(outside(x), first)
