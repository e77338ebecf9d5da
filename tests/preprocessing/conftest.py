"""What several of these tests share."""

from __future__ import annotations

import pytest

from tests.support import predicting


@pytest.fixture(scope="session")
def setting(tmp_path_factory: pytest.TempPathFactory) -> predicting.Setting:
    """A network with its files, and images."""
    return predicting.make(tmp_path_factory.mktemp("predict"))
