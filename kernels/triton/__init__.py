"""Device code in Triton. Each file has its host side under the same name in ``kernels/launch``."""

from __future__ import annotations
