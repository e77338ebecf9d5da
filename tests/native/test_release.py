"""Memory given back during a run: never too early, zero again afterwards, and less at the peak."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from fastres.runtime.native import plan_builder, release
from tests.support.native.emulator import loaded
from tests.support.optimizing import optimize
from tests.support.separate import not_under_sanitizers, separately

pytestmark = not_under_sanitizers

BATCHES = (1, 2, 5)


def network() -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = torchvision.models.resnet18(num_classes=7)
    return model.eval()


def answers(threads: int, image: Callable[[int], Tensor]) -> list[Tensor]:
    """Of several calls for several batches, in turns, so that memory is used again."""
    fast = optimize(network(), image(1), engine="native", threads=threads)
    return [fast(image(batch)) for _ in range(2) for batch in BATCHES]


@pytest.fixture
def image() -> Callable[[int], Tensor]:
    return lambda batch: torch.randn(batch, 3, 64, 48, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Everything is given back in a run, and arenas are kept all the same; sizes of the lists."""
    found: list[int] = []
    inner = release.releases

    def releases(*args: Any) -> Any:
        given, live = inner(*args)
        found.append(len(given))
        return given, live

    monkeypatch.setattr(release, "LEAST", 1)
    monkeypatch.setattr(plan_builder, "releases", releases)
    monkeypatch.setattr(loaded(), "kept", -1)
    return found


@pytest.mark.campaign
@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_bits(
    threads: int, image: Callable[[int], Tensor], request: pytest.FixtureRequest
) -> None:
    wanted = answers(threads, image)
    lists = request.getfixturevalue("at_once")
    got = answers(threads, image)
    assert max(lists) >= 10
    assert all(map(torch.equal, got, wanted))


@pytest.mark.campaign
def test_too_early_would_show(
    image: Callable[[int], Tensor], at_once: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = answers(1, image)
    fast = optimize(network(), image(1), engine="native", threads=1)
    inner: Any = vars(plan_builder)["releases"]

    def early(*args: Any) -> Any:
        given, live = inner(*args)
        return [replace(each, operation=max(each.operation - 1, 0)) for each in given], live

    monkeypatch.setattr(plan_builder, "releases", early)
    assert not torch.equal(fast(image(5)), right[-1])


@pytest.mark.campaign
def test_what_is_no_part_of_a_plan_is_refused() -> None:
    loaded()
    code = """
        import ctypes
        from tests.support.native.emulator import loaded
        from fastres.runtime.native.abi import COp, CPhase
        library = loaded()
        plan = library.plan_create((COp * 1)(), 1, (CPhase * 0)(), 0, 1, 8192, None, 0)
        print([library.plan_release(plan, *wrong) for wrong in (
            (1, 0, 4096), (-1, 0, 4096), (0, -4096, 4096), (0, 8192, 4096), (0, 0, -1),
            (0, 4096, 2**62), (0, 4096, 4096))])
    """
    assert separately(code).strip() == "[1, 1, 1, 1, 1, 1, 0]"


PEAK = """
    import torch, torchvision, fastres
    from tests.support.native.emulator import loaded
    loaded().keep(1 << 20)
    model = torchvision.models.resnet18().eval()
    call = model if {eager} else fastres.optimize(
        model, torch.zeros(1, 3, 64, 64), engine="native")
    x = torch.zeros(1, 3, 2600, 2600)
    with torch.no_grad():
        call(x[..., :64, :64])
        open("/proc/self/clear_refs", "w").write("5")
        status = lambda: dict(line.split(":", 1) for line in open("/proc/self/status"))
        mib = lambda name: int(status()[name].split()[0]) >> 10
        before = mib("VmRSS")
        call(x)
        print(mib("VmHWM") - before, mib("VmRSS") - before)
"""


@pytest.mark.campaign
def test_one_large_image_takes_no_more_than_eager_and_is_given_back() -> None:
    loaded()
    theirs, _ = map(int, separately(PEAK.format(eager=True)).split())
    ours, left = map(int, separately(PEAK.format(eager=False)).split())
    assert ours <= theirs
    assert left < ours / 2  # what is left is weights for this size and tables of its pixels
