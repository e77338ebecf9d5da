"""The native engine in processes of their own: without its library, forked, between guard pages."""

from __future__ import annotations

import platform
import sys

import pytest

from fastres.runtime.native import library
from tests.support.cxx import COMPILER
from tests.support.native.emulator import loaded
from tests.support.separate import not_under_sanitizers, separately

pytestmark = not_under_sanitizers


@pytest.mark.skipif(
    COMPILER is None or sys.platform != "linux" or platform.machine() != "x86_64",
    reason="needs a C++ compiler on Linux on x86-64",
)
def test_where_there_is_a_compiler_there_is_the_library() -> None:
    """Without it the tests of the engine would be skipped, and nobody would notice."""
    found = library.load()
    assert isinstance(found, library.Library), found


WITHOUT = """
    import torch, fastres
    from fastres.errors import TargetError
    from torch import nn
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval()
    x = torch.randn(1, 3, 9, 8)
    fast = fastres.optimize(model, x)
    print(fast.engine, *(note for note in fast.report.notes if "native" in note), sep="|")
    torch.testing.assert_close(fast(x), model(x).detach())
    try:
        fastres.optimize(model, x, engine="native")
    except TargetError as error:
        print(error)
"""


@pytest.mark.campaign
def test_without_its_library() -> None:
    auto, refused = separately(WITHOUT, FASTRES_NATIVE_LIBRARY="/nonexistent").splitlines()
    why = "its library cannot be loaded: /nonexistent: cannot open shared object file"
    engine, note = auto.split("|")
    assert engine == "onednn"
    assert note.startswith(f"the native engine was passed over: {why}")
    assert refused.startswith(f"engine='native' cannot run this model here: {why}")
    assert refused.endswith("; use engine='auto'")


@pytest.mark.campaign
def test_with_the_library_of_other_sources() -> None:
    """A shared library that is something else."""
    code = "import ctypes.util, _ctypes; print(_ctypes.__file__)"
    other = separately(code).strip()
    auto, refused = separately(WITHOUT, FASTRES_NATIVE_LIBRARY=other).splitlines()
    assert auto.startswith("onednn|the native engine was passed over: its library cannot be loaded")
    assert "engine='native' cannot run this model here" in refused


@pytest.mark.campaign
def test_with_an_instruction_set_that_there_is_not() -> None:
    loaded()
    code = """
        import fastres
        from torch import nn
        try:
            fastres.optimize(nn.Sequential(nn.Conv2d(3, 8, 3)).eval())
        except fastres.errors.TargetError as error:
            print(error)
    """
    said = separately(code, FASTRES_NATIVE_ISA="avx10")
    assert said.startswith("FASTRES_NATIVE_ISA='avx10': expected one of avx2, ")


FORK = """
    import os, sys, torch, fastres
    from tests.native.test_native_engine import block_net, image
    threads = {threads}
    fast = fastres.optimize(block_net(), image(), engine="native", threads=threads)
    x = image(5)
    wanted = [t.clone() for t in fast(x)] if {before} else None

    def right():
        got = fast(x)
        return wanted is None or all(map(torch.equal, got, wanted))

    children = []
    for _ in range(2):
        child = os.fork()
        if child == 0:
            grandchild = os.fork()
            if grandchild == 0:
                os._exit(0 if right() and right() else 3)
            _, status = os.waitpid(grandchild, 0)
            good = status == 0 and right() and fast(image(2))[1].shape == (2, 5)
            if {end}:
                sys.exit(0 if good else 4)  # an orderly end, with all that is run at it
            os._exit(0 if good else 5)
        children.append(child)
    assert right()
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    assert right()
    print("done")
"""


@pytest.mark.campaign
@pytest.mark.parametrize(("threads", "before"), [(1, True), (3, True), (3, False)])
def test_children_after_fork(threads: int, before: bool) -> None:
    """They call the model and end, and so do theirs; whether or not the parent had called it."""
    loaded()
    code = FORK.format(threads=threads, before=before, end=threads == 1)
    assert separately(code, OMP_NUM_THREADS="1").splitlines()[-1] == "done"


@pytest.mark.campaign
def test_a_process_ends_while_a_thread_runs_a_plan() -> None:
    """Without torch's own functions in that thread, which may abort a process that ends."""
    loaded()
    code = """
        import threading, torch
        from tests.support.native.by_hand import Convolution, arguments_of, subgraph
        from fastres.runtime.native.abi import COutside
        from fastres.runtime.native.subgraph import _outside
        from fastres.kernels.spec import ConvSpec
        spec = ConvSpec(4, 64, 30, 30, 64, 3, 3, padding=(1, 1, 1, 1))
        given = arguments_of(spec, False)
        model = Convolution(spec)
        native = subgraph(model, model.graph(False), given, "avx2", threads=3)
        result = native(*given)
        sides = [(COutside * 1)(_outside(tensor)) for tensor in (given[0], result)]
        done = threading.Event()
        def call():
            while True:
                assert native._library.run(
                    *native._handles, 3, sides[0], 1, sides[1], 1, None
                ) == 0
                done.set()
        threading.Thread(target=call, daemon=True).start()
        assert done.wait(60)
        print("done", flush=True)
    """
    for _ in range(3):
        assert separately(code).splitlines()[-1] == "done"


GUARDED = """
    import torch
    from tests.support.native.by_hand import SETS, arguments_of, check, Convolution, loaded
    from tests.native.test_native_convolutions import AROUND, SHAPES, WINOGRAD
    from fastres.runtime.native import schedule
    schedule.winograd_pays = lambda spec, itemsize: True
    torch.manual_seed(0)
    for precision, isa in SETS:
        if isa not in loaded().isas:
            continue
        for name, spec in {**SHAPES, **WINOGRAD}.items():
            for threads in (1, 2):
                print(name, isa, threads, flush=True)
                check(spec, precision, isa, threads, True, guarded=True, after="relu")
"""


@pytest.mark.campaign
def test_between_guard_pages() -> None:
    """Every buffer with pages around it that nobody may touch: a crash names its convolution."""
    loaded()
    assert separately(GUARDED)


@pytest.mark.campaign
def test_guard_pages_notice() -> None:
    """An import that is told of more rows than there are runs into the page behind its buffer."""
    loaded()
    code = """
        from tests.support.native.by_hand import Convolution, arguments_of, subgraph
        from fastres.runtime.native.subgraph import CompiledPlan
        from fastres.kernels.spec import ConvSpec
        import torch
        spec = ConvSpec(1, 40, 20, 20, 8, 1, 1)
        given = arguments_of(spec, False)
        model = Convolution(spec)
        native = subgraph(model, model.graph(False), given, "avx2", guarded=True)
        native(*given)
        print("before", flush=True)
        plan = native.plans[1].plan
        plan.ops[0].output.height += 60
        dtypes = [torch.float32] * len(plan.ops)
        loaded().plan_check = lambda handle: -1  # which would refuse the plan
        wrong = CompiledPlan(loaded(), plan, dtypes)
        native._handles = [None, wrong.handle]
        native(torch.zeros(1, 40, 80, 20))
    """
    with pytest.raises(AssertionError, match=r"ended with -11 .* behind\nbefore"):
        separately(
            code.replace(
                "given = arg",
                "from tests.support.native.emulator import loaded\n        given = arg",
            )
        )
