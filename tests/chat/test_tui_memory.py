"""Memory on the full screen: keeping, seeing, changing, forgetting, and sources under replies."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import pytest
from support.driving import Driver
from textual.widgets import Input, OptionList, Static, TextArea

from selm_edge.chat.screens.ask import TextScreen
from selm_edge.chat.screens.editor import EditorScreen
from selm_edge.chat.screens.memory import (
    ForgetScreen,
    MemoryScreen,
    NearScreen,
    OneMemoryScreen,
)
from selm_edge.chat.widgets.turns import ReplyTurn
from selm_edge.memory.documents import ingest, reading
from selm_edge.memory.documents.blocks import Check

WALNUTS = "My sister Nora is allergic to walnuts."


def text_of(screen: MemoryScreen) -> str:
    options = screen.query_one(OptionList)
    return "\n".join(str(options.get_option_at_index(i).prompt)
                     for i in range(options.option_count))  # fmt: skip


async def command(chat: Driver, text: str) -> None:
    chat.app.prompt.focus()
    chat.app.prompt.load_text(text)
    await chat.press("enter")


async def test_remember_recall_and_the_sources_of_the_reply(chat: Driver) -> None:
    await command(chat, f"/remember {WALNUTS}")
    await chat.until(lambda: any("Remembered." in words for words in chat.told))
    await chat.say("What is Nora allergic to?")
    turn = chat.app.transcript.turns[-1]
    assert isinstance(turn, ReplyTurn)
    meta = turn.query_one(".meta", Static)
    await chat.until(lambda: f"from memory: {WALNUTS}" in str(meta.render()))
    await chat.last_reply()
    await chat.press("s")
    screen = await chat.screen(MemoryScreen)
    assert WALNUTS in text_of(screen) and not screen.query(Input)
    await chat.press("enter")
    whole = await chat.screen(OneMemoryScreen)
    assert "fact from chat" in str(whole.query(".note").first(Static).render())
    await chat.press("escape")
    await chat.screen(MemoryScreen)
    await chat.press("escape")
    await chat.main()


async def test_the_list_searches_says_why_and_changes(chat: Driver) -> None:
    chat.session.preferences.config.embedder = "off"  # of two facts all are near in meaning
    memory = chat.session.memory
    memory.remember(WALNUTS)
    memory.remember("The boiler was serviced in May.")
    await chat.press("f5")
    screen = await chat.screen(MemoryScreen)
    assert screen.query_one(OptionList).option_count == 2
    await chat.press("slash", *"walnut")
    await chat.until(lambda: screen.query_one(OptionList).option_count == 1)
    assert "1. by words (walnuts)" in text_of(screen)
    await chat.press("enter", "p")
    await chat.until(lambda: "pinned" in text_of(screen))
    await chat.press("n")
    await chat.until(lambda: memory.memories.get(1).status == "never")
    screen.query_one(Input).value = ""
    await chat.until(lambda: screen.query_one(OptionList).option_count == 1)
    await chat.press("e")
    editor = await chat.screen(EditorScreen)
    editor.query_one(TextArea).load_text("The boiler was serviced in June.")
    await chat.press("ctrl+s")
    await chat.screen(MemoryScreen)
    await chat.until(lambda: "June" in text_of(screen))
    await chat.press("x")
    editor = await chat.screen(EditorScreen)
    editor.query_one(TextArea).load_text("The boiler was serviced in July.")
    await chat.press("ctrl+s")
    await chat.until(lambda: "correction" in text_of(screen) and "July" in text_of(screen))
    assert memory.memories.get(2).status == "superseded"


async def test_forgetting_asks_first(chat: Driver) -> None:
    chat.session.memory.remember(WALNUTS)
    await command(chat, "/forget walnuts")
    screen = await chat.screen(MemoryScreen)
    screen.query_one(OptionList).focus()
    await chat.press("d")
    asked = await chat.screen(ForgetScreen)
    assert "cannot be undone" in str(asked.query_one(".note", Static).render())
    await chat.press("enter")  # the first choice keeps it
    await chat.screen(MemoryScreen)
    assert chat.session.memory.memories.count() == 1
    await chat.press("d")
    await chat.screen(ForgetScreen)
    await chat.choose("forget")
    await chat.until(lambda: chat.session.memory.memories.count() == 0)
    await chat.until(lambda: "Nothing found." in str(screen.query_one("#hits-note").render()))


async def test_a_proposal_is_kept_by_one_key(chat: Driver) -> None:
    await chat.say("My name is Ada. How are you?")
    await chat.until(lambda: "Remember “My name is Ada.”?" in chat.banner)
    await chat.press("ctrl+r")
    await chat.until(lambda: chat.session.memory.memories.count() == 1)
    await chat.until(lambda: chat.banner == "")
    await chat.say("My cat is called Tom.")
    await chat.until(lambda: "Tom" in chat.banner)
    await chat.press("escape")
    assert chat.banner == ""
    await chat.say("Thank you")  # the moment for it has passed
    await chat.press("ctrl+r")
    await chat.screen(TextScreen)
    assert chat.session.memory.memories.count() == 1


async def test_near_facts_are_the_users_to_decide(chat: Driver) -> None:
    memory = chat.session.memory
    first = "The wifi code of the grey garden shed behind the house is ab12."
    memory.remember(first)
    await command(chat, f"/remember {first.replace('ab12', 'cd34')}")
    screen = await chat.screen(NearScreen)
    assert "ab12" in str(screen.query_one(OptionList).get_option_at_index(0).prompt)
    await chat.press("enter")  # in place of the old one
    await chat.until(lambda: [one.memory.kind for one in memory.search("")] == ["correction"])


async def test_switches_and_spaces(chat: Driver) -> None:
    await command(chat, "/memory off")
    await chat.until(lambda: any("recalls nothing" in words for words in chat.told))
    await command(chat, "/space work")
    await chat.until(lambda: any("work (new)" in words for words in chat.told))
    await chat.say("hello")
    assert chat.session.memory.space_name == "work" and not chat.session.memory.on
    await command(chat, "/space")
    screen = await chat.screen(TextScreen)
    assert "personal" in str(screen.query_one(".note", Static).render())
    screen.query_one(Input).value = "personal"
    await chat.press("enter")
    await chat.until(lambda: chat.session.memory.space_name == "personal")


async def test_reading_a_folder_can_be_stopped(
    chat: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(400):
        (tmp_path / f"file-{number}.txt").write_text(f"Text number {number}. ")
    opened, escaped = itertools.count(1), threading.Event()

    def load(path: Path, check: Check) -> reading.Source:
        if next(opened) > 20:  # however fast the machine is, Esc comes before the last file
            escaped.wait(20)
        return reading.load(path, check)

    monkeypatch.setattr(ingest, "load", load)
    chat.app.prompt.load_text(f"@{tmp_path} what is it?")
    await chat.press("enter")
    memories = chat.session.memory.memories
    await chat.until(lambda: memories.count() > 0)
    assert chat.app.status_line.status.state == "reading"
    await chat.press("escape")
    escaped.set()
    await chat.until(lambda: chat.app.idle)
    assert chat.app.prompt.text == f"@{tmp_path} what is it?" and chat.session.path == []
    await chat.until(lambda: not any(t.name == "selm-ingest" for t in threading.enumerate()))
    read = len(memories.database.rows("select 1 from document where state = 'complete'"))
    assert 0 < read < 400
