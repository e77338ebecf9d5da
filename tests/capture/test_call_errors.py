"""Calls that an optimised model cannot answer: the type of the error and its text."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastres.errors import FastresError, InputError, OutOfMemory
from tests.support.optimizing import optimize
from tests.support.oracle import unchanged
from tests.support.small import Net, PairNet, assert_right, conv, images, measured


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return measured(nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)))


@pytest.fixture(params=["onednn", "eager", "triton"], scope="module")
def fast(request: pytest.FixtureRequest, model: nn.Module) -> Any:
    return optimize(model, images(2), engine=request.param)


def refusal(fast: Any, *inputs: Any, error: type[Exception] = InputError, **named: Any) -> str:
    with pytest.raises(error) as caught:
        fast(*inputs, **named)
    assert type(caught.value) is error
    assert isinstance(caught.value, FastresError)
    return str(caught.value)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda x: x[:, :3],
            "got [2, 3, 9, 8] for 'input', expected [N, 4, H, W]: dimension 1, the channels",
        ),
        (
            lambda x: x[0],
            "got a tensor of rank 3 [4, 9, 8] for 'input', expected rank 4 [N, 4, H, W]; add the "
            "batch with x.unsqueeze(0)",
        ),
        (lambda x: x[0, 0], "got a tensor of rank 2 [9, 8] for 'input', expected rank 4"),
        (lambda x: x[None], "got a tensor of rank 5 [1, 2, 4, 9, 8] for 'input', expected rank 4"),
        (
            lambda x: x.double(),
            "got torch.float64 for 'input', expected torch.float32 as the model itself takes; "
            "convert it with x.to(torch.float32)",
        ),
        (lambda x: x.bfloat16(), "got torch.bfloat16 for 'input', expected torch.float32"),
        (lambda x: x.long(), "got torch.int64 for 'input', expected torch.float32"),
        (
            lambda x: x.to("meta"),
            "got a tensor on meta for 'input', expected cpu; move it with x.to('cpu')",
        ),
        (lambda x: x.to_sparse(), "got a torch.sparse_coo tensor for 'input', expected a dense"),
        (lambda x: x.to_mkldnn(), "got a torch._mkldnn tensor for 'input', expected a dense one"),
        (lambda x: x.numpy(), "got a ndarray for 'input', expected a torch.float32 tensor"),
        (lambda x: None, "got a NoneType for 'input', expected a torch.float32 tensor [N, 4, H"),
        (lambda x: 3.0, "got a float for 'input', expected a torch.float32 tensor [N, 4, H, W]; "),
        (lambda x: [x], "got arguments of the structure input: list, expected those of the capt"),
        (lambda x: {"x": x}, "got arguments of the structure input: dict, expected those of"),
        (
            lambda x: x.requires_grad_(),
            "got an input that requires a gradient, but an optimised model is for inference",
        ),
    ],
    ids=[
        *("channels", "rank 3", "rank 2", "rank 5", "float64", "bfloat16", "int64", "meta"),
        *("sparse", "mkldnn", "numpy", "None", "number", "list", "dict", "gradient"),
    ],
)
def test_one_wrong_input(fast: Any, make: Any, text: str) -> None:
    assert text in refusal(fast, make(images(2)))
    assert fast(images(2)).shape == (2, 4, 4, 4)  # the next call is a call like any other


def test_a_gradient_that_nobody_asks_for_is_no_error(fast: Any) -> None:
    x = images(2).requires_grad_()
    with torch.no_grad():
        assert not fast(x).requires_grad
    with torch.inference_mode():
        assert not fast(x).requires_grad
    assert not fast(x.detach()).requires_grad


@pytest.mark.parametrize(
    ("args", "kwargs", "text"),
    [
        ((), {}, "missing a required argument: 'input'"),
        ((images(2), images(2)), {}, "too many positional arguments"),
        ((), {"image": images(2)}, "missing a required argument: 'input'"),
        ((images(2),), {"image": 1}, "got an unexpected keyword argument 'image'"),
        ((images(2),), {"input": images(2)}, "multiple values for argument 'input'"),
    ],
    ids=["none", "two", "wrong name", "one more", "twice"],
)
def test_wrong_arguments(fast: Any, args: Any, kwargs: Any, text: str) -> None:
    got = refusal(fast, *args, **kwargs)
    assert got.startswith("the model is called as forward(")
    assert text in got


def test_the_same_call_by_name(fast: Any, model: nn.Module) -> None:
    x = images(2)
    assert torch.equal(fast(input=x), fast(x))


def test_an_empty_batch(fast: Any, model: nn.Module) -> None:
    for layout in (torch.contiguous_format, torch.channels_last):
        y = fast(images(0).contiguous(memory_format=layout))
        assert y.shape == (0, 4, 4, 4)
        assert y.dtype == torch.float32


@pytest.mark.parametrize("size", [(1, 1), (1, 8), (9, 1), (0, 8), (0, 0)], ids=str)
def test_too_small_an_image(fast: Any, model: nn.Module, size: tuple[int, int]) -> None:
    x = images(2, height=size[0], width=size[1])
    with pytest.raises(RuntimeError):
        model(x)
    text = refusal(fast, x)
    assert f"[2, 4, {size[0]}, {size[1]}]" in text
    assert re.search(r"at module [03] \(fastres\.(conv2d|max_pool2d)", text)
    assert "use another image size" in text


def test_the_smallest_image(fast: Any, model: nn.Module) -> None:
    assert_right(model, fast, images(1, height=2, width=2))


def test_an_image_that_a_pooling_does_not_fit() -> None:
    model = nn.Sequential(conv(padding=0), nn.MaxPool2d(4)).eval()
    fast = optimize(model, images(2))
    assert_right(model, fast, images(2, height=6, width=6))
    text = refusal(fast, images(2, height=5, width=6))
    assert "[2, 4, 5, 6]" in text
    assert "at module 1 (fastres.max_pool2d" in text


@pytest.mark.parametrize("batch", [10**5, 10**7, 10**9])
def test_more_than_memory(fast: Any, batch: int) -> None:
    text = refusal(fast, torch.zeros(1).expand(batch, 4, 2048, 2048), error=OutOfMemory)
    assert text.startswith(f"input [{batch}, 4, 2048, 2048] needs ")
    assert re.search(r"needs [\d.]+ GiB .* available: use a smaller batch or image$", text)
    assert issubclass(OutOfMemory, MemoryError)
    assert fast(images(1)).shape == (1, 4, 4, 4)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ],
    ids=["torch", "Python"],
)
def test_memory_that_the_system_refuses(
    fast: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(*_: Any) -> Any:
        raise error

    fast(images(1))
    executable = fast._runner.executable([images(1)])
    monkeypatch.setattr(type(executable), "__call__", refuse)
    text = refusal(fast, images(1), error=OutOfMemory)
    assert "input [1, 4, 9, 8]: the system refused the memory for the activations" in text
    assert "use a smaller batch or image" in text


def test_an_error_of_the_kernels_own_stays_what_it_is() -> None:
    model = PairNet(lambda m, x, index: m.conv(x)[:, index], conv=conv()).eval()
    x = images(2)
    fast = optimize(model, (x, torch.tensor([1, 2])))
    with pytest.raises(IndexError):
        fast(x, torch.tensor([1, 9]))


def test_pixels_that_a_linear_layer_fixes() -> None:
    model = nn.Sequential(conv(), nn.Flatten(), nn.Linear(288, 3)).eval()
    fast = optimize(model, images(2))
    assert fast(images(5)).shape == (5, 3)
    text = refusal(fast, images(2, height=10))
    assert "[2, 4, 10, 8]" in text
    assert "(module 2, Linear)" in text
    # As many pixels in another form are as good for the model.
    assert_right(model, fast, images(2, height=8, width=9))


def branch(m: Any, x: Tensor) -> Any:
    y = m.conv(x)
    if x.shape[2] > 16:
        y = F.avg_pool2d(y, 2)
    return y


def test_code_that_decides_on_the_size() -> None:
    model = Net(branch, conv=conv()).eval()
    small, large = optimize(model, images(2)), optimize(model, images(2, height=32))
    for fast, right, wrong in ((small, 16, 17), (large, 17, 16)):
        assert_right(model, fast, images(1, height=right))
        text = refusal(fast, images(1, height=wrong))
        assert text.startswith(f"got [1, 4, {wrong}, 8]: ")
        assert re.search(rf"at (most|least) {right} where this is {wrong}", text)
        assert "optimise with an example_input of this size" in text


def test_code_that_decides_on_a_batch_of_one() -> None:
    # torch.export takes every batch for one of several images, and records no decision on it.
    def function(m: Any, x: Tensor) -> Any:
        y = m.conv(x)
        return y + 100 if x.shape[0] == 1 else y

    model = Net(function, conv=conv()).eval()
    for example in (images(2), images(1), None):
        with unchanged(model), pytest.raises(FastresError, match="batch of one"):
            optimize(model, example)


def test_sizes_that_belong_together() -> None:
    model = PairNet(lambda m, x, other: m.conv(x) + other, conv=conv()).eval()
    x = images(2)
    fast = optimize(model, (x, images(2)))
    assert_right(model, fast, images(3, height=11), images(3, height=11))
    text = refusal(fast, x, images(2, height=10))
    assert "[2, 4, 10, 8]" in text


def test_values_that_were_fixed_at_capture() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv()

        def forward(self, x: Tensor, scale: float = 1.0, mode: str = "plain") -> Tensor:
            y: Tensor = self.conv(x) * scale
            return torch.tanh(y) if mode == "tanh" else y

    model = Scaled().eval()
    x = images(2)
    fast = optimize(model, (x, 2.0))
    assert_right(model, fast, x, 2.0)
    text = refusal(fast, x, 3.0)
    assert "got a float for an argument that was 2.0 when the model was captured" in text
    assert "optimise once per value, passing it in example_input" in text
    fast = optimize(model, (x, 2.0, "tanh"))
    assert "was 'tanh' when the model was captured" in refusal(fast, x, 2.0, "plain")
    assert_right(model, fast, x, 2.0, "tanh")


def test_errors_are_quiet(capfd: pytest.CaptureFixture[str], fast: Any) -> None:
    for x in (images(2)[:, :3], images(2, height=1), torch.zeros(1).expand(10**9, 4, 99, 99)):
        with pytest.raises(FastresError):
            fast(x)
    assert capfd.readouterr() == ("", "")
