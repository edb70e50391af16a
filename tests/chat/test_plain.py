"""The plain chat: the same actions as lines, for screen readers and pipes."""

from __future__ import annotations

import io
import os
import pty
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from support.chatting import FakeSource, make_session, talk

from selm_edge.chat.commands import COMMANDS
from selm_edge.chat.plain import PlainChat
from selm_edge.chat.session import ChatSession

SUPPORT = Path(__file__).parents[1]


def run(
    folder: Path, *lines: str, source: FakeSource | None = None, person: bool = True
) -> tuple[str, ChatSession, int]:
    """What it writes when these lines are typed."""
    session = make_session(folder, source or FakeSource())
    out = io.StringIO()
    typed = io.StringIO("\n".join(lines) + "\n")
    code = PlainChat(session, typed, out, interactive=person).run()
    return out.getvalue(), session, code


def test_a_question_and_its_reply(tmp_path: Path) -> None:
    out, session, code = run(tmp_path, "Hi", "/quit", "never asked")
    assert "Assistant: Hello from the fake engine.\n" in out and code == 0
    assert "\x1b" not in out and "\r" not in out
    assert [turn.text for turn in session.path] == ["Hi", "Hello from the fake engine."]


def test_a_pipe_gets_only_the_replies(tmp_path: Path) -> None:
    out, _, code = run(tmp_path, "Hi", "And?", person=False, source=FakeSource(["One.", "Two."]))
    assert (out, code) == ("One.\nTwo.\n", 0)


def test_a_backslash_goes_on_on_the_next_line(tmp_path: Path) -> None:
    _, session, _ = run(tmp_path, "one\\", "two\\", "three")
    assert session.path[0].text == "one\ntwo\nthree"


def test_every_slash_command_exists_and_is_in_the_help(tmp_path: Path) -> None:
    out, _, _ = run(tmp_path, "/help")
    for command in COMMANDS:
        if command.slash and command.name != "quit":
            assert hasattr(PlainChat, f"do_{command.name}"), command.name
        if command.slash and command.name not in ("theme", "colours"):
            assert f"/{command.slash}" in out and command.help in out


def test_conversations(tmp_path: Path) -> None:
    out, session, _ = run(
        tmp_path,
        "Kettles and lime",
        "/new",
        "Tulips in autumn",
        "/list",
        "/search kettle",
        "/open 1",
        "/rename About kettles",
        "/export " + str(tmp_path / "k.md"),
        "/list",
    )
    assert "1: Tulips in autumn (2 turns, now)\n2: Kettles and lime (2 turns, now)\n" in out
    assert "Conversation: Kettles and lime\nYou: Kettles and lime\nAssistant: Hello" in out
    assert "2: About kettles" in out
    assert (tmp_path / "k.md").read_text().startswith("# About kettles")
    assert session.conversation is not None


def test_delete_asks_first(tmp_path: Path) -> None:
    out, session, _ = run(tmp_path, "Q", "/good", "/delete", "no", "/delete", "yes")
    assert "1 piece of feedback" in out and "Kept.\n" in out and "Deleted." in out
    assert session.store.conversations.recent() == [] and session.store.feedback.count() == 0
    run(tmp_path, "Q", "/delete yes")


def test_forks(tmp_path: Path) -> None:
    source = FakeSource(["first", "second", "third"])
    out, session, _ = run(
        tmp_path, "Q", "/regenerate", "/previous", "/next", "/next", "/edit Other", source=source
    )
    assert "Assistant (version 1 of 2): first" in out
    assert "Assistant (version 2 of 2): second" in out
    assert "Error: there is no version further that way" in out
    assert [turn.text for turn in session.path] == ["Other", "third"]


def test_feedback(tmp_path: Path) -> None:
    out, session, _ = run(
        tmp_path, "Q", "/good", "/good", "/bad", "/correct", "Better", "text", ".", "/edit", "."
    )
    assert out.count("only on this device") == 3 and "Taken back." in out
    assert [row.kind for row in session.store.feedback.rows()] == ["down", "correction"]
    assert session.path[-1].text == "Better\ntext"


def test_statistics_are_said_in_lines(tmp_path: Path) -> None:
    out, _, _ = run(tmp_path, "Hello", "/good", "/stats", "/stats fluency", "/stats x")
    assert "Satisfaction. 100 % of 1 judged reply was good" in out
    assert "good replies, by day: " in out and "Fluency. Perplexity" in out
    assert "Error: statistics of what?" in out and "█" not in out


