"""fastres: PyTorch ResNets, fast for inference, with proof that the answers did not change.

fast = fastres.optimize(model)
y = fast(x)
print(fast.report)
"""

from __future__ import annotations

from fastres import models
from fastres.errors import (
    ArtifactError,
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
from fastres.loading import load
from fastres.optimization import optimize, sensitivity
from fastres.optimized import OptimizedModule
from fastres.report import Report
from fastres.verification import Verification, verify
from fastres.version import __version__

__all__ = [
    "ArtifactError",
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
    "load",
    "models",
    "optimize",
    "sensitivity",
    "verify",
]
