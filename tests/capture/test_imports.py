"""What the first capture has torch import, and what it leaves as it was for everybody else."""

from __future__ import annotations

import pytest
import torch

from tests.support.separate import not_under_sanitizers, separately

pytestmark = [
    not_under_sanitizers,
    pytest.mark.skipif(torch.cuda.is_available(), reason="where there is a GPU, Triton is used"),
]

CODE = """
    import sys, threading
    import torch, fastres
    from torch import nn

    fastres.optimize(nn.Sequential(nn.Conv2d(3, 8, 3)).eval(), torch.randn(2, 3, 16, 16))
    ours = [finder for finder in sys.meta_path if "fastres" in type(finder).__module__]
    print("triton" in sys.modules, bool(ours))
    from torch.utils import _triton
    import triton
    print(triton.language.float32, _triton.has_triton_package())
    compiled = torch.compile(nn.Conv2d(3, 8, 3).eval(), backend="aot_eager")
    print(tuple(compiled(torch.randn(1, 3, 8, 8)).shape))
"""


@pytest.mark.campaign
def test_triton_is_not_imported_and_stays_what_it_is() -> None:
    said = separately(CODE).splitlines()
    assert said == ["False False", "fp32 True", "(1, 8, 6, 6)"]


def test_another_thread_finds_triton_meanwhile() -> None:
    code = """
        import importlib.util, threading
        from fastres.capture import imports
        found = {}
        with imports._without_triton():
            def look(name):
                try:
                    found[name] = importlib.util.find_spec("triton") is not None
                except ModuleNotFoundError:
                    found[name] = False
            other = threading.Thread(target=look, args=("other",))
            other.start()
            other.join()
            look("own")
        look("later")
        print(found)
    """
    assert separately(code).strip() == "{'other': True, 'own': False, 'later': True}"
