"""Every action can be reached."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from support.driving import Driver, driven
from textual.widgets import OptionList, Static

from selm_edge.chat.commands import COMMANDS
from selm_edge.chat.screens.conversations import ConversationsScreen
from selm_edge.chat.screens.help import HelpScreen
from selm_edge.chat.screens.settings import SettingsScreen

# -- every action can be reached ---------------------------------------------------------------


async def test_every_action_exists_and_is_in_the_palette_and_the_help(chat: Driver) -> None:
    palette = {command.title for command in chat.app.get_system_commands(chat.app.screen)}
    for command in COMMANDS:
        if command.where != "prompt":
            assert hasattr(chat.app, f"action_{command.name}"), command.name
        if command.palette:
            assert any(title.startswith(command.title) for title in palette), command.name
    await chat.press("f1")
    await chat.until(lambda: isinstance(chat.app.screen, HelpScreen))
    screen = chat.app.screen
    words = " ".join(str(line.render()) for line in screen.query(".words").results(Static))
    for command in COMMANDS:
        assert command.title in words and command.help in words
    await chat.press("pagedown", "down", "escape")
    await chat.main()


async def test_the_palette_runs_an_action(chat: Driver) -> None:
    await chat.press("ctrl+p")
    await chat.until(lambda: chat.app.screen is not chat.app.main)
    await chat.press(*"settings")
    from textual.command import CommandList

    await chat.until(lambda: chat.app.screen.query_one(CommandList).option_count == 1)
    await chat.press("enter")
    await chat.screen(SettingsScreen)


async def test_slash_commands(chat: Driver) -> None:
    await chat.say("Q")
    chat.app.prompt.load_text("/nonsense")
    await chat.press("enter")
    await chat.until(lambda: "no command /nonsense" in chat.told[-1])
    assert chat.app.prompt.text == "/nonsense"
    chat.app.prompt.load_text("/usr/bin is a path, not a command")
    await chat.press("enter")
    await chat.until(lambda: len(chat.texts) == 4 and chat.app.idle)
    chat.app.prompt.load_text("/edit Other words")
    await chat.press("enter")
    await chat.until(lambda: chat.app.idle and "Other words" in chat.texts)
    chat.app.prompt.load_text("/correct Better.")
    await chat.press("enter")
    await chat.until(lambda: chat.texts[-1] == "Better.")
    chat.app.prompt.load_text("/search better")
    await chat.press("enter")
    screen = await chat.screen(ConversationsScreen)
    assert screen.query_one(OptionList).option_count == 1
    await chat.press("escape")
    await chat.main()
    chat.app.prompt.load_text("/new")
    await chat.press("enter")
    await chat.until(lambda: chat.session.conversation is None)
    chat.app.prompt.load_text("/open 1")
    await chat.press("enter")
    await chat.until(lambda: chat.texts and chat.texts[-1] == "Better.")
    chat.app.prompt.load_text("/open 99")
    await chat.press("enter")
    await chat.until(lambda: "from 1 to 1" in chat.told[-1])


async def test_many_windows_do_not_leak_threads(tmp_path: Path) -> None:
    import threading

    before = threading.active_count()
    for _ in range(3):
        async with driven(tmp_path) as chat:
            await chat.say("Q")
    end = time.monotonic() + 10
    while threading.active_count() > before + 4 and time.monotonic() < end:
        await asyncio.sleep(0.05)  # the loop's own executor keeps a few
    assert threading.active_count() <= before + 4
