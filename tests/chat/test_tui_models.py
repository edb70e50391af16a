"""Models, settings, and what no longer fits."""

from __future__ import annotations

from pathlib import Path

from support.chatting import FakeSource
from support.driving import Driver, driven
from textual.widgets import Input, OptionList, Static, TextArea

from selm_edge.chat.screens.models import ModelScreen
from selm_edge.chat.screens.overflow import OverflowScreen
from selm_edge.chat.screens.settings import SettingsScreen
from selm_edge.chat.widgets.turns import ContextDivider

# -- models ------------------------------------------------------------------------------------


async def test_models_are_picked_and_remembered(chat: Driver) -> None:
    await chat.press("f3")
    screen = await chat.screen(ModelScreen)
    assert screen.query_one(OptionList).option_count == 2
    await chat.choose("other")
    await chat.until(lambda: chat.session.model and chat.session.model.name == "other")
    assert chat.session.preferences.config.model == "other"
    await chat.until(lambda: "other" in chat.app.status_line.line(80).plain)


async def test_a_model_by_its_path(chat: Driver) -> None:
    await chat.press("f3")
    screen = await chat.screen(ModelScreen)
    screen.query_one(Input).focus()
    await chat.press(*"~/x/mine.gguf", "enter")
    await chat.until(lambda: chat.session.model and chat.session.model.name == "mine")
    assert chat.source.opened[-1][0] == str(Path.home() / "x" / "mine.gguf")


async def test_a_bad_model_says_why_and_the_old_one_stays(chat: Driver) -> None:
    chat.app.prompt.load_text("/model /models/broken.gguf")
    await chat.press("enter")
    await chat.until(lambda: "magic" in chat.banner)
    assert "byte 0" in chat.banner and "Still using selm-mini" in chat.banner
    await chat.say("still there?")
    assert chat.texts[-1] == "Hello from the fake engine."


async def test_files_can_be_browsed(chat: Driver, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "found.gguf").write_bytes(b"GGUF")
    (tmp_path / "m" / "notes.txt").write_text("x")
    await chat.press("f3")
    screen = await chat.screen(ModelScreen)
    screen.query_one(Input).value = str(tmp_path / "m")
    await chat.press("f3")
    from selm_edge.chat.screens.models import GgufTree

    await chat.until(lambda: screen.query(GgufTree))
    tree = screen.query_one(GgufTree)
    await chat.until(lambda: len(tree.root.children) == 1)
    assert str(tree.root.children[0].label) == "found.gguf"
    await chat.press("down", "enter")
    await chat.until(lambda: chat.session.model and chat.session.model.name == "found")


async def test_a_model_can_be_changed_while_a_reply_is_made(tmp_path: Path) -> None:
    async with driven(tmp_path, FakeSource(["word " * 2000], delay=0.005)) as chat:
        chat.app.prompt.load_text("Q")
        await chat.press("enter")
        await chat.until(lambda: chat.app._reply and chat.app._reply.text)
        chat.app.load_model("other")
        await chat.until(lambda: chat.session.model and chat.session.model.name == "other")
        assert chat.session.path[1].facts.finish_reason == "cancelled"
        assert chat.source.engines[0].closed


# -- settings ----------------------------------------------------------------------------------


async def test_settings_are_kept_and_used(chat: Driver) -> None:
    await chat.press("f4")
    screen = await chat.screen(SettingsScreen)
    screen.query_one("#set-system", TextArea).load_text("Be brief.")
    screen.query_one("#set-temperature", Input).value = "0"
    screen.query_one("#set-seed", Input).value = "7"
    await chat.press("ctrl+s")
    await chat.main()
    await chat.say("Q")
    assert chat.source.engine.samplings[-1].temperature == 0
    assert chat.source.engine.samplings[-1].seed == 7
    assert "Be brief." in chat.source.engine.prompts[-1]


async def test_settings_that_were_not_touched_stay_as_they_are(chat: Driver) -> None:
    await chat.say("Q")
    chat.session.change_setting("penalty_last_n", "10")
    assert chat.session.conversation
    chat.session.store.conversations.set_system(chat.session.conversation.id, "Only here.")
    chat.session.reload()
    await chat.press("f4")
    await chat.screen(SettingsScreen)
    await chat.press("ctrl+s")
    await chat.main()
    assert chat.session.sampling.penalty_last_n == 10 and chat.session.system == "Only here."
    assert chat.session.preferences.config.system is None
    await chat.press("f4")
    screen = await chat.screen(SettingsScreen)
    screen.query_one("#set-context", Input).value = ""
    screen.query_one("#set-top_k", Input).value = "7"
    await chat.press("ctrl+s")
    await chat.main()
    assert chat.session.preferences.config.context == 4096
    assert chat.session.sampling.penalty_last_n == 10 and chat.session.sampling.top_k == 7
    chat.app.load_model("other")
    await chat.until(lambda: chat.session.model and chat.session.model.name == "other")


