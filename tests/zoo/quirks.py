"""All quirks, and the ones a test may pick by name."""

from __future__ import annotations

from zoo.quirk import Quirk
from zoo.quirks_batch_norm import BATCH_NORMS
from zoo.quirks_convolution import CONVOLUTIONS
from zoo.quirks_residual import RESIDUALS
from zoo.quirks_signature import SIGNATURES

QUIRKS: tuple[Quirk, ...] = (*BATCH_NORMS, *CONVOLUTIONS, *RESIDUALS, *SIGNATURES)

assert len({quirk.name for quirk in QUIRKS}) == len(QUIRKS)
