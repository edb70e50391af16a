"""The talk itself, with no user interface: forks, overflow, feedback, a disk that refuses."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from support.chatting import FakeSource, make_session, talk, wait_for

from selm_edge.backends.base import Sampling
from selm_edge.chat.preferences import Preferences
from selm_edge.chat.session import ChatSession, sampling_from
from selm_edge.chat.text import free_path, spoken_path, write_new
from selm_edge.errors import ContextError, ModelError, SelmError
from selm_edge.store.errors import NotFound, StoreError
from selm_edge.store.opening import open_store_or_memory


@pytest.fixture
def ready(session: ChatSession) -> ChatSession:
    session.use_model(session.open_model(None))
    return session


def texts(session: ChatSession) -> list[str]:
    return [turn.text for turn in session.path]


def test_nothing_is_stored_before_the_first_question(ready: ChatSession) -> None:
    ready.new()
    assert ready.store.conversations.recent() == []
    talk(ready, "Hi")
    assert [c.title for c in ready.store.conversations.recent()] == ["Hi"]


def test_a_reply_is_stored_with_how_it_was_made(ready: ChatSession, source: FakeSource) -> None:
    talk(ready, "Hi there")
    assert texts(ready) == ["Hi there", "Hello from the fake engine."]
    facts = ready.path[1].facts
    assert facts.model == "selm-mini" and facts.model_sha256 == "ab" * 32
    assert facts.template_id and facts.template_id.startswith("sha256:")
    assert facts.finish_reason == "stop" and facts.tokens == 6
    assert facts.prompt_tokens and facts.tokens_per_second
    assert facts.seed == source.engine.samplings[0].seed is not None
    assert facts.sampling and facts.sampling["temperature"] == 0.7


def test_the_prompt_holds_the_branch_on_show_and_the_system_prompt(
    ready: ChatSession, source: FakeSource
) -> None:
    ready.set_system("Be brief.")
    talk(ready, "One")
    talk(ready, "Two")
    ready.edit(ready.path[2], "Two, edited")
    reply = ready.reply(ready.plan(ready.path))
    list(reply)
    assert source.engine.prompts[-1] == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nOne<|im_end|>\n"
        "<|im_start|>assistant\nHello from the fake engine.<|im_end|>\n"
        "<|im_start|>user\nTwo, edited<|im_end|>\n<|im_start|>assistant\n"
    )


def test_regenerate_forks_records_it_and_versions_switch(ready: ChatSession) -> None:
    ready.models.engine.replies = ["first", "second"]  # type: ignore[attr-defined]
    talk(ready, "Q")
    ready.reply_again(ready.path[1])
    assert texts(ready) == ["Q"]
    reply = ready.reply(ready.plan(ready.path))
    list(reply)
    ready.keep(ready.path[0], reply)
    assert texts(ready) == ["Q", "second"]
    assert not ready.switch(ready.path[1], +1)
    assert ready.switch(ready.path[1], -1)
    assert texts(ready) == ["Q", "first"]
    (row,) = ready.store.feedback.rows()
    assert row.kind == "regeneration" and row.record.reply == "first"


def test_a_thumb_goes_on_and_off_and_carries_the_prompt(ready: ChatSession) -> None:
    talk(ready, "Q")
    reply = ready.path[1]
    assert ready.feedback.rate(reply, "up")
    (row,) = ready.store.feedback.rows()
    assert row.record.messages == [{"role": "user", "content": "Q"}]
    assert row.record.prompt == "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"
    assert row.record.model_sha256 == "ab" * 32 and row.record.seed == reply.facts.seed
    assert ready.feedback.rate(reply, "down")
    assert ready.marks[reply.id] == {"down"}
    assert not ready.feedback.rate(reply, "down")
    assert ready.store.feedback.rows(superseded=True) == []


def test_feedback_keeps_how_the_reply_was_made(tmp_path: Path) -> None:
    options = {"experts": ["general", "math"], "words_each": 2}
    source = FakeSource(["one two three four five"], engine_options=options)
    session = make_session(tmp_path, source)
    session.use_model(session.open_model(None))
    talk(session, "Q")
    reply = session.path[1]
    facts = replace(
        reply.facts, adapter={"mine.gguf": 0.5}, entropy=1.25, margin=0.5,
        recalled=[{"memory": 7, "number": 1}, {"memory": 3, "number": 2}],
    )  # fmt: skip
    assert facts.experts == {
        "tokens": {"general": 3, "math": 2},
        "runs": [["general", 7], ["math", 11], ["general", 5]],
    }
    made = session.store.conversations.add(
        reply.conversation, reply.parent, "assistant", reply.text, facts=facts
    )
    assert session.store.conversations.message(made.id).facts == facts
    session.feedback.rate(made, "up")
    assert "export" in session.change_setting("share_feedback", "no")
    session.feedback.correct(made, "one")
    thumb, correction = session.store.feedback.rows()
    assert thumb.consent and not correction.consent
    for row in (thumb, correction):
        assert row.record.adapter == {"mine.gguf": 0.5} and row.record.experts == facts.experts
        assert (row.record.entropy, row.record.margin) == (1.25, 0.5)
        assert row.record.recalled == [7, 3]
    # The user's text is no expert's.
    assert session.path[-1].text == "one" and session.path[-1].facts.experts is None


def test_a_correction_is_feedback_and_the_talk_goes_on_with_it(
    ready: ChatSession, source: FakeSource
) -> None:
    talk(ready, "Q")
    wrong = ready.path[1]
    better = ready.feedback.correct(wrong, "The better text.")
    assert texts(ready) == ["Q", "The better text."]
    assert ready.versions[better.id] == [wrong.id, better.id]
    assert better.facts.finish_reason == "corrected"
    (row,) = ready.store.feedback.rows()
    assert (row.record.reply, row.correction) == (wrong.text, "The better text.")
    talk(ready, "And?")
    assert "The better text." in source.engine.prompts[-1]


def test_cancel_keeps_the_partial_reply(tmp_path: Path) -> None:
    session = make_session(tmp_path, FakeSource(["word " * 500], delay=0.005))
    session.use_model(session.open_model(None))
    plan = session.plan([], "Q")
    question = session.ask("Q")
    reply = session.reply(plan)
    thread = threading.Thread(target=lambda: list(reply))
    thread.start()
    wait_for(lambda: len(reply.text) > 20)
    reply.cancel()
    thread.join(5)
    assert not thread.is_alive()
    kept = session.keep(question, reply)
    assert kept.text == reply.text and 20 < len(kept.text) < 2400
    assert kept.facts.finish_reason == "cancelled"
    session.close()


def test_terminal_control_from_the_model_is_not_stored(tmp_path: Path) -> None:
    session = make_session(tmp_path, FakeSource(["safe \x1b]52;c;aGk=\x07text \x1b[2Jhere"]))
    session.use_model(session.open_model(None))
    talk(session, "Q")
    assert session.path[1].text == "safe text here"


# -- what no longer fits ---------------------------------------------------------------------------


def long_talk(session: ChatSession) -> None:
    session.models.engine.replies = ["reply " * 30]  # type: ignore[attr-defined]
    for number in range(6):
        talk(session, f"question {number}")


def test_nothing_is_left_out_before_the_user_chose(ready: ChatSession) -> None:
    ready.use_model(ready.open_model(None, context=400))
    long_talk(ready)
    plan = ready.plan(ready.path, "word " * 60)
    assert plan.overflow is not None and plan.overflow.context == 400
    assert plan.overflow.needed == plan.tokens + 100
    drop = plan.overflow.drop
    assert drop is not None and drop % 2 == 0
    # One exchange less would not do.
    shorter = ready.path[drop - 2 :]
    assert ready.plan(shorter, "word " * 60).overflow is not None
    assert ready.plan(ready.path[drop:], "word " * 60).overflow is None


def test_left_out_turns_are_marked_and_stay_out(ready: ChatSession, source: FakeSource) -> None:
    long_talk(ready)
    first_kept = ready.path[4]
    question = ready.ask("go on")
    ready.leave_out(question, 4)
    assert ready.path[-1].context_from == first_kept.id
    plan = ready.plan(ready.path)
    assert plan.turns[0]["content"] == "question 2"
    reply = ready.reply(plan)
    list(reply)
    ready.keep(question, reply)
    talk(ready, "more")
    assert "question 1" not in source.engine.prompts[-1]
    assert "question 2" in source.engine.prompts[-1]
    assert len(ready.path) == 16  # nothing is gone from the conversation itself
    other = ready.ask("and now less")
    ready.leave_out(other, 2)
    assert ready.plan(ready.path).turns[0]["content"] == "question 3"


def test_a_question_that_is_too_long_alone(ready: ChatSession) -> None:
    ready.use_model(ready.open_model(None, context=100))
    talk(ready, "short")
    plan = ready.plan(ready.path, "word " * 400)
    assert plan.overflow is not None and plan.overflow.drop is None and plan.prompt is None
    with pytest.raises(ContextError):
        ready.reply(plan)


# -- models ----------------------------------------------------------------------------------------


def test_a_bad_model_leaves_the_old_one_in_use(ready: ChatSession) -> None:
    before = ready.model
    with pytest.raises(ModelError, match="magic"):
        ready.open_model("broken")
    assert ready.model is before
    talk(ready, "still there?")


def test_the_model_before_is_closed(ready: ChatSession, source: FakeSource) -> None:
    ready.use_model(ready.open_model("other", context=77))
    assert source.engines[0].closed and not source.engines[1].closed
    assert source.opened == [(None, 4096), ("other", 77)]


def test_a_typed_path() -> None:
    assert spoken_path("  '~/a b.gguf' ") == Path.home() / "a b.gguf"
    with pytest.raises(SelmError):
        spoken_path(" ")


# -- settings --------------------------------------------------------------------------------------


def test_settings_of_a_conversation_and_of_new_ones(ready: ChatSession, tmp_path: Path) -> None:
    talk(ready, "Q")
    ready.set_sampling({"temperature": 0.0, "top_k": 40, "seed": 5})
    ready.set_system("Be kind.")
    first = ready.conversation
    assert first is not None
    chosen = {"temperature": 0.0, "top_k": 40, "seed": 5}  # the default too: it was asked for
    assert first.sampling == chosen and first.system == "Be kind."
    ready.new()
    assert ready.system == "Be kind." and ready.sampling.seed == 5
    ready.set_system("")
    ready.open(first.id)
    assert ready.system == "Be kind."
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved == {"sampling": chosen}


def test_preferences_keep_what_others_wrote(ready: ChatSession, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"threads": 2}')
    ready.preferences.change(theme="nord")
    assert json.loads(file.read_text()) == {"threads": 2, "theme": "nord"}
    file.write_text("{broken")
    with pytest.raises(SelmError, match="not saved"):
        ready.preferences.change(theme="dracula")
    assert file.read_text() == "{broken"
    assert ready.preferences.config.theme == "dracula"


def test_stored_sampling_of_any_kind_gives_a_sampling() -> None:
    own = Sampling(temperature=0.2)
    assert sampling_from({"temperature": "hot", "top_k": 1.5, "nonsense": 1}, own) == own
    assert sampling_from({"temperature": 1, "seed": 3}, own).temperature == 1.0


def test_the_model_recommends_and_the_user_decides(ready: ChatSession) -> None:
    assert ready.model is not None
    ready.model.assistant.model.sampling = Sampling(temperature=0.2, top_p=0.8)
    assert (ready.sampling.temperature, ready.sampling.top_p) == (0.2, 0.8)
    ready.set_sampling({"temperature": 0.7})  # the default of other models is a wish here
    assert (ready.sampling.temperature, ready.sampling.top_p) == (0.7, 0.8)
    ready.set_sampling({"temperature": None})
    assert ready.sampling.temperature == 0.2


# -- faults ----------------------------------------------------------------------------------------


def test_a_disk_that_refuses_in_the_middle(ready: ChatSession, tmp_path: Path) -> None:
    problems: list[StoreError] = []
    ready.on_problem = problems.append
    talk(ready, "before")
    ready.feedback.rate(ready.path[1], "up")
    # A page limit makes SQLite answer as on a full disk, at this very write.
    ready.store.database._connection.pragma("max_page_count", 1)
    talk(ready, "during " * 3000)
    talk(ready, "after")
    assert [p.cause for p in problems] == ["full"]
    assert not ready.store.saving and ready.store.problem is problems[0]
    assert len(ready.path) == 6 and ready.marks[ready.path[1].id] == {"up"}
    again = make_session(tmp_path)
    (kept,) = again.store.conversations.recent()
    assert kept.turns == 2 and again.store.feedback.count() == 1


def test_a_conversation_deleted_by_another_window(ready: ChatSession, tmp_path: Path) -> None:
    talk(ready, "Q")
    assert ready.conversation is not None
    make_session(tmp_path).delete(ready.conversation.id)
    with pytest.raises(NotFound):
        ready.ask("more")
    ready.reload()
    assert ready.conversation is None and ready.path == []


def test_export(ready: ChatSession, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        ready.export(tmp_path / "none.md")
    talk(ready, "What is it?")
    assert ready.export_name() == "what-is-it.md"
    assert "## You\n\nWhat is it?" in ready.export(tmp_path / "x.md").read_text()


# -- what feedback records, and what is never overwritten ------------------------------------------


def test_feedback_records_the_system_prompt_that_the_reply_saw(ready: ChatSession) -> None:
    ready.set_system("Be old.")
    talk(ready, "Q")
    ready.set_system("Be new.")
    ready.feedback.rate(ready.path[1], "up")
    (row,) = ready.store.feedback.rows()
    assert row.record.messages[0] == {"role": "system", "content": "Be old."}
    assert row.record.prompt and "Be old." in row.record.prompt
    ready.new()
    ready.set_system("")
    talk(ready, "Q")
    ready.set_system("Be newer.")
    ready.feedback.rate(ready.path[1], "up")
    assert [turn["role"] for turn in ready.store.feedback.rows()[1].record.messages] == ["user"]


def test_the_users_own_text_is_not_rated(ready: ChatSession) -> None:
    talk(ready, "Q")
    reply = ready.path[1]
    mine = ready.feedback.correct(reply, "Mine.")
    with pytest.raises(ValueError, match="your own text"):
        ready.feedback.rate(mine, "up")
    ready.feedback.correct(ready.path[1], "Mine, again.")
    (row,) = ready.store.feedback.rows()  # the newer correction of the same reply
    assert (row.record.message, row.record.reply) == (reply.id, reply.text)
    assert row.correction == "Mine, again." and row.record.messages[-1]["content"] == "Q"
    ready.reply_again(ready.path[1])
    assert [row.kind for row in ready.store.feedback.rows()] == ["correction"]


def test_feedback_on_a_deleted_conversation_leaves_no_row(
    ready: ChatSession, tmp_path: Path
) -> None:
    talk(ready, "Q")
    make_session(tmp_path).delete(ready.path[0].conversation)
    with pytest.raises(NotFound):
        ready.feedback.rate(ready.path[1], "up")
    assert ready.store.feedback.count() == 0


def test_an_export_never_overwrites(ready: ChatSession, tmp_path: Path) -> None:
    talk(ready, "Q")
    file = tmp_path / "q.md"
    file.write_text("precious")
    with pytest.raises(SelmError, match="exists; choose another name"):
        ready.export(file)
    with pytest.raises(SelmError, match="exists; choose another name"):
        write_new(file, "other")
    assert file.read_text() == "precious" and free_path(file) == tmp_path / "q-2.md"
    ready.export(free_path(file))
    assert free_path(file) == tmp_path / "q-3.md"


def test_new_defaults_leave_old_conversations_alone(ready: ChatSession) -> None:
    talk(ready, "first")
    first = ready.path[0].conversation
    ready.new()
    talk(ready, "second")
    ready.set_system("Talk like a pirate.")
    ready.set_sampling({"temperature": 0.0})
    ready.open(first)
    assert ready.system is None and ready.sampling.temperature == 0.7
    ready.set_sampling({"top_p": 0.5})  # and what is set here leaves the other defaults alone
    assert ready.preferences.config.sampling == {"temperature": 0.0, "top_p": 0.5}
    ready.set_sampling({"top_p": None})
    assert ready.preferences.config.sampling == {"temperature": 0.0}


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("max_tokens", "99999999999", "whole number from 1 to"),
        ("context", "99999999999", "whole number from 16 to"),
        ("context", "3", "whole number from 16 to"),
        ("temperature", "abc", "'abc' is not a number"),
        ("context", "much", "'much' is not a number"),
        ("top_k", "nan", "whole number"),
        ("colour", "1", "there is no setting colour"),
    ],
)
def test_a_setting_that_is_none(ready: ChatSession, name: str, value: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ready.change_setting(name, value)
    assert ready.preferences.config.context == 4096 and not ready.preferences.path.exists()


def test_limits_go_back_to_their_defaults_and_say_what_holds(ready: ChatSession) -> None:
    assert "trained for 8,192 and reads no more" in ready.change_setting("context", "16384")
    assert ready.change_setting("context", "8192").endswith("when a model is opened.")
    ready.change_setting("context", "default")
    assert ready.preferences.config.context == 4096
    ready.change_setting("max_tokens", "7")
    ready.preferences.change(max_tokens=None, context=None)
    assert ready.max_tokens == 1024 and ready.preferences.config.context == 4096
    ready.use_model(ready.open_model(None))


def test_feedback_in_memory_says_that_it_is_lost_with_the_program(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    store = open_store_or_memory(tmp_path / "file" / "selm.db")
    session = ChatSession(store, FakeSource(), Preferences(tmp_path / "config.json"))
    assert (
        "until you quit" in session.feedback.kept_words
        and "device" not in session.feedback.kept_words
    )
