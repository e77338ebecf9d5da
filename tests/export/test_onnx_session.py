"""Sessions: calls, memory, threads, providers, timings, and what the packages must be like."""

from __future__ import annotations

import importlib.metadata
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import vmap

from fastres.errors import (
    ArtifactError,
    FastresWarning,
    InputError,
    OptionError,
    TargetError,
)
from fastres.export import Session, requirements, session, to_onnx, triton_server
from fastres.export.metadata import CHECKSUM
from fastres.system import target
from tests.support.small import EXAMPLE, Exported, conv, net


@pytest.fixture(scope="module")
def loaded(exported: Exported) -> Session:
    return session(exported.path, providers="cpu", strict=True)


@pytest.mark.parametrize("shape", [(1, 3, 40, 40), (5, 3, 40, 40), (2, 3, 33, 71)])
def test_it_answers_like_the_model(
    shape: tuple[int, ...], exported: Exported, loaded: Session
) -> None:
    images = torch.randn(shape)
    wanted = exported.model(images).detach()
    for given in (images, images.contiguous(memory_format=torch.channels_last)):
        torch.testing.assert_close(loaded(given), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loaded(x=images), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: freed(x.clone()),
        lambda x: FakeTensorMode().from_tensor(x),
        lambda x: x.to("meta"),
        lambda x: x.to_sparse(),
        lambda x: torch.nested.nested_tensor([x[0], x[1]], layout=torch.jagged),
        lambda x: torch._efficientzerotensor(x.shape),
    ],
)
def test_tensors_without_memory_are_refused(make: Any, loaded: Session) -> None:
    with pytest.raises(InputError, match="pass a plain tensor"):
        loaded(make(torch.randn(2, 3, 40, 40)))


def freed(x: Tensor) -> Tensor:
    x.untyped_storage().resize_(0)
    return x


def test_values_that_are_not_those_in_memory(loaded: Session) -> None:
    images = torch.randn(2, 3, 40, 40)
    view: Any = torch.complex(images, -images).conj().imag
    assert view.is_neg()
    torch.testing.assert_close(loaded(view), loaded(images), rtol=0, atol=0)


def test_what_cannot_run_where_something_watches(
    exported: Exported, loaded: Session, tmp_path: Path
) -> None:
    images = torch.randn(2, 3, 40, 40)
    works: list[Callable[[], Any]] = [
        lambda: loaded(images),
        lambda: to_onnx(exported.model, tmp_path / "a.onnx", example_input=images),
        lambda: triton_server(exported.model, tmp_path / "models"),
    ]
    for work in works:
        with FakeTensorMode(), pytest.raises(OptionError, match="under FakeTensorMode"):
            work()
        with pytest.raises(OptionError, match="under a transformation of torch"):
            vmap(lambda k, work=work: work())(torch.zeros(2))
    assert not list(tmp_path.iterdir())


def test_inputs_are_read_where_they_are_and_results_are_new(
    loaded: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.randn(2, 3, 40, 40)
    bound: list[tuple[str, int]] = []

    class Watching:
        def __init__(self, binding: Any) -> None:
            self.inner = binding

        def bind_input(self, *args: Any) -> None:
            bound.append(("in", args[-1]))
            self.inner.bind_input(*args)

        def bind_output(self, *args: Any) -> None:
            bound.append(("out", args[-1]))
            self.inner.bind_output(*args)

    real = loaded._session

    class Wrapped:
        def io_binding(self) -> Any:
            return Watching(real.io_binding())

        def run_with_iobinding(self, binding: Any) -> None:
            real.run_with_iobinding(binding.inner)

    monkeypatch.setattr(loaded, "_session", Wrapped())
    first, second = loaded(images), loaded(images)
    assert isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor)
    assert first.data_ptr() != second.data_ptr()
    assert bound == [
        ("in", images.data_ptr()),
        ("out", first.data_ptr()),
        ("in", images.data_ptr()),
        ("out", second.data_ptr()),
    ]
    kept = first.clone()
    loaded(torch.zeros(2, 3, 40, 40))
    assert torch.equal(first, kept)


