"""How much of public architectures runs natively, and how fast; see ``__main__.py``."""

from __future__ import annotations
