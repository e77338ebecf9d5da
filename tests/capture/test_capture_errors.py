"""Models that cannot be captured: the type of the error, its text, and the model left as it was."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, spectral_norm, weight_norm

import fastres
from fastres.errors import (
    CaptureError,
    FastresError,
    FastresWarning,
    ModelError,
    OptionError,
)
from fastres.system.versions import release
from tests.support.oracle import unchanged
from tests.support.small import Net, assert_right, conv, counts, images, measured


def small_model() -> nn.Module:
    layers = (conv(), nn.BatchNorm2d(4), nn.ReLU(), conv(channels=2))
    return measured(nn.Sequential(*layers))


def refusal(
    model: nn.Module, example: Any = None, *, error: type[Exception] = CaptureError, **options: Any
) -> str:
    """The message that optimising ``model`` ends in; the model is bitwise as before."""
    with unchanged(model), pytest.raises(error) as caught:
        fastres.optimize(model, example, **options)
    assert type(caught.value) is error
    assert isinstance(caught.value, FastresError)
    return str(caught.value)


@pytest.mark.parametrize("model", [nn.Linear(3, 2), nn.Sequential(nn.Conv1d(3, 4, 3)), nn.ReLU()])
def test_no_convolution_to_derive_an_input_from(model: nn.Module) -> None:
    text = refusal(model.eval(), error=ModelError)
    assert text.startswith(f"{type(model).__name__} has no nn.Conv2d")
    assert "pass example_input=..." in text


def test_no_convolution_that_runs() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval()
    text = refusal(model, torch.randn(2, 3, 2, 2), error=ModelError)
    assert "Sequential has no two-dimensional convolution that runs in forward" in text
    unused = Net(lambda m, x: x * 2, conv=conv()).eval()
    assert "that runs in forward" in refusal(unused, images(2), error=ModelError)


@pytest.mark.parametrize("model", [None, 3, "resnet50", torch.relu, nn.Conv2d])
def test_no_module(model: Any) -> None:
    with pytest.raises(OptionError, match=r"expected an nn\.Module"):
        fastres.optimize(model)


def a_hook(*_: Any) -> None:
    """A forward hook that does nothing."""


@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
@pytest.mark.parametrize("with_kwargs", [False, True])
@pytest.mark.parametrize("path", ["", "0", "3"])
def test_hooks(kind: str, with_kwargs: bool, path: str) -> None:
    model = small_model()
    module = model.get_submodule(path)
    getattr(module, kind)(a_hook, with_kwargs=with_kwargs)
    text = refusal(model)
    named = f"module {path or '(the model itself)'} ({type(module).__name__})"
    assert text.startswith(f"{named} has the forward hook a_hook: ")
    assert "remove it with the handle" in text


def test_hooks_that_forward_does_not_see_are_no_matter() -> None:
    model = small_model()
    model.register_full_backward_hook(a_hook)
    model.register_state_dict_post_hook(a_hook)
    model.register_load_state_dict_post_hook(a_hook)
    with unchanged(model):
        fastres.optimize(model, images(2))


@pytest.mark.parametrize("norm", [weight_norm, spectral_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_weight_normalisation_by_a_hook(norm: Callable[[nn.Module], nn.Module]) -> None:
    model = nn.Sequential(conv(), norm(conv())).eval()
    text = refusal(model)
    assert re.match(r"module 1 \(Conv2d\) has the forward hook (Weight|Spectral)Norm", text)
    assert "weight_norm and spectral_norm have functions of their own" in text


@pytest.mark.parametrize(
    "norm",
    [parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal],
)
def test_parametrisations(norm: Callable[[nn.Module], nn.Module]) -> None:
    model = nn.Sequential(conv(), norm(conv())).eval()
    text = refusal(model, images(2))
    assert text.startswith("module 1 (ParametrizedConv2d) has a parametrisation on 'weight'")
    parametrize.remove_parametrizations(model[1], "weight")
    assert "torch.nn.utils.parametrize.remove_parametrizations(module, 'weight')" in text
    fastres.optimize(model, images(2))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:DeprecationWarning")
def test_modules_that_torch_already_rewrote() -> None:
    model = small_model()
    scripted = torch.jit.trace(model, images(2))
    with pytest.raises(CaptureError, match=r"TorchScript module: pass the nn\.Module"):
        fastres.optimize(scripted)
    with pytest.raises(CaptureError, match=r"^module 1 \(TopLevelTracedModule\) is TorchScript"):
        fastres.optimize(nn.Sequential(conv(), scripted).eval(), images(2))


def test_a_module_that_is_already_optimised() -> None:
    fast = fastres.optimize(small_model(), images(2))
    with pytest.raises(ModelError, match=r"^the model is already optimised: give optimize\(\)"):
        fastres.optimize(fast)
    with pytest.raises(ModelError, match=r"^0 is already optimised: give optimize\(\)"):
        fastres.optimize(nn.Sequential(fast, nn.BatchNorm2d(2)).eval(), images(2))


def branch(m: Any, x: Tensor) -> Any:
    y = m.conv(x)
    if y.mean() > 0:
        y = y + 1
    return y


def number(m: Any, x: Tensor) -> Any:
    y = m.conv(x)
    return y * y.max().item()


def selection(m: Any, x: Tensor) -> Any:
    y = m.conv(x)
    return y[y > 0]


def positions(m: Any, x: Tensor) -> Any:
    return torch.nonzero(m.conv(x) > 0)


def test_a_branch_on_data() -> None:
    text = refusal(Net(branch, conv=conv()).eval(), images(2))
    assert "Net decides on the values of a tensor at test_capture_errors.py:" in text
    assert "in branch, so there is no one graph of it" in text
    assert "Use torch.where instead of if" in text


@pytest.mark.parametrize("function", [number, selection, positions])
def test_numbers_and_sizes_from_data(function: Callable[..., Any]) -> None:
    model = nn.Sequential(conv(), nn.Sequential(nn.ReLU(), Net(function, conv=conv()))).eval()
    text = refusal(model, images(2))
    assert "from the values of a tensor" in text
    assert "1.1" in text
    assert "or optimise the parts around it" in text


def to_numpy(m: Any, x: Tensor) -> Any:
    return torch.from_numpy(m.conv(x).detach().numpy() * 2)


def test_other_things_torch_export_cannot_follow() -> None:
    text = refusal(Net(to_numpy, conv=conv()).eval(), images(2))
    assert text.startswith("Net runs, but torch.export cannot follow it at test_capture_errors.py")
    assert "in to_numpy: RuntimeError: .numpy() is not supported" in text


class Counter(nn.Module):
    """Counts its calls in a buffer, or in whatever ``count`` does."""

    def __init__(self, count: Callable[[Any, Tensor], None]) -> None:
        super().__init__()
        self.conv = conv()
        self.register_buffer("calls", torch.zeros(()))
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        self.count(self, x)
        y: Tensor = self.conv(x)
        return y


def assign(m: Any, x: Tensor) -> None:
    m.calls = m.calls + 1


@pytest.mark.parametrize(
    "count",
    [
        lambda m, x: m.calls.add_(1),
        assign,
        lambda m, x: m.calls.copy_(x.mean()),
        lambda m, x: m.calls.sub_(x.mean()),
    ],
    ids=["add_", "assignment", "copy_", "in place from the input"],
)
def test_state_changed_in_forward(count: Callable[[Any, Tensor], None]) -> None:
    model = nn.Sequential(conv(), Counter(count)).eval()
    text = refusal(model, images(2))
    assert "changes its own state in forward (a buffer or parameter is written)" in text
    assert "move this out of forward" in text


def keep(m: Any, x: Tensor) -> None:
    m.last = x


def count_in_python(m: Any, x: Tensor) -> None:
    m.number = getattr(m, "number", 0) + 1


def keep_and_branch(m: Any, x: Tensor) -> None:
    m.last = x
    if x.sum() > 0:
        m.number = 1


@pytest.mark.parametrize("count", [keep, count_in_python])
@pytest.mark.filterwarnings("ignore:The tensor attribute self.last was assigned:UserWarning")
def test_attributes_set_in_forward_are_not_set_by_optimize(
    count: Callable[[Any, Tensor], None],
) -> None:
    model, x = Counter(count).eval(), images(3)
    if release(torch.__version__) < (2, 11):  # there torch.export takes no attribute that is new
        with unchanged(model):
            assert "attrs were created in the model" in refusal(model, images(2))
        return
    with unchanged(model):
        fast = fastres.optimize(model, images(2))
        answer = fast(x)
    torch.testing.assert_close(answer, model(x).detach())


def test_attributes_set_before_capture_fails_are_not_set_by_optimize() -> None:
    model = nn.Sequential(Counter(keep_and_branch)).eval()
    assert "decides on the values" in refusal(model, images(2))


def test_a_model_that_fails_in_eager_names_the_module() -> None:
    inner = nn.Sequential(conv(), nn.Sequential(nn.ReLU(), conv(5, 4)))
    text = refusal(nn.Sequential(conv(), inner).eval(), images(2))
    assert "Sequential cannot be captured with input [[2, 4, 9, 8]]" in text
    assert "the model itself fails in module 1.1.1 (Conv2d): RuntimeError: " in text
    assert "example_input" not in text


def test_the_derived_input_may_be_wrong() -> None:
    layers = (conv(), nn.Flatten(), nn.Linear(288, 3))
    text = refusal(nn.Sequential(*layers).eval())
    assert "[[1, 4, 224, 224]]: the model itself fails in module 2 (Linear)" in text
    assert text.endswith("Pass example_input=... if the model takes another input.")


class Forgetful(nn.Module):
    """Has no return."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()

    def forward(self, x: Tensor) -> None:
        self.conv(x)


