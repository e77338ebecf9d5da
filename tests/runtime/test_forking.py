"""Children after ``fork()``, whatever other threads of the parent do: an answer or an error."""

from __future__ import annotations

import os
import sys
from textwrap import dedent

import pytest

from tests.support.separate import not_under_sanitizers, separately

pytestmark = [
    not_under_sanitizers,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.skipif(
        sys.platform != "linux", reason="other systems' libraries do not survive it"
    ),
]

AROUND = dedent("""
    import os, signal, sys, threading, time, warnings
    import torch, fastres
    from fastres.system import forking
    from torch import nn
    warnings.simplefilter("ignore")

    def net():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        ).eval()

    x = torch.randn(2, 3, 64, 64)

    def child(work):
        process = os.fork()
        if process == 0:
            signal.alarm(30)  # ends it
            try:
                work()
            except fastres.FastresError as error:
                print(type(error).__name__, str(error)[:60], file=sys.__stdout__, flush=True)
            os._exit(0)
        return process

    def ended(*processes):
        return [os.waitpid(process, 0)[1] for process in processes]
""")


@pytest.mark.campaign
@pytest.mark.parametrize("engine", ["native", "onednn", "eager"])
def test_a_child_of_a_parent_with_threads(engine: str) -> None:
    """torch's own pool of threads is not in it, and would be waited for."""
    code = f"""
        fast = fastres.optimize(net(), x, engine="{engine}", threads=2)
        wanted = fast(x).clone()
        broken = x.clone()
        broken[0, 0, 0, 0] = float("nan")

        def work():
            torch.testing.assert_close(fast(x), wanted)
            fast(torch.randn(4, 3, 96, 96))
            assert fast(broken).isnan().any()
            fast.refresh(net().state_dict())
            assert fastres.verify(net(), fast, x).passed
            fastres.optimize(net(), x, engine="{engine}", threads=2)
            assert torch.get_num_threads() == 2
            os.write(1, b"good\\n")

        torch.set_num_threads(2)
        assert ended(child(work)) == [0]
    """
    assert separately(AROUND + dedent(code), OMP_NUM_THREADS="2").splitlines() == ["good"]


@pytest.mark.campaign
@pytest.mark.parametrize(
    "work",
    [
        "copy.deepcopy(fast)(x)",
        "copy.copy(fast)(x)",
        "pickle.loads(pickled)(x)",
        "fast.save(folder + '/a.fastres')",
        "fast.load_state_dict(fast.state_dict())",
        "fast.intermediate([x])",
        "vmap(lambda image: fast(image[None])[0])(x)",
        "make_fx(fast)(x)",
        "fastres.export.to_standard(fast)",
        "fastres.export.to_onnx(net(), folder + '/a.onnx', example_input=x)",
        "loaded(x.contiguous(memory_format=torch.channels_last))",
    ],
)
def test_whatever_a_child_does_beside_calls(work: str) -> None:
    """Weights and images of a size that torch shares out among threads."""
    code = f"""
        import copy, pickle, tempfile, fastres.export
        from torch.func import vmap
        from torch.fx.experimental.proxy_tensor import make_fx

        torch.set_num_threads(2)
        with tempfile.TemporaryDirectory() as folder:
            fast = fastres.optimize(net(), x)
            pickled = pickle.dumps(fast)
            if "loaded" in {work!r}:
                fastres.export.to_onnx(fast, folder + "/b.onnx")
                loaded = fastres.export.session(folder + "/b.onnx", providers="cpu")
            torch.randn(500, 500) @ torch.randn(500, 500)  # now there is a pool

            def work():
                {work}
                os.write(1, b"good\\n")

            assert ended(child(work)) == [0]
    """
    assert separately(AROUND + dedent(code), OMP_NUM_THREADS="2").splitlines()[-1:] == ["good"]


@pytest.mark.campaign
def test_children_while_another_thread_prepares() -> None:
    """A fork waits for it, and it does not starve the fork by beginning again and again."""
    code = """
        fast = fastres.optimize(net(), x)
        wanted, stop = fast(x).clone(), threading.Event()

        def prepare():
            while not stop.is_set():
                fastres.optimize(net(), x)
                fast(torch.randn(1, 3, 32, 32 + int(time.time() * 1000) % 500))

        def work():
            torch.testing.assert_close(fast(x), wanted)
            fast(torch.randn(3, 3, 33, 34))
            fastres.optimize(net(), x)
            os.write(1, b"good\\n")

        thread = threading.Thread(target=prepare)
        thread.start()
        children = []
        for _ in range(4):
            time.sleep(0.1)
            children.append(child(work))
        statuses = ended(*children)
        stop.set()
        thread.join()
        assert statuses == [0] * 4, statuses
    """
    assert separately(AROUND + dedent(code)).splitlines() == ["good"] * 4


@pytest.mark.campaign
def test_a_fork_that_does_not_wait_for_ever() -> None:
    """What is prepared answers in the child, and nothing new is prepared."""
    code = """
        forking.PATIENCE = 0.2
        fast = fastres.optimize(net(), x, threads=1)
        held, go_on = threading.Event(), threading.Event()

        class Slow(nn.Module):
            def forward(self, y):
                held.set()
                go_on.wait(60)
                return net()(y)

        def prepare():
            try:
                fastres.optimize(Slow().eval(), x)
            except fastres.FastresError:
                pass

        def work():
            assert fast(x).shape == (2, 64)
            print("answers", file=sys.__stdout__, flush=True)
            fast(torch.randn(1, 3, 40, 40))

        thread = threading.Thread(target=prepare)
        thread.start()
        held.wait()
        began = time.time()
        process = child(work)
        assert time.time() - began < 10
        go_on.set()
        assert ended(process) == [0]
        thread.join()
        assert fast(torch.randn(1, 3, 40, 40)).shape == (1, 64)  # the parent has lost nothing
    """
    said = separately(AROUND + dedent(code)).splitlines()
    assert said == [
        "answers",
        "TargetError this process was forked while another thread was preparing a",
    ]
