"""Write a model to a file; it is read back and compared before it gets its final name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from fastres.artifact.container import File, write
from fastres.artifact.document import Description, Parts, describe
from fastres.artifact.receipt import options_from_json, options_to_json
from fastres.errors import ArtifactError


def save(parts: Parts, path: str | os.PathLike[str], made_by: dict[str, str]) -> None:
    """Write a model to ``path``, whole or not at all.

    Raises:
        ArtifactError: a part of the model cannot be held by a file, or the file cannot be written;
            what was there before is still there.
    """
    description, tensors = describe(parts, made_by)

    def check(temporary: Path) -> None:
        _read_back(parts, temporary)

    write(path, description, tensors, check)


def _read_back(parts: Parts, path: Path) -> None:
    """Check that the file describes the same program, weights, inputs and options as ``parts``."""
    file = File(path)
    description = Description(file.description)
    device = torch.device(description.device)
    loaded = description.parts(file.tensors(description.weights), device, options_from_json)
    compared: list[Any] = [
        (loaded.module.code, parts.module.code),
        (loaded.contract, parts.contract),
        (loaded.in_spec, parts.in_spec),
        (loaded.out_spec, parts.out_spec),
        (str(loaded.signature), str(parts.signature)),
        (loaded.report, parts.report),
        (loaded.preprocessing, parts.preprocessing),
        (options_to_json(loaded.options), options_to_json(parts.options)),
    ]
    for actual, expected in compared:
        if actual != expected:
            raise ArtifactError(
                f"what was written does not read back as it was ({str(actual)[:200]} instead of "
                f"{str(expected)[:200]}); nothing was left behind. This is a defect of fastres: "
                "please report it"
            )
