"""What tests share: models to optimise, judges of answers, and programs of their own."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
"""Of the repository."""
