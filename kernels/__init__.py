"""Device code and its oracles, installed as ``fastres.kernels``.

``reference`` has each operator in plain PyTorch: what every other implementation is compared with.
"""

from __future__ import annotations

if __name__ != "fastres.kernels":
    # Reached only with the repository's root on sys.path. The bare name is another package's, and
    # those who look for that one expect this error when it is not there.
    raise ImportError(f"this package is fastres.kernels, not {__name__}: import it by that name")
