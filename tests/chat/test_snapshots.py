"""Pictures of the chat's main states; look at them before accepting a new one.

``pytest tests/chat/test_snapshots.py --snapshot-update`` accepts them. Nothing in them depends on
time: figures are fixed, cursors do not blink.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.segment import Segment
from support.chatting import FakeSource, make_session, talk
from support.fake_engine import FakeStream
from textual.app import App
from textual.pilot import Pilot
from textual.widgets import Input, TextArea

from selm_edge.backends.base import GenerationStats
from selm_edge.chat.tui import ChatApp
from selm_edge.feedback.log import Kind, ReplyRecord
from selm_edge.feedback.unrated import Turn as Unrated

SIZES = [(80, 24), (140, 40)]
KETTLE = """To descale a kettle, use **white vinegar** or citric acid:

1. Fill it half with water and half with vinegar.
2. Boil it, then let it stand for *twenty minutes*.
3. Rinse it twice.

To know how much water that is:

```python
def litres(cups: float) -> float:
    \"\"\"US cups to litres.\"\"\"
    return round(cups * 0.2366, 2)
```

| Acid | Spoons | Minutes |
|---|---|---|
| citric | 2 | 15 |
| vinegar | 10 | 20 |

> Never mix acids with bleach."""
MONTH = "Once a month is enough. With hard water, every two weeks."

Steps = Callable[[ChatApp, Pilot[None]], Awaitable[None]]


@pytest.fixture(autouse=True)
def fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No blinking, no measured speed, the same day for ever."""
    monkeypatch.setattr(GenerationStats, "tokens_per_second", property(lambda _: 21.3))
    monkeypatch.setattr(TextArea, "cursor_blink", False)
    monkeypatch.setattr(Input, "cursor_blink", False)
    monkeypatch.setattr("selm_edge.chat.screens.conversations.ago", lambda *_: "2h")
    monkeypatch.setattr("pathlib.Path.cwd", lambda: Path("/home/ada"))


@pytest.fixture
def picture(tmp_path: Path, snap_compare: Any) -> Iterator[Callable[..., None]]:
    """Run an app over some stored talk, take its steps, compare the picture."""
    apps: list[ChatApp] = []

    def take(
        size: tuple[int, int], steps: Steps, *questions: str, model: str = "", **engine: Any
    ) -> None:
        source = FakeSource([KETTLE, MONTH, MONTH], engine_options=engine)
        session = make_session(tmp_path, source)
        session.use_model(session.open_model(None))
        for question in questions:
            talk(session, question)
        app = ChatApp(session, model or None)
        apps.append(app)

        async def run_before(pilot: Pilot[None]) -> None:
            await until(pilot, lambda: app.status_line.status.state != "loading" and app.idle)
            await until(pilot, lambda: app.status_line.status.used is not None)
            await until(pilot, lambda: len(app.transcript.turns) == len(session.path))
            if questions:  # a busy machine builds the first reply's Markdown in many pieces
                await until(pilot, lambda: bool(app.transcript.query("MarkdownBlockQuote")))
            await steps(app, pilot)
            await settle(pilot)

        assert snap_compare(app, terminal_size=size, run_before=run_before)

    yield take
    for app in apps:
        app.shut_down()


async def until(pilot: Pilot[None], condition: Callable[[], Any]) -> None:
    for _ in range(2000):
        if condition():
            return
        await pilot.pause(0.01)
    raise AssertionError("did not come true")


async def settle(pilot: Pilot[None]) -> None:
    """Until the program has nothing to do, and looks at the screen are the same, colours too:
    Markdown is laid out in steps, then scrolled, and code is coloured after that."""
    last: list[list[Segment]] = []
    same = 0
    for _ in range(400):
        await pilot.pause()  # however slow the machine is
        await pilot.pause(0.02)
        groups = {worker.group for worker in pilot.app.workers if not worker.is_finished}
        now = [] if groups & {"measure", "model", "hash"} else picture_of(pilot.app)
        same = same + 1 if now and now == last else 0
        if same >= 5:
            return
        last = now
    raise AssertionError("the screen does not come to rest")


def picture_of(app: App[Any]) -> list[list[Segment]]:
    return [list(strip) for strip in app.screen._compositor.render_strips()]


