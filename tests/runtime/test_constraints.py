"""What a JSON Schema's grammar lets through is valid, by the package jsonschema, Python's re and
exact fractions; what it cannot hold a text to is refused by name."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import gguf
import jsonschema
import numpy as np
import pytest
from jsonschema.validators import validator_for
from support.constrained import accepts, after, mask, vocabulary, write
from support.gguf_files import add_vocabulary, byte_alphabet
from support.random_schemas import LETTERS, random_schema

from selm_edge import _core

LINES = (Path(__file__).parent.parent / "data" / "schemas.jsonl").read_text(encoding="utf-8")
SCHEMAS: dict[str, Any] = {
    row["name"]: row["schema"] for row in map(json.loads, LINES.split("\n")[:-1])
}


def validator(schema: Any) -> Any:
    kind = validator_for(schema, default=jsonschema.Draft202012Validator)
    kind.check_schema(schema)
    return kind(schema, format_checker=kind.FORMAT_CHECKER)


def is_valid(checks: Any, text: bytes) -> bool:
    try:
        return bool(checks.is_valid(json.loads(text)))
    except RecursionError:  # a schema that refers to itself and nothing else: of any value
        return True
    except ValueError:
        return False


def mutated(text: str, rng: random.Random) -> str:
    """A few characters are lost, doubled, or others."""
    for _ in range(rng.randint(1, 2)):
        at = rng.randrange(len(text) + 1)
        new = rng.choice(["", "", *'"{}[],: 09-.eE\\nax', rng.choice(text or "x"), "ü"])
        text = text[:at] + new + text[at + rng.randint(0, 2) :]
    return text


def refusal(schema: Any) -> tuple[str, str]:
    """(name of the status, sentence)"""
    with pytest.raises(_core.CoreError) as caught:
        vocabulary().schema(schema)
    return caught.value.args[0], caught.value.args[1]


# ---- Real schemas --------------------------------------------------------------------------------


def test_there_are_many_schemas_of_all_drafts() -> None:
    assert len(SCHEMAS) == LINES.count("\n") == 200
    assert len({json.dumps(schema, sort_keys=True) for schema in SCHEMAS.values()}) == 200
    drafts = {schema.get("$schema", "") for schema in SCHEMAS.values()}
    for draft in ("draft-04", "draft-07", "2020-12"):
        assert any(draft in each for each in drafts)


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_random_model_writes_what_is_valid(name: str) -> None:
    schema, words, rng = SCHEMAS[name], vocabulary(), random.Random(name)
    grammar, checks = words.schema(schema), validator(schema)
    texts = [write(grammar, rng) for _ in range(4)]
    for text in texts:
        checks.validate(json.loads(text))
    # However it is cut into tokens, each of them may come, and the end after the last.
    tokens = words.encode(texts[0])
    for i in range(len(tokens) + 1):
        allowed = mask(after(grammar, tokens[:i]))
        assert allowed[tokens[i]] if i < len(tokens) else (allowed & words.ends).any()
    # What is not valid is not let through.
    for text in texts:
        for _ in range(6):
            other = mutated(text.decode(), rng).encode()
            assert is_valid(checks, other) or not accepts(grammar, other), other


def test_a_mask_is_what_can_be_read() -> None:
    """The trie, and what is kept of states, against the bytes of each token."""
    words, rng, read = vocabulary(), random.Random(5), [0, 0]
    for name in rng.sample(sorted(SCHEMAS), 25):
        grammar = words.schema(SCHEMAS[name])
        tokens = words.encode(write(grammar, rng))
        here = tokens[: rng.randrange(len(tokens) + 1)]
        allowed = mask(after(grammar, here))
        some = list(np.flatnonzero(allowed)[:20]) + rng.sample(range(words.size), 150)
        for token in map(int, some):
            if words.ends[token]:
                continue
            try:
                after(grammar, [*here, token])
                possible = True
            except _core.CoreError:
                possible = False
            read[possible] += 1
            assert possible == allowed[token], (name, words.decode(here), words.texts[token])
    assert min(read) > 200


COUNTED: dict[str, Any] = {
    "at most": {"type": "string", "maxLength": 60},
    "between, within others": {
        "type": "array",
        "items": {"type": "object", "properties": {"a": {"type": "string", "minLength": 10}}},
    },
    "pattern": {"type": "string", "pattern": "^(?:ab|é){3,30}$"},
    "alike for long": {"enum": ["a" * 17 + "b", "a" * 16 + "é", "b" + "a" * 16, "c" + "a" * 17]},
    "items": {"type": "array", "items": {"enum": ["a", "ab"]}, "minItems": 3, "maxItems": 12},
}


@pytest.mark.parametrize("name", COUNTED)
def test_masks_of_long_tokens(tmp_path: Path, name: str) -> None:
    """Positions of a counted text share what they say of short tokens, and only of these."""
    letters = [*byte_alphabet()]
    e_acute = letters[0xC3] + letters[0xA9]
    texts = [c * n for c in ("a", "ab", e_acute) for n in range(1, 41)]
    texts += [text + end for text in texts for end in ('"', '"}', '",', 'b"', 'b"}]', "\\n")]
    texts += ['"' + text for text in texts[:200]] + [f'{{"a":"{"a" * n}' for n in range(24)]
    texts += [f'"{text}"' for text in COUNTED["alike for long"]["enum"]]
    texts += [('"a","ab",' * n)[cut:] for n in range(1, 6) for cut in range(9)]
    writer = gguf.GGUFWriter(tmp_path / "vocabulary.gguf", "qwen2")
    tokens = [*dict.fromkeys([*letters, *texts]), "<end>"]
    eos = len(tokens) - 1
    kinds = [1] * eos + [3]
    words = {"model": "gpt2", "pre": "qwen2", "tokens": tokens, "types": kinds, "merges": ["a b"]}
    add_vocabulary(writer, {**words, "eos": eos})
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    tokenizer = _core.Tokenizer(str(tmp_path / "vocabulary.gguf"))
    grammar = _core.Grammar(tokenizer, "schema", json.dumps(COUNTED[name]))
    rng, long = random.Random(3), [0, 0]
    for turn in range(4):
        here: list[int] = []
        while len(here) < 70:
            allowed = mask(after(grammar, here))
            for token in range(eos):
                try:
                    after(grammar, [*here, token])
                    possible = True
                except _core.CoreError:
                    possible = False
                long[possible] += len(tokenizer.decode([token], False)) > 16
                assert possible == allowed[token], (tokenizer.decode(here, False), tokens[token])
            ids = np.flatnonzero(allowed[:eos])
            if len(ids) == 0:
                break
            here.append(int(ids[rng.randrange(len(ids)) if turn else 0]))  # first byte by byte
    assert min(long) > 20


def test_masked_logits() -> None:
    words = vocabulary()
    matcher = _core.Matcher(words.schema({"enum": ["a", "b"]}))
    logits = np.arange(words.size, dtype=np.float32)
    matcher.mask(logits)
    allowed = mask(matcher)
    assert (logits[allowed] == np.arange(words.size)[allowed]).all() and allowed.any()
    assert np.isneginf(logits[~allowed]).all()
    with pytest.raises(_core.CoreError, match="as many floats"):
        matcher.mask(logits[:-1])
    for token in (-1, words.size, int(np.flatnonzero(words.ends)[0])):
        with pytest.raises(_core.CoreError) as caught:
            matcher.read(token)
        assert caught.value.args[0] == "invalid_argument"
    assert not matcher.complete


@pytest.mark.parametrize("part", range(4))
def test_random_schemas(part: int) -> None:
    """Whatever keywords stand together: refused, or what is written is valid."""
    compiled = 0
    for seed in range(60 * part, 60 * (part + 1)):
        rng = random.Random(seed)
        schema = random_schema(rng)
        try:
            grammar = vocabulary().schema(schema)
        except _core.CoreError as error:
            assert error.args[0] in ("unsupported", "invalid_argument")
            continue
        compiled += 1
        checks = jsonschema.Draft202012Validator(schema)
        for _ in range(4):
            text = write(grammar, rng, 12, LETTERS)
            assert is_valid(checks, text), (schema, text)
    assert compiled > 20


@pytest.mark.parametrize(
    ("schema", "valid", "not_valid"),
    [
        # One name twice is one member.
        ({"minProperties": 1}, ['{"a":1}'], ["{}"]),
        ({"properties": {"a": {}}, "minProperties": 2}, ['{"a":1,"b":2}'], ['{"b":1,"b":2}']),
        # Names that are declared have to be allowed, too.
        ({"properties": {"A": {}, "b": {}}, "propertyNames": {"pattern": "^[a-z]$"}},
         ['{"b":1}'], ['{"A":1}']),
        ({"propertyNames": {"enum": ["x", "y"]}, "minProperties": 2}, ['{"x":1,"y":2}'],
         ['{"x":1,"x":2}', '{"x":1}', '{"z":1}']),
        # A schema beside the one with the patterns has its word, too.
        ({"allOf": [{"patternProperties": {"^x": {"type": "number"}}},
                    {"additionalProperties": {"maximum": 3}}]},
         ['{"x":3}'], ['{"x":4}', '{"x":"a"}']),
        ({"allOf": [{"patternProperties": {"^x": {}}}, {"additionalProperties": False}]},
         ["{}"], ['{"x":4}']),
        ({"type": "array", "unevaluatedItems": False}, ["[]"], ["[1]"]),
        ({"prefixItems": [{}], "unevaluatedItems": {"type": "null"}, "type": "array",
          "minItems": 2}, ["[1,null]"], ["[1]", "[1,2]"]),
        # Values are alike however they are written.
        ({"items": {"enum": [1, 1.0, 2]}, "uniqueItems": True, "type": "array"},
         ["[1,2]"], ["[1,1.0]", "[1, 1]"]),
        # Schemas that each speak of another kind.
        ({"allOf": [{"minLength": 2}, {"minimum": 5}]}, ['"ab"', "5", "null"], ['"a"', "4"]),
        # Everything that a long text may hold, and no more.
        ({"type": "string", "minLength": 2, "maxLength": 3}, ['"日本"', '"\\u0001é🙂"'],
         ['"a"', '"aaaa"', '"\t\t"', '"\\n\\n\\n\\n"']),
        ({"type": "integer"}, ["0", "-7", "120"], ["-0", "01", "1.0", "1e2", "+1", "", " 1"]),
        ({"type": "number"}, ["0.5", "-0.25", "10"], [".5", "1.", "--1", "NaN", "1e5"]),
    ],
)  # fmt: skip
def test_single_texts(schema: Any, valid: list[str], not_valid: list[str]) -> None:
    grammar, checks = vocabulary().schema(schema), validator(schema)
    for text in valid:
        assert is_valid(checks, text.encode()) and accepts(grammar, text.encode()), text
    for text in not_valid:
        assert not accepts(grammar, text.encode()), text


# ---- Numbers -------------------------------------------------------------------------------------


def random_bound(rng: random.Random) -> str:
    whole = rng.choice(
        [0, rng.randint(-9, 9), rng.randint(-2000, 2000), rng.randint(-(10**12), 10**12)]
    )
    fraction = rng.choice(["", "", ".5", f".{rng.randint(1, 9999):04d}", ".000"])
    return f"{whole}{fraction}" + rng.choice(["", "", "e1", "E-2"])


@pytest.mark.parametrize("seed", range(60))
def test_numbers_stay_within_their_bounds(seed: int) -> None:
    rng = random.Random(seed)
    low, high = sorted((random_bound(rng), random_bound(rng)), key=Fraction)
    if Fraction(high) - Fraction(low) < 2:
        high = f"{int(Fraction(low)) + 3}"
    whole, least, most = rng.random() < 0.5, rng.random() < 0.8, rng.random() < 0.8
    keywords = {"type": '"integer"' if whole else '"number"'}
    below, above = (
        rng.choice(["minimum", "exclusiveMinimum"]),
        rng.choice(["maximum", "exclusiveMaximum"]),
    )
    if least:
        keywords[below] = low
    if most:
        keywords[above] = high
    grammar = vocabulary().schema(
        "{" + ",".join(f'"{name}":{value}' for name, value in keywords.items()) + "}"
    )
    wanted: list[Callable[[Fraction], bool]] = []
    if least:
        wanted.append(lambda x: x > Fraction(low) or (x == Fraction(low) and below == "minimum"))
    if most:
        wanted.append(lambda x: x < Fraction(high) or (x == Fraction(high) and above == "maximum"))
    near = [
        Fraction(bound) + step for bound in (low, high) for step in (-1, 0, 1, Fraction(1, 100))
    ]
    texts = [write(grammar, rng).decode() for _ in range(25)]
    for text in texts:
        value = Fraction(text)
        assert all(holds(value) for holds in wanted), (keywords, text)
        assert not whole or value.denominator == 1
        assert re.fullmatch(r"-?(0|[1-9]\d*)(\.\d+)?", text) and not re.match(r"-0(\.0+)?$", text)
    for value in near:  # those beside the bounds, as texts of their own
        text = str(value) if value.denominator == 1 else f"{float(value):.12f}".rstrip("0")
        if Fraction(text) != value or len(text.lstrip("-").replace(".", "")) > 15:
            continue
        expected = all(holds(value) for holds in wanted) and not (whole and value.denominator > 1)
        assert accepts(grammar, text.encode()) == expected, (keywords, text)


@pytest.mark.parametrize(
    ("schema", "numbers"),
    [
        ({"minimum": -12, "maximum": 34}, range(-12, 35)),
        ({"minimum": 0, "maximum": 100, "multipleOf": 7}, range(0, 101, 7)),
        ({"exclusiveMinimum": -10, "exclusiveMaximum": 10, "multipleOf": 5}, range(-5, 6, 5)),
        ({"minimum": 95.5, "maximum": 105.5}, range(96, 106)),
        ({"minimum": -0.5, "exclusiveMaximum": 1}, range(1)),
        ({"minimum": -205, "maximum": -195}, range(-205, -194)),
    ],
)
def test_all_whole_numbers_of_a_range(schema: dict[str, Any], numbers: range) -> None:
    grammar = vocabulary().schema({"type": "integer", **schema})
    candidates = [str(i) for i in range(-300, 300)] + ["-0", "00", "07", "+7", "7.0", "", "-"]
    found = {text for text in candidates if accepts(grammar, text.encode())}
    assert found == {str(i) for i in numbers}


def test_all_short_decimals_of_a_range() -> None:
    grammar = vocabulary().schema({"type": "number", "exclusiveMinimum": -0.25, "maximum": 1.5})
    for i in range(-500, 2000):
        for text in {f"{i / 1000:.3f}", f"{i / 1000:.3f}".rstrip("0").rstrip(".")}:
            expected = Fraction(-1, 4) < Fraction(text) <= Fraction(3, 2)
            if re.match(r"-0(\.0*)?$", text):
                expected = False
            assert accepts(grammar, text.encode()) == expected, text


# ---- Patterns ------------------------------------------------------------------------------------

PATTERNS = [
    (r"^a*b$", "abc"), (r"a.c", "abcü"), (r"^[a-c]{2,3}$", "abcd"), (r"(ab|cd)+", "abcd"),
    (r"^(?:a|bc)?d$", "abcd"), (r"^\d{2}-\d{3,}$", "0129-a"), (r"[^ab]", "abxé"), (r"^$", "a"),
    (r"^a|b$", "abc"), (r"\.", ".a"), (r"^[\w.-]+@x$", "a_.-@x"), (r"\s", " \ta\u00a0"),
    (r"^\S+$", "a b"), (r"^(a(b(c)?)?)?$", "abc"), (r"x{3}", "xy"), (r"^(?:x{2,}y)*$", "xy"),
    (r"^[Д-Я][д-я]*$", "ДЯдя"), (r"^\u00e9+$", "éèe"), (r"^\x41\t?$", "A\tB"),
    (r"^(?:ab?){2}$", "ab"),
    (r"^[^\d\s]+$", "a1 é"), (r"^a+?b*?$", "ab"), (r"(?<year>\d{2})$", "01a"),
    (r"a|^b|c$|^$", "abc"),
    (r"^\[[^\]]*\]$", "[]a"), (r"^(?:[01]|2)?$", "012"), (r"^[-+]?\d$", "+-1"), (r"^[+-]$", "+-,"),
    (r"^日本?$", "日本人"), (r"^[\u{1F600}-\u{1F64F}]$", "😀🙏a"), (r"^\cJ|\/\$$", "\n/$"),
    (r"^([ab]c){0,2}$", "abc"),
]  # fmt: skip


def in_python(pattern: str) -> re.Pattern[str]:
    for ours, theirs in [
        ("(?<year>", "(?P<year>"), (r"\u{1F600}", "\U0001f600"), (r"\u{1F64F}", "\U0001f64f"),
        (r"\cJ", "\n"), (r"\$", "[$]"),
    ]:  # fmt: skip
        pattern = pattern.replace(ours, theirs)
    return re.compile(re.sub(r"(?<!\[)\$(?!\])", r"\\Z", pattern))  # `$` there is also before \n


@pytest.mark.parametrize(("pattern", "letters"), PATTERNS)
def test_a_pattern_is_as_in_python(pattern: str, letters: str) -> None:
    rng, schema = random.Random(pattern), {"type": "string", "pattern": pattern}
    wanted = in_python(pattern)
    texts = {"".join(rng.choices(letters, k=rng.randint(0, 6))) for _ in range(150)} | {""}
    grammar = vocabulary().schema(schema)
    written = [json.loads(write(grammar, rng, 6, letters)) for _ in range(10)]
    # What re takes for digits, spaces and letters beyond ASCII is not what JavaScript does.
    written = [text for text in written if text.isascii() or not re.search(r"\\[dswDSW]", pattern)]
    assert all(wanted.search(text) for text in written), written
    texts |= {mutated(text, rng) for text in written if len(text) < 20}
    for text in texts:
        found = accepts(grammar, json.dumps(text, ensure_ascii=False).encode())
        assert found == bool(wanted.search(text)), text


# ---- Refusals ------------------------------------------------------------------------------------

HELD = "cannot be held to while writing"
REFUSED: list[tuple[Any, str, str]] = [
    ({"not": {"type": "string"}}, "unsupported", f"has not at #, which {HELD}"),
    ({"properties": {"a": {"if": {}, "then": {}}}}, "unsupported", "has if at #/properties/a"),
    ({"items": {"contains": {}}}, "unsupported", "has contains at #/items"),
    ({"type": "array", "uniqueItems": True}, "unsupported", "uniqueItems of more than ten .* at #"),
    ({"type": "array", "uniqueItems": True, "items": {"type": "string"}}, "unsupported", "unique"),
    ({"type": "array", "uniqueItems": True, "items": {"enum": ["a"], "not": {}}}, "unsupported",
     "has not at #"),
    ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, "unsupported",
     r"oneOf whose alternatives 0 and 1 may both hold \(anyOf would do\) at #"),
    # A schema that speaks of strings takes numbers, too.
    ({"oneOf": [{"minLength": 3}, {"minimum": 3}]}, "unsupported", "may both hold"),
    # The first one's alternatives may add what the second one wants.
    ({"oneOf": [{"properties": {"k": {}}, "required": ["k"], "anyOf": [{"properties": {"x": {}}}]},
                {"properties": {"x": {}}, "required": ["x"]}]}, "unsupported", "may both hold"),
    ({"oneOf": [{"const": {"a": 1, "b": 2}}, {"const": {"b": 2, "a": 1.0}}]}, "unsupported",
     "both"),
    ({"oneOf": [{"$ref": "#/$defs/n"}, {"$ref": "#/$defs/n"}], "$defs": {"n": {
        "type": "object", "properties": {"c": {"$ref": "#/$defs/n"}}, "required": ["c"]}}},
     "unsupported", "may both hold"),
    ({"$ref": "other.json#/a"}, "unsupported", "refers to other.json#/a, which is not inside it"),
    ({"$ref": "#/$defs/a"}, "invalid_argument", "refers to #/\\$defs/a, which is not there"),
    ({"pattern": "(?=a)b"}, "unsupported", "look-around"),
    ({"pattern": "(?<!a)b"}, "unsupported", "look-around"),
    ({"pattern": r"(a)\1"}, "unsupported", "back reference"),
    ({"pattern": r"\bword"}, "unsupported", "word boundary"),
    ({"pattern": r"\p{L}"}, "unsupported", "class of Unicode"),
    ({"pattern": "a)"}, "invalid_argument", "without its \\( at byte 1"),
    ({"pattern": "[a"}, "invalid_argument", "without its \\]"),
    ({"pattern": "[]", "type": "string"}, "invalid_argument", "nothing can be written"),
    ({"pattern": "ü" * 99 + "("}, "invalid_argument", "pattern"),
    ({"pattern": "a{20000}"}, "unsupported", "more than 10000 repetitions"),
    ({"multipleOf": 0.01}, "unsupported", "multipleOf that is not a whole number"),
    ({"type": "integer", "multipleOf": 0}, "unsupported", "multipleOf"),
    ({"type": "object", "minProperties": 2}, "unsupported", "minProperties .* names might repeat"),
    ({"propertyNames": {"anyOf": [{"minLength": 2}]}}, "unsupported", "propertyNames with alter"),
    ({"propertyNames": {"not": {}}}, "unsupported", "has not at #"),
    ({"allOf": [{"patternProperties": {"a": {}}}, {"patternProperties": {"b": {}}}]},
     "unsupported", "patternProperties in several schemas"),
    ({"$ref": "#/$defs/a", "unevaluatedProperties": False, "$defs": {"a": {}}}, "unsupported",
     "unevaluatedProperties beside other schemas at #"),
    ({"enum": [{"a": 1}], "minProperties": 2}, "unsupported", "rules for what is inside"),
    ({"dependentRequired": {"a": ["b"]}}, "unsupported", "dependentRequired"),
    ({"$dynamicRef": "#a"}, "unsupported", "dynamicRef"),
    # What is no schema.
    ({"minimum": "5"}, "invalid_argument", "the wrong kind for minimum at #"),
    ({"properties": {"a": {"required": True}}}, "invalid_argument", "required at #/properties/a"),
    ({"required": [1]}, "invalid_argument", "required that is no string"),
    ({"type": "text"}, "invalid_argument", "type that there is not"),
    ({"type": ["string", {}]}, "invalid_argument", "type that there is not"),
    ({"minLength": "3", "type": "string"}, "invalid_argument", "count that is no number"),
    ({"maxItems": -1, "type": "array"}, "invalid_argument", "count that is no count"),
    ({"items": 5, "type": "array"}, "invalid_argument", "neither an object nor a truth value"),
    ({"anyOf": []}, "invalid_argument", "without schemas"),
    ("[1, 2]", "invalid_argument", "neither an object nor a truth value"),
    ("{", "invalid_argument", "JSON has .* at byte 1"),
    ('{"a": "\\ud800"}', "invalid_argument", "half a surrogate pair"),
    ('{"a": 01}', "invalid_argument", "JSON"),
    ("", "invalid_argument", "no value at byte 0"),
    ("{} {}", "invalid_argument", "after its end"),
    # What no text meets.
    (False, "invalid_argument", "nothing can be written"),
    ({"type": "integer", "minimum": 5, "maximum": 4}, "invalid_argument", "nothing can be written"),
    ({"type": "string", "minLength": 3, "maxLength": 2}, "invalid_argument", "nothing can be writ"),
    ({"type": "string", "enum": [1, 2]}, "invalid_argument", "nothing can be written"),
    ({"allOf": [{"type": "string"}, {"type": "null"}]}, "invalid_argument",
     "nothing can be written"),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"},
                                           "minItems": 1}}}, "invalid_argument", "nothing can be"),
    ({"type": "object", "required": ["a"], "additionalProperties": False}, "invalid_argument",
     "nothing can be written"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "status", "sentence"), REFUSED)
def test_what_cannot_be_held_to_is_refused(schema: Any, status: str, sentence: str) -> None:
    found, text = refusal(schema)
    assert found == status and re.search(sentence, text), text


def nested(depth: int) -> Any:
    found: Any = {"type": "integer"}
    for _ in range(depth):
        found = {"type": "array", "items": found}
    return found


def choices(count: int) -> list[Any]:
    return [{"anyOf": [{"properties": {f"p{i}{j}": {}}} for j in range(3)]} for i in range(count)]


HOSTILE: dict[str, tuple[Any, str | None]] = {
    "unclosed arrays": ("[" * 10_000, "too deep"),
    "nested JSON": ('{"items":' * 10_000 + "{}" + "}" * 10_000, "too deep"),
    "nested schemas": (nested(150), "too deeply"),
    "as nested as may be": (nested(90), None),
    "a large enum": ({"enum": [f"value {i} of many" for i in range(10_000)]}, None),
    "a huge enum": ({"enum": [f"{i * 7919 % 99991} {i:09d}" for i in range(60_000)]}, "too large"),
    "many members": ({"properties": {f"p{i}": {} for i in range(20_000)}}, "2000 members"),
    "members that are counted": (
        {"maxProperties": 900, "properties": {f"p{i}": {} for i in range(1000)}}, "too many"),
    "a long array": ({"type": "array", "minItems": 10_000}, None),
    "a longer array": ({"type": "array", "minItems": 10_001}, "minItems of more than 10000"),
    "a long string": ({"type": "string", "maxLength": 10**9}, None),
    "many members of any name": ({"type": "object", "maxProperties": 10**9}, None),
    "repeated repetitions": ({"pattern": "((a{1,50}){1,50}){1,50}"}, "too many repetitions"),
    "ambiguous repetitions": ({"pattern": "^(a|aa){0,5000}$"}, "too large"),
    "stars": ({"pattern": "(" * 25 + "a" + ")*" * 25}, "too many repetitions"),
    "groups": ({"pattern": "(" * 5000 + ")" * 5000}, "too many nested groups"),
    "many states": ({"pattern": "(a|b)*a(a|b){20}$"}, "too large"),
    "choices of choices": ({"allOf": choices(20)}, "alternatives of alternatives"),
    "many of one": (
        {"oneOf": [{"properties": {"k": {"const": i}}, "required": ["k"]} for i in range(600)]},
        "too many alternatives"),
    "itself": ({"$ref": "#"}, None),
    "itself twice": ({"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}, "too deeply"),
    "a circle": ({"$ref": "#/a", "a": {"$ref": "#/b"}, "b": {"$ref": "#/a"}}, None),
    "a large power": ('{"type":"number","minimum":1e999999999999}', "too large or too long"),
    "many digits": ('{"type":"number","maximum":' + "9" * 5000 + "}", "too large or too long"),
    "many patterns": ({"patternProperties": {f"^x{i}[a-z]*$": {} for i in range(40)}}, None),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_schemas_end_quickly(name: str) -> None:
    schema, sentence = HOSTILE[name]
    begin = time.process_time()
    if sentence is None:
        matcher = _core.Matcher(vocabulary().schema(schema))
        assert mask(matcher).any()
    else:
        assert sentence in refusal(schema)[1]
    assert time.process_time() - begin < 5
