"""The list of conversations, files, and the clipboard."""

from __future__ import annotations

from pathlib import Path

from support.chatting import FakeSource
from support.driving import Driver, driven
from textual.widgets import Input, OptionList, Static

from selm_edge.chat.screens.ask import DeleteScreen, TextScreen
from selm_edge.chat.screens.conversations import ConversationsScreen
from selm_edge.chat.widgets.transcript import EmptyPage

CODE = "Here:\n\n```py\nprint(1)\n```\n\nand\n\n```sh\nls\n```\n\nDone."


# -- conversations -----------------------------------------------------------------------------


async def three_conversations(chat: Driver) -> None:
    for question in ("Kettles and lime", "Tulips in autumn", "Sums"):
        await chat.press("ctrl+n")
        await chat.say(question)


async def test_conversations_are_listed_searched_and_opened(chat: Driver) -> None:
    await three_conversations(chat)
    await chat.press("f2")
    screen = await chat.screen(ConversationsScreen)
    options = screen.query_one(OptionList)
    assert options.option_count == 3 and options.has_focus
    await chat.press("slash", *"tulip")
    await chat.until(lambda: options.option_count == 1)
    await chat.press("enter", "enter")
    await chat.main()
    await chat.until(lambda: chat.shown[:1] == ["Tulips in autumn"])
    await chat.press("ctrl+f")
    screen = await chat.screen(ConversationsScreen)
    assert screen.query_one(Input).has_focus
    await chat.press(*'"no such', "escape")
    await chat.main()


async def test_rename_and_delete_in_the_list(chat: Driver) -> None:
    await three_conversations(chat)
    await chat.press("f2")
    await chat.screen(ConversationsScreen)
    await chat.press("r")
    screen = await chat.screen(TextScreen)
    screen.query_one(Input).value = "Numbers"
    await chat.press("enter")
    await chat.screen(ConversationsScreen)
    await chat.until(lambda: chat.session.store.conversations.recent()[0].title == "Numbers")
    await chat.press("d")
    screen = await chat.screen(DeleteScreen)
    assert "cannot be undone" in str(screen.query_one(".note", Static).render())
    await chat.press("enter")  # the first choice is to keep it
    await chat.screen(ConversationsScreen)
    assert len(chat.session.store.conversations.recent()) == 3
    await chat.press("d")
    await chat.screen(DeleteScreen)
    await chat.choose("all")
    await chat.screen(ConversationsScreen)
    await chat.until(lambda: len(chat.session.store.conversations.recent()) == 2)
    await chat.press("escape")
    await chat.main()
    await chat.until(lambda: chat.app.query(EmptyPage))  # the one on show is gone


async def test_delete_the_one_on_show_and_keep_its_feedback(chat: Driver) -> None:
    await chat.say("Q")
    await chat.last_reply()
    await chat.press("plus")
    chat.app.prompt.load_text("/delete")
    chat.app.prompt.focus()
    await chat.press("enter")
    await chat.screen(DeleteScreen)
    await chat.choose("keep")
    await chat.main()
    await chat.until(lambda: chat.session.conversation is None)
    assert any("No byte" in told for told in chat.told)
    assert chat.session.store.feedback.count() == 1


async def test_export_by_key_by_list_and_by_command(chat: Driver, tmp_path: Path) -> None:
    await chat.say("Q")
    await chat.press("ctrl+s")
    screen = await chat.screen(TextScreen)
    assert screen.query_one(Input).value.endswith("q.md")
    screen.query_one(Input).value = str(tmp_path / "a.json")
    await chat.press("enter")
    await chat.until((tmp_path / "a.json").exists)
    await chat.press("f2")
    await chat.screen(ConversationsScreen)
    await chat.press("e")
    screen = await chat.screen(TextScreen)
    screen.query_one(Input).value = str(tmp_path / "b.md")
    await chat.press("enter")
    await chat.until((tmp_path / "b.md").exists)
    await chat.screen(ConversationsScreen)
    await chat.press("escape")
    await chat.main()
    chat.app.prompt.load_text(f"/export {tmp_path / 'no' / 'such' / 'c.md'}")
    await chat.press("enter")
    await chat.until((tmp_path / "no" / "such" / "c.md").exists)


async def test_rename_by_command_and_by_dialog(chat: Driver) -> None:
    await chat.app.run_action("rename")
    await chat.until(lambda: chat.told and "ask something first" in chat.told[-1])
    await chat.say("Q")
    chat.app.prompt.load_text("/rename A better title")
    await chat.press("enter")
    await chat.until(lambda: "A better title" in str(chat.app.query_one("#top", Static).render()))
    chat.app.prompt.load_text("/rename")
    await chat.press("enter")
    screen = await chat.screen(TextScreen)
    assert screen.query_one(Input).value == "A better title"
    await chat.press("escape")
    await chat.main()


# -- copying -----------------------------------------------------------------------------------


async def test_copy_the_turn_the_code_and_to_a_file(tmp_path: Path) -> None:
    async with driven(tmp_path, FakeSource([CODE])) as chat:
        await chat.say("Q")
        await chat.last_reply()
        await chat.press("c")
        assert chat.app.clipboard == CODE
        await chat.press("k")
        assert chat.app.clipboard == "ls"
        await chat.press("k")
        assert chat.app.clipboard == "print(1)"
        await chat.press("up", "c")
        assert chat.app.clipboard == "Q"
        await chat.press("w")
        screen = await chat.screen(TextScreen)
        screen.query_one(Input).value = str(tmp_path / "turn.md")
        await chat.press("enter")
        await chat.until((tmp_path / "turn.md").exists)
        assert (tmp_path / "turn.md").read_text() == "Q\n"
        await chat.main()
        for command, expected in (("last", CODE), ("code", "ls")):
            chat.app.prompt.focus()
            chat.app.prompt.load_text(f"/copy {command}")
            await chat.press("enter")
            await chat.until(lambda expected=expected: chat.app.clipboard == expected)  # type: ignore[misc]
        chat.app.prompt.load_text(f"/copy all {tmp_path / 'all.md'}")
        await chat.press("enter")
        await chat.until((tmp_path / "all.md").exists)
        chat.app.prompt.load_text("/copy nonsense")
        await chat.press("enter")
        await chat.until(lambda: "last, code, all" in chat.told[-1])


async def test_links_are_copied_and_never_opened(tmp_path: Path) -> None:
    async with driven(tmp_path, FakeSource(["See [here](https://example.org/x)."])) as chat:
        opened: list[str] = []
        chat.app.open_url = lambda url, **_: opened.append(url)  # type: ignore[method-assign]
        await chat.say("Q")
        from textual.widgets import Markdown

        view = chat.app.query_one(Markdown)
        view.post_message(Markdown.LinkClicked(view, "https://example.org/x"))
        await chat.until(lambda: chat.app.clipboard == "https://example.org/x")
        assert opened == []


async def test_terminal_control_of_a_model_is_not_shown(tmp_path: Path) -> None:
    source = FakeSource(["before \x1b]52;c;ZXZpbA==\x07\x1b[2J after"])
    async with driven(tmp_path, source) as chat:
        await chat.say("Q \x1b[31m")
        assert [text.strip() for text in chat.shown] == ["Q", "before  after"]
        assert "\x1b" not in "".join(chat.shown)