async def until_shown(app: ChatApp, pilot: Pilot[None], text: str) -> None:
    """The transcript's end is in view and drawn: a busy machine draws it long after it is there."""

    def shown() -> bool:
        app.transcript.scroll_end(animate=False)  # what is laid out later moves the end
        return any(text in "".join(s.text for s in row) for row in picture_of(app))

    await until(pilot, shown)
    await settle(pilot)  # the scroll bar comes last


def keys(*names: str) -> Steps:
    async def steps(app: ChatApp, pilot: Pilot[None]) -> None:
        for name in names:
            await pilot.press(name)
            await settle(pilot)

    return steps


@pytest.fixture(params=SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def size(request: pytest.FixtureRequest) -> tuple[int, int]:
    return tuple(request.param)  # type: ignore[return-value]


def test_empty(picture: Any, size: tuple[int, int]) -> None:
    picture(size, keys())


def test_a_conversation_with_code(picture: Any, size: tuple[int, int]) -> None:
    async def top(app: ChatApp, pilot: Pilot[None]) -> None:
        await settle(pilot)  # what is laid out later would pull the view back to the end
        app.transcript.scroll_home(animate=False)
        await settle(pilot)

    picture(size, top, "How do I descale a kettle?")


def test_a_selected_turn(picture: Any, size: tuple[int, int]) -> None:
    talk_ = ("How do I descale a kettle?", "And how often?\nThe water is hard here.")
    picture(size, keys("up", "plus"), *talk_)


def test_streaming(picture: Any, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = FakeStream.__next__

    def stops_half_way(stream: FakeStream) -> str:
        if stream.stats.tokens == 40:
            stream._session.cancelled.wait(60)
        return whole(stream)

    monkeypatch.setattr(FakeStream, "__next__", stops_half_way)

    async def ask(app: ChatApp, pilot: Pilot[None]) -> None:
        app.prompt.load_text("How do I descale a kettle?")
        await pilot.press("enter")
        await until(pilot, lambda: app._reply and app._reply.stats.tokens == 40)
        app._tick()
        await settle(pilot)

    picture(size, ask)


def test_versions_and_a_correction(picture: Any, size: tuple[int, int]) -> None:
    async def correct(app: ChatApp, pilot: Pilot[None]) -> None:
        app.session.feedback.correct(app.session.path[3], "Every two weeks: your water is hard.")
        await app.refresh_conversation()
        await until_shown(app, pilot, "your water is hard")
        await pilot.press("up")
        await settle(pilot)
        await until_shown(app, pilot, "your water is hard")

    picture(size, correct, "How do I descale a kettle?", "And how often?")


def test_the_correction_editor(picture: Any, size: tuple[int, int]) -> None:
    picture(size, keys("up", "x"), "How do I descale a kettle?", "And how often?")


def test_settings(picture: Any, size: tuple[int, int]) -> None:
    picture(size, keys("f4"))


def test_conversations(picture: Any, size: tuple[int, int]) -> None:
    async def several(app: ChatApp, pilot: Pilot[None]) -> None:
        for title in ("Tulips in autumn", "17 + 25 in steps", "A note for the neighbour"):
            app.session.new()
            talk(app.session, title)
        await app.refresh_conversation()
        await settle(pilot)
        await pilot.press("f2")
        await settle(pilot)

    picture(size, several, "How do I descale a kettle?")


def test_a_search(picture: Any, size: tuple[int, int]) -> None:
    picture(size, keys("ctrl+f", *"vineg"), "How do I descale a kettle?")


def remembered(*steps: str) -> Steps:
    """With memories, one of them given to the last reply."""

    async def take(app: ChatApp, pilot: Pilot[None]) -> None:
        app.session.preferences.config.embedder = "off"  # no figure of a file that may be retrained
        memory = app.session.memory
        memory.remember("The kettle in the cellar is broken.", anyway=True)
        pinned = memory.remember("My sister Nora is allergic to walnuts.", anyway=True)
        memory.pin(pinned.memory.id, True)
        first = memory.remember("The wifi code of the shed is ab12.", anyway=True)
        memory.remember("The wifi code of the shed is cd34.", corrects=[first.memory.id])
        await keys(*steps)(app, pilot)

    return take


def test_memory(picture: Any, size: tuple[int, int]) -> None:
    picture(size, remembered("f5", "down"), "How do I descale a kettle?")


def test_a_memory_search_says_why(picture: Any, size: tuple[int, int]) -> None:
    picture(size, remembered("f5", "slash", *"code"), "How do I descale a kettle?")


def test_sources_under_a_reply(picture: Any, size: tuple[int, int]) -> None:
    async def asked(app: ChatApp, pilot: Pilot[None]) -> None:
        await remembered()(app, pilot)
        talk(app.session, "How do I descale it?")
        talk(app.session, "Is the kettle in the cellar broken?")
        await app.refresh_conversation()
        await until_shown(app, pilot, "from memory")
        await keys("up")(app, pilot)

    picture(size, asked)


def test_statistics(picture: Any, size: tuple[int, int]) -> None:
    """Eight weeks of opinions about one reply after another; meaning is left out, as it is a figure
    of a file that may be retrained."""

    async def judged(app: ChatApp, pilot: Pilot[None]) -> None:
        app.session.preferences.config.embedder = "off"
        log = app.session.store.feedback
        kinds: list[Kind] = ["down", "correction", "up", "down", "up", "regeneration", "up", "up"]
        for number, kind in enumerate(kinds * 2):
            record = ReplyRecord([], "Boil it, then rinse it twice.", message=number, model="tiny")
            better = "Boil it, let it stand, then rinse it twice." if kind == "correction" else None
            row = log.add(kind, record, correction=better)
            moment = datetime(2026, 3, 2, 12) + timedelta(days=3.5 * number)
            with log.database.write() as connection:
                when = int(moment.timestamp() * 1000)
                connection.execute("update feedback set created = ? where id = ?", (when, row.id))
        await app.run_action("stats")
        await until(pilot, lambda: app.screen.query(".plot"))
        await settle(pilot)

    picture(size, judged)


def test_delete(picture: Any, size: tuple[int, int]) -> None:
    async def delete(app: ChatApp, pilot: Pilot[None]) -> None:
        app.session.feedback.rate(app.session.path[1], "up")
        await app.run_action("delete")
        await until(pilot, lambda: app.screen is not app.main)
        await settle(pilot)

    picture(size, delete, "How do I descale a kettle?")


def test_the_model_picker(picture: Any, size: tuple[int, int]) -> None:
    picture(size, keys("f3"))


def test_what_no_longer_fits(picture: Any, size: tuple[int, int]) -> None:
    async def too_much(app: ChatApp, pilot: Pilot[None]) -> None:
        app.prompt.load_text("lime " * 4000)
        await pilot.press("enter")
        await until(pilot, lambda: app.screen is not app.main)
        app.prompt.clear()
        await settle(pilot)

    picture(size, too_much, "How do I descale a kettle?")


def test_an_error(picture: Any, size: tuple[int, int]) -> None:
    async def at_the_end(app: ChatApp, pilot: Pilot[None]) -> None:
        # The banner took rows from the view; the scrollbar moves at its next chance.
        app.transcript.scroll_end(animate=False)
        await settle(pilot)

    picture(size, at_the_end, "How do I descale a kettle?", model="/home/ada/broken.gguf")


def test_help(picture: Any, size: tuple[int, int]) -> None:
    picture(size, keys("f1"))


def test_the_palette(picture: Any, size: tuple[int, int]) -> None:
    picture(size, keys("ctrl+p"))


def test_light(picture: Any) -> None:
    async def light(app: ChatApp, pilot: Pilot[None]) -> None:
        app.theme = "selm-light"
        await settle(pilot)

    picture((80, 24), light, "How do I descale a kettle?")


ENSEMBLE: dict[str, Any] = {
    "experts": ["general", "medical", "math"], "words_each": 9, "drafts": True, "mean_layers": 9.25,
}  # fmt: skip


def coloured(theme: str) -> Steps:
    """Turn the colours on, then ask."""

    async def steps(app: ChatApp, pilot: Pilot[None]) -> None:
        app.theme = theme
        for text in ("/colours", "How do I descale a kettle?"):
            app.prompt.load_text(text)
            await pilot.press("enter")
            await settle(pilot)
        await until(pilot, lambda: app.idle and len(app.transcript.turns) == 2)
        app.clear_notifications()
        await until_shown(app, pilot, "Never mix acids")

    return steps


def test_colours_by_expert(picture: Any, size: tuple[int, int]) -> None:
    picture(size, coloured("selm-dark"), **ENSEMBLE)


def test_colours_by_expert_in_the_light(picture: Any) -> None:
    picture((80, 24), coloured("selm-light"), **ENSEMBLE)


def test_an_ensemble_without_colours(picture: Any) -> None:
    async def ask(app: ChatApp, pilot: Pilot[None]) -> None:
        app.prompt.load_text("How do I descale a kettle?")
        await pilot.press("enter")
        await until(pilot, lambda: app.idle and len(app.transcript.turns) == 2)
        await until_shown(app, pilot, "Never mix acids")

    picture((80, 24), ask, **ENSEMBLE)


OTHERWISE = """**White vinegar** is enough:

- half vinegar, half water,
- boil it, wait twenty minutes,
- rinse it *twice*.

Citric acid smells less: two spoons for a litre."""


@pytest.fixture
def ordered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reply that was there comes first."""
    monkeypatch.setattr("random.shuffle", lambda _: None)


def compared(*names: str) -> Steps:
    async def steps(app: ChatApp, pilot: Pilot[None]) -> None:
        app.session.models.engine.replies = [OTHERWISE]  # type: ignore[attr-defined]
        await pilot.press("up", "a")
        await until(pilot, lambda: app.screen is not app.main)
        await until(pilot, lambda: getattr(app.screen, "_asked", False))
        await keys(*names)(app, pilot)

    return steps


def test_two_replies(picture: Any, size: tuple[int, int], ordered: None) -> None:
    picture(size, compared("right"), "How do I descale a kettle?")


def test_two_replies_of_which_one_is_being_written(
    picture: Any, size: tuple[int, int], ordered: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = FakeStream.__next__

    def stops_half_way(stream: FakeStream) -> str:
        if stream.stats.tokens == 20:
            stream._session.cancelled.wait(60)
        return whole(stream)

    async def half(app: ChatApp, pilot: Pilot[None]) -> None:
        monkeypatch.setattr(FakeStream, "__next__", stops_half_way)
        app.session.models.engine.replies = [OTHERWISE]  # type: ignore[attr-defined]
        await pilot.press("up", "a")
        await until(pilot, lambda: app._reply and app._reply.stats.tokens == 20)
        await settle(pilot)

    picture(size, half, "How do I descale a kettle?")


def test_the_reply_that_was_taken(picture: Any, ordered: None) -> None:
    async def taken(app: ChatApp, pilot: Pilot[None]) -> None:
        await compared("2")(app, pilot)
        await until(pilot, lambda: app.screen is app.main and app.idle)
        await until_shown(app, pilot, "Citric acid")
        await pilot.press("up")
        await settle(pilot)

    picture((80, 24), taken, "How do I descale a kettle?")


def asked(*names: str) -> Steps:
    """As at a quiet moment, about a reply of another talk."""

    async def steps(app: ChatApp, pilot: Pilot[None]) -> None:
        reply = "It should be pruned in late winter, before the buds swell; cut just above one."
        turn = Unrated(1, "How do I prune the roses in my garden?", reply, 0, "selm-mini", 2.0, 0.9)
        app.session.judging.question = lambda: turn  # type: ignore[method-assign]
        app._quiet_moment()
        await until(pilot, lambda: app.question)
        await settle(pilot)
        await until_shown(app, pilot, "138 tokens")
        await keys(*names)(app, pilot)
        await until_shown(app, pilot, "138 tokens")

    return steps


def test_a_question_at_a_quiet_moment(picture: Any, size: tuple[int, int]) -> None:
    picture(size, asked(), "How do I descale a kettle?")


def test_the_question_is_selected(picture: Any, size: tuple[int, int]) -> None:
    picture(size, asked("up"), "How do I descale a kettle?")


def test_too_small(picture: Any) -> None:
    picture((20, 6), keys())


def test_small(picture: Any) -> None:
    picture((40, 11), keys(), "How do I descale a kettle?")
