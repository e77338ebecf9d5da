"""All quirks, and the ones a test may pick by name."""

from __future__ import annotations

from tests.zoo.quirk import Quirk
from tests.zoo.quirks_batch_norm import BATCH_NORMS
from tests.zoo.quirks_convolution import CONVOLUTIONS
from tests.zoo.quirks_residual import RESIDUALS
from tests.zoo.quirks_signature import SIGNATURES

QUIRKS: tuple[Quirk, ...] = (*BATCH_NORMS, *CONVOLUTIONS, *RESIDUALS, *SIGNATURES)

assert len({quirk.name for quirk in QUIRKS}) == len(QUIRKS)
