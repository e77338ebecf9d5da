"""The roofline command: its figures against published ones, its text, its JSON, its refusals."""

from __future__ import annotations

import functools
import json
import re
from typing import Any

import pytest
import torch
from torch import fx, nn

from fastres import models
from fastres.cli import main as cli
from fastres.errors import OptionError
from fastres.kernels.spec import BottleneckSpec, ConvSpec
from fastres.kernels.tuning import gpus
from fastres.roofline import main
from fastres.roofline.layers import Layer, graph_of, layers_of
from fastres.roofline.view import View, view
from fastres.runtime.triton.fusion_policy import by_model, wherever_it_fits


@functools.cache
def resnet50() -> fx.GraphModule:
    return graph_of(models.resnet50())


@functools.cache
def views(gpu: str, batch: int) -> tuple[View, View]:
    """ResNet-50 in fp16 without and with block fusion."""
    chosen = gpus.by_name(gpu)
    worth = by_model("fp16", chosen)
    apart, together = layers_of(resnet50(), batch, 224), layers_of(resnet50(), batch, 224, worth)
    return view(apart, "none", batch, "fp16", chosen), view(
        together, "blocks", batch, "fp16", chosen
    )


@pytest.mark.campaign
def test_layers_are_the_models_own() -> None:
    layers = layers_of(resnet50(), 1, 224)
    assert [layer.operator for layer in layers].count("conv2d") == 53
    assert {layer.operator for layer in layers} == {
        *("conv2d", "max_pool2d", "global_avg_pool", "linear")
    }
    assert sum(layer.residual for layer in layers) == 16
    assert layers[0] == Layer(
        "conv1", "conv2d", ConvSpec(1, 3, 224, 224, 64, 7, 7, (2, 2), (3, 3, 3, 3))
    )


@pytest.mark.campaign
def test_flops_and_weights_are_resnet_50s() -> None:
    """He et al. count 4.1 GFLOP, multiplications only, for version 1.5 of the network."""
    flops = sum(layer.flops for layer in layers_of(resnet50(), 1, 224))
    assert flops / 2 == pytest.approx(4.089e9, rel=1e-3)


@pytest.mark.campaign
def test_unfused_traffic_is_that_of_each_tensor_once() -> None:
    many, one = (sum(r.bytes for r in views("a100", n)[0].rows) for n in (256, 1))
    per_image = (many - one) / 255 / 2  # elements, weights left out
    assert per_image == pytest.approx(27.4e6, rel=0.01)


@pytest.mark.campaign
@pytest.mark.parametrize(("gpu", "thousand"), [("h100", 53), ("a100", 26), ("l4", 5), ("t4", 4.6)])
def test_unfused_rooflines_at_a_large_batch(gpu: str, thousand: float) -> None:
    """Thousands of images per second that 27.4 M numbers and 8.2 GFLOP per image allow."""
    apart, _ = views(gpu, 256)
    assert apart.batch / apart.floor_seconds / 1e3 == pytest.approx(thousand, rel=0.05)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("batch", [1, 32, 256])
@pytest.mark.parametrize("gpu", ["t4", "a100", "l4", "h100"])
def test_nothing_is_modelled_below_its_floor(gpu: str, batch: int) -> None:
    for each in views(gpu, batch):
        for row in each.rows:
            assert row.seconds > row.floor_seconds > 0, row.layer.name
        assert each.seconds < 20 * each.floor_seconds


@pytest.mark.campaign
@pytest.mark.parametrize("gpu", ["a100", "l4", "h100"])
def test_block_fusion_saves_time_bytes_and_launches(gpu: str) -> None:
    for batch in (32, 256):
        apart, together = views(gpu, batch)
        assert together.seconds < apart.seconds
        # On an H100 blocks with a shortcut or the next convolution were measured and pay for less.
        bytes_, launches = (0.85, 0.9) if gpu == "h100" else (0.75, 0.65)
        assert together.bytes < bytes_ * apart.bytes
        assert together.launches <= launches * apart.launches


def test_early_stages_move_a_third_less() -> None:
    """conv2_x and conv3_x, in whose kernels the first convolution of conv4_x takes part."""

    def early(each: View) -> int:
        return sum(
            row.bytes for row in each.rows if row.layer.name.startswith(("layer1", "layer2"))
        )

    apart, together = views("a100", 32)
    assert early(together) < 0.7 * early(apart)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("gpu", ["a100", "l4", "h100"])
@pytest.mark.parametrize("batch", [32, 64, 256])
def test_all_blocks_in_few_launches(gpu: str, batch: int) -> None:
    chosen = gpus.by_name(gpu)
    apart, _ = views(gpu, batch)
    most = view(
        layers_of(resnet50(), batch, 224, wherever_it_fits("fp16", chosen)),
        *("all blocks", batch, "fp16", chosen),
    )
    assert most.launches <= 26
    assert most.bytes < 0.7 * apart.bytes


def test_the_library_is_not_fused() -> None:
    assert wherever_it_fits("fp16", gpus.by_name("t4"))(
        BottleneckSpec(ConvSpec(1, 1, 1, 1, 1, 1, 1), 1)
    )
    apart, together = views("t4", 32)
    assert [row.layer for row in apart.rows] == [row.layer for row in together.rows]
    assert {row.configuration for row in apart.rows if row.layer.flops} == {"library"}


def test_batches_grow_and_rates_with_them() -> None:
    rates = [views("a100", batch)[1].images_per_second for batch in (1, 32, 256)]
    assert rates == sorted(rates)