def test_several_inputs_and_outputs(tmp_path: Path) -> None:
    def function(m: Any, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = m.conv(x)
        return {"map": y[:, :, ::2], "mean": y.mean((2, 3)), "input": x}

    model = net(function, conv=conv())
    example = torch.zeros(1, 4, 9, 8)
    to_onnx(model, tmp_path / "m.onnx", example_input=example, dynamic_size=True)
    ready = session(tmp_path / "m.onnx")
    for shape in ((2, 4, 9, 8), (2, 4, 9, 8), (3, 4, 17, 12)):
        images = torch.randn(shape)
        answers = ready(images)
        assert isinstance(answers, dict)
        wanted = model(images)
        assert answers.keys() == wanted.keys()
        for name, value in wanted.items():
            torch.testing.assert_close(answers[name], value.detach(), rtol=1e-4, atol=1e-5)
        assert answers["input"].data_ptr() != images.data_ptr()


def test_calls_that_do_not_fit_are_refused(loaded: Session) -> None:
    image = torch.zeros(1, 3, 40, 40)
    for args, named, says in (
        ((), {}, r"got 0 by position; expected 1 tensors: x"),
        ((image, image), {}, "got 2 by position"),
        ((), {"images": image}, "got 0 by position, images="),
        ((image,), {"x": image}, "got 1 by position, x="),
        ((image.numpy(),), {}, "got a ndarray for 'x', expected a tensor: x float32"),
        ((image.double(),), {}, r"got float64 \[1, 3, 40, 40\] for 'x', expected x float32 \["),
        ((image[0],), {}, r"got float32 \[3, 40, 40\]"),
        ((image[:, :2],), {}, r"got float32 \[1, 2, 40, 40\] .* \[batch, 3, height, width\]"),
        ((image[:0],), {}, "there is nothing in it"),
        ((image.clone().requires_grad_(),), {}, "requires a gradient"),
    ):
        with pytest.raises(InputError, match=says):
            loaded(*args, **named)
    with torch.no_grad():
        loaded(image)


def test_an_image_too_small_for_the_network_is_an_error_of_ours(loaded: Session) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 7)).eval()
    path = loaded.path.with_name("large_filter.onnx")
    to_onnx(model, path, example_input=EXAMPLE, dynamic_size=True)
    with pytest.raises(ArtifactError, match=r"failed in ONNX Runtime for input \[1, 3, 4, 4\]"):
        session(path)(torch.zeros(1, 3, 4, 4))


def test_threads_share_a_session(exported: Exported, loaded: Session) -> None:
    images = [torch.randn(1 + i % 3, 3, 40, 40 + 8 * (i % 2)) for i in range(12)]
    wanted = [exported.model(x).detach() for x in images]
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(5):
            got = loaded(images[index])
            if not torch.allclose(got, wanted[index], rtol=1e-4, atol=1e-5):  # type: ignore[arg-type]
                wrong.append(index)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(len(images))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


def test_timings(exported: Exported) -> None:
    ready = session(exported.path)
    before = ready.timings
    assert before.load > 0
    assert (before.first, before.runs, before.median, before.best) == (None, 0, None, None)
    for _ in range(4):
        ready(torch.zeros(1, 3, 40, 40))
    after = ready.timings
    assert after.first is not None and after.median is not None and after.best is not None
    assert after.runs == 3
    assert 0 < after.best <= after.median
    assert "first run" in str(after) and "3 later: median" in str(after)


