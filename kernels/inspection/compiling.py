"""A launch becomes a binary for an architecture that need not be here.

The parameters are specialised by Triton's own rules for launches (a pointer or number divisible by
16 is known to be, a number that is 1 becomes a constant), so that what is read here is what runs.
"""

from __future__ import annotations

import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from fastres.errors import TargetError
from fastres.kernels.launch import kernel_cache
from fastres.kernels.launch.call import KernelCall
from fastres.kernels.tuning.gpus import Architecture

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Binary:
    """What a launch compiles to.

    Attributes:
        code: machine code as text: of ``nvdisasm`` for NVIDIA, assembly for AMD.
        usage: what ``cuobjdump --dump-resource-usage`` says; "" for AMD.
        shared_bytes: shared memory of a block.
    """

    code: str
    usage: str
    shared_bytes: int


def require_compiler() -> None:
    """Raise if Triton was told to interpret kernels, which switches its compiler off.

    Raises:
        TargetError: ``TRITON_INTERPRET`` was set when the kernels were imported.
    """
    if triton.knobs.runtime.interpret:
        raise TargetError(
            "TRITON_INTERPRET is set: kernels are interpreted and have no machine code to read; "
            "unset it and start again"
        )
    kernel_cache.install()


def target_of(architecture: Architecture) -> Any:
    """Triton's own name for an architecture."""
    name = architecture.name
    number = int(name.removeprefix("sm_")) if architecture.backend == "cuda" else name
    return GPUTarget(architecture.backend, number, architecture.warp_size)


def compiled(call: KernelCall, architecture: Architecture) -> Any:
    """Compile a launch, or find it in Triton's cache, where a launch on such a GPU then finds it.

    Args:
        call: its tensors may be on the meta device; then pointers count as aligned, as fresh
            tensors are.
        architecture: compiled for.

    Returns:
        Triton's ``CompiledKernel``.

    Raises:
        TargetError: Triton's compiler is off, or cannot compile the kernel for this architecture;
            the message names both and says why.
    """
    require_compiler()
    if not isinstance(call.kernel, JITFunction):
        raise TargetError(
            f"kernel {call.name} was imported while TRITON_INTERPRET was set: it has no machine "
            "code to read; unset it and start again"
        )
    target = target_of(architecture)
    backend = make_backend(target)
    bind = create_function_from_signature(call.kernel.signature, call.kernel.params, backend)
    arguments, specialised, options = bind(**call.arguments, **call.constants, **call.options)
    options, signature, constants, attributes = call.kernel._pack_args(
        backend, dict(options), arguments, specialised, options
    )
    source = ASTSource(call.kernel, signature, constants, attributes)

    def attempt() -> Any:
        return triton.compile(source, target=target, options=dict(options.__dict__))

    try:
        try:
            return attempt()
        except triton.CompilationError:
            # Seen once: Triton's front end, which is Python, failed in one of several threads on a
            # kernel that it compiled before and afterwards. What cannot be compiled fails again.
            return attempt()
    except (triton.CompilationError, RuntimeError) as error:  # also PassManager::run and ptxas
        raise TargetError(
            f"kernel {call.name} with {dict(call.constants)} does not compile for "
            f"{architecture.name}: {_reason(error)}"
        ) from error


def compile_call(call: KernelCall, architecture: Architecture) -> Binary:
    """Compile a launch as :func:`compiled` does, and take its binary apart.

    Raises:
        TargetError: as there.
    """
    kernel = compiled(call, architecture)
    shared = int(kernel.metadata.shared)
    if architecture.backend == "hip":
        return Binary(str(kernel.asm["amdgcn"]), "", shared)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(kernel.asm["cubin"])
        code = _run("nvdisasm", "-c", str(file))
        usage = _run("cuobjdump", "--dump-resource-usage", str(file))
    return Binary(code, usage, shared)


def _reason(error: BaseException) -> str:
    """The last line that says something: below the source, with a mark under the place.

    An error in a function that the kernel calls shows the call only; then its cause says why.
    """
    lines = [line for line in str(error).splitlines() if any(map(str.isalpha, line))]
    reason = lines[-1].strip() if lines else type(error).__name__
    if error.__cause__ is None:
        return reason
    return f"{reason} ({type(error.__cause__).__name__}: {_reason(error.__cause__)})"


def compiler_versions() -> dict[str, str]:
    """Which Triton and torch the machine code is from."""
    return {"triton": str(triton.__version__), "torch": torch.__version__}


def _run(tool: str, *arguments: str) -> str:
    done = subprocess.run(
        [str(_TOOLS / tool), *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise TargetError(f"{tool} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
