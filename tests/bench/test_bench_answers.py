"""The check that every peer's answers pass before it is timed, and whom it catches."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from fastres import models
from fastres.bench import gate
from fastres.bench.gate import Outputs
from fastres.bench.peers import peer
from fastres.workload import inputs, model_source

IMAGES = 16


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A small network whose answers mean something."""
    built = model_source.build(model_source.parse("cifar_resnet20"), seed=0)
    inputs.calibrate_random_weights(built, pool(), seed=0)
    return built


def pool() -> torch.Tensor:
    return inputs.synthetic_images(IMAGES, 3, 32, seed=0)


def run(call: Callable[[torch.Tensor], object], batch: int = 4) -> Outputs:
    with torch.no_grad():
        return gate.collect(call, pool().split(batch))


def verdict(
    model: nn.Module, call: Callable[[torch.Tensor], object], *, ours: bool = False
) -> gate.Verdict:
    truth = gate.float64_outputs(model, pool())
    return gate.judge(
        run(call),
        truth,
        precision="fp32",
        eager_error=gate.relative_error(run(model), truth),
        bound=peer.FASTRES_BOUND if ours else peer.PEER_BOUND,
    )


def test_eager_passes_with_its_own_error(model: nn.Module) -> None:
    found = verdict(model, model, ours=True)
    assert found.reason is None
    assert found.ratio == 1.0
    assert found.top1 == 1.0
    assert 0 < found.error < 1e-5


def test_the_oracle_is_float64_and_leaves_the_model_alone(model: nn.Module) -> None:
    before = copy.deepcopy(model.state_dict())
    truth = gate.float64_outputs(model, pool(), chunk=5)
    exact = copy.deepcopy(model).double()
    with torch.no_grad():
        assert torch.allclose(truth.values, exact(pool().double()), rtol=1e-13, atol=1e-13)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_bfloat16_under_the_name_of_float32_is_caught(model: nn.Module) -> None:
    lower = copy.deepcopy(model).bfloat16()
    found = verdict(model, lambda images: lower(images.bfloat16()).float())
    assert found.reason is not None
    assert "fp32" in found.reason
    assert found.error > 1e-3


def test_one_wrong_weight_is_caught(model: nn.Module) -> None:
    wrong = copy.deepcopy(model)
    with torch.no_grad():
        next(wrong.parameters())[0, 0, 0, 0] += 0.01
    assert verdict(model, wrong).reason is not None


def test_a_batch_norm_with_its_epsilon_forgotten_is_caught(model: nn.Module) -> None:
    wrong = copy.deepcopy(model)
    for module in wrong.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.0
    assert verdict(model, wrong).reason is not None


def test_answers_in_another_order_are_caught(model: nn.Module) -> None:
    found = verdict(model, lambda images: model(images).flip(0))
    assert found.reason is not None
    assert found.top1 is not None
    assert found.top1 < 0.5


def test_nan_is_caught(model: nn.Module) -> None:
    found = verdict(model, lambda images: model(images) * math.nan)
    assert found.reason is not None
    assert gate.finite(found.error) is None
    assert gate.finite(found.ratio) is None


def test_too_few_classes_are_caught(model: nn.Module) -> None:
    found = verdict(model, lambda images: model(images)[:, :-1])
    assert found.error == math.inf
    assert found.reason is not None


@pytest.mark.parametrize(
    ("bound", "passes"), [(peer.FASTRES_BOUND, False), (peer.PEER_BOUND, True)]
)
def test_fastres_is_held_to_a_tighter_bound(bound: float, passes: bool) -> None:
    truth = Outputs(torch.ones(4, 10, dtype=torch.float64), None)
    given = Outputs(truth.values * (1 + 5e-6), None)
    found = gate.judge(given, truth, precision="fp32", eager_error=1e-6, bound=bound)
    assert found.ratio == pytest.approx(5.0)
    assert (found.reason is None) is passes


def test_an_eager_without_any_error_makes_no_infinite_ratio() -> None:
    truth = Outputs(torch.ones(4, 10, dtype=torch.float64), None)
    given = Outputs(truth.values * (1 + 2.0**-23), None)
    found = gate.judge(given, truth, precision="fp32", eager_error=0.0, bound=peer.FASTRES_BOUND)
    assert found.ratio == pytest.approx(1.0)


