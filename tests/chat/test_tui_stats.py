"""The statistics of conversations on the full screen, and in the plain chat."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.chatting import make_session, talk
from support.driving import Driver
from textual.widgets import Static

from selm_edge.chat.screens.dialog import Box
from selm_edge.chat.screens.stats import StatsScreen
from selm_edge.chat.stats import ChatStats
from selm_edge.feedback import fluency


async def opened(chat: Driver, command: str = "/stats") -> StatsScreen:
    chat.app.prompt.focus()
    chat.app.prompt.load_text(command)
    await chat.press("enter")
    await chat.until(lambda: isinstance(chat.app.screen, StatsScreen))
    screen = chat.app.screen
    assert isinstance(screen, StatsScreen)
    await chat.until(lambda: "Satisfaction" in text_of(screen))
    return screen


def text_of(screen: StatsScreen) -> str:
    return "\n".join(str(part.render()) for part in screen.query("#stats Static").results(Static))


async def test_figures_and_plots(chat: Driver) -> None:
    await chat.say("Hello there")
    chat.session.feedback.rate(chat.session.path[-1], "up")
    screen = await opened(chat)
    shown = text_of(screen)
    for words in ("100 % of 1 judged", "No reply has been corrected", "in 1 dialogue", "by day"):
        assert words in shown, words
    assert "███" in shown and "Fluency" not in shown
    await chat.press("down", "pagedown", "escape")
    await chat.main()


async def test_fluency_is_measured_when_asked_for(chat: Driver) -> None:
    await chat.say("Hello there")
    screen = await opened(chat)
    await chat.press("f")
    await chat.until(lambda: "Fluency" in text_of(screen))
    assert "under selm-mini without adapters" in text_of(screen).replace("\n", " ")
    await chat.press("escape")
    await chat.main()
    screen = await opened(chat, "/stats fluency")
    await chat.until(lambda: "Fluency" in text_of(screen))


async def test_esc_stops_the_measuring_first(chat: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    await chat.say("Hello there")
    asked = threading.Event()

    def slowly(*args: Any, cancelled: Any) -> Iterator[fluency.Measured]:
        yield fluency.Measured(0, "a", 1.0, 1)
        asked.set()
        while not cancelled():
            threading.Event().wait(0.01)

    monkeypatch.setattr(fluency, "measured", slowly)
    screen = await opened(chat)
    await chat.press("f")
    await chat.until(asked.is_set)
    await chat.until(lambda: "1 of 1 replies" in str(screen.query_one(Box).border_subtitle))
    await chat.press("escape")
    await chat.until(lambda: "Perplexity 2.7" in text_of(screen))
    assert chat.app.screen is screen
    await chat.press("escape")
    await chat.main()


async def test_other_words_are_refused(chat: Driver) -> None:
    chat.app.prompt.load_text("/stats of what")
    await chat.press("enter")
    await chat.until(lambda: "statistics of what?" in chat.told[-1])


def test_adapters_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = make_session(tmp_path)
    session.use_model(session.open_model(None))
    talk(session, "Hello")
    assert session.model is not None
    model = session.model.assistant.model
    model.adapters = {"learnt.gguf": 1.0}
    judges = []
    measured = fluency.measured

    def noted(judge: Any, *args: Any, **options: Any) -> Any:
        judges.append(judge)
        return measured(judge, *args, **options)

    monkeypatch.setattr(fluency, "measured", noted)
    stats = ChatStats(session)
    found = stats.with_fluency(stats.report(lambda: False), lambda: False, lambda *_: None)
    assert found.fluency is not None and found.fluency.whole.replies == 1
    assert judges != [model] and not judges[0].adapters
    assert judges[0].engine.closed and not model.engine.closed  # type: ignore[attr-defined]
    session.close()
