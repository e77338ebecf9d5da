"""Images as they are decoded, by the stem's own kernel: which networks take it, and its answers.

The networks answer with feature maps, so that a wrong border shows. Means are far larger than
deviations: a border that is not zero after normalisation would be off by many times the answer.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastres.capture import pipeline
from fastres.kernels.tuning.gpus import by_name
from fastres.runtime.triton.arithmetic import Arithmetic
from fastres.runtime.triton.executable import TritonExecutable
from fastres.runtime.triton.lower import Planned, plan_for
from fastres.runtime.triton.plan import KernelStep, Plan
from fastres.runtime.triton.tactics import Tactics
from fastres.transforms import Transforms
from tests.support.optimizing import optimize
from tests.support.oracle import PRECISIONS, assert_as_accurate, in_precision
from tests.support.small import Net, conv, images, measured

FAR = Transforms(None, None, mean=(6.0, -9.0, 7.0), std=(0.2, 0.3, 0.25))
FACTOR = 2.0
"""How far off a pixel may be, as a multiple of eager's own largest error."""


def pixels(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def stem(function: Any = None, **options: Any) -> nn.Module:
    """ResNet's, and a convolution behind it."""
    parts = {
        "stem": conv(3, 16, **{"kernel": 7, "stride": 2, "bias": False, **options}),
        "norm": nn.BatchNorm2d(16),
        "next": conv(16, 8, 1),
    }

    def usual(m: Any, x: Tensor) -> Tensor:
        answer: Tensor = m.next(F.max_pool2d(F.relu(m.norm(m.stem(x))), 3, 2, 1))
        return answer

    return measured(Net(function or usual, **parts), images(4, 3, 32, 32) * 9 - 20)


def bytes_in(model: nn.Module, example: Tensor | None = None, **options: Any) -> Any:
    settings = {"input_format": "uint8_nhwc", "transforms": FAR, "engine": "triton", **options}
    return optimize(model, pixels(2, 33, 30, 3) if example is None else example, **settings)


def plan_of(fast: Any, x: Tensor) -> Plan:
    found = fast._runner.executable([x])
    assert isinstance(found, TritonExecutable)
    return found.plan


def takes_bytes(plan: Plan) -> bool:
    """Whether a kernel of the stem reads the argument's bytes, and nothing else does."""
    values = {value.name: value for _, value in plan.inputs}
    readers = [step for step in plan.steps if values.keys() & set(step.reads)]
    return (
        [value.dtype for value in values.values()] == [torch.uint8]
        and [step.operation for step in readers] == ["fastres.conv2d_max_pool2d"]
        and isinstance(readers[0], KernelStep)
    )


def normalised(x: Tensor, dtype: torch.dtype) -> Tensor:
    mean, std = (torch.tensor(v, dtype=dtype).view(-1, 1, 1) for v in (FAR.mean, FAR.std))
    return (x.cpu().permute(0, 3, 1, 2).to(dtype) / FAR.divisor - mean) / std


def deviation(got: Tensor, wanted: Tensor) -> Tensor:
    """The largest at each pixel of a map, relative to the map's largest value."""
    return (got.cpu().double() - wanted).abs().amax((0, 1)) / wanted.abs().max()


def assert_right_at_every_pixel(model: nn.Module, fast: Any, x: Tensor, precision: str) -> None:
    dtype = PRECISIONS[precision]
    with torch.no_grad():
        wanted = in_precision(model, torch.float64)(normalised(x, torch.float64))
        eager = in_precision(model, dtype)(normalised(x, torch.float32).to(dtype))
        ours = deviation(fast(x), wanted)
    bound = FACTOR * deviation(eager, wanted).max().clamp_min(torch.finfo(dtype).eps)
    assert (ours > bound).nonzero().tolist() == [], f"beyond {float(bound):.1e} of {ours}"


def check_border(precision: str, device: str) -> None:
    """Odd and even sizes, one image and several, none, bytes that lie apart."""
    model = stem()
    fast = bytes_in(model, precision=precision, device=device)
    strided = pixels(3, 23, 38, 6).to(device)[:, :, ::2, 1:4]
    turned = pixels(2, 3, 21, 24).to(device).permute(0, 2, 3, 1)
    for x in (pixels(1, 35, 31, 3).to(device), pixels(3, 16, 24, 3).to(device), strided, turned):
        assert_right_at_every_pixel(model, fast, x, precision)
        assert takes_bytes(plan_of(fast, x))
    assert fast(pixels(0, 35, 31, 3).to(device)).shape == (0, 8, 9, 8)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_every_pixel(precision: str, device: str) -> None:
    check_border(precision, device)


def test_no_step_of_torchs_and_the_same_receipt() -> None:
    model = stem()
    fast, other = bytes_in(model), bytes_in(model, engine="eager")
    plan = plan_of(fast, pixels(3, 35, 31, 3))
    assert [step.operation for step in plan.steps] == [
        *("fastres.conv2d_max_pool2d", "fastres.conv2d"),
    ]
    assert all(isinstance(step, KernelStep) for step in plan.steps)
    (stem_step, _) = plan.steps
    bytes_read = 3 * 35 * 31 * 3
    weights = sum(each.nbytes for each in stem_step.constants)
    assert plan.bytes_moved(stem_step) == bytes_read + weights + 3 * 16 * 9 * 8 * 4
    assert fast.report.found == other.report.found
    assert fast.report.done == other.report.done
    assert fast.report.layers == other.report.layers
    assert fast.report.complete


def read_twice(m: Any, x: Tensor) -> Any:
    y = F.max_pool2d(F.relu(m.norm(m.stem(x))), 3, 2, 1)
    return m.next(y) + x.mean((1, 2, 3)).view(-1, 1, 1, 1)


def larger_pool(m: Any, x: Tensor) -> Any:
    return m.next(F.max_pool2d(F.relu(m.norm(m.stem(x))), 4, 4))


def no_pool(m: Any, x: Tensor) -> Any:
    return m.next(F.relu(m.norm(m.stem(x))))


NEAR_MISSES: dict[str, tuple[Any, dict[str, Any], tuple[int, ...]]] = {
    "read by something else too": (read_twice, {}, (2, 33, 30, 3)),
    "a pool that the kernel lacks": (larger_pool, {}, (2, 33, 30, 3)),
    "no pool": (no_pool, {}, (2, 33, 30, 3)),
    "channels first": (None, {"input_format": "uint8_nchw"}, (2, 3, 33, 30)),
    "resized first": (
        *(None, {"resize": True, "transforms": Transforms(36, 33, mean=FAR.mean, std=FAR.std)}),
        (2, 41, 50, 3),
    ),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", NEAR_MISSES)
def test_where_something_is_missing_the_image_is_normalised_before(name: str) -> None:
    function, options, shape = NEAR_MISSES[name]
    model = stem(function)
    x = pixels(*shape)
    fast = bytes_in(model, x, **options)
    reference = pipeline.with_preprocessing(model, fast.preprocessing).eval()
    plan = plan_of(fast, x)
    assert not takes_bytes(plan)
    assert any(step.operation == "fastres.scale_shift" for step in plan.steps)
    assert_as_accurate(reference, fast, x)
    assert_as_accurate(reference, fast, pixels(*shape))


class Own(nn.Module):
    """A network that normalises bytes itself, with its axes in some order."""

    mean: Tensor
    std: Tensor

    def __init__(self, axes: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.axes, self.network = axes, stem()
        self.register_buffer("mean", torch.tensor([90.0, 140.0, 120.0]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([3.0, 4.0, 5.0]).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Any:
        return self.network((x.permute(self.axes).float() - self.mean) * self.std)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("axes", "taken"), [((0, 3, 1, 2), True), ((0, 3, 2, 1), False)])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_network_that_normalises_bytes_itself(
    axes: tuple[int, int, int, int], taken: bool, precision: str
) -> None:
    """Turned by 90 degrees, a square image has the same shape."""
    model = Own(axes).eval()
    fast = optimize(model, pixels(2, 32, 32, 3), engine="triton", precision=precision)
    for x in (pixels(2, 32, 32, 3), pixels(1, 35, 30, 3)):
        assert takes_bytes(plan_of(fast, x)) == taken
        with torch.no_grad():
            wanted = in_precision(model, torch.float64)(x) if precision == "fp32" else model(x)
        assert deviation(fast(x), wanted.double()).max() < {"fp32": 1e-5, "fp16": 5e-3}[precision]


def test_batch_buckets_take_bytes_too() -> None:
    model = stem()
    plain = bytes_in(model)
    fast = bytes_in(model, batch_buckets=(4,))
    x = pixels(3, 33, 30, 3)
    assert fast._runner.executable([x]).batch == 4
    assert torch.equal(fast(x), plain(x))


def planned(batch: int, gpu: str, precision: str) -> Planned:
    parts = nn.Sequential(conv(3, 64, 7, stride=2), nn.ReLU(), nn.MaxPool2d(3, 2, 1), conv(64, 8))
    fast = bytes_in(parts.eval(), engine="eager", precision=precision)
    x = pixels(1, 1, 1, 1).expand(batch, 224, 224, 3)
    return plan_for(fast.graph_module, [x], Tactics(by_name(gpu)), Arithmetic())


def test_the_cost_model_decides() -> None:
    """Normalising takes issue slots, of which a large batch has none to spare."""
    assert takes_bytes(planned(1, "h100", "fp16").plan)
    assert takes_bytes(planned(256, "l4", "fp16").plan)
    many = planned(256, "h100", "fp16")
    assert not takes_bytes(many.plan)
    (remark,) = (r for r in many.unfused if r.what == "normalisation")
    assert remark.reason.startswith("not in the convolution's kernel: modelled at ")
    operations = [step.operation for step in many.plan.steps]
    assert operations[:4] == [
        *("aten.permute", "aten.to.dtype", "to channels-last", "fastres.scale_shift"),
    ]
    # Bytes have their channels innermost and the cast leaves them there: nothing to be copied.
    assert [many.plan.bytes_moved(step) for step in many.plan.steps[:3]][::2] == [0, 0]
