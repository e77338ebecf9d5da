"""Kernels and their oracles, installed as ``fastres.kernels``.

===============  ===================================================================================
``reference``    each operator in plain PyTorch: what every other implementation is compared with
``spec``         sizes and options of an operator, as frozen dataclasses
``packing``      weights in the order in which kernels read them
``triton/``      device code for GPUs
``launch/``      its host side, under the same file names
``tuning/``      candidate tilings, and the model that chooses among them without a GPU
``inspection/``  what a launch compiles to, read without a GPU
``cpu/``         the CPU engine's library in C++
===============  ===================================================================================
"""

from __future__ import annotations

if __name__ != "fastres.kernels":
    # Reached only with the repository's root on sys.path. The bare name is another package's, and
    # those who look for that one expect this error when it is not there.
    raise ImportError(f"this package is fastres.kernels, not {__name__}: import it by that name")
