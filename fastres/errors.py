"""Everything fastres raises or warns about, in one tree.

::

    Exception
    └── FastresError
        ├── OptionError (ValueError)     an argument of fastres itself is wrong
        ├── ModelError                   the model cannot be taken, or not as asked
        │   ├── CaptureError             torch.export cannot turn the model into one graph
        │   └── NotOptimizedError        strict=True, and something stayed as it was
        ├── InputError (ValueError)      a call got a tensor the model cannot take
        ├── ArtifactError                a saved model cannot be written, read or trusted
        ├── OutOfMemory (MemoryError)    this shape does not fit into memory
        ├── TargetError (RuntimeError)   the machine lacks what was asked for
        └── VerificationError            the optimised model's answers differ from the model's

    UserWarning
    └── FastresWarning                   the work was done, but not all of it as one would wish

Every message says what was got, what was expected and what to do about it.
"""

from __future__ import annotations

__all__ = [
    "ArtifactError",
    "CaptureError",
    "FastresError",
    "FastresWarning",
    "InputError",
    "ModelError",
    "NotOptimizedError",
    "OptionError",
    "OutOfMemory",
    "TargetError",
    "VerificationError",
]


class FastresError(Exception):
    """Base of every error that fastres raises on purpose."""


class OptionError(FastresError, ValueError):
    """An argument or command-line option of fastres has a value it cannot have."""


class ModelError(FastresError):
    """The model cannot be optimised, or not in the way that was asked for."""


class CaptureError(ModelError):
    """The model cannot be captured as one graph without changing what it does."""


class NotOptimizedError(ModelError):
    """Raised under ``strict=True`` for the first thing that was not optimised.

    Attributes:
        module: dotted name of the module concerned, as in ``model.named_modules()``.
        reason: the sentence that the receipt would have held.
    """

    def __init__(self, module: str, reason: str) -> None:
        super().__init__(
            f"strict=True: {module}: {reason}. Change the model, or call optimize() without strict "
            "to accept this and read it in the receipt (print(fast.report))."
        )
        self.module = module
        self.reason = reason


class InputError(FastresError, ValueError):
    """An input's rank, size, channels, dtype or device is not one the model takes."""


class ArtifactError(FastresError):
    """A saved model's file cannot be written or read: damaged, changed, newer, or no such file."""


class OutOfMemory(FastresError, MemoryError):
    """Running this input shape needs more memory than the machine can give."""


class TargetError(FastresError, RuntimeError):
    """The machine or the installed packages lack what was asked for."""


class VerificationError(FastresError):
    """The optimised model does not give the answers of the model it was made from."""


class FastresWarning(UserWarning):
    """Something was left unoptimised or done otherwise than asked; the receipt has the details."""
