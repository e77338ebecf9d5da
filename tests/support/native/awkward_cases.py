"""Convolutions whose sizes do not fit any tile."""

from __future__ import annotations

from tests.support.native.one_convolution import Case, pixels

CASES = {
    "one row": Case(pixels(1)),
    "half a tile": Case(pixels(16)),
    "one row of the second half": Case(pixels(17)),
    "only the second half": Case((*pixels(0, 16), *pixels(16, 16))),
    "holes": Case(tuple(i % 3 > 0 for i in range(64))),
    "an empty tile": Case((*pixels(0), *pixels(32))),
    "many tiles": Case(pixels(150, 160), group=2, steps=9),
    "one channel": Case(pixels(32), channels=1),
    "half a panel": Case(pixels(32), channels=16),
    "a lane more": Case(pixels(32), channels=17),
    "panels": Case(pixels(70, 96), channels=72, group=2, chunk_panels=2),
    "stem": Case(pixels(40, 64), channels=64, steps=7, units=14, pixel_units=4, after="relu"),
    "one unit": Case(pixels(32), units=1, steps=5, pixel_units=1),
    "many steps": Case(pixels(32), steps=9 * 64, after="relu"),
    "groups": Case(pixels(32), channels=96, groups=True),
    "read ahead": Case(pixels(96, 96), channels=64, group=2, prefetch=True),
    "threads": Case(pixels(200, 224), channels=64, threads=2, steps=4),
    "rows": Case(pixels(3), channels=72, rows=True),
    "rows, whole panels, ReLU": Case(pixels(20), channels=64, rows=True, after="relu"),
    "residual": Case(pixels(30), channels=64, residual=True, after="relu"),
    "residual, part of a panel": Case(pixels(30), channels=40, residual=True),
}
