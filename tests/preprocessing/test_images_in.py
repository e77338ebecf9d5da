"""Models that take images as they are decoded: formats, sizes, layouts, checks and refusals."""

from __future__ import annotations

import copy
import pickle
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastres
from fastres.capture.pipeline import with_preprocessing
from fastres.errors import InputError, NotOptimizedError, OptionError
from fastres.export import to_standard
from fastres.transforms import Preprocessing, Transforms
from tests.support.optimizing import assert_complete, nodes, optimize
from tests.support.small import Net, classifier, conv

SMALL = Transforms(resize=40, crop=32)
FORMATS = ("uint8_nhwc", "uint8_nchw")


def pixels(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def normalised(nhwc: Tensor, transforms: Transforms = SMALL) -> Tensor:
    mean, std = (
        torch.tensor(values).view(-1, 1, 1) for values in (transforms.mean, transforms.std)
    )
    return (nhwc.permute(0, 3, 1, 2).float() / 255 - mean) / std


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return classifier()


@pytest.fixture(scope="module")
def fasts(model: nn.Module) -> dict[str, Any]:
    """By format."""
    return {
        form: optimize(model, input_format=form, transforms=SMALL, strict=True) for form in FORMATS
    }


@pytest.mark.parametrize("form", FORMATS)
def test_images_go_in_as_they_are(model: nn.Module, fasts: dict[str, Any], form: str) -> None:
    fast = fasts[form]
    assert_complete(fast, batch_norm=4, convolution=4, activation=3)
    assert fast.preprocessing == Preprocessing(form, SMALL)  # type: ignore[arg-type]
    for n, height, width in ((1, 32, 32), (4, 33, 47), (2, 9, 64)):
        images = pixels(n, height, width, 3)
        given = images if form == "uint8_nhwc" else images.permute(0, 3, 1, 2)
        with torch.no_grad():
            wanted = model(normalised(images))
        for laid_out in (given.contiguous(), given, spread(given)):
            torch.testing.assert_close(fast(laid_out), wanted, rtol=1e-4, atol=1e-4)


def spread(images: Tensor) -> Tensor:
    """The same numbers with gaps between them."""
    wide = torch.zeros(*(2 * size for size in images.shape), dtype=images.dtype)
    view = wide[::2, 1::2, ::2, 1::2]
    return view.copy_(images)


@pytest.mark.parametrize("form", FORMATS)
def test_the_example_and_the_receipt_have_images(fasts: dict[str, Any], form: str) -> None:
    fast = fasts[form]
    shape = [1, 32, 32, 3] if form == "uint8_nhwc" else [1, 3, 32, 32]
    (image,), named = fast.example
    assert (list(image.shape), image.dtype, named) == (shape, torch.uint8, {})
    assert fast.report.check.sample == str(shape)
    assert fast.report.check.ratio < 2.0
    assert (
        f"the model takes {form} images, resized to 40 and cropped to 32 beforehand "
        "(resize=True does that too)" in fast.report.notes
    )
    names = {module for module, _, _ in fast.report.layers}
    assert {"stem.0", "block.3", "fc"} <= names
    assert not [name for name in names if "network" in name]
    assert "block.3" in str(fast.profile(image))


@pytest.mark.parametrize("form", FORMATS)
def test_verify_takes_images(model: nn.Module, fasts: dict[str, Any], form: str) -> None:
    images = pixels(3, 40, 36, 3)
    given = images if form == "uint8_nhwc" else images.permute(0, 3, 1, 2)
    result = fastres.verify(model, fasts[form], given)
    assert result.passed, str(result)
    assert (result.images, result.top1_agreement, result.first_drift) == (3, 1.0, None)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("change", ["mean", "std", "divisor"])
def test_verify_sees_other_preprocessing(model: nn.Module, change: str) -> None:
    """A graph made with other numbers than those it is said to have been made with."""
    other: Any = {"mean": (0.4, 0.456, 0.406), "std": (0.229, 0.2, 0.225), "divisor": 254.0}
    wrong = replace(SMALL, **{change: other[change]})
    fast = optimize(model, input_format="uint8_nhwc", transforms=wrong)
    fast.preprocessing = Preprocessing("uint8_nhwc", SMALL)
    result = fastres.verify(model, fast, pixels(2, 32, 32, 3))
    assert not result.passed
    assert result.error_ratio > 100


def test_the_first_layer_that_drifts_is_named(model: nn.Module) -> None:
    fast = optimize(model, input_format="uint8_nhwc", transforms=SMALL)
    with torch.no_grad():
        fast.graph_module.block_3_weight_folded.mul_(1.01)
    result = fastres.verify(model, fast, pixels(2, 32, 32, 3))
    assert result.first_drift is not None
    assert result.first_drift.module == "block.3"


@pytest.mark.sampled(3)
@pytest.mark.parametrize("engine", ["onednn", "eager"])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_pixels_go_straight_to_the_precision(model: nn.Module, engine: str, precision: str) -> None:
    options = {"input_format": "uint8_nhwc", "transforms": SMALL}
    fast = optimize(model, precision=precision, engine=engine, **options)
    (cast, *_) = nodes(fast, "to")
    assert cast.args[1] == {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    (layer,) = nodes(fast, "scale_shift")
    assert layer.args[0] is cast
    assert {fast.graph_module.input_scale.dtype, fast.graph_module.input_shift.dtype} == {
        torch.float32
    }
    images = pixels(2, 32, 32, 3)
    assert fast(images).dtype == torch.float32
    assert fastres.verify(model, fast, images).passed


def test_a_model_in_bfloat16(model: nn.Module) -> None:
    narrow = copy.deepcopy(model).bfloat16()
    fast = optimize(narrow, input_format="uint8_nhwc", transforms=SMALL, softmax=True)
    images = pixels(2, 32, 32, 3)
    assert fast(images).dtype == torch.float32  # probabilities
    assert fastres.verify(narrow, fast, images).passed


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 32, 32, 3), "got torch.float32 .*pixels as they are decoded, 0 to 255"),
        (pixels(2, 3, 32, 32), r"expected \[N, H, W, 3\]: dimension 3, the channels of an NHWC"),
        (pixels(32, 32, 3), r"rank 3 .*expected rank 4 \[N, H, W, 3\]; add the batch"),
        (pixels(2, 32, 32, 4), r"got \[2, 32, 32, 4\].*\[N, H, W, 3\]"),
    ],
    ids=["floats", "NCHW", "no batch", "with alpha"],
)
def test_other_inputs_are_refused(fasts: dict[str, Any], images: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fasts["uint8_nhwc"](images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_format": "uint8_nhwc"}, "needs transforms="),
        ({"transforms": SMALL}, "transforms needs input_format="),
        ({"input_format": "nhwc", "transforms": SMALL}, "input_format: got 'nhwc', expected"),
        ({"input_format": "uint8_nhwc", "transforms": "imagenet"}, "transforms is a str"),
        ({"resize": True}, "resize=True needs"),
        ({"labels": "cat"}, "labels: got 'cat', expected the names"),
        (
            {"input_format": "uint8_nhwc", "transforms": Transforms(mean=(0.5,), std=(1.0,))},
            "mean and std of 1 channels, and the first convolution takes 3",
        ),
    ],
)
def test_options_that_do_not_go_together(
    model: nn.Module, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        fastres.optimize(model, **options)


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (torch.zeros(1, 32, 32, 3), r"example_input: got torch.float32 \[1, 32, 32, 3\], expected"),
        (pixels(1, 3, 32, 32), r"expected torch.uint8 \[N, H, W, C\] with C = 3"),
        (pixels(32, 32, 3), "as input_format='uint8_nhwc' and transforms say"),
        ((1, "text"), "got no tensor: the first tensor argument of the model is its image"),
    ],
)
def test_examples_that_are_no_images(model: nn.Module, example: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        fastres.optimize(model, example, input_format="uint8_nhwc", transforms=SMALL)


class TwoInputs(nn.Module):
    """An image by keyword, and numbers beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, weight: float, image: Tensor, extra: Tensor) -> dict[str, Tensor]:
        """Another structure than one tensor."""
        return {"map": self.conv(image) * weight, "sum": extra + 1}


def test_the_first_tensor_is_the_image() -> None:
    network = TwoInputs().eval()
    images, extra = pixels(2, 8, 9, 3), torch.randn(2, 5)
    arguments = {"weight": 2.0, "image": images, "extra": extra}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fastres.FastresWarning)  # the product stays with torch
        fast = fastres.optimize(network, arguments, input_format="uint8_nhwc", transforms=SMALL)
    got = fast(**arguments)
    with torch.no_grad():
        wanted = network(2.0, normalised(images), extra)
    torch.testing.assert_close(got["map"], wanted["map"], rtol=1e-4, atol=1e-4)
    assert torch.equal(got["sum"], wanted["sum"])


def test_a_model_in_training_mode_stays_so(model: nn.Module) -> None:
    training = copy.deepcopy(model).train()
    with pytest.warns(fastres.FastresWarning, match="the model was in training mode"):
        fast = fastres.optimize(training, input_format="uint8_nhwc", transforms=SMALL)
    assert training.training
    images = pixels(2, 32, 32, 3)
    with torch.no_grad():
        torch.testing.assert_close(fast(images), model(normalised(images)), rtol=1e-4, atol=1e-4)


def test_messages_name_the_users_modules() -> None:
    hooked = Net(lambda m, x: m.conv(x), conv=conv(3, 4)).eval()
    hooked.get_submodule("conv").register_forward_hook(lambda *_: None)
    with pytest.raises(fastres.CaptureError, match=r"^module conv \(Conv2d\) has the forward hook"):
        fastres.optimize(hooked, input_format="uint8_nhwc", transforms=SMALL)
    failing = Net(lambda m, x: m.conv(x[:, :2]), conv=conv(3, 4)).eval()
    with pytest.raises(fastres.CaptureError, match=r"^Net cannot .* fails in module conv \(Conv2d"):
        fastres.optimize(failing, input_format="uint8_nhwc", transforms=SMALL)
    left = Net(lambda m, x: m.conv(x).cumsum(1), conv=conv(3, 4)).eval()
    with pytest.raises(NotOptimizedError, match="cumsum"):
        fastres.optimize(left, input_format="uint8_nhwc", transforms=SMALL, strict=True)


@pytest.mark.campaign
def test_it_is_saved_copied_and_renewed(model: nn.Module, tmp_path: Path) -> None:
    other = classifier()
    options: dict[str, Any] = {
        **{"input_format": "uint8_nhwc", "transforms": SMALL, "resize": True},
        **{"softmax": True, "top_k": 3, "labels": [f"class {i}" for i in range(10)]},
    }
    fast = optimize(model, **options)
    images = pixels(2, 50, 70, 3)
    fast.save(tmp_path / "model.fastres")
    loaded = fastres.load(tmp_path / "model.fastres")
    for twin in (loaded, pickle.loads(pickle.dumps(fast)), copy.deepcopy(fast)):
        assert twin.preprocessing == fast.preprocessing
        assert all(map(torch.equal, twin(images), fast(images)))
    loaded.refresh(other.state_dict())
    assert all(map(torch.equal, loaded(images), optimize(other, **options)(images)))
    assert fastres.verify(other, loaded, images).passed


@pytest.mark.campaign
def test_it_can_be_exported_as_standard_operators(model: nn.Module) -> None:
    fast = optimize(model, input_format="uint8_nhwc", transforms=SMALL, resize=True)
    program = to_standard(fast)
    for shape in ((2, 50, 70, 3), (3, 90, 41, 3), (1, 40, 40, 3)):
        images = pixels(*shape)
        with torch.no_grad():
            wanted = with_preprocessing(model, fast.preprocessing)(images)
            torch.testing.assert_close(program.module()(images), wanted, rtol=1e-4, atol=1e-4)
