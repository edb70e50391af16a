"""Replies of the bundled model held to a schema or a grammar, from Python and `selm ask`."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner
from support.bundled import DEFAULT

from selm_edge import Model, SelmError, _core
from selm_edge.backends.base import Constraint, Sampling
from selm_edge.backends.constraints import Constraints
from selm_edge.backends.llama_cpp import LlamaCppSession
from selm_edge.backends.onnx import OnnxSession
from selm_edge.cli.app import selm

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "colours": {"type": "array", "items": {"enum": ["red", "blue", "grün"]}, "maxItems": 3},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
ASKED: Any = [{"role": "user", "content": "A person called Anna, who is 34 years old, as JSON."}]
VERSE = 'root ::= ([A-Z] [a-z]{2,8} (" " [a-z]{1,8}){1,3} ".\\n"){2}'


@pytest.fixture(scope="module")
def model() -> Any:
    with Model.load(DEFAULT, threads=1) as opened:
        yield opened


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"seed": 3, "typical_p": 0.9},
                                     {"seed": 4, "temperature": 1.8, "top_k": 0, "min_p": 0.0},
                                     {"seed": 5, "repeat_penalty": 1.4}])  # fmt: skip
def test_drafts_change_no_reply(model: Model, options: Any) -> None:
    replies = [
        model.chat(ASKED, schema=PERSON, draft=draft, max_tokens=150, **options)
        for draft in ("off", "lookup", "auto")
    ]
    assert len({reply.text for reply in replies}) == 1
    jsonschema.validate(json.loads(replies[0].text), PERSON)
    assert all(reply.stats.finish_reason == "stop" for reply in replies)


def test_drafts_that_are_right_and_wrong(model: Model) -> None:
    """Where guesses come often, so that some are against the grammar."""
    grammar = 'root ::= ("red, blue" [;.] " "){12}'
    given = "red, blue; red, blue. red, blue; red, blue. red,"
    off, lookup = (
        model.generate(
            given, grammar=grammar, draft=draft, temperature=0.0, max_tokens=200
        ).finish()
        for draft in ("off", "lookup")
    )
    assert off.text == lookup.text and re.fullmatch(r"(red, blue[;.] ){12}", off.text)
    assert 0 < lookup.stats.accepted <= lookup.stats.drafted and off.stats.drafted == 0


def test_a_grammar_and_one_given_as_text(model: Model) -> None:
    reply = model.chat(ASKED, grammar=VERSE, seed=1, max_tokens=200)
    assert re.fullmatch(r"([A-Z][a-z]{2,8}( [a-z]{1,8}){1,3}\.\n){2}", reply.text)
    as_text = model.chat(ASKED, schema=json.dumps(PERSON), temperature=0.0, max_tokens=150)
    assert as_text.text == model.chat(ASKED, schema=PERSON, temperature=0.0, max_tokens=150).text
    with pytest.raises(ValueError, match="not to both"):
        model.generate("x", schema=PERSON, grammar=VERSE)


def test_the_end_comes_when_nothing_may_follow(model: Model) -> None:
    reply = model.generate("1, 2,", grammar='root ::= " 3"', max_tokens=50, seed=1).finish()
    assert reply.text == " 3" and reply.stats.finish_reason == "stop"
    empty = model.generate("1, 2,", grammar='root ::= ""', max_tokens=50, seed=1).finish()
    assert empty.text == "" and empty.stats.finish_reason == "stop" and empty.stats.tokens == 0


def test_a_reply_that_is_cut_is_a_beginning(model: Model) -> None:
    whole = model.chat(ASKED, schema=PERSON, temperature=0.0, max_tokens=150).text
    for count in (1, 5, 9):
        cut = model.chat(ASKED, schema=PERSON, temperature=0.0, max_tokens=count)
        assert cut.stats.finish_reason == "length" and cut.stats.tokens == count
        assert whole.startswith(cut.text) and 0 < len(cut.text) < len(whole)
    stopped = model.chat(ASKED, schema=PERSON, temperature=0.0, max_tokens=150, stop='"age"')
    assert stopped.stats.finish_reason == "stop" and stopped.text == whole.split('"age"')[0]


def test_two_threads_use_one_grammar(model: Model) -> None:
    alone = [model.chat(ASKED, schema=PERSON, seed=seed, max_tokens=150).text for seed in range(6)]
    found: dict[int, str] = {}

    def reply(seeds: range) -> None:
        for seed in seeds:
            found[seed] = model.chat(ASKED, schema=fresh, seed=seed, max_tokens=150).text

    fresh = {**PERSON, "title": "not kept yet"}
    threads = [threading.Thread(target=reply, args=(range(i, 6, 2),)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[seed] for seed in range(6)] == alone and len(set(alone)) > 1


def test_a_grammar_is_of_one_model(stories: Path) -> None:
    ours, other = _core.Model(str(DEFAULT)), _core.Model(str(stories))
    grammar = _core.Grammar(other.tokenizer(), "schema", "{}")
    session = _core.Session(ours, context=64, threads=1)
    with pytest.raises(_core.CoreError, match="another model's tokenizer"):
        _core.Generation(session, [1], _core.Sampling(), grammar=grammar)
    with pytest.raises(_core.CoreError, match="schema or gbnf"):
        _core.Grammar(ours.tokenizer(), "regex", "a")


def test_a_vocabulary_of_pieces_of_words(stories: Path) -> None:
    with Model.load(stories, threads=1) as small:
        for seed in range(4):
            reply = small.generate("Lily said", schema=PERSON, seed=seed, max_tokens=240).finish()
            jsonschema.validate(json.loads(reply.text), PERSON)


def test_grammars_are_kept_and_errors_say_what_to_do() -> None:
    kept = Constraints(_core.Model(str(DEFAULT)).tokenizer())
    first = kept.get(Constraint("schema", '{"type": "null"}'))
    assert kept.get(Constraint("schema", '{"type": "null"}')) is first
    for i in range(16):
        kept.get(Constraint("gbnf", f'root ::= "{i}"'))
    assert kept.get(Constraint("schema", '{"type": "null"}')) is not first
    with pytest.raises(SelmError, match=r"(?s)has not at #.*Leave that out of the schema"):
        kept.get(Constraint("schema", '{"not": {}}'))
    with pytest.raises(SelmError, match=r"(?s)in line 1\nCorrect the gbnf"):
        kept.get(Constraint("gbnf", "root ::= ("))


# ---- Other backends ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [LlamaCppSession, OnnxSession])
def test_other_backends_say_that_they_cannot(kind: Any) -> None:
    session = object.__new__(kind)  # asked before anything of the engine's is
    for constraint in (Constraint("schema", "{}"), Constraint("gbnf", 'root ::= "a"')):
        with pytest.raises(SelmError, match=f"holds no reply to a {constraint.kind}"):
            session.generate(
                [1], Sampling(), max_tokens=1, stop=(), deadline=None, constraint=constraint
            )


# ---- selm ask ------------------------------------------------------------------------------------


def ask(*args: str) -> Any:
    given = ["ask", *args, "--max-tokens", "150", "--temperature", "0", "A person, please."]
    return CliRunner().invoke(selm, given, prog_name="selm")


def test_ask_with_a_schema(tmp_path: Path) -> None:
    file = tmp_path / "person.json"
    file.write_text(json.dumps(PERSON, ensure_ascii=False), encoding="utf-8")
    answers = [ask("--schema", str(file)), ask("--schema", json.dumps(PERSON))]
    assert [done.exit_code for done in answers] == [0, 0], answers[0].output
    assert answers[0].stdout == answers[1].stdout
    jsonschema.validate(json.loads(answers[0].stdout), PERSON)
    rules = tmp_path / "verse.gbnf"
    rules.write_text('root ::= "yes" | "no"', encoding="utf-8")
    done = ask("--grammar", str(rules))
    assert done.exit_code == 0 and done.stdout.strip() in ("yes", "no")


def test_ask_with_a_schema_that_is_none(tmp_path: Path) -> None:
    missing, binary = tmp_path / "missing.json", tmp_path / "binary.json"
    binary.write_bytes(b"\xff\xfe{}")
    for args, sentence in [
        (("--schema", str(missing)), "missing.json: cannot be read: No such file"),
        (("--schema", str(tmp_path)), "cannot be read: Is a directory"),
        (("--schema", str(binary)), "binary.json: cannot be read"),
        (("--schema", '{"type": '), "JSON has no value at byte 9"),
        (("--schema", '{"not": {}}'), "the schema has not at #"),
        (("--grammar", str(missing)), "missing.json: cannot be read"),
    ]:
        done = ask(*args)
        assert isinstance(done.exception, SelmError) and sentence in str(done.exception)