def test_a_missing_return_is_named() -> None:
    text = refusal(Forgetful().eval(), images(2))
    assert "module (the model itself) (Forgetful) returned None" in text
    text = refusal(nn.Sequential(conv(), Forgetful()).eval(), images(2))
    assert "module 1 (Forgetful) returned None" in text
    text = refusal(nn.Sequential(Forgetful(), conv()).eval(), images(2))
    assert "fails in module 1 (Conv2d)" in text
    assert "before that, 0 (Forgetful) returned None" in text


def test_weights_that_were_never_loaded() -> None:
    with pytest.raises(ModelError, match=r"meta.*load"):
        fastres.optimize(small_model().to("meta"), images(2))
    lazy = nn.Sequential(nn.LazyConv2d(4, 3)).eval()
    with pytest.raises(FastresError, match=r"0 \(LazyConv2d\)"):
        fastres.optimize(lazy, images(2))


def test_training_mode_is_said_and_left() -> None:
    model = nn.Sequential(conv(), nn.BatchNorm2d(4), nn.Dropout(0.9), nn.ReLU())
    measured(model)
    model[1].train()
    modes = [module.training for module in model.modules()]
    with unchanged(model), pytest.warns(FastresWarning) as caught:
        fast = fastres.optimize(model, images(2))
    (warning,) = caught
    text = str(warning.message)
    assert "the model was in training mode (first module: 1): a copy in eval mode" in text
    assert "call model.eval() first" in text
    assert warning.filename == __file__
    assert [module.training for module in model.modules()] == modes
    assert any("the model was in training mode" in note for note in fast.report.notes)
    assert counts(fast, "batch_norm") == (1, 1)
    assert_right(model, fast, images(3))


def test_a_whole_model_in_training_mode_still_trains() -> None:
    convolution, norm = conv(), nn.BatchNorm2d(4)
    model = nn.Sequential(convolution, norm).train()
    assert norm.running_mean is not None
    with unchanged(model), pytest.warns(FastresWarning, match=r"first module: \(the model itself"):
        fastres.optimize(model, images(2))
    before = norm.running_mean.clone()
    model(images(5)).sum().backward()
    assert not torch.equal(norm.running_mean, before)
    assert convolution.weight.grad is not None


class Uncopyable(nn.Module):
    """Refuses to be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y

    def __deepcopy__(self, memo: Any) -> Any:
        raise RuntimeError("there can only be one")


def test_training_mode_of_what_cannot_be_copied() -> None:
    text = refusal(Uncopyable().train(), images(2))
    assert "in training mode and cannot be copied (there can only be one)" in text
    assert "call model.eval() first" in text
