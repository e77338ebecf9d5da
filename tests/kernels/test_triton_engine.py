"""The GPU engine as a user meets it: where it runs, what it says, buckets, weights, other GPUs."""

from __future__ import annotations

import copy
import importlib.util
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import fastres
from fastres.errors import FastresWarning, InputError, NotOptimizedError, OutOfMemory, TargetError
from fastres.ir.propagate import propagate
from fastres.kernels.tuning.conv2d import Conv2dConfig
from fastres.kernels.tuning.gpus import by_name
from fastres.options import Options
from fastres.runtime.triton import batch_buckets, engine
from fastres.runtime.triton.device import InterpreterDevice
from fastres.runtime.triton.engine import TritonEngine
from fastres.runtime.triton.executable import TritonExecutable
from fastres.runtime.triton.plan import KernelStep, TorchStep
from fastres.runtime.triton.tuning_cache import Identity
from tests.support import ROOT
from tests.support.fake_device import FakeDevice
from tests.support.optimizing import optimize
from tests.support.oracle import assert_as_accurate
from tests.support.small import Net, assert_right, conv, images, measured, net


def small() -> nn.Module:
    """A stem, a bottleneck with a shortcut, one without, and a classifier."""

    def function(m: Any, x: Tensor) -> Any:
        y = F.max_pool2d(F.relu(m.norm(m.stem(x))), 3, 2, 1)
        y = F.relu(m.b2(F.relu(m.b1(F.relu(m.b0(y))))) + m.side(y))
        y = F.relu(m.d2(F.relu(m.d1(F.relu(m.d0(y))))) + y)
        return m.head(y.mean((2, 3)))

    return net(
        function,
        stem=conv(4, 16, 7, stride=2),
        norm=nn.BatchNorm2d(16),
        b0=conv(16, 16, 1),
        b1=conv(16, 16),
        b2=conv(16, 32, 1),
        side=conv(16, 32, 1),
        d0=conv(32, 16, 1),
        d1=conv(16, 16),
        d2=conv(16, 32, 1),
        head=nn.Linear(32, 5),
    )


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return small()


def graph_of(model: nn.Module, precision: str | None = None) -> fx.GraphModule:
    module: fx.GraphModule = optimize(
        model, images(2), engine="eager", precision=precision
    ).graph_module
    return module


def executable(fast: Any, x: Tensor) -> TritonExecutable:
    found = fast._runner.executable([x])
    assert isinstance(found, TritonExecutable)
    return found


# Where it runs.

NO_INTERPRETER = """
import sys, torch, fastres
from torch import nn
model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
example = torch.randn(1, 3, 8, 8)
fast = fastres.optimize(model, example)
assert fast.engine != "triton", fast.engine
assert "triton" not in str(fast.report.notes), fast.report.notes
assert "fastres.kernels.triton.conv2d" not in sys.modules
try:
    fastres.optimize(model, example, engine="triton")
except fastres.TargetError as error:
    print(error)
assert "fastres.kernels.triton.conv2d" not in sys.modules
"""


@pytest.mark.campaign
def test_on_a_cpu_without_the_interpreter_it_says_what_to_do() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", NO_INTERPRETER],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(
        "engine='triton' cannot run this model here: the model is on the CPU, and the kernels run "
        "on a GPU: optimise with device='cuda', or set TRITON_INTERPRET=1 before Python starts"
    )
    assert done.stdout.strip().endswith("use engine='auto'")


def test_setting_the_variable_too_late_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_interpreted", lambda: False)
    with pytest.raises(TargetError, match="counts when Triton is first imported"):
        fastres.optimize(measured(nn.Sequential(conv())), images(2), engine="triton")


