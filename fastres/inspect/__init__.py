"""The machine code of a model's kernels, read without a GPU: ``python -m fastres.inspect``.

Every distinct launch of the engine's plans is compiled for the named architectures and taken apart;
what is read about each is in :mod:`fastres.kernels.inspection`.
"""

from __future__ import annotations

from fastres.inspect.command import main

__all__ = ["main"]
