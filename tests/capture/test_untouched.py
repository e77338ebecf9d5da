"""What forward keeps is told in every form, and the user's model holds what it held."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastres
from tests.support.small import conv, images


class Keeping(nn.Module):
    """Keeps something in forward by ``keep(self, y)``."""

    last: Any = None

    def __init__(self, keep: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.conv = conv()
        self.child = nn.Sequential(nn.Identity())
        self.keep = keep
        self.old: Any = None
        self.calls = 0
        self.log: list[Any] = []
        self.cache: dict[str, Any] = {"list": []}
        self.recent: deque[Any] = deque(maxlen=2)
        self.seen: set[int] = set()
        self.holder = SimpleNamespace(value=None)
        self.held = torch.zeros(2)

    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        self.keep(self, y)
        return y.relu()


FORMS: dict[str, tuple[Callable[[Any, Tensor], Any], str]] = {
    "a new attribute": (lambda m, y: setattr(m, "feature", y), "sets self.feature"),
    "by __dict__": (lambda m, y: m.__dict__.update(feature=y), "sets self.feature"),
    "detached": (lambda m, y: setattr(m, "feature", y.detach()), "sets self.feature"),
    "a tuple": (lambda m, y: setattr(m, "feature", (y, y)), "sets self.feature"),
    "a size": (lambda m, y: setattr(m, "feature", y.shape), "sets self.feature"),
    "rebound": (lambda m, y: setattr(m, "old", y), "sets self.old"),
    "a tensor rebound": (lambda m, y: setattr(m, "held", y), "sets self.held"),
    "deleted": (lambda m, y: delattr(m, "old"), "sets self.old"),
    "a counter": (lambda m, y: setattr(m, "calls", m.calls + 1), "sets self.calls"),
    "a new list": (lambda m, y: setattr(m, "log", [y]), "sets self.log"),
    "a list": (lambda m, y: m.log.append(y), "changes self.log"),
    "a dict": (lambda m, y: m.cache.update(feature=y), "changes self.cache"),
    "a list in a dict": (lambda m, y: m.cache["list"].append(y), "changes self.cache"),
    "a deque": (lambda m, y: m.recent.append(y), "changes self.recent"),
    "a set": (lambda m, y: m.seen.add(y.shape[1]), "changes self.seen"),
    "an object": (lambda m, y: setattr(m.holder, "value", y), "changes self.holder"),
    "a child's": (lambda m, y: setattr(m.child[0], "feature", y), "module child.0 (Identity) sets"),
    "the class's": (lambda m, y: setattr(type(m), "last", y), "class Keeping sets Keeping.last"),
    "a module": (lambda m, y: setattr(m, "made", nn.ReLU()), "sets self.made"),
}


def contents(model: Keeping) -> list[Any]:
    held = {name: value for name, value in vars(model).items() if name != "held"}
    parts = (model.cache, model.cache["list"], vars(model.holder), model.child._modules)
    known = {**vars(Keeping), "__doc__": None}
    return [{**held}, *map(repr, parts), list(model.recent), sorted(known), id(model.held)]


@pytest.mark.parametrize("form", FORMS)
def test_what_forward_keeps_is_told_and_put_back(form: str) -> None:
    keep, text = FORMS[form]
    model = Keeping(keep).eval()
    before = contents(model)
    fast = fastres.optimize(model, images(2))
    assert contents(model) == before
    assert Keeping.last is None
    told = [
        note for note in fast.report.notes if "in forward; the optimised model does not" in note
    ]
    assert len(told) == 1
    assert text in told[0]


def test_nothing_is_told_of_what_stays() -> None:
    model = Keeping(lambda m, y: setattr(m, "calls", 0)).eval()
    assert not any("in forward" in note for note in fastres.optimize(model, images(2)).report.notes)


def test_a_forward_with_a_signature_of_its_own() -> None:
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return Keeping.forward(self, *args, **kwargs)

    forward.__signature__ = inspect.signature(Keeping.forward)  # type: ignore[attr-defined]
    model = type("Signed", (Keeping,), {"forward": forward})(lambda m, y: None).eval()
    x = images(2)
    torch.testing.assert_close(fastres.optimize(model, x)(x), model(x).detach())
    assert "forward" not in vars(model)
