"""The app under test, driven by keys as a person would."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from textual.pilot import Pilot
from textual.widgets import OptionList, Static

from selm_edge.chat.session import ChatSession
from selm_edge.chat.tui import ChatApp
from selm_edge.chat.widgets.turns import Turn
from support.chatting import FakeSource, make_session


async def wait_until(pilot: Pilot[None], condition: Callable[[], Any], seconds: float = 20) -> None:
    """Let the app work until the condition holds; one pause is never known to be enough."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"did not come true; screen: {pilot.app.screen}"
        await pilot.pause(0.01)


class Driver:
    """An app under test, its session, and what a person does with it."""

    def __init__(self, app: ChatApp, pilot: Pilot[None], source: FakeSource) -> None:
        self.app, self.pilot, self.source = app, pilot, source
        self.told: list[str] = []

    @property
    def session(self) -> ChatSession:
        return self.app.session

    async def until(self, condition: Callable[[], Any]) -> None:
        await wait_until(self.pilot, condition)

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)

    async def ready(self) -> None:
        await self.until(lambda: self.session.model is not None and self.app.idle)

    async def say(self, text: str) -> None:
        """Write and send, and wait until the reply is kept."""
        before = len(self.session.path)
        self.app.prompt.focus()
        self.app.prompt.load_text(text)
        await self.press("enter")
        await self.until(lambda: self.app.idle and len(self.session.path) > before)
        await self.until(lambda: len(self.app.transcript.turns) == len(self.session.path))

    async def screen(self, kind: type) -> Any:
        await self.until(lambda: isinstance(self.app.screen, kind) and self.app.screen.focused)
        return self.app.screen

    async def main(self) -> None:
        await self.until(lambda: self.app.screen is self.app.main)

    async def choose(self, option: str) -> None:
        """Choose an option of the list on the screen on top by its id."""
        options = self.app.screen.query_one(OptionList)
        options.highlighted = options.get_option_index(option)
        options.focus()
        await self.press("enter")

    async def last_reply(self) -> None:
        """Select the last turn."""
        self.app.prompt.focus()
        await self.press("up")
        await self.until(lambda: isinstance(self.app.focused, Turn))

    @property
    def texts(self) -> list[str]:
        return [turn.text for turn in self.session.path]

    @property
    def banner(self) -> str:
        banner = self.app.main.query_one("#banner", Static)
        return str(banner.render()) if banner.has_class("shown") else ""

    @property
    def shown(self) -> list[str]:
        return [turn.text for turn in self.app.transcript.turns]  # type: ignore[attr-defined]


@asynccontextmanager
async def driven(
    folder: Path,
    source: FakeSource | None = None,
    *,
    size: tuple[int, int] = (80, 24),
    session: ChatSession | None = None,
    model: str | None = None,
    wait: bool = True,
) -> AsyncIterator[Driver]:
    source = source or FakeSource()
    session = session or make_session(folder, source)
    app = ChatApp(session, model)
    try:
        async with app.run_test(size=size) as pilot:
            driver = Driver(app, pilot, source)
            tell = app.tell
            app.tell = lambda text, **options: (driver.told.append(text), tell(text, **options))  # type: ignore[method-assign,assignment,return-value]
            if wait:
                await driver.ready()
            yield driver
    finally:
        app.shut_down()