def test_settings_system_and_models(tmp_path: Path) -> None:
    out, session, _ = run(
        tmp_path,
        "/set",
        "/set temperature 0",
        "/set temperature warm",
        "/system Be brief.",
        "/system",
        "/model",
        "/model other",
        "/model broken",
        "/theme",
    )
    for words in (
        "top_k: 40",
        "temperature is 0.0",
        "Error: temperature: 'warm' is not a number",
        "System prompt: Be brief.",
        "selm-mini, in use",
        "Model: other, 4,096 tokens",
        "magic",
        "Still using other.",
    ):
        assert words in out, words
    assert session.preferences.config.model == "other"


def test_errors_do_not_end_it_but_a_pipe_reports_them(tmp_path: Path) -> None:
    for command in ("/nonsense", "/good", "/edit x", "/rename x", "/open 9", "/copy", "/next"):
        out, _, code = run(tmp_path, command, "/help", person=False)
        assert "Error: " in out and "/export" in out and code == 1, command
    assert run(tmp_path, "/good")[2] == 0


def test_a_model_that_does_not_open(tmp_path: Path) -> None:
    source = FakeSource(broken=("selm-mini",))
    out, _, code = run(tmp_path, "Hi", source=source, person=False)
    assert "magic" in out and "no model is open" in out and code == 1


def test_what_no_longer_fits_is_asked(tmp_path: Path) -> None:
    source = FakeSource(["reply " * 40])
    make_session(tmp_path, source).preferences.change(context=400)
    long = "word " * 60
    talks = [f"Question {n}" for n in range(5)]
    out, session, _ = run(tmp_path, *talks, long, "1", long, "", long, "3", source=source)
    assert "1: leave out the oldest" in out and "2: ask it in a new conversation" in out
    assert "3: open the model with room for 800 tokens" in out
    assert "are no longer sent to the model" in out
    assert session.model and session.model.context == 800
    assert len(session.path) == 14
    piped, _, code = run(tmp_path, *talks, long, source=source, person=False)
    assert "Nothing was sent" in piped and code == 1


def test_terminal_control_is_removed(tmp_path: Path) -> None:
    source = FakeSource(["a\x1b]52;c;eA==\x07b\x1b[2Jc"])
    out, _, _ = run(tmp_path, "Q", source=source)
    assert "Assistant: abc\n" in out


def test_a_full_disk_is_said_and_it_goes_on(tmp_path: Path) -> None:
    session = make_session(tmp_path)
    out = io.StringIO()

    class Typed(io.StringIO):
        def readline(self, *_: object) -> str:  # type: ignore[override]
            line = super().readline()
            if line == "full\n":
                session.store.database._connection.pragma("max_page_count", 1)
                return "long " * 3000 + "\n"
            return line

    PlainChat(session, Typed("before\nfull\nafter\n/good\n"), out, interactive=True).run()
    assert "From here on nothing is saved" in out.getvalue() and "Make room" in out.getvalue()
    assert len(session.path) == 6
    assert len(make_session(tmp_path).store.conversations.recent()) == 1


# -- real processes ------------------------------------------------------------------------------

PROGRAM = """
import signal, sys
# A job in the background starts with the interrupt ignored, and what it starts inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)
from support.chatting import FakeSource
from selm_edge.chat import app, models
slow = "slow" in sys.argv
source = FakeSource(["word " * 2000 if slow else "Hello."], delay=0.01 if slow else 0)
models.CatalogSource = lambda preferences: source
app.run_chat(plain="plain" in sys.argv)
"""


def start(home: Path, *args: str, **options: object) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "SELM_HOME": str(home),
        "PYTHONPATH": os.pathsep.join([str(SUPPORT), *sys.path]),
        **options.pop("env", {}),  # type: ignore[dict-item]
    }
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *args],
        env=environment,
        **options,  # type: ignore[call-overload]
    )


