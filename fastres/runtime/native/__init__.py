"""The CPU engine of our own: plans made in Python, run by the C++ library in ``kernels/cpu``."""

from __future__ import annotations
