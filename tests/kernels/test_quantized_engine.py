"""int8 networks by the GPU engine: the definition's answers, and no step of torch's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import fastres
from fastres.dtypes import PRECISIONS
from fastres.ir import ops
from fastres.ir.propagate import propagate
from fastres.ir.views import QuantizedBottleneck, QuantizedConv2d
from fastres.kernels.tuning.conv2d import choose_conv2d
from fastres.kernels.tuning.gpus import GPUS, by_name
from fastres.optimization.precision_choice import AUTOMATIC
from fastres.quantization.nominal import quantize_nominally
from fastres.roofline.layers import graph_of, images_for, layers_of
from fastres.runtime.triton import fuse_blocks
from fastres.runtime.triton.arithmetic import Arithmetic
from fastres.runtime.triton.engine import why_not_on
from fastres.runtime.triton.executable import TritonExecutable
from fastres.runtime.triton.fusion_policy import if_supported
from fastres.runtime.triton.lower import plan_for
from fastres.runtime.triton.plan import KernelStep, dense
from fastres.runtime.triton.tactics import Layer, Tactics
from tests.kernels.test_gpu_tactics import Config, Workshop
from tests.kernels.test_triton_engine import small
from tests.passes.test_fuse_blocks import blocks
from tests.support.fake_device import call
from tests.support.small import Net, conv, images, measured


def quantized(model: nn.Module, x: Tensor, **options: Any) -> Any:
    """Optimised for the engine, on the device that its kernels run on."""
    return fastres.optimize(
        model, x[:1], precision="int8", calibration=[x], engine="triton", **options
    )


def steps_of(fast: Any, x: Tensor) -> list[Any]:
    found = fast._runner.executable([x])
    assert isinstance(found, TritonExecutable)
    return found.plan.steps


def test_a_network_runs_by_kernels_alone(device: str) -> None:
    model, x = small().to(device), images(5, height=27, width=30).to(device)
    fast = quantized(model, x)
    assert fast.engine == "triton"
    assert fast.report.precision == "int8"
    assert torch.equal(fast(x), fast.by_definition(x))
    steps = steps_of(fast, x)
    assert all(isinstance(step, KernelStep) for step in steps)
    assert {step.operation for step in steps} == {
        *("fastres.quantize", "fastres.quantized_conv2d", "fastres.quantized_conv2d_max_pool2d"),
        *("fastres.quantized_bottleneck", "fastres.quantized_global_avg_pool"),
        "fastres.quantized_linear",
    }
    assert not fast.report.left
    for other in (images(1, height=27, width=30), images(3, height=14, width=21)):
        other = other.to(device)
        assert torch.equal(fast(other), fast.by_definition(other))


def bottlenecks() -> nn.Module:
    """Three: with shortcut, plain, and with stride and shortcut."""
    return measured(blocks(), images(4, channels=8))


def test_bottlenecks_are_one_kernel_each_and_the_integers_the_same(device: str) -> None:
    model, x = bottlenecks().to(device), images(3, channels=8, height=9, width=7).to(device)
    fast = quantized(model, x)
    steps = steps_of(fast, x)
    assert [step.operation for step in steps] == [
        *("fastres.quantize", "fastres.quantized_conv2d"),
        *["fastres.quantized_bottleneck"] * 3,
        "fastres.dequantize",
    ]
    assert all(isinstance(step, KernelStep) for step in steps)
    assert [len(step.writes) for step in steps[2:5]] == [2, 2, 1]
    assert torch.equal(fast(x), fast.by_definition(x))
    assert not fast.report.left


def fuse(module: fx.GraphModule, x: Tensor) -> tuple[fx.GraphModule, list[str]]:
    """A copy with its blocks fused wherever a kernel can, and what was refused."""
    fused = fuse_blocks.copy(module)
    context = fuse_blocks.BlockContext(propagate(fused, [x]), if_supported)
    fuse_blocks.run(fused, context)
    return fused, [str(remark) for remark in context.refused]


def tails(module: fx.GraphModule) -> list[QuantizedBottleneck]:
    found = module.graph.find_nodes(op="call_function", target=ops.quantized_bottleneck)
    return [QuantizedBottleneck.of(node) for node in found]


def test_fusing_changes_no_integer_and_keeps_units() -> None:
    x = images(2, channels=8, height=9, width=7)
    module = graph_of(bottlenecks(), quantized=True)
    fused, refused = fuse(module, x)
    assert refused == []
    first, second, third = tails(fused)
    assert (first.shortcut_weight is None, second.shortcut_weight is None) == (False, True)
    assert third.next_weight is None and second.next_weight is not None
    assert all(torch.equal(a, b) for a, b in zip(fused(x), module(x), strict=True))


def test_a_block_of_mixed_precision_stays_apart(device: str) -> None:
    model, x = bottlenecks().to(device), images(3, channels=8, height=9, width=7).to(device)
    fast = quantized(model, x, keep={"0.middle": "fp32", "2.shortcut": "fp32"})
    fused, _ = fuse(fast.graph_module.cpu(), x.cpu())
    second, third = tails(fused)
    assert second.node.meta["module"] == "1.expand"
    assert third.shortcut_weight is None  # its result is quantised, and added as it is


def test_another_unit_is_no_part_of_the_block() -> None:
    x = images(2, channels=8, height=9, width=7)
    module = graph_of(bottlenecks(), quantized=True)
    by_module = {
        str(node.meta.get("module")): node
        for node in module.graph.find_nodes(op="call_function", target=ops.quantized_conv2d)
    }

    def change(name: str, **values: Any) -> None:
        node = by_module[name]
        node.args = replace(QuantizedConv2d.of(node), **values).args

    change("0.expand", x_scale=0.123)
    change("1.reduce", x_zero_point=9)
    change("2.expand", residual_scale=0.321)
    module.recompile()
    fused, refused = fuse(module, x)
    second, third = tails(fused)
    assert refused == ["0.expand: bottleneck: it reads the output of 0.middle in another unit"]
    assert second.node.meta["module"] == "1.expand"
    assert third.shortcut_weight is None
    assert all(torch.equal(a, b) for a, b in zip(fused(x), module(x), strict=True))


def more() -> nn.Module:
    """Three channels, groups, a ReLU6, a hardswish, a sum by itself, and one layer with a SiLU."""

    def function(m: Any, x: Tensor) -> Any:
        y = F.relu6(m.stem(x))
        y = F.relu(F.hardswish(m.grouped(y)) + y)
        z = F.silu(m.wide(y))
        return m.head(F.relu(m.last(z)).mean((2, 3)))

    return measured(
        Net(
            function,
            stem=conv(3, 16, stride=2),
            grouped=nn.Conv2d(16, 16, 3, padding=1, groups=4),
            wide=conv(16, 16, 1),
            last=conv(16, 20),
            head=nn.Linear(20, 7),
        ),
        images(2, channels=3),
    )


@pytest.mark.parametrize("keep", [{}, {"last": "bf16", "head": "fp32"}], ids=["", "keep"])
def test_what_stays_wider_is_quantised_around(keep: dict[str, str], device: str) -> None:
    model = more().to(device)
    x = images(4, channels=3, height=11, width=13).to(device)
    fast = quantized(model, x, keep=keep)
    steps = steps_of(fast, x)
    names = [step.operation for step in steps]
    assert "fastres.dequantize" in names  # in front of the SiLU's convolution
    assert names.count("fastres.quantize") >= 1
    if not keep:
        assert names.count("fastres.quantize") == 2
        assert all(isinstance(step, KernelStep) for step in steps)
    answers, defined = fast(x), fast.by_definition(x)
    assert torch.allclose(answers, defined, rtol=0.05, atol=0.05 * float(defined.abs().max()))


def test_an_image_of_three_channels_is_quantised_with_a_fourth(device: str) -> None:
    model = measured(nn.Sequential(conv(3, 16, 7, stride=2), nn.ReLU()), images(2, channels=3)).to(
        device
    )
    x = images(2, channels=3, height=15, width=18).to(device)
    fast = quantized(model, x)
    first, second, last = steps_of(fast, x)
    assert last.operation == "fastres.dequantize"
    assert first.operation == "fastres.quantize"
    assert [value.shape for value in first.writes] == [(2, 4, 15, 18)]
    assert second.reads == (first.writes[0].name,)
    assert torch.equal(fast(x), fast.by_definition(x))


def test_what_no_kernel_takes_runs_by_the_definition(device: str) -> None:
    model, x = measured(nn.Sequential(conv(4, 8), nn.ReLU())).to(device), images(2).to(device)
    fast = quantized(model, x)
    module = fast.graph_module
    (node,) = module.graph.find_nodes(op="call_function", target=ops.quantized_conv2d)
    arguments = list(node.args)
    arguments[10] = "silu"
    node.args = tuple(arguments)
    planned = plan_for(module, [x], Tactics(by_name("a100"), interpreted=True), Arithmetic())
    named = {step.operation: step for step in planned.plan.steps}
    assert not isinstance(named["fastres.quantized_conv2d"], KernelStep)
    (remark,) = planned.plan.remarks
    assert "silu has an exponential" in remark.reason


def test_tuning_draws_bytes_and_takes_no_other_integers() -> None:
    """Candidates are timed on random bytes; one whose result is one step off is not believed."""
    drawn: list[Tensor] = []
    shop = Workshop()

    def launch(x: Tensor, out: Tensor, config: Config) -> None:
        drawn.append(x.clone())
        out.copy_(x)
        out[0, 0] += config.speed == 1

    def step(config: Config) -> KernelStep:
        def calls(tensors: Any) -> list[Any]:
            shop.device.nanoseconds = lambda _: config.speed * 10
            return [call(launch, x=tensors["x"], out=tensors["out"], config=config)]

        out = dense("out", (64, 64), torch.uint8)
        return KernelStep("a", "conv", ("x",), (out,), calls, tactic=str(config.speed))

    layer = Layer(
        *("a", lambda: Config(7), lambda: [Config(1), Config(3)], Config(0), step, {}),
        lambda name: dense(name, (64, 64), torch.uint8),
    )
    assert shop.best(layer) == ["3"]
    (note,) = shop.tuner.notes
    assert "its results are not those of the other configurations" in note
    assert all(torch.equal(x, drawn[0]) for x in drawn)
    assert len(drawn[0].unique()) > 200


def test_where_triton_multiplies_no_int8() -> None:
    module = graph_of(measured(nn.Sequential(conv(4, 8))), quantized=True)
    assert "sm_75" in str(why_not_on(by_name("t4"), module))
    for gpu in GPUS.values():
        if gpu.architecture.tensor_core != "none":
            assert why_not_on(gpu, module) is None
    assert why_not_on(by_name("t4"), graph_of(measured(nn.Sequential(conv(4, 8))))) is None


def test_gpus_are_asked_for_int8() -> None:
    assert "cuda" in PRECISIONS["int8"].devices
    assert "int8" in AUTOMATIC["cuda"]


def test_a_network_is_planned_for_any_gpu_without_torch() -> None:
    module = graph_of(small(), quantized=True)
    for gpu in map(by_name, ("a100", "l4", "h100", "mi300x")):
        planned = plan_for(module, images_for(module, 64, 224), Tactics(gpu), Arithmetic())
        assert all(isinstance(step, KernelStep) for step in planned.plan.steps)
        kernels = [call.name for calls in planned.calls().values() for call in calls]
        assert all("quanti" in name or "max_pool2d" in name for name in kernels)
        descriptors = gpu.architecture.tensor_descriptors
        assert ("quantized_pointwise_kernel" in kernels) is descriptors


def test_layers_of_int8_count_bytes() -> None:
    module = graph_of(fastres.models.resnet18(), quantized=True)
    layers = {layer.name: layer for layer in layers_of(module, 2, 224)}
    first = next(iter(layers.values()))
    assert first.operator == "quantize"
    assert first.least_bytes("int8") == 2 * 3 * 224 * 224 * 5
    convolution = layers["layer1.0.conv2"]
    assert convolution.residual
    assert convolution.least_bytes("int8") == 3 * 2 * 64 * 56 * 56 + 64 * 64 * 9
    assert sum(layer.flops for layer in layers.values()) == sum(
        layer.flops for layer in layers_of(graph_of(fastres.models.resnet18()), 2, 224)
    )


def test_scales_without_images_know_what_a_relu_leaves() -> None:
    module = graph_of(small())
    quantize_nominally(module)
    convolutions = module.graph.find_nodes(op="call_function", target=ops.quantized_conv2d)
    zeros = {node.name: node.args[12] for node in convolutions}
    assert zeros["stem"] == 128
    assert set(zeros.values()) == {0, 128}
    assert zeros["b1"] == 0


def test_steps_are_32_bytes_deep_at_least() -> None:
    from fastres.kernels.spec import ConvSpec

    for spec in (ConvSpec(1, 16, 7, 7, 16, 1, 1), ConvSpec(4, 3, 9, 9, 8, 3, 3)):
        for gpu in GPUS.values():
            if gpu.architecture.tensor_core != "none":
                assert choose_conv2d(spec, "int8", gpu).block_k >= 32
