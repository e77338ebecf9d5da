"""The images, and the weights under which they give answers that mean something."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from fastres import models, preprocess
from fastres.errors import InputError, OptionError
from fastres.workload import inputs


def settled(seed: int = 0) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = models.build("cifar_resnet20").eval()
    pool = inputs.synthetic_images(24, 3, 32, seed=1)
    inputs.calibrate_random_weights(model, pool, seed)
    return model, pool


def test_whole_batches_and_at_least_so_many() -> None:
    assert [inputs.images_checked(batch) for batch in (1, 3, 8, 16, 17, 32)] == [
        *(16, 18, 16, 16, 17, 32)
    ]
    assert inputs.pool_size((1, 3, 8)) == 18


def test_images_are_those_of_the_seed_and_unlike_each_other() -> None:
    images = inputs.synthetic_images(8, 3, 64, seed=5)
    assert images.shape == (8, 3, 64, 64)
    assert images.dtype == torch.float32
    assert images.is_contiguous()
    assert torch.equal(images, inputs.synthetic_images(8, 3, 64, seed=5))
    assert not torch.equal(images, inputs.synthetic_images(8, 3, 64, seed=6))
    noise = torch.randn(8, 3, 64, 64)
    assert images.mean((2, 3)).std() > 5 * noise.mean((2, 3)).std()


def test_settling_is_repeatable_and_seeded() -> None:
    first, second, other = (settled(seed)[0].state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["bn1.weight"], other["bn1.weight"])


def test_each_image_chooses_its_own_class() -> None:
    model, pool = settled()
    with torch.no_grad():
        choice = model(pool).argmax(1)
    assert torch.equal(choice[:10], torch.arange(10))  # as many as there are classes


def test_activations_keep_their_scale() -> None:
    model, pool = settled()
    scales = []
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(lambda _, inputs: scales.append(inputs[0].std()))
    with torch.no_grad():
        model(pool)
    assert len(scales) == 19
    assert all(0.05 < scale < 20 for scale in scales)


def test_statistics_are_those_of_the_images() -> None:
    model, pool = settled()
    seen: list[torch.Tensor] = []
    norm = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    norm.register_forward_hook(lambda _, inputs, output: seen.append(output.clone()))
    with torch.no_grad():
        model(pool)
    scaled = (seen[0] - norm.bias.view(1, -1, 1, 1)) / norm.weight.view(1, -1, 1, 1)
    assert torch.allclose(scaled.mean((0, 2, 3)), torch.zeros(len(norm.weight)), atol=0.05)
    assert torch.allclose(scaled.std((0, 2, 3)), torch.ones(len(norm.weight)), atol=0.1)


def test_last_batch_norms_of_blocks_are_small() -> None:
    model, _ = settled()
    last = {name: m for name, m in model.named_modules() if name.endswith("bn2")}
    others = [m for name, m in model.named_modules() if name.endswith("bn1")]
    assert len(last) == 9
    assert all(float(m.get_parameter("weight").detach().max()) <= 0.3 for m in last.values())
    assert all(float(m.get_parameter("weight").detach().min()) >= 0.5 for m in others)


def test_nothing_but_batch_norm_is_trained() -> None:
    dropout = nn.Dropout(0.5)
    norm = nn.BatchNorm2d(4, momentum=0.3)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), norm, dropout).eval()
    inputs.calibrate_random_weights(model, torch.randn(16, 3, 8, 8), seed=0)
    assert not any(module.training for module in model.modules())
    assert norm.momentum == 0.3
    assert norm.running_mean is not None
    assert norm.running_mean.abs().max() > 0


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()),
        nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten(), nn.Linear(4, 5, bias=False)),
        nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten(), nn.Linear(4, 5), nn.Unflatten(1, (5, 1))),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
    ],
    ids=["headless", "no bias", "no logits", "no affine", "no statistics"],
)
def test_networks_that_lack_a_part(model: nn.Sequential) -> None:
    done = inputs.calibrate_random_weights(model.eval(), torch.randn(16, 3, 8, 8), seed=0)
    assert not any("classifier" in sentence for sentence in done)
    with torch.no_grad():
        assert model(torch.randn(2, 3, 8, 8)).isfinite().all()


def test_photographs_are_preprocessed_and_repeated(tmp_path: Path) -> None:
    for number in range(3):
        Image.new("RGB", (80, 60), (number * 100, 50, 200)).save(tmp_path / f"{number}.png")
    pool, distinct = inputs.photographs(tmp_path, 7, 32)
    assert distinct == 3
    assert pool.shape == (7, 3, 32, 32)
    transforms = preprocess.Transforms(resize=37, crop=32)
    expected = preprocess.load_image(tmp_path / "1.png", transforms)
    assert torch.equal(pool[1], expected)
    assert torch.equal(pool[4], expected)


def test_no_photographs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no image"):
        inputs.photographs(tmp_path, 4, 32)


def test_channels_come_from_the_first_convolution() -> None:
    assert inputs.input_channels(models.build("resnet18", in_channels=5)) == 5
    with pytest.raises(OptionError, match=r"no torch.nn.Conv2d"):
        inputs.input_channels(nn.Linear(3, 3))
