"""Saved models: one safetensors file with the weights as tensors and everything else as JSON.

Nothing in a file is code and nothing is imported because a file names it. Operators are looked up
by checked names, sizes are trees that a small evaluator walks, containers are Python's own. See
:mod:`fastres.artifact.document` for what is in the JSON and :mod:`fastres.artifact.container` for
the file.
"""

from __future__ import annotations
