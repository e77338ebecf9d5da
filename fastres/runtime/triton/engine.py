"""The engine for GPUs, and for CPU tensors under Triton's interpreter.

For one set of input shapes it fuses blocks where the cost model finds that worth while, plans every
step and the memory, binds launches to it, and records them as one CUDA graph. Nothing here imports
Triton before a graph is built that this engine takes.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from fastres import kernels
from fastres.dtypes import FLOATING
from fastres.errors import InputError, OptionError, OutOfMemory
from fastres.ir import ops
from fastres.ir.graph import arguments, constant, is_call
from fastres.ir.propagate import propagate
from fastres.kernels.launch.call import KernelCall
from fastres.kernels.tuning import gpus
from fastres.kernels.tuning.fusing import why_library
from fastres.kernels.tuning.gpus import Gpu
from fastres.options import Options
from fastres.runtime.triton import batch_buckets
from fastres.runtime.triton.arithmetic import arithmetic
from fastres.runtime.triton.cuda_graph import CudaDevice
from fastres.runtime.triton.device import Device, InterpreterDevice
from fastres.runtime.triton.executable import TritonExecutable
from fastres.runtime.triton.lower import main_dtype, plan_for
from fastres.runtime.triton.packed_weights import PackedWeights
from fastres.runtime.triton.plan import Plan
from fastres.runtime.triton.tactics import Tactics, Tuner
from fastres.runtime.triton.tuning_cache import Identity, TuningCache, default_folder, source_hash
from fastres.runtime.triton.workspace import Workspace
from fastres.system.target import available_gpu_memory, available_memory, cpu_threads, gpu
from fastres.system.versions import why_not_interpreted

INTERPRETED_GPU = "a100"
"""The GPU whose data sheet decides under the interpreter."""


class TritonEngine:
    """Runs float32, float16, bfloat16 and int8 graphs; see :class:`fastres.runtime.engine.Engine`.

    Args:
        options: of ``fastres.optimize``.
        product: the GPU to choose configurations for; by default the one that the model is on, and
            under the interpreter none: then tiles are as large as can be.
    """

    name = "triton"
    plans_threads = False
    reads_in_place = False

    def __init__(self, options: Options | None = None, product: Gpu | None = None) -> None:
        self._options = options or Options()
        self._requested = product
        self._weights = PackedWeights()
        self._workspace: Workspace | None = None
        self._gpu: Gpu | None = None
        self._cache: TuningCache | None = None
        self._kept: dict[int, object] = {}
        self._lock = threading.Lock()
        self._by_bucket: weakref.WeakValueDictionary[Any, TritonExecutable] = (
            weakref.WeakValueDictionary()
        )

    def unpacked(self) -> TritonEngine:
        """The same engine for weights that changed."""
        engine = TritonEngine(self._options, self._requested)
        engine._cache = self._cache
        engine._kept = self._kept
        return engine

    def refusal(self, module: fx.GraphModule) -> str | None:
        """Why the kernels cannot run a graph here, or None."""
        devices = {buffer.device for buffer in module.buffers()}
        if len(devices) > 1:
            return f"its weights are on several devices, {' and '.join(sorted(map(str, devices)))}"
        device = devices.pop() if devices else torch.device("cpu")
        if importlib.util.find_spec("triton") is None:
            return "Triton is not installed (pip install 'fastres[gpu]')"
        interprets = os.environ.get("TRITON_INTERPRET") == "1"
        if device.type == "cpu" and not interprets:
            return (
                "the model is on the CPU, and the kernels run on a GPU: optimise with "
                "device='cuda', or set TRITON_INTERPRET=1 before Python starts to have them "
                "interpreted, which is slow"
            )
        if device.type not in ("cpu", "cuda"):
            return f"the model is on {device}, and the kernels run on CUDA devices"
        if (device.type == "cpu") != _interpreted():
            return (
                "TRITON_INTERPRET=1 counts when Triton is first imported, and here it was "
                f"{'un' if interprets else ''}set then; start Python anew with it "
                f"{'set' if device.type == 'cpu' else 'unset'}"
            )
        if device.type == "cpu" and (reason := why_not_interpreted()) is not None:
            return reason
        for node in module.graph.find_nodes(op="call_function", target=ops.conv2d):
            weight = constant(arguments(node)[1])
            if weight is not None and weight.dtype not in FLOATING:
                return f"the kernels have no {weight.dtype}"
        if device.type == "cuda":
            try:
                return why_not_on(_product(device), module)
            except OptionError as error:
                return str(error)
        return None

    def build(self, module: fx.GraphModule, inputs: Sequence[Any]) -> TritonExecutable:
        """An executable for inputs of these shapes, recorded by a first run on them."""
        batch = batch_buckets.batch_of(inputs)
        size = None if batch is None else batch_buckets.bucket(self._options.batch_buckets, batch)
        if size is None:
            return self._build(module, inputs)
        whole = batch_buckets.filled(inputs, size)
        reason = batch_buckets.why_mixed(module, propagate(module, whole), size)
        if reason is not None:
            return self._build(module, inputs, [f"batch_buckets are not used: {reason}"])
        key = (id(module), *(_shape(value) for value in whole))
        found = self._by_bucket.get(key)
        if found is None:
            found = self._build(module, whole, batch=size)
            self._by_bucket[key] = found
        return found

    def _build(
        self,
        module: fx.GraphModule,
        inputs: Sequence[Any],
        notes: Sequence[str] = (),
        batch: int | None = None,
    ) -> TritonExecutable:
        from fastres.kernels.launch import kernel_cache

        kernel_cache.install()
        device = next((b.device for b in module.buffers()), torch.device("cpu"))
        workspace, product = self._place(device)
        if workspace.device.is_being_recorded():
            raise InputError(
                f"input {_shapes(inputs)}: the first call with these sizes compiles and measures, "
                "which cannot be part of a CUDA graph; call the model once with them before "
                "recording"
            )
        target = product.architecture if device.type == "cuda" else None
        numbers = arithmetic(self._options.precision, target)
        notes = list(notes)
        if device.type == "cpu" and main_dtype(module) == torch.bfloat16:
            notes.append(
                "Triton's interpreter cuts float32 off to bfloat16 where GPUs round it; "
                "errors are larger than on a GPU"
            )
        try:
            with self._compiling(device, product) as compile_ahead:
                tuner, found = self._tuner(workspace, device, compile_ahead)
                notes += found
                interpreted = device.type == "cpu" and self._requested is None
                tactics = Tactics(product, tuner, interpreted)
                planned = plan_for(module, inputs, tactics, numbers)
                _refuse_if_too_large(planned.plan, inputs, device, workspace)
                reason = why_library(product)
                if reason is not None:
                    notes.append(f"convolutions are the library's: {reason}")
                if tuner is not None:
                    notes += tuner.notes
                    notes += [] if tuner.cache.note is None else [tuner.cache.note]
                executable = TritonExecutable(
                    planned.plan,
                    planned.module,
                    self._weights,
                    workspace,
                    self.name,
                    notes,
                    batch,
                    workspace.device.records and product.architecture.chains,
                )
                executable.unfused = planned.unfused
                if compile_ahead is not None:
                    compile_ahead(executable.launches)
            executable.prepare(inputs)
            not_kept = kernel_cache.note()
            if not_kept is not None:
                executable.notes.append(not_kept)
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(
                f"input {_shapes(inputs)}: {device} has no room for the activations; use a "
                "smaller batch or image"
            ) from error
        return executable

    @contextlib.contextmanager
    def _compiling(
        self, device: torch.device, product: Gpu
    ) -> Iterator[Callable[[Sequence[KernelCall]], None] | None]:
        """What has launches compiled side by side while the block runs; None without a GPU."""
        if device.type != "cuda":
            yield None
            return
        from fastres.kernels.launch.compile_pool import CompilePool

        with CompilePool(product.architecture, cpu_threads()) as pool:
            yield pool.compile

    def _place(self, device: torch.device) -> tuple[Workspace, Gpu]:
        with self._lock:
            if self._workspace is None or self._gpu is None:
                layer: Device
                if device.type == "cuda":
                    layer, self._gpu = CudaDevice(device), _product(device)
                else:
                    layer, self._gpu = InterpreterDevice(), gpus.by_name(INTERPRETED_GPU)
                self._gpu = self._requested or self._gpu
                self._workspace = Workspace(layer, self._kept)
            return self._workspace, self._gpu

    def _tuner(
        self,
        workspace: Workspace,
        device: torch.device,
        compile_ahead: Callable[[Sequence[KernelCall]], None] | None,
    ) -> tuple[Tuner | None, list[str]]:
        if not self._options.tune:
            return None, []
        if not workspace.device.records:
            return None, ["tune=True has no effect under the interpreter, whose times mean nothing"]
        with self._lock:
            if self._cache is None:
                self._cache = TuningCache(_identity(device), default_folder())
        return Tuner(workspace, self._weights, self._cache, compile_ahead=compile_ahead), []


def why_not_on(product: Gpu, module: fx.GraphModule) -> str | None:
    """Why a GPU with known figures cannot run a graph by these kernels, or None.

    Where products of floats are the library's, so that the others are still ours, there is none of
    int8.
    """
    quantized = any(
        is_call(node, ops.quantized_conv2d, ops.quantized_linear) for node in module.graph.nodes
    )
    if quantized and product.architecture.tensor_core == "none":
        return f"Triton emits no instructions of {product.architecture.name} that multiply int8"
    return None


def _interpreted() -> bool:
    """Whether the kernels were defined for the interpreter."""
    from fastres.kernels.triton.conv2d import conv2d_kernel

    return type(conv2d_kernel).__name__ == "InterpretedFunction"


def _product(device: torch.device) -> Gpu:
    """The data sheet for a device.

    Raises:
        OptionError: nothing is known about its architecture.
    """
    found = gpu(device)
    name = found.architecture
    if found.backend == "cuda":
        number = int(name.removeprefix("sm_"))
        return gpus.by_device(
            found.name, gpus.by_capability(number // 10, number % 10), found.multiprocessors
        )
    return gpus.by_device(found.name, gpus.architecture(name), found.multiprocessors)


def _identity(device: torch.device) -> Identity:
    import triton

    found = gpu(device)
    return Identity(
        gpu=found.name,
        driver=found.driver,
        triton=triton.__version__,
        library=str(torch.backends.cudnn.version()),
        kernels=source_hash([Path(folder) for folder in kernels.__path__]),
    )


def _refuse_if_too_large(
    plan: Plan, inputs: Sequence[Any], device: torch.device, workspace: Workspace
) -> None:
    free = available_gpu_memory(device) if device.type == "cuda" else available_memory()
    needed = plan.peak_bytes - workspace.present(plan.arena.nbytes)
    if needed > free:
        raise OutOfMemory(
            f"input {_shapes(inputs)} needs {needed / 2**30:.1f} GiB more for activations, "
            f"{free / 2**30:.1f} GiB are available: use a smaller batch or image"
        )


def _shapes(inputs: Sequence[Any]) -> str:
    return ", ".join(str(list(v.shape)) for v in inputs if isinstance(v, Tensor))


def _shape(value: Any) -> Any:
    return (value.shape, value.dtype) if isinstance(value, Tensor) else (type(value), repr(value))