async def test_a_wrong_setting_is_said_and_nothing_is_kept(chat: Driver) -> None:
    for field, value, words in (
        ("temperature", "hot", "not a number"),
        ("top_k", "1.5", "not a whole number"),
        ("top_p", "7", "from 0 to 1"),
        ("context", "3", "from 16 to"),
    ):
        await chat.press("f4")
        screen = await chat.screen(SettingsScreen)
        screen.query_one(f"#set-{field}", Input).value = value
        await chat.press("ctrl+s")
        line = screen.query_one("#settings-error", Static)
        await chat.until(lambda line=line, words=words: words in str(line.render()))  # type: ignore[misc]
        assert screen.query_one(f"#set-{field}", Input).has_focus
        await chat.press("escape")
        await chat.main()
    assert chat.session.preferences.config.sampling == {}


async def test_settings_by_command(chat: Driver) -> None:
    for command, words in (
        ("/set temperature 0.2", "temperature is 0.2"),
        ("/set temperature default", "temperature is 0.7"),
        ("/set temperature 1000", "temperature is a number"),
        ("/set nonsense 1", "context, max_tokens"),
        ("/set max_tokens 99", "max_tokens is 99"),
        ("/set enter_sends no", "Ctrl+J sends"),
        ("/set enter_sends yes", "Enter sends"),
        ("/system Be kind.", "system prompt holds"),
    ):
        chat.app.prompt.load_text(command)
        chat.app.prompt.enter_sends = True
        await chat.press("enter")
        await chat.until(lambda words=words: chat.told and words in chat.told[-1])  # type: ignore[misc]
    assert chat.session.system == "Be kind." and chat.session.max_tokens == 99


async def test_a_larger_context_reopens_the_model(chat: Driver) -> None:
    await chat.press("f4")
    screen = await chat.screen(SettingsScreen)
    screen.query_one("#set-context", Input).value = "8192"
    await chat.press("ctrl+s")
    await chat.until(lambda: chat.source.opened[-1] == ("selm-mini", 8192))
    await chat.until(lambda: chat.session.model and chat.session.model.context == 8192)


async def test_the_theme_is_kept(tmp_path: Path) -> None:
    async with driven(tmp_path) as chat:
        assert chat.app.theme == "selm-dark"
        chat.app.theme = "nord"
        await chat.until(lambda: chat.session.preferences.config.theme == "nord")
    async with driven(tmp_path) as chat:
        assert chat.app.theme == "nord"


# -- what no longer fits -----------------------------------------------------------------------


async def full_chat(chat: Driver) -> None:
    chat.app.load_model("selm-mini", 400)
    await chat.until(lambda: chat.session.model and chat.session.model.context == 400)
    for number in range(5):
        await chat.say(f"Question {number}")
    chat.app.prompt.focus()
    chat.app.prompt.load_text("word " * 60)
    await chat.press("enter")
    await chat.screen(OverflowScreen)


LONG = ["reply " * 40]


async def test_the_oldest_turns_stay_out_marked(tmp_path: Path) -> None:
    async with driven(tmp_path, FakeSource(LONG)) as chat:
        await full_chat(chat)
        assert len(chat.session.path) == 10  # nothing has happened yet
        await chat.choose("drop")
        await chat.until(lambda: chat.app.idle and len(chat.session.path) == 12)
        await chat.until(lambda: len(chat.app.query(ContextDivider)) == 1)
        assert "Question 0" not in chat.source.engine.prompts[-1]
        assert chat.shown[0] == "Question 0"


async def test_the_question_can_go_to_a_new_conversation(tmp_path: Path) -> None:
    async with driven(tmp_path, FakeSource(LONG)) as chat:
        await full_chat(chat)
        await chat.choose("new")
        await chat.until(lambda: chat.app.idle and len(chat.session.path) == 2)
        assert len(chat.session.store.conversations.recent()) == 2


async def test_the_context_can_grow(tmp_path: Path) -> None:
    async with driven(tmp_path, FakeSource(LONG)) as chat:
        await full_chat(chat)
        await chat.choose("larger")
        await chat.until(lambda: chat.app.idle and len(chat.session.path) == 12)
        assert chat.session.model and chat.session.model.context == 800
        assert not chat.app.query(ContextDivider)


async def test_one_can_go_back_and_nothing_is_lost(tmp_path: Path) -> None:
    async with driven(tmp_path, FakeSource(LONG)) as chat:
        await full_chat(chat)
        await chat.press("escape")
        await chat.until(lambda: chat.app.idle)
        assert chat.app.prompt.text == ("word " * 60).strip()
        assert len(chat.session.path) == 10
