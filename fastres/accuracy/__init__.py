"""How far two answers are apart, and how far they may be.

The reference is the model itself in float64; the yardstick is the model itself in the precision at
hand, since an error means something only as a multiple of what plain torch makes. ``optimize``,
``verify``, ``refresh`` and the ONNX export compare with the parts in this folder.

==================  ================================================================================
``bounds``          every bound, with its reason
``relative_error``  the measure: relative root-mean-square
``top_k``           the measure where a model answers with its k largest
``reference``       the model in another precision
``compare``         a model against its optimised module, over batches
``drift``           the first layer that is further off than it should be
``sample``          inputs to compare on where nobody gave any
==================  ================================================================================
"""

from __future__ import annotations
