"""Every quirk is optimised or refused with a sentence, and never answered wrongly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

from tests.support.optimizing import BATCH_NORM_NODES, nodes, optimize
from tests.support.oracle import assert_as_accurate, run_in
from tests.zoo.quirk import Quirk
from tests.zoo.quirks import QUIRKS

NAMES = {quirk.name: quirk for quirk in QUIRKS}


@pytest.fixture(params=NAMES)
def quirk(request: pytest.FixtureRequest) -> Quirk:
    return NAMES[request.param]


def example(quirk: Quirk) -> Any:
    """The inputs as `fastres.optimize` takes them."""
    inputs, named = quirk.inputs(seed=5)
    if named:
        return {"x": inputs[0], **named}
    return inputs if len(inputs) > 1 else inputs[0]


# torch says so of each such convolution, once in a process.
@pytest.mark.sampled(12)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("engine", ["auto", "eager"])
def test_a_quirk_is_folded_or_refused_and_as_accurate(quirk: Quirk, engine: str) -> None:
    model = quirk.model()
    fast = optimize(model, example(quirk), engine=engine)
    inputs, named = quirk.inputs()
    assert_as_accurate(model, fast, *inputs, **named)
    report = fast.report
    found, done = report.found["batch_norm"], report.done["batch_norm"]
    if quirk.folded is not None:
        assert done == quirk.folded, str(report)
    kept = nodes(fast, *BATCH_NORM_NODES)
    about = [remark for remark in report.refused + report.left if "atch" in remark.what]
    if done < found or kept:
        assert about, str(report)
    assert all(len(remark.reason.split()) > 3 for remark in report.refused + report.left)


@pytest.mark.sampled(12)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("name", [quirk.name for quirk in QUIRKS if not quirk.float32_only])
def test_a_quirk_is_as_accurate_in_bfloat16(name: str) -> None:
    quirk = NAMES[name]
    model = quirk.model()
    fast = optimize(model, example(quirk), precision="bf16")
    inputs, named = quirk.inputs()
    assert_as_accurate(model, fast, *inputs, precision="bf16", **named)


@pytest.mark.sampled(12)
def test_outputs_share_no_memory(quirk: Quirk) -> None:
    model = quirk.model()
    fast = optimize(model, example(quirk))
    inputs, named = quirk.inputs()
    first, second = (tensors(fast(*inputs, **named)) for _ in range(2))
    storages = [tensor.untyped_storage().data_ptr() for tensor in (*first, *second, *inputs)]
    assert len(set(storages)) == len(storages)
    kept = [tensor.clone() for tensor in first]
    for tensor in second:
        tensor.zero_()
    assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True))


def tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


@pytest.mark.parametrize("name", ["variance beyond float16", "tiny variance, negative scale"])
def test_statistics_beyond_float16_are_folded_without_overflow(name: str) -> None:
    quirk = NAMES[name]
    model = quirk.model()
    (images,), _ = quirk.inputs()
    fast = optimize(model, images, precision="fp16")
    wanted = run_in(model, torch.float64, images)
    error = (fast(images).double() - wanted).abs().max() / wanted.abs().max()
    assert error < 4 * torch.finfo(torch.float16).eps


def test_positional_and_keyword_arguments_are_bound_as_by_the_model() -> None:
    quirk = NAMES["keyword argument given"]
    model = quirk.model()
    (x,), named = quirk.inputs()
    fast = optimize(model, (x, named["mask"]))
    wanted = fast(x, named["mask"])
    assert torch.equal(fast(x, mask=named["mask"]), wanted)
    assert torch.equal(fast(mask=named["mask"], x=x), wanted)
