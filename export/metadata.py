"""What a file says about itself, in ONNX's ``metadata_props``, all of it text.

=========================  ======================================================================
``fastres.version``        the fastres that wrote it
``fastres.model``          class of the user's model
``fastres.precision``      dtype of weights and activations
``fastres.source_sha256``  of the weights that it was made from, see :func:`weights_sha256`
``fastres.source``         which those are: the model's ``state_dict``, or ``folded weights``
``fastres.preprocessing``  JSON of :class:`fastres.transforms.Preprocessing`, where there is one
``fastres.labels`` JSON list of the classes' names, where they are known
``fastres.content_sha256`` of the file's own operators and weights
=========================  ======================================================================
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from fastres.errors import OptionError
from fastres.optimized import OptimizedModule
from fastres.version import __version__

CHECKSUM = "fastres.content_sha256"
"""The entry by which files that fastres wrote are known and checked."""


def weights_sha256(module: nn.Module) -> str:
    """SHA-256 of a module's parameters and buffers: names, dtypes, shapes and bytes, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if not isinstance(tensor, Tensor):
            continue
        digest.update(f"{name!r} {tensor.dtype} {list(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def describe(
    fast: OptimizedModule, sha256: str, of_model: bool, labels: Sequence[str] | None
) -> dict[str, str]:
    """All entries but the checksum of the contents.

    Args:
        fast: what is exported.
        sha256: of the weights that it was made from.
        of_model: whether those are the model's own, else the folded ones.
        labels: the classes' names; None takes those of the preprocessing.

    Raises:
        OptionError: labels are not names.
    """
    preprocessing = fast.preprocessing
    if labels is None and preprocessing is not None:
        labels = preprocessing.labels
    if labels is not None and (
        isinstance(labels, str)
        or not isinstance(labels, Sequence)
        or not all(isinstance(name, str) for name in labels)
    ):
        raise OptionError("labels: expected a sequence of names, one per class")
    entries = {
        "fastres.version": __version__,
        "fastres.model": fast.report.model,
        "fastres.precision": fast.report.precision,
        "fastres.source_sha256": sha256,
        "fastres.source": "state_dict" if of_model else "folded weights",
    }
    if preprocessing is not None:
        if labels:
            preprocessing = replace(preprocessing, labels=tuple(labels))
        entries["fastres.preprocessing"] = json.dumps(preprocessing.to_dict())
    if labels is not None:
        entries["fastres.labels"] = json.dumps(list(labels))
    return entries