def test_without_triton_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec

    def missing(name: str, *rest: Any) -> Any:
        return None if name == "triton" else found(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", missing)
    with pytest.raises(TargetError, match=r"Triton is not installed \(pip install 'fastres\[gpu"):
        fastres.optimize(measured(nn.Sequential(conv())), images(2), engine="triton")


def test_on_the_cpu_it_is_taken_only_when_asked_for(model: nn.Module) -> None:
    fast = optimize(model, images(2))
    assert fast.engine in ("native", "onednn")
    assert not any("triton" in note for note in fast.report.notes)


def test_float64_is_not_for_the_kernels() -> None:
    model = measured(nn.Sequential(conv())).double()
    with pytest.raises(TargetError, match=r"the kernels have no torch\.float64"):
        fastres.optimize(model, images(2).double(), engine="triton")


# What it computes.


@pytest.mark.sampled(3)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_small_network_in_every_precision(model: nn.Module, precision: str) -> None:
    fast = optimize(model, images(2), engine="triton", precision=precision)
    for x in (images(1), images(3, height=21, width=17)):
        assert_right(model, fast, x, precision=precision)
    plan = executable(fast, images(2)).plan
    # Interpreted, on the CPU, a bfloat16 network's head computes in float32.
    casts = ["aten.to.dtype", "to channels-last"] if precision == "bf16" else []
    assert [step.operation.removeprefix("fastres.") for step in plan.steps] == [
        *("conv2d_max_pool2d", "conv2d", "bottleneck", "bottleneck", *casts, "pool_linear"),
    ]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", ["a100", "h100", "b200", "mi300x"])
def test_configurations_of_every_gpu_compute_the_same(model: nn.Module, name: str) -> None:
    graph = graph_of(model, "fp16")
    x = images(2)
    wanted = graph(x)[0]
    built = TritonEngine(Options(engine="triton"), by_name(name)).build(graph, [x])
    (got,) = built([x])
    assert not any(isinstance(step, TorchStep) for step in built.plan.steps)
    torch.testing.assert_close(got, wanted, rtol=0, atol=0.01 * float(wanted.abs().max()))


@pytest.mark.campaign
def test_split_sums_in_one_launch_have_counters_that_stay_zero(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Conv2dConfig(16, 32, 16, split_k=2, fused_sum=True)
    monkeypatch.setattr("fastres.runtime.triton.rules.choose_conv2d", lambda *_: config)
    model = nn.Sequential(conv(4, 16), nn.ReLU(), conv(16, 8), nn.Flatten(), nn.Linear(576, 40))
    graph = graph_of(model.eval())
    engine = TritonEngine(Options(engine="triton"), by_name("a100"))
    for x in (images(2), images(1), images(2)):
        built = engine.build(graph, [x])
        for _ in range(2):
            (got,) = built([x])
            torch.testing.assert_close(got, graph(x)[0], rtol=1e-4, atol=1e-5)
        assert [each.constants["FUSED_SUM"] for each in built.launches] == [True] * 2
        assert len(built.plan.zeroed) == 3
        for name in built.plan.zeroed:
            assert not built._bound.tensors[name].any()


def test_on_a_t4_the_library_convolves_and_the_receipt_says_why(model: nn.Module) -> None:
    graph = graph_of(model)
    x = images(2)
    built = TritonEngine(Options(engine="triton"), by_name("t4")).build(graph, [x])
    (got,) = built([x])
    torch.testing.assert_close(got, graph(x)[0], rtol=1e-4, atol=1e-5)
    convolutions = [s for s in built.plan.steps if s.operation == "fastres.conv2d"]
    assert len(convolutions) == 8
    assert {step.tactic for step in convolutions} == {"library"}
    assert "convolutions are the library's: Triton emits no tensor-core" in built.notes[0]
    assert built.remarks == []


def test_nan_and_infinity_need_no_second_look(model: nn.Module) -> None:
    fast = optimize(model, images(2), engine="triton")
    for value in (torch.nan, torch.inf, -torch.inf):
        x = images(3)
        x[1, 2, 4, 3] = value
        got, wanted = fast(x), model(x)
        assert torch.equal(got.isnan(), wanted.isnan())
        torch.testing.assert_close(got[[0, 2]], wanted[[0, 2]], rtol=1e-4, atol=1e-4)
    assert {key[0] for key in fast._runner.cache._entries} == {"triton"}


def test_a_cast_input_and_result_cost_no_step(model: nn.Module) -> None:
    plan = executable(optimize(model, images(2), engine="triton", precision="fp16"), images(2)).plan
    ((number, given),) = plan.inputs
    assert (number, given.dtype) == (0, torch.float16)
    (result,) = plan.results
    assert result.value is not None and result.value.dtype == torch.float32


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_image_of_three_channels_gets_a_fourth_of_zeros(precision: str) -> None:
    stem = nn.Sequential(conv(3, 16, 7, stride=2), nn.ReLU(), nn.MaxPool2d(3, 2, 1), conv(16, 8))
    model = stem.eval()
    options = {"engine": "triton", "precision": precision, "batch_buckets": (4,)}
    fast = optimize(model, images(2, channels=3), **options)
    for n, side in ((2, 24), (3, 17), (4, 24), (1, 24), (2, 17)):  # of few bytes and of many
        x = images(n, channels=3, height=side, width=side)
        x[0, 0, 3, 3] = torch.inf
        assert_right(model, fast, x, precision=precision)
        plan = executable(fast, x).plan
        ((_, given),) = plan.inputs
        assert given.shape[:2] == (4, 4)
        assert plan.filled == {given.name}


def test_three_channels_stay_where_products_are_the_librarys() -> None:
    model = nn.Sequential(conv(3, 16), nn.ReLU()).eval()
    graph = optimize(model, images(2, channels=3), engine="eager", precision="fp16").graph_module
    for name, filled in (("h100", True), ("t4", False)):
        built = TritonEngine(Options(engine="triton"), by_name(name)).build(
            graph, [images(2, channels=3)]
        )
        assert bool(built.plan.filled) == filled


def test_operations_of_torchs_stand_between_kernels() -> None:
    def function(m: Any, x: Tensor) -> Any:
        y = F.relu(m.first(x))
        gate = torch.sigmoid(m.squeeze(y.mean((2, 3), keepdim=True)))
        a, b = (y * gate).chunk(2, dim=1)
        z = m.second(torch.cat([b, a], 1)) + y
        return z, F.gelu(z).flatten(1)[:, ::3], z.shape[0]

    model = net(function, first=conv(4, 8), squeeze=conv(8, 8, 1), second=conv(8, 8))
    fast = optimize(model, images(2), engine="triton")
    for x in (images(2), images(3, height=5, width=6)):
        got, wanted = fast(x), model(x)
        for ours, theirs in zip(got[:2], wanted[:2], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        assert got[2] == wanted[2]
    kinds = [type(step) for step in executable(fast, images(2)).plan.steps]
    assert kinds.count(KernelStep) == 4


def test_a_residual_that_is_also_read_through_a_view() -> None:
    """Of several tiles, so that what one has written another would read."""

    def function(m: Any, x: Tensor) -> Any:
        y = F.relu(m.first(x))
        return F.relu(m.second(y.transpose(2, 3).transpose(2, 3)) + y)

    model = net(function, first=conv(4, 16), second=conv(16, 16))
    fast = optimize(model, images(1), engine="triton")
    x = images(2, height=24, width=24)
    torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)


def test_weights_computed_from_the_input_are_left_to_torch() -> None:
    def function(m: Any, x: Tensor) -> Any:
        return F.relu(m.conv(F.conv2d(x, x.mean((0, 2, 3)).expand(4, 4)[:, :, None, None])))

    fast = optimize(net(function, conv=conv()), images(2), engine="triton")
    (remark,) = [r for r in fast.report.left if r.what == "convolution"]
    assert remark.reason == "its weight is computed from the input"


def average_shortcut() -> nn.Module:
    """ResNet-D's: an average pooling before the shortcut's convolution."""

    def function(m: Any, x: Tensor) -> Any:
        y = F.relu(m.first(x))
        return F.relu(m.second(y) + m.side(m.down(y)))

    return net(
        function,
        first=conv(4, 16),
        second=conv(16, 16, stride=2),
        down=nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False),
        side=conv(16, 16, 1),
    )


def test_average_pooling_is_left_to_torch_where_it_is() -> None:
    model = average_shortcut()
    fast = optimize(model, images(2), engine="triton", strict=True)
    assert fast.report.complete
    assert all(isinstance(s, KernelStep) for s in executable(fast, images(2)).plan.steps)
    for x in (images(2), images(3, height=11, width=7)):
        assert_right(model, fast, x)
    for name in ("onednn", "eager"):
        other = optimize(model, images(2), engine=name)
        assert [str(remark) for remark in other.report.left] == [
            f"down: aten.avg_pool2d.default: the {name} engine has no kernel for it"
        ]
        with pytest.raises(NotOptimizedError, match=r"down: .*has no kernel for it"):
            fastres.optimize(model, images(2), engine=name, strict=True)


def test_average_pooling_that_the_kernel_does_not_take_is_told_about() -> None:
    def function(m: Any, x: Tensor) -> Any:
        y = m.conv(x).flatten(1, 2)  # [N, C * H, W]: no image
        return F.avg_pool2d(y, 2) + F.avg_pool2d(y, 2)

    fast = optimize(net(function, conv=conv()), images(2), engine="triton")
    (remark,) = [r for r in fast.report.left if r.what == "aten.avg_pool2d.default"]
    assert remark.reason == "the kernel takes images [N, C, H, W] of floats"


# What it keeps.


def test_kernels_that_cannot_be_kept_are_told_about(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastres.kernels.launch.kernel_cache import FallbackCache

    monkeypatch.setattr(FallbackCache, "reason", "[Errno 30] Read-only file system: '/root'")
    fast = optimize(model, images(2), engine="triton")
    wanted = "compiled kernels are kept for this process only: [Errno 30] Read-only file system"
    assert any(note.startswith(wanted) for note in fast.report.notes)


def test_shapes_share_packed_weights_and_memory(model: nn.Module) -> None:
    fast = optimize(model, images(2), engine="triton")
    first, second = (executable(fast, images(n)) for n in (2, 3))
    assert first is not second
    names = [form.tensor.data_ptr() for form in first._forms.values()]
    # The stem's filters are packed for a width; the sum of two biases is made for each shape.
    shared = set(names) & {form.tensor.data_ptr() for form in second._forms.values()}
    assert len(shared) >= len(names) - 2
    third = executable(fast, images(1))
    assert third._arena in (first._arena, second._arena)


def test_a_copy_and_a_pickled_copy_run(model: nn.Module) -> None:
    import pickle

    fast = optimize(model, images(2), engine="triton")
    x = images(2)
    for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert other.engine == "triton"
        assert torch.equal(other(x), fast(x))


def test_it_runs_in_inference_mode_and_under_autocast(model: nn.Module) -> None:
    fast = optimize(model, images(2), engine="triton")
    x = images(3)
    wanted = fast(x)
    with torch.inference_mode():
        assert torch.equal(fast(x), wanted)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(fast(x), wanted)


def test_too_large_an_input_is_refused_before_memory_is_taken(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = optimize(model, images(2), engine="triton")
    monkeypatch.setattr(engine, "available_memory", lambda: 1000)
    with pytest.raises(OutOfMemory, match=r"input \[5, 4, 9, 8\] needs .* use a smaller batch"):
        fast(images(5))
    monkeypatch.undo()
    assert fast(images(5)).shape == (5, 5)


def test_memory_that_is_taken_already_is_not_asked_for_again(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = optimize(model, images(2), engine="triton")
    fast(images(5))
    monkeypatch.setattr(engine, "available_memory", lambda: 0)
    assert fast(images(4)).shape == (4, 5)
    with pytest.raises(OutOfMemory, match=r"input \[9, 4, 9, 8\] needs .* more for activations"):
        fast(images(9))


def test_the_first_call_of_a_shape_cannot_be_part_of_a_recording(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = optimize(model, images(2), engine="triton")
    monkeypatch.setattr(InterpreterDevice, "is_being_recorded", lambda self: True)
    with pytest.raises(InputError, match=r"input \[3, 4, 9, 8\]: .*call the model once with them"):
        fast(images(3))
    assert fast(images(2)).shape == (2, 5)  # known: its launches become part of the recording


def test_a_device_that_runs_out_of_memory_says_so(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(FakeDevice):
        def allocate(self, nbytes: int) -> Tensor:
            raise torch.OutOfMemoryError

    fast = optimize(model, images(2), engine="triton")
    monkeypatch.setattr(engine, "InterpreterDevice", lambda: Full(records=False))
    fresh = TritonEngine(Options(engine="triton"))
    with pytest.raises(OutOfMemory, match=r"cpu has no room for the activations; use a smaller"):
        fresh.build(fast.graph_module, [images(2)])


def test_tuning_means_nothing_under_the_interpreter(model: nn.Module) -> None:
    fast = optimize(model, images(2), engine="triton", tune=True)
    assert any(note.startswith("tune=True has no effect under") for note in fast.report.notes)


def test_tuning_on_a_device_that_records(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The real kernels, candidates and library on a device whose clock is made up."""
    monkeypatch.setenv("FASTRES_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(engine, "_identity", lambda device: Identity("g", "d", "t", "l", "k"))
    monkeypatch.setattr("fastres.runtime.triton.tactics.CANDIDATES", 2)

    class Clocked(FakeDevice):
        def launch(self, calls: Any) -> None:
            for each in calls:
                self.log.append(f"launch {each.name}")
                self._do(each.run)

        def time(self, work: Any) -> int:
            return 1000 - len(self.log)  # later candidates are faster

    device = Clocked()
    monkeypatch.setattr(engine, "InterpreterDevice", lambda: device)
    monkeypatch.setattr("fastres.runtime.triton.tactics.LAUNCHES", 1)
    monkeypatch.setattr("fastres.runtime.triton.tactics.ROUNDS", 1)
    graph = graph_of(measured(nn.Sequential(conv(4, 16), nn.ReLU(), conv(16, 16, 1))))
    x = images(1, height=4, width=4)
    tuned = TritonEngine(Options(engine="triton", tune=True), by_name("a100"))
    built = tuned.build(graph, [x])
    # The library's forms come last; one of them only where cuDNN is.
    assert {step.tactic for step in built.plan.steps} <= {"library", "library, fused"}
    assert tuned._cache is not None and len(tuned._cache) == 2
    (file,) = tmp_path.glob("*.json")
    again = TritonEngine(Options(engine="triton", tune=True), by_name("a100"))
    device.log.clear()
    other = again.build(graph, [x])
    assert [s.tactic for s in other.plan.steps] == [s.tactic for s in built.plan.steps]
    file.write_text("{", encoding="utf-8")
    with pytest.warns(FastresWarning, match="is ignored: it is not JSON"):
        TritonEngine(Options(engine="triton", tune=True), by_name("a100")).build(graph, [x])


def test_tuning_may_find_boxes_and_remembers_them(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On a made-up clock that likes nothing else."""
    monkeypatch.setenv("FASTRES_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(engine, "_identity", lambda device: Identity("g", "d", "t", "l", "k"))
    monkeypatch.setattr("fastres.runtime.triton.tactics.CANDIDATES", 3)
    monkeypatch.setattr("fastres.runtime.triton.tactics.LAUNCHES", 1)
    monkeypatch.setattr("fastres.runtime.triton.tactics.ROUNDS", 1)

    class Clocked(FakeDevice):
        last = ""

        def launch(self, calls: Any) -> None:
            self.last = calls[-1].name
            for each in calls:
                self._do(replace(each, chained=False).run)  # which cannot be interpreted

        def time(self, work: Any) -> int:
            recorded, self.last = self.last, ""
            return 1 if recorded == "tiled_conv2d_kernel" else 1000

    monkeypatch.setattr(engine, "InterpreterDevice", Clocked)
    x = images(1, channels=8, height=4, width=4)
    net = measured(nn.Sequential(conv(8, 16), nn.ReLU()), x)
    graph = optimize(net, x, engine="eager", precision="fp16").graph_module
    for _ in range(2):  # measured, then read from the file
        built = TritonEngine(Options(engine="triton", tune=True), by_name("h100")).build(graph, [x])
        (step,) = built.plan.steps
        assert "descriptors=True" in step.tactic and "box_w=0" not in step.tactic
    plain = TritonEngine(Options(engine="triton"), by_name("h100")).build(graph, [x])
    assert "box_w=0" in plain.plan.steps[0].tactic


# Batch buckets.


@pytest.mark.campaign
def test_batches_run_as_the_next_bucket(model: nn.Module) -> None:
    fast = optimize(model, images(2), engine="triton", batch_buckets=(4, 2))
    plain = optimize(model, images(2), engine="triton")
    for batch in (1, 2, 3, 4):
        x = images(batch)
        torch.testing.assert_close(fast(x), plain(x), rtol=1e-5, atol=1e-6)
        assert fast(x).shape == (batch, 5)
    one, two, three, four, five = (executable(fast, images(n)) for n in (1, 2, 3, 4, 5))
    assert one is two and three is four and two is not four
    assert (one.batch, four.batch, five.batch) == (2, 4, None)
    assert fast(images(5)).shape == (5, 5)
    assert fast(images(0)).shape == (0, 5)


def test_what_lies_behind_a_batch_does_not_matter(model: nn.Module) -> None:
    fast = optimize(model, images(2), engine="triton", batch_buckets=(4,))
    x = images(1)
    wanted = fast(x)
    poison = images(4)
    poison.fill_(torch.nan)
    assert fast(poison).isnan().all()
    assert torch.equal(fast(x), wanted)


MIXING: dict[str, Any] = {
    "mean over the batch": lambda m, x: m.conv(x) - m.conv(x).mean(0, keepdim=True),
    "batch size": lambda m, x: m.conv(x) / x.shape[0],
    "flattened batch": lambda m, x: m.conv(x).flatten(0, 1),
    "first image": lambda m, x: m.conv(x)[:1],
}


@pytest.mark.parametrize("name", MIXING)
def test_buckets_are_not_used_where_images_may_mix(name: str) -> None:
    model = net(MIXING[name], conv=conv())
    fast = optimize(model, images(2), engine="triton", batch_buckets=(4,))
    assert any(note.startswith("batch_buckets are not used: ") for note in fast.report.notes)
    for batch in (3, 1):
        x = images(batch)
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)


def test_constants_come_out_whole_of_a_bucket() -> None:
    model = net(lambda m, x: (m.conv(x), m.free), conv=conv(), free=torch.rand(7, 2))
    fast = optimize(model, images(2), engine="triton", batch_buckets=(4,))
    assert executable(fast, images(3)).batch == 4
    assert torch.equal(fast(images(3))[1], model(images(3))[1])


def test_reshapes_that_keep_the_batch_keep_the_bucket() -> None:
    model = measured(
        Net(
            lambda m, x: m.head(F.adaptive_avg_pool2d(F.relu(m.conv(x)), 2).view(x.size(0), -1)),
            conv=conv(),
            head=nn.Linear(16, 3),
        )
    )
    fast = optimize(model, images(2), engine="triton", batch_buckets=(4,))
    assert executable(fast, images(3)).batch == 4
    assert_as_accurate(model, fast, images(3), factor=5.0)


def test_the_smallest_bucket_that_holds_a_batch() -> None:
    assert [batch_buckets.bucket((8, 1, 4), n) for n in (1, 2, 4, 5, 8, 9)] == [1, 4, 4, 8, 8, None]
    assert batch_buckets.bucket((), 1) is None
    assert batch_buckets.batch_of([images(3), images(3), 5]) == 3
    assert batch_buckets.batch_of([images(3), images(2)]) is None
    assert batch_buckets.batch_of([images(3), torch.ones(3)]) is None
    assert batch_buckets.batch_of([5]) is None


def test_mixing_is_found_by_shape_too() -> None:
    graph = graph_of(measured(nn.Sequential(conv())))
    x = images(4)
    assert batch_buckets.why_mixed(graph, propagate(graph, [x]), 4) is None
    reason = batch_buckets.why_mixed(graph, propagate(graph, [x]), 5)
    assert reason is not None and "has tensors without the batch" in reason


# On a GPU only.


@pytest.mark.gpu
def test_calls_in_other_streams_and_threads_do_not_disturb_each_other(model: nn.Module) -> None:
    fast = optimize(model, images(2), engine="triton", device="cuda")
    given = [images(n).cuda() for n in (1, 2, 3, 4)]
    wanted = [fast(x).clone() for x in given]
    streams = [torch.cuda.Stream() for _ in given]
    for _ in range(50):
        got = []
        for stream, x in zip(streams, given, strict=True):
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                got.append(fast(x))
        torch.cuda.synchronize()
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


@pytest.mark.gpu
def test_it_can_be_part_of_the_callers_own_graph(model: nn.Module) -> None:
    fast = optimize(model, images(2), engine="triton", device="cuda")
    x = images(2).cuda()
    wanted = fast(x).clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = fast(x)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(y, wanted)


@pytest.mark.gpu
def test_the_second_gpu_is_respected(model: nn.Module) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    fast = optimize(model, images(2), engine="triton", device="cuda:1")
    x = images(2).to("cuda:1")
    assert torch.cuda.current_device() == 0
    assert fast(x).device == torch.device("cuda:1")
    assert torch.cuda.current_device() == 0


@pytest.mark.gpu
def test_tuning_is_measured_and_kept(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTRES_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("fastres.runtime.triton.tactics.CANDIDATES", 2)
    fast = optimize(model, images(2), engine="triton", device="cuda", tune=True)
    assert_right(model, lambda x: fast(x.cuda()).cpu(), images(2))
    assert len(list(tmp_path.glob("*.json"))) == 1
