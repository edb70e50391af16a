"""What every test relies on."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="session")
def away_from_the_sources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests, and the processes they start, run in an empty folder: from the checkout, `python -c`
    would import the sources beside it, which have no compiled core."""
    before = os.getcwd()  # noqa: PTH109 - given back as it was
    os.chdir(tmp_path_factory.mktemp("cwd"))
    yield
    os.chdir(before)
