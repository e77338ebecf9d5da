"""The roofline of a model on a GPU that need not be here: floors, modelled times, what limits them.

``python -m fastres.roofline --depth 50 --gpu h100`` (also ``fastres roofline``). Every figure is
from data sheets and the cost model of :mod:`fastres.kernels.tuning.cost`. None is measured, and
every line says so.
"""

from __future__ import annotations

from fastres.roofline.command import main

__all__ = ["main"]
