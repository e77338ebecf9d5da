"""The engine for GPUs: block-fused graph, static plan, one arena, kernels in Triton, CUDA graph."""

from __future__ import annotations