def test_without_a_terminal_it_is_plain_by_itself(tmp_path: Path) -> None:
    process = start(tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate(b"Hi\n", timeout=60)
    assert (out, err, process.returncode) == (b"Hello.\n", b"", 0)


def on_terminal(home: Path, *args: str, term: str) -> tuple[subprocess.Popen[bytes], int]:
    ours, theirs = pty.openpty()
    process = start(
        home, *args, env={"TERM": term}, stdin=theirs, stdout=theirs, stderr=theirs,
        start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    return process, ours


def read_until(terminal: int, words: bytes, seconds: float = 60) -> bytes:
    got, end = b"", time.monotonic() + seconds
    while words not in got:
        assert time.monotonic() < end, got
        if not select.select([terminal], [], [], 1)[0]:
            continue
        try:
            got += os.read(terminal, 4096)
        except OSError:
            break
    assert words in got, got
    return got


def test_a_dumb_terminal_gets_lines(tmp_path: Path) -> None:
    process, terminal = on_terminal(tmp_path, term="dumb")
    read_until(terminal, b"You: ")
    os.write(terminal, b"Hi\n")
    said = read_until(terminal, b"You: ")
    assert b"Assistant: Hello." in said and b"\x1b[?1049h" not in said
    os.write(terminal, b"/quit\n")
    assert process.wait(20) == 0
    os.close(terminal)


def test_control_c_stops_the_reply_and_not_the_chat(tmp_path: Path) -> None:
    process, terminal = on_terminal(tmp_path, "slow", term="dumb")
    read_until(terminal, b"You: ")
    os.write(terminal, b"Hi\n")
    read_until(terminal, b"word word")
    os.killpg(process.pid, signal.SIGINT)
    read_until(terminal, b"Note: stopped.")
    os.write(terminal, b"/quit\n")
    assert process.wait(20) == 0
    os.close(terminal)
    session = make_session(tmp_path)
    (found,) = session.store.conversations.recent()
    assert session.store.conversations.path(found.id)[1].facts.finish_reason == "cancelled"


@pytest.mark.parametrize("mark", [b"", b"\x1b[?2004h"])
def test_lines_pasted_into_a_dumb_terminal_are_one_message(tmp_path: Path, mark: bytes) -> None:
    process, terminal = on_terminal(tmp_path, term="dumb")
    read_until(terminal, b"You: ")
    os.write(terminal, b"one\ntwo\nthree\n")
    read_until(terminal, b"Hello.")
    os.write(terminal, b"/quit\n")
    assert process.wait(20) == 0
    os.close(terminal)
    session = make_session(tmp_path)
    (found,) = session.store.conversations.recent()
    assert session.store.conversations.path(found.id)[0].text == "one\ntwo\nthree"


def test_a_real_terminal_gets_the_app_and_leaves_clean(tmp_path: Path) -> None:
    process, terminal = on_terminal(tmp_path, term="xterm-256color")
    read_until(terminal, b"\x1b[?1049h")  # the alternate screen
    read_until(terminal, b"Hello")
    os.write(terminal, b"\x11")  # Ctrl+Q
    end = read_until(terminal, b"\x1b[?1049l")
    assert process.wait(20) == 0 and end
    os.close(terminal)


def test_kill_in_the_middle_of_a_reply_keeps_the_question(tmp_path: Path) -> None:
    process, terminal = on_terminal(tmp_path, "slow", term="dumb")
    read_until(terminal, b"You: ")
    os.write(terminal, b"Hi\n")
    read_until(terminal, b"word word")
    process.kill()
    process.wait(20)
    os.close(terminal)
    session = make_session(tmp_path)
    (found,) = session.store.conversations.recent()
    assert session.store.conversations.path(found.id)[0].text == "Hi"
    session.use_model(session.open_model(None))
    session.open(found.id)
    talk(session, "again")
    assert len(session.path) == 3


@pytest.mark.parametrize("term", ["dumb", "xterm-256color"])
@pytest.mark.parametrize("end", ["SIGTERM", "SIGHUP", "closed"])
def test_a_terminal_that_goes_away_in_the_middle_of_a_reply(
    tmp_path: Path, term: str, end: str
) -> None:
    process, terminal = on_terminal(tmp_path, "slow", term=term)
    read_until(terminal, b"You: " if term == "dumb" else b"selm-mini")
    os.write(terminal, b"Hi")
    time.sleep(0.3)
    os.write(terminal, b"\n" if term == "dumb" else b"\r")
    read_until(terminal, b"word word")
    if end == "closed":
        os.close(terminal)
        os.kill(process.pid, signal.SIGHUP)  # as the kernel does for the controlling terminal
    else:
        process.send_signal(getattr(signal, end))
        end_of_it = time.monotonic() + 20
        while process.poll() is None and time.monotonic() < end_of_it:
            with suppress(OSError):
                os.read(terminal, 65536)
    process.wait(20)
    session = make_session(tmp_path)
    (found,) = session.store.conversations.recent()
    question, reply = session.store.conversations.path(found.id)
    assert question.text == "Hi" and reply.text.startswith("word word")
    assert reply.facts.finish_reason == "cancelled"
