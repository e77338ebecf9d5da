"""Classify image files at a prompt: ``python -m fastres.predict``, also ``fastres predict``."""

from __future__ import annotations

from fastres.predict.command import main

__all__ = ["main"]
