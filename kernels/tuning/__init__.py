"""How each kernel is launched: frozen dataclasses, chosen by pure functions of what is known.

A choice depends on the convolution's spec, the precision and the GPU's data sheet, and on nothing
else: it can be tested, and read, without a GPU.
"""

from __future__ import annotations
