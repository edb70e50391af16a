"""A session on a fake engine, with a file of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.chatting import FakeSource, make_session

from selm_edge.chat.session import ChatSession


@pytest.fixture
def source() -> FakeSource:
    return FakeSource()


@pytest.fixture
def session(tmp_path: Path, source: FakeSource) -> Iterator[ChatSession]:
    made = make_session(tmp_path, source)
    yield made
    made.close()
