"""Experts and drafts in the chat: the status line, the colours, who speaks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.chatting import FakeSource
from support.driving import Driver, driven
from textual.widgets import Markdown, Switch

from selm_edge.chat.experts import Spoken
from selm_edge.chat.screens.settings import SettingsScreen
from selm_edge.chat.widgets.spoken import SpokenText, content
from selm_edge.chat.widgets.status import Status, StatusLine

NAMES = ["general", "medical"]
WORDS = "One two three four five six seven eight nine ten."


def ensemble(**options: Any) -> FakeSource:
    engine = {"experts": NAMES, "words_each": 4, "drafts": True, **options}
    return FakeSource([WORDS], engine_options=engine)


def shown(chat: Driver) -> list[str]:
    return [str(body.render()) for body in chat.app.query(SpokenText)]


# -- the status line ---------------------------------------------------------------------------


async def test_the_status_line_says_who_spoke_and_how_guessing_went(tmp_path: Path) -> None:
    async with driven(tmp_path, ensemble(mean_layers=9.25), size=(140, 24)) as chat:
        await chat.say("Count")
        line = chat.app.status_line.line(140).plain
        assert "general 64%" in line  # 7 of 11 words
        assert "drafts 60%" in line
        assert "layers 9.2/12" in line and "context ▱" in line
        await chat.press(*"/model other", "enter")
        await chat.until(lambda: chat.app.status_line.status.model == "other")
        assert "general" not in chat.app.status_line.line(140).plain


async def test_it_says_nothing_where_there_is_nothing_to_say(tmp_path: Path) -> None:
    source = FakeSource([WORDS], engine_options={"mean_layers": 12.0})
    async with driven(tmp_path, source, size=(140, 24)) as chat:
        await chat.say("Count")
        line = chat.app.status_line.line(140).plain
        assert "drafts" not in line and "layers" not in line and "%" in line


def test_a_narrow_line_keeps_what_matters_most() -> None:
    line = StatusLine()
    line.status = Status(
        "selm-mini", "ready", 21.3, 40, 100, {"medical": 4, "math": 1}, 0.62, 6, 12
    )
    assert line.line(100).plain == (
        "● selm-mini   21.3 tok/s   medical 80%   drafts 62%   layers 6.0/12   "
        "context ▰▰▰▰▱▱▱▱▱▱ 40% of 100"
    )
    assert line.line(80).plain.endswith("medical 80%   drafts 62%   layers 6.0/12   40% full")
    assert line.line(64).plain == "● selm-mini   21.3 tok/s   medical 80%   drafts 62%   40% full"
    assert line.line(30).plain == "● selm-mini   40% full"


# -- colours -----------------------------------------------------------------------------------


async def test_colours_show_who_spoke_and_can_be_taken_back(tmp_path: Path) -> None:
    async with driven(tmp_path, ensemble()) as chat:
        await chat.say("Count")
        assert not chat.app.query(SpokenText) and len(chat.app.query(Markdown)) == 1
        await chat.press(*"/colours", "enter")
        await chat.until(lambda: len(shown(chat)) == 1 and not chat.app.query(Markdown))
        assert shown(chat) == [f"{WORDS}\n\nSpoken by  general 64% · medical 36%"]
        await chat.say("Again")  # one that is made meanwhile is shown in the same way
        assert len(shown(chat)) == 2 and not chat.app.query(Markdown)
        await chat.press(*"/colours", "enter")
        await chat.until(lambda: len(chat.app.query(Markdown)) == 2 and not shown(chat))
        assert chat.texts[1] == WORDS  # nothing of it is in what is kept
        assert any("Markdown" in told for told in chat.told)


async def test_the_colours_are_a_setting_that_is_kept(tmp_path: Path) -> None:
    async with driven(tmp_path, ensemble()) as chat:
        await chat.say("Count")
        await chat.press("f4")
        screen = await chat.screen(SettingsScreen)
        screen.query_one("#set-colours", Switch).value = True
        await chat.press("ctrl+s")
        await chat.main()
        await chat.until(lambda: len(shown(chat)) == 1)
    async with driven(tmp_path, ensemble()) as chat:
        assert chat.session.colours
        await chat.app.open_conversation(1)
        await chat.until(lambda: len(shown(chat)) == 1)  # who spoke is stored with the reply
        await chat.press(*"/set colour_experts no", "enter")
        await chat.until(lambda: not chat.session.colours)


async def test_a_model_without_experts_has_no_such_setting(chat: Driver) -> None:
    await chat.press(*"/colours", "enter")
    await chat.until(lambda: any("selm-mini has no experts" in told for told in chat.told))
    await chat.say("Hi")
    assert len(chat.app.query(Markdown)) == 1 and not chat.app.query(SpokenText)
    await chat.press("f4")
    screen = await chat.screen(SettingsScreen)
    assert not screen.query("#set-colours")


async def test_a_stopped_reply_keeps_its_colours(tmp_path: Path) -> None:
    source = ensemble()
    source.replies, source.delay = ["word " * 2000], 0.005
    async with driven(tmp_path, source) as chat:
        chat.session.set_colours(True)
        chat.app.prompt.load_text("Q")
        await chat.press("enter")
        await chat.until(lambda: shown(chat) and "Spoken by" in shown(chat)[0])
        await chat.press("escape")
        await chat.until(lambda: chat.app.idle)
        assert shown(chat)[0].startswith(chat.texts[1].rstrip())


def test_no_two_experts_look_the_same_and_markup_is_text() -> None:
    names = [f"e{i}" for i in range(12)]
    spoken = Spoken(names, [(name, f"[b]{name}[/b] ") for name in names], dict.fromkeys(names, 1))
    made = content(spoken)
    assert made.plain.startswith("[b]e0[/b] [b]e1[/b]")
    styles = [str(span.style) for span in made.spans]
    assert len(set(styles[:12])) == 12
    assert len({style.replace("$text-", "").split(" ", 1)[-1] for style in styles[1:6]}) == 5


# -- who speaks --------------------------------------------------------------------------------


async def test_an_expert_is_chosen_by_name(tmp_path: Path) -> None:
    async with driven(tmp_path, ensemble()) as chat:
        await chat.press(*"/expert medical", "enter")
        await chat.until(lambda: chat.session.experts.asked == "medical")
        await chat.say("Count")
        assert chat.source.engine.asked == [("auto", "medical")]
        assert "medical   drafts" in chat.app.status_line.line(140).plain
        chat.app.prompt.load_text("/expert poet")
        await chat.press("enter")
        await chat.until(lambda: any("no expert 'poet'" in told for told in chat.told))
        assert chat.app.prompt.text == "/expert poet" and chat.session.experts.asked == "medical"
        chat.app.prompt.load_text("/expert")
        await chat.press("enter")
        await chat.until(lambda: "medical speaks" in chat.told[-1])


async def test_another_model_without_that_expert_decides_again(tmp_path: Path) -> None:
    source = ensemble()
    async with driven(tmp_path, source, wait=False) as chat:
        chat.session.experts.asked, chat.session.draft = "medical", "lookup"
        await chat.ready()
        await chat.say("Count")
        assert source.engine.asked == [("lookup", "medical")]
        source.engine_options = {}
        await chat.press(*"/model other", "enter")
        await chat.until(lambda: "other has no expert 'medical'" in chat.banner)
        await chat.until(lambda: chat.app.status_line.status.model == "other")
        await chat.say("Again")
        assert source.engine.asked == [("lookup", None)]
