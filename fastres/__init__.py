"""fastres: PyTorch ResNets, fast for inference, with proof that the answers did not change.

fast = fastres.optimize(model)
y = fast(x)
print(fast.report)
"""

from __future__ import annotations

from fastres import models
from fastres.errors import (
    CaptureError,
    FastresError,
    FastresWarning,
    InputError,
    ModelError,
    NotOptimizedError,
    OptionError,
    OutOfMemory,
    TargetError,
    VerificationError,
)
from fastres.optimization import optimize
from fastres.optimized import OptimizedModule
from fastres.report import Report
from fastres.verification import Verification, verify

__version__ = "0.1.0"

__all__ = [
    "CaptureError",
    "FastresError",
    "FastresWarning",
    "InputError",
    "ModelError",
    "NotOptimizedError",
    "OptimizedModule",
    "OptionError",
    "OutOfMemory",
    "Report",
    "TargetError",
    "Verification",
    "VerificationError",
    "__version__",
    "models",
    "optimize",
    "verify",
]
