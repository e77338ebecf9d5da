"""Every bound that answers are held to, with its reason.

All are multiples of torch eager's own error in the same precision, which counts as one unit in the
last place at least.
"""

from __future__ import annotations

BOUND = 2.0
"""How many times eager's own error ours may be, on data that the user chose."""

SAMPLE_BOUND = 8.0
"""The same on the one sample that ``optimize`` and ``refresh`` compare on.

Wider than :data:`BOUND`: on one image with ten answers the ratio of two rounding errors can be 3 by
chance, while a lost BatchNorm is off by a thousand.
"""

SAMPLE_IMAGES = 4
"""How many images of the example, at most, ``optimize`` runs in float64."""

LAYER_SLACK = 2.0
"""How much further than the answer a single layer may be off before it is said to drift.

Both errors are sums of roundings, and in a single layer of a good network ours may be beyond the
bound by chance while the answers are well within it.
"""

NUMBERS_AGREE = 0.9
"""Share of the whole numbers in an answer that must be the model's own; rounding may swap some."""

EXPORT_FLOOR = 4.0
"""Units in the last place that are forgiven an exported file whatever PyTorch achieves: on a
handful of numbers PyTorch's own error can be next to nothing by luck."""
