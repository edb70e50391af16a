"""Every action of the chat in one table: keys, palette, F1 help and slash commands read it.

An action ``name`` is ``action_<name>`` of the app and ``do_<name>`` of the plain mode.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Where = Literal["anywhere", "turn", "prompt"]


@dataclass(frozen=True)
class Command:
    """One action. ``keys`` are Textual's names, ``shown`` how people read them.

    ``where``: keys of ``turn`` work while a turn is selected, those of ``prompt`` while writing.
    ``slash`` is the word typed in either face; ``argument`` what may follow it.
    """

    name: str
    title: str
    help: str
    keys: str = ""
    shown: str = ""
    where: Where = "anywhere"
    slash: str = ""
    argument: str = ""
    palette: bool = True


COMMANDS: tuple[Command, ...] = (
    Command("send", "Send", "Send what you wrote.", "", "Enter", "prompt", palette=False),
    Command(
        "newline",
        "New line",
        "Begin a new line; a paste of many lines never sends.",
        "",
        "Ctrl+J",
        "prompt",
        palette=False,
    ),
    Command(
        "stop",
        "Stop",
        "Stop the reply and keep what there is; else go back to writing.",
        "escape",
        "Esc",
    ),
    Command(
        "turns",
        "Select a turn",
        "From the first line of the prompt, up to the last turn.",
        "",
        "↑",
        "prompt",
    ),
    Command(
        "new", "New conversation", "Begin with an empty page.", "ctrl+n", "Ctrl+N", slash="new"
    ),
    Command(
        "conversations",
        "Conversations",
        "List, search, open, rename, delete and export them.",
        "f2",
        "F2",
        slash="list",
    ),
    Command(
        "search",
        "Search all conversations",
        "Find the turns that hold these words.",
        "ctrl+f",
        "Ctrl+F",
        slash="search",
        argument="WORDS",
    ),
    Command(
        "open",
        "Open a conversation",
        "Open one by its number in the list.",
        slash="open",
        argument="NUMBER",
        palette=False,
    ),
    Command(
        "rename",
        "Rename this conversation",
        "Give it a title of your own.",
        slash="rename",
        argument="TITLE",
    ),
    Command(
        "delete",
        "Delete this conversation",
        "Delete it for real: no byte of it stays.",
        slash="delete",
    ),
    Command(
        "export",
        "Export this conversation",
        "Write it to a file: Markdown, or every branch where the name ends in .json.",
        "ctrl+s",
        "Ctrl+S",
        slash="export",
        argument="[FILE]",
    ),
    Command(
        "regenerate",
        "Reply again",
        "Another reply; the old one stays as a version.",
        "r",
        "r",
        "turn",
        "regenerate",
    ),
    Command(
        "edit",
        "Edit the question",
        "Ask in other words; the old branch stays as a version.",
        "e",
        "e",
        "turn",
        "edit",
        "[TEXT]",
    ),
    Command(
        "previous",
        "Previous version",
        "Show the version before this one, and what followed it.",
        "left,left_square_bracket",
        "←",
        "turn",
        "previous",
    ),
    Command(
        "next",
        "Next version",
        "Show the version after this one, and what followed it.",
        "right,right_square_bracket",
        "→",
        "turn",
        "next",
    ),
    Command(
        "good",
        "Good reply",
        "Keep a thumb up for this reply; again takes it back.",
        "plus,g",
        "+",
        "turn",
        "good",
    ),
    Command(
        "bad",
        "Bad reply",
        "Keep a thumb down for this reply; again takes it back.",
        "minus,b",
        "-",
        "turn",
        "bad",
    ),
    Command(
        "correct",
        "Correct the reply",
        "Write the reply you would have liked; the talk goes on with it.",
        "x",
        "x",
        "turn",
        "correct",
        "[TEXT]",
    ),
    Command(
        "compare",
        "Compare two replies",
        "Another beside it, or with and without your adapter; the choice is feedback.",
        "a",
        "a",
        "turn",
        "compare",
        "[again, ADAPTER or back]",
    ),
    Command(
        "copy",
        "Copy",
        "Copy this turn to the clipboard (OSC 52), or to a file.",
        "c,y",
        "c",
        "turn",
        "copy",
        "[last|code|all] [FILE]",
    ),
    Command(
        "copy_code",
        "Copy the code",
        "Copy its last code block; again takes the one before.",
        "k",
        "k",
        "turn",
    ),
    Command("save_turn", "Save to a file", "Write this turn to a file.", "w", "w", "turn"),
    Command(
        "remember",
        "Remember",
        "Keep a fact about you or your world, or what was just proposed.",
        "ctrl+r",
        "Ctrl+R",
        slash="remember",
        argument="[TEXT]",
    ),
    Command(
        "memory",
        "Memory",
        "See, search, change and forget what is remembered; on or off for this conversation.",
        "f5",
        "F5",
        slash="memory",
        argument="[WORDS, on or off]",
    ),
    Command(
        "sources",
        "Sources",
        "What of your memory the model was given for this reply.",
        "s",
        "s",
        "turn",
        "sources",
    ),
    Command(
        "forget",
        "Forget",
        "Find a memory and delete it for real: no byte of it stays.",
        slash="forget",
        argument="[WORDS]",
    ),
    Command(
        "space",
        "Space",
        "Keep the memories of a person or project apart.",
        slash="space",
        argument="[NAME]",
    ),
    Command(
        "stats",
        "Statistics",
        "How good your conversations were, over time; with fluency the model reads them too.",
        slash="stats",
        argument="[fluency]",
    ),
    Command(
        "model",
        "Choose a model",
        "A model of this device, or any GGUF file by its path.",
        "f3",
        "F3",
        slash="model",
        argument="[NAME or PATH]",
    ),
    Command(
        "settings",
        "Settings",
        "System prompt, sampling, keys and theme.",
        "f4",
        "F4",
        slash="set",
        argument="[NAME VALUE]",
    ),
    Command(
        "system",
        "System prompt",
        "What the model is told before every conversation.",
        slash="system",
        argument="[TEXT]",
    ),
    Command(
        "expert",
        "Expert",
        "Which of the model's experts speaks; auto leaves it to the model.",
        slash="expert",
        argument="[NAME or auto]",
    ),
    Command(
        "adapter",
        "Adapter",
        "What was learnt from feedback: use one or leave it; back undoes the last change.",
        slash="adapter",
        argument="[NAME, none or back]",
    ),
    Command(
        "colours",
        "Colours by expert",
        "Show who spoke which words, in place of Markdown; again takes it back.",
        slash="colours",
    ),
    Command("theme", "Theme", "Choose the colours; the choice is kept.", slash="theme"),
    Command("help", "Help", "Every action and its key.", "f1", "F1", slash="help"),
    Command(
        "command_palette",
        "All actions",
        "Find any action by its name.",
        "",
        "Ctrl+P",
        palette=False,
    ),
    Command(
        "quit", "Quit", "Close the chat; everything is kept.", "ctrl+q", "Ctrl+Q", slash="quit"
    ),
)

BY_NAME = {command.name: command for command in COMMANDS}
BY_SLASH = {command.slash: command for command in COMMANDS if command.slash}


def parse_slash(text: str) -> tuple[Command, str] | None:
    """``/name rest`` as a command and its argument; None where that is no command.

    A text of several lines is never one, so that pasted text with a leading slash stays text.
    An unambiguous beginning of a name is enough: ``/regen``.
    """
    if not text.startswith("/") or "\n" in text.strip():
        return None
    word, _, rest = text[1:].strip().partition(" ")
    if word in BY_SLASH:
        return BY_SLASH[word], rest.strip()
    found = [name for name in BY_SLASH if word and name.startswith(word)]
    return (BY_SLASH[found[0]], rest.strip()) if len(found) == 1 else None


def unknown_slash(text: str) -> str | None:
    """What to say where ``text`` looks like a command and is none; a path is no command."""
    word = text.split(maxsplit=1)[0] if text.strip() else ""
    if not word.startswith("/") or "/" in word[1:] or "\n" in text.strip():
        return None
    return f"There is no command {word}. /help lists them."
