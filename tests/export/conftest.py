"""One small network and its file, for every test that only reads them."""

from __future__ import annotations

import pytest

from fastres.export import to_onnx
from tests.support.small import EXAMPLE, Exported, small_model


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    path = tmp_path_factory.mktemp("onnx") / "small.onnx"
    model = small_model()
    report = to_onnx(model, path, example_input=EXAMPLE, dynamic_size=True, labels=list("abcde"))
    return Exported(model, path, report)
