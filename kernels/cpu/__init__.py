"""The CPU engine's kernels, in C++: built on installation into a library beside this file.

``fastres.runtime.native`` loads it; ``native.h`` is its interface. There is nothing to import here.
"""

from __future__ import annotations