def test_it_says_what_it_is(loaded: Session) -> None:
    text = repr(loaded)
    assert "small.onnx on CPUExecutionProvider: x float32 [batch, 3, height, width]" in text
    assert loaded.metadata["fastres.model"] == "Small"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The options and providers of every session that ONNX Runtime is asked for."""
    seen: list[Any] = []
    real = onnxruntime.InferenceSession

    def make(path: str, options: Any, providers: Any) -> Any:
        seen.append((options, providers))
        return real(path, options, providers=[p for p in providers if p[0].startswith("CPU")])

    monkeypatch.setattr(onnxruntime, "InferenceSession", make)
    return seen


def test_threads_are_what_the_process_may_use(
    exported: Exported, made: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target, "cpu_threads", lambda: 3)
    session(exported.path)
    session(exported.path, threads=1)
    assert [options.intra_op_num_threads for options, _ in made] == [3, 1]
    assert all(options.inter_op_num_threads == 1 for options, _ in made)
    everything = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    assert all(options.graph_optimization_level == everything for options, _ in made)


GPU_BUILD = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]


def test_providers_by_preference(
    exported: Exported, made: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [*GPU_BUILD, "Azure"])
    monkeypatch.setattr(target, "gpu_driver", lambda: "unknown")
    session(exported.path)  # no GPU: no attempt, no warning
    monkeypatch.setattr(target, "gpu_driver", lambda: "570.1")
    with pytest.warns(FastresWarning, match=r"asked for Tensorrt.*loaded CPUExecutionProvider"):
        session(exported.path)
    with pytest.warns(FastresWarning, match="CUDAExecutionProvider are not here"):
        session(exported.path, providers=["cuda", "cpu"], options={"cuda": {"device_id": 1}})
    assert [[name for name, _ in providers] for _, providers in made] == [
        GPU_BUILD[2:],
        GPU_BUILD,
        GPU_BUILD[1:],
    ]
    assert made[-1][1][0] == ("CUDAExecutionProvider", {"device_id": 1})


def test_strict_lets_nothing_fall_back(
    exported: Exported, made: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: GPU_BUILD)
    with pytest.raises(TargetError, match=r"strict=True: asked for CUDA.* are not here"):
        session(exported.path, providers=["cuda", "cpu"], strict=True)
    with pytest.raises((TargetError, ArtifactError)):
        session(exported.path, providers="cuda", strict=True)
    entry = "session.disable_cpu_ep_fallback"
    assert made[1][0].get_session_config_entry(entry) == "1"
    with pytest.raises(RuntimeError):
        made[0][0].get_session_config_entry(entry)


def test_a_gpu_that_the_package_cannot_use_is_told(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: GPU_BUILD[2:])
    monkeypatch.setattr(target, "gpu_driver", lambda: "570.1")
    with pytest.warns(FastresWarning, match="has a GPU, .* only has the CPU: install onnxruntime-"):
        session(exported.path)
    with pytest.raises(TargetError, match="strict=True: this machine has a GPU"):
        session(exported.path, strict=True)
    assert session(exported.path, providers="cpu", strict=True).providers == (GPU_BUILD[2],)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"providers": "coreml"}, r"this ONNX Runtime has no 'coreml', only"),
        ({"providers": "cuda"}, "has no 'cuda', only .*; the package onnxruntime-gpu has"),
        ({"providers": []}, "expected names such as"),
        ({"threads": 0}, "threads: got 0, expected an integer"),
        ({"threads": 100_000}, "threads: got 100000, expected an integer from 1 to"),
        ({"strict": 1}, "strict: got 1, expected True or False"),
    ],
)
def test_bad_options(options: dict[str, Any], says: str, exported: Exported) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers() and "onnxruntime" in says:
        options = {"providers": "rocm"}
        says = "has no 'rocm'"
    with pytest.raises(OptionError, match=says):
        session(exported.path, **options)


def test_strings_are_no_numbers(tmp_path: Path) -> None:
    text = onnx.TensorProto.STRING
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"])],
        "text",
        [onnx.helper.make_tensor_value_info("x", text, [1])],
        [onnx.helper.make_tensor_value_info("y", text, [1])],
    )
    opset = [onnx.helper.make_opsetid("", 18)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)
    onnx.save_model(model, str(tmp_path / "m.onnx"))
    with pytest.raises(ArtifactError, match=r"'x' is a tensor\(string\)"):
        session(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["onnxruntime", "onnxruntime-gpu"], "onnxruntime and onnxruntime-gpu are installed side"),
        (["onnxruntime_gpu", "OnnxRuntime"], "pip uninstall onnxruntime onnxruntime_gpu, then pip"),
        ([], r"running ONNX files needs ONNX Runtime: pip install 'fastres\[onnx\]'"),
    ],
)
def test_the_package_is_there_once(
    names: list[str], says: str, exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Distribution:
        def __init__(self, name: str) -> None:
            self.metadata = {"Name": name}

    found = [Distribution(name) for name in (*names, "onnxruntime-extensions", "torch")]
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: found)
    if not names:
        monkeypatch.setattr(
            requirements, "find_spec", lambda name: None if name == "onnxruntime" else object()
        )
    with pytest.raises(TargetError, match=says):
        session(exported.path)


def test_shapes_are_remembered_only_of_our_own_files(loaded: Session) -> None:
    assert loaded._by_shape
    assert CHECKSUM in loaded.metadata
