"""The host side of each kernel in ``kernels/triton``: checks, grids, arguments, compilation."""

from __future__ import annotations
