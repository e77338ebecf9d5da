"""What the bench compares fastres with; ``catalogue`` names them all."""

from __future__ import annotations
