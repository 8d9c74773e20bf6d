"""Fixtures that every test may use; real data is found through LOSSOPT_DATA and never skipped in CI."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data sets. Without LOSSOPT_DATA these tests skip, except in CI, where that is a failure."""
    given = os.environ.get("LOSSOPT_DATA")
    if given and Path(given).is_dir():
        return Path(given)
    message = f"LOSSOPT_DATA is {given!r}, which is no folder; point it at the real data sets."
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)