def test_what_moves_numbers_only_is_counted_and_views_are_not() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 8, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sigmoid(self.conv(x)).flatten(1)

    layers = layers_of(graph_of(Model()), 2, 16)
    assert [layer.operator for layer in layers] == ["conv2d", "aten.sigmoid"]
    assert layers[1].elements == 2 * (2 * 8 * 16 * 16)
    assert layers[1].least_bytes("fp16") == 2 * layers[1].elements
    assert layers[1].flops == 0


def test_a_fused_block_keeps_the_products_of_its_parts() -> None:
    apart, together = views("a100", 32)
    assert sum(r.layer.flops for r in apart.rows) == sum(r.layer.flops for r in together.rows)
    assert any(isinstance(row.layer.spec, BottleneckSpec) for row in together.rows)


@pytest.mark.campaign
def test_models_with_other_inputs_are_refused() -> None:

    captured = graph_of(models.resnet18())
    placeholder = next(iter(captured.graph.nodes))
    with captured.graph.inserting_before(placeholder):
        captured.graph.placeholder("second").meta["val"] = torch.zeros(1)
    with pytest.raises(OptionError, match="takes 2 inputs: expected one image tensor"):
        layers_of(captured, 1, 224)


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["--depth", "18", "--gpu", "a100", *arguments]) == 0
    return capsys.readouterr().out


@pytest.mark.campaign
def test_every_line_says_modelled(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, "--batch", "1", "32").splitlines()
    assert len(lines) > 80
    assert [line for line in lines if "modelled" not in line] == []


@pytest.mark.campaign
def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "--batch", "32")
    assert "modelled, not measured: resnet18 in fp16, 224x224 pixels, on a100" in text
    assert "modelled: batch 32, no block fused" in text
    assert "modelled: batch 32, blocks fused where modelled to pay, as optimize does" in text
    assert "modelled: batch 32, every block fused that fits" in text
    (row,) = [line for line in text.splitlines() if "layer2.0.conv1 " in line][:1]
    assert "conv2d 3x3/2" in row
    assert "block_m=" in row
    assert "images/s" in text


@pytest.mark.campaign
def test_the_summary_tells_launches_and_bytes_by_stage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--depth", "50", "--gpu", "a100", "--batch", "32"]) == 0
    first, names, *ways = capsys.readouterr().out.splitlines()[-5:]
    assert first.startswith("modelled batch 32: the unfused roofline is ")
    saved = r"fewer bytes +in layer1 +in layer2 +in layer3 +in layer4$"
    assert re.search(r"plan +launches +us +images/s +MB +" + saved, names)
    told = [re.split(r"  +", line)[1:] for line in ways]
    assert [row[0].split(",")[0].split(":")[0] for row in told] == [
        *("no block fused", "blocks fused where modelled to pay", "every block fused that fits"),
    ]
    apart, chosen, most = ([int(row[1]), *(int(s.rstrip("%")) for s in row[5:])] for row in told)
    assert apart[0] >= 56 and set(apart[1:]) == {0}
    assert most[0] <= 26 < chosen[0] <= 34
    for _, _, second, third, *_ in (chosen, most):
        assert second >= 30 and third >= 30


@pytest.mark.campaign
def test_where_there_is_no_tf32_it_is_float32(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "--gpu", "mi210", "--batch", "1", "--precision", "tf32")
    assert "resnet18 in fp32 (gfx90a has no tf32), 224x224 pixels, on mi210" in text
    plain = printed(capsys, "--gpu", "mi210", "--batch", "1", "--precision", "fp32")
    assert text.splitlines()[1:] == plain.splitlines()[1:]


@pytest.mark.campaign
def test_t4_says_why_the_library(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(["roofline", "--depth", "18", "--gpu", "T4", "--batch", "1"]) == 0
    text = capsys.readouterr().out
    assert "Triton emits no tensor-core instructions for sm_75" in text
    assert [line for line in text.splitlines() if "modelled" not in line] == []


@pytest.mark.campaign
def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    record: dict[str, Any] = json.loads(printed(capsys, "--batch", "8", "--json"))
    assert record["title"].startswith("modelled, not measured: ")
    assert (record["gpu"], record["precision"], record["model"]) == ("a100", "fp16", "resnet18")
    assert [each["fusion"] for each in record["views"]] == ["none", "blocks", "all blocks"]
    for each in record["views"]:
        total, rows = each["total"], each["layers"]
        assert total["modelled_seconds"] == pytest.approx(sum(r["modelled_seconds"] for r in rows))
        assert total["bytes"] == sum(row["bytes"] for row in rows)
        assert list(total["bytes_of_stages"]) == ["layer1", "layer2", "layer3", "layer4"]
        inside = sum(row["bytes"] for row in rows if "." in row["name"])
        assert sum(total["bytes_of_stages"].values()) == inside
        assert total["launches"] == sum(row["launches"] for row in rows)
        assert all(row["modelled_seconds"] > row["floor_seconds"] for row in rows)


@pytest.mark.sampled(6)
@pytest.mark.parametrize("precision", gpus.PRECISIONS)
def test_precisions(precision: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "--batch", "4", "--precision", precision, "--json")
    record = json.loads(text)
    assert record["peak_flops"] == gpus.by_name("a100").flops[precision]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--gpu", "gtx", "--depth", "18"], "gpu 'gtx': expected one of t4, a10, a100"),
        (["--gpu", "a100", "--depth", "19"], "resnet19"),
        (["--gpu", "a100", "--depth", "0"], "there is no 'resnet0'"),
        (["--gpu", "a100", "--batch", "0"], "--batch and --size: expected positive numbers"),
        (["--gpu", "a100", "--size", "0"], "--batch and --size: expected positive numbers"),
    ],
)
def test_refusals(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert sentence in capsys.readouterr().err


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(["--help"]) == 0
    told = capsys.readouterr().out
    assert "roofline" in told and "inspect" in told
