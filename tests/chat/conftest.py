"""A session on a fake engine, with a file of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from support.chatting import FakeSource, make_session
from support.driving import Driver, driven

from selm_edge.chat.session import ChatSession


@pytest.fixture
def source() -> FakeSource:
    return FakeSource()


@pytest.fixture
def session(tmp_path: Path, source: FakeSource) -> Iterator[ChatSession]:
    made = make_session(tmp_path, source)
    yield made
    made.close()


@pytest.fixture
async def chat(tmp_path: Path) -> AsyncIterator[Driver]:
    async with driven(tmp_path) as driver:
        yield driver
