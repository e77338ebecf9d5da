"""Engines turn the fused graph into an executable for one set of input shapes, and run it."""

from __future__ import annotations
