"""fastres itself."""

from __future__ import annotations

import warnings

from fastres.bench.contender import Job, Ready
from fastres.errors import FastresWarning


def prepare(job: Job) -> Ready:
    """Optimise for the precision, with the first batch as the example."""
    import fastres

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FastresWarning)
        fast = fastres.optimize(
            job.model,
            job.example,
            device=job.device,
            # TF32 is float32 under a flag of torch's, which the bench sets.
            precision="fp32" if job.precision == "tf32" else job.precision,
            threads=job.threads,
        )
    left = [str(warning.message) for warning in caught]
    return Ready(fast, notes=(f"engine {fast.engine}", *left))