def test_eager_itself_fails_where_rounding_is_all_there_is() -> None:
    truth = Outputs(torch.ones(4, 10, dtype=torch.float64), None)
    given = Outputs(truth.values * 1.01, None)
    found = gate.judge(given, truth, precision="fp32", eager_error=0.01, bound=peer.FASTRES_BOUND)
    assert found.ratio == pytest.approx(1.0)
    assert found.reason is not None


def test_a_truth_of_zeros() -> None:
    truth = Outputs(torch.zeros(4, 10, dtype=torch.float64), None)
    assert gate.relative_error(truth, truth) == 0.0
    assert gate.relative_error(Outputs(truth.values + 1, None), truth) == math.inf


def test_several_outputs_count_together() -> None:
    def call(images: torch.Tensor) -> object:
        return {"logits": images[:, :, 0, 0], "more": [images.numpy(), None]}

    collected = run(call)
    assert collected.values.shape == (IMAGES, 3 + 3 * 32 * 32)
    assert collected.values.dtype == torch.float64
    assert collected.first_choice is not None
    assert torch.equal(collected.first_choice, pool()[:, :, 0, 0].argmax(1))


def test_feature_maps_have_no_first_choice() -> None:
    assert run(lambda images: images).first_choice is None
    truth = run(lambda images: images)
    found = gate.judge(truth, truth, precision="fp32", eager_error=0.0, bound=peer.FASTRES_BOUND)
    assert found.top1 is None
    assert found.reason is None


@pytest.mark.parametrize(
    ("result", "says"),
    [
        ("text", "it returned str"),
        (None, "no tensor at all"),
        (torch.zeros(()), r"\[\] for 4 images"),
        (np.zeros((3, 10)), r"\[3, 10\] for 4 images"),
    ],
)
def test_what_is_no_answer(result: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        run(lambda images: result)


def test_the_first_few() -> None:
    whole = run(lambda images: images[:, :, 0, 0])
    part = whole.first(3)
    assert torch.equal(part.values, whole.values[:3])
    assert part.first_choice is not None
    assert len(part.first_choice) == 3


def test_reference_models_are_not_trivial_for_the_check() -> None:
    """Fresh from the initialiser the first choice is noise; settled, it is each image's own."""
    fresh = models.build("cifar_resnet20").eval()
    before = gate.float64_outputs(fresh, pool()).first_choice
    inputs.calibrate_random_weights(fresh, pool(), seed=0)
    after = gate.float64_outputs(fresh, pool()).first_choice
    assert before is not None and after is not None
    assert len(set(after.tolist())) > len(set(before.tolist()))


def int8(error: float, definitions_error: float | None = None, **more: bool) -> gate.Verdict:
    """The verdict on answers that are off by a share, beside a definition's that are, too."""
    truth = Outputs(torch.ones(4, 10, dtype=torch.float64), None)

    def off(share: float) -> Outputs:
        return Outputs(truth.values * (1 + share), None)

    definition = None if definitions_error is None else off(definitions_error)
    return gate.judge(
        off(error),
        truth,
        precision="int8",
        eager_error=None,
        bound=peer.FASTRES_BOUND,
        definition=definition,
        **more,
    )


def test_in_int8_peers_are_held_to_an_absolute_error() -> None:
    assert "int8" in gate.ABSOLUTE
    good, bad = int8(0.2), int8(0.6)
    assert good.reason is None
    assert good.ratio is bad.ratio is None
    assert gate.finite(good.ratio) is None
    assert bad.reason == "error 6.0e-01, at most 0.5 is accepted in int8"
    assert int8(math.nan).reason is not None


def test_in_int8_ours_are_the_definitions_bit_for_bit() -> None:
    same, other = int8(0.2, 0.2, is_exact=True), int8(0.2, 0.2000001, is_exact=True)
    assert (same.ratio, same.reason) == (1.0, None)
    assert other.reason == (
        "40 of 40 answers differ from int8's definition, whose every bit is expected"
    )
    assert int8(0.6, 0.6, is_exact=True).reason is not None, "of noise, the right one is noise"


def test_what_is_partly_float_is_held_to_multiples_of_the_definitions_error() -> None:
    near, far = int8(0.15, 0.1), int8(0.25, 0.1)
    assert near.reason is None
    assert near.ratio == pytest.approx(1.5)
    assert far.reason == (
        "error 2.5e-01 is 2.5 times that of its definition in int8, at most 2 times is accepted"
    )
