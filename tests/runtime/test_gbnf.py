"""What a GBNF grammar lets through, by other means: ast, json, re and reductions."""

from __future__ import annotations

import ast
import json
import random
import re
import time
from collections.abc import Callable

import pytest
from support.constrained import accepts, mask, vocabulary, write

from selm_edge import _core

ARITHMETIC = r"""
# Sums as Python reads them
root ::= sum
sum ::= product ( ws [-+] ws product )*
product ::= factor (ws ("*" | "/" | "//" | "%") ws factor)*
factor ::= number | name | "(" ws sum ws ")" | "-" factor
number ::= "0" | [1-9] [0-9]{0,5} ("." [0-9]+)?
name ::= "x" [0-9_a-z]*
ws ::= " "?
"""
CHESS = r"""
root ::= "1. " move " " move ("\n" [2-9] ". " move " " move)*
move ::= (castle | piece | pawn) [+#]?
castle ::= "O-O" "-O"?
piece ::= [NBKQR] [a-h]? [1-8]? "x"? [a-h] [1-8]
pawn ::= ([a-h] "x")? [a-h] [1-8] ("=" [NBQR])?
"""
JSON = r"""
root ::= value
value ::= object | array | string | number | ("true" | "false" | "null")
object ::= "{" ws (pair ("," ws pair)*)? "}"
pair ::= string ":" ws value
array ::= "[" ws (value ("," ws value)*)? "]"
string ::= "\"" ([^"\\\x00-\x1F\x7F] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4}))* "\""
number ::= "-"? ("0" | [1-9] [0-9]*) ("." [0-9]+)? ([eE] [-+]? [0-9]{1,2})?
ws ::= [ \t\n]*
"""
LIST = r"""
root ::= "List:\n" item+
item ::=
  "- " [^\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]+ "\n"  # one line
  | ([1-9] [0-9]? ")") " " "item" "\n"
"""
C_LIKE = r"""
root ::= statement+
statement ::= "int " name " = " [0-9]+ ";"
            | name " = " value (" " [-+] " " value)* ";"
            | "while (" name " < " value ") {" statement* "}"
value ::= name | [0-9]+
name ::= [a-d] [0-9]?
"""
JAPANESE = r"""
root ::= (hiragana | katakana | kanji "する")("、" hiragana)* "。"
hiragana ::= [ぁ-ゖ]{2,4}
katakana ::= [ァ-ヺー]+
kanji ::= [\u4e00-\u9fff]{2}
"""


def is_sum(text: str) -> bool:
    try:
        tree = ast.parse(text, mode="eval")
    except SyntaxError:
        return False
    known = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.Constant, ast.Name, ast.operator)
    return all(isinstance(node, (*known, ast.USub, ast.Load)) for node in ast.walk(tree))


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def is_program(text: str) -> bool:
    """Statements become S, and loops of S become S, until nothing changes."""
    text = re.sub(r"(?:int [a-d]\d? = \d+|[a-d]\d? = (?:[a-d]\d?|\d+)(?: [-+] (?:[a-d]\d?|\d+))*);",
                  "S", text)  # fmt: skip
    while (reduced := re.sub(r"while \([a-d]\d? < (?:[a-d]\d?|\d+)\) \{S*\}", "S", text)) != text:
        text = reduced
    return re.fullmatch("S+", text) is not None


MOVE = r"(?:O-O(?:-O)?|[NBKQR][a-h]?[1-8]?x?[a-h][1-8]|(?:[a-h]x)?[a-h][1-8](?:=[NBQR])?)[+#]?"
GRAMMARS: dict[str, tuple[str, Callable[[str], object], str]] = {
    "arithmetic": (ARITHMETIC, is_sum, "x1+-*/(0. )"),
    "chess": (CHESS, re.compile(rf"1\. {MOVE} {MOVE}(?:\n[2-9]\. {MOVE} {MOVE})*").fullmatch, ""),
    "json": (JSON, is_json, '"{}[],:1a'),
    "list": (
        LIST,
        lambda text: all(
            re.fullmatch(r"- .+|[1-9][0-9]?\) item", line) for line in text.splitlines()[1:]
        ),
        "- a\n",
    ),
    "c": (C_LIKE, is_program, "abcd =+;{}123"),
    "japanese": (
        JAPANESE,
        re.compile("(?:[ぁ-ゖ]{2,4}|[ァ-ヺー]+|[一-\u9fff]{2}する)(?:、[ぁ-ゖ]{2,4})*。").fullmatch,
        "",
    ),
}


@pytest.mark.parametrize("name", GRAMMARS)
def test_a_random_model_writes_what_the_grammar_is_of(name: str) -> None:
    text, check, letters = GRAMMARS[name]
    grammar, rng = vocabulary().gbnf(text), random.Random(name)
    texts = {write(grammar, rng, 25, letters).decode() for _ in range(30)}
    assert len(texts) > 10
    refused = 0
    for each in texts:
        assert check(each), each
        for _ in range(10):  # a character more or less
            at = rng.randrange(len(each))
            other = each[:at] + rng.choice(["", each[at] * 2, "(", "}", "1", "\r"]) + each[at + 1 :]
            assert check(other) or not accepts(grammar, other.encode()), other
            refused += not check(other)
    assert refused > 20


@pytest.mark.parametrize(
    ("grammar", "valid", "not_valid"),
    [
        ('root ::= "a" | "b" "c"', ["a", "bc"], ["ab", "ac", "", "abc"]),
        ('root ::= ("a" | "b")+ "c"?', ["a", "bbac"], ["c", "", "acc"]),
        ('root ::= "a"{2}', ["aa"], ["a", "aaa"]),
        ('root ::= "ab"{2,}', ["abab", "ababab"], ["ab", "abababa"]),
        ('root ::= [ab]{1,3} [^ab]', ["abaü", "b\n"], ["abab", "aaaac", "c"]),
        ('root ::= "x"{0,2} "y"', ["y", "xxy"], ["xxxy", "x"]),
        (r'root ::= "\x41\u3042\U0001F600\"\\\n"', ['Aあ😀"\\\n'], ["A", 'Aあ😀"\\n']),
        (r'root ::= [\]\-\^a] [a-]', ["]-", "^a", "-a"], ["b-", "\\a"]),
        ('root ::= "a" .', ["aü", "a\n", "a\U0001f600"], ["a", "abc"]),
        ("root ::= one\n  | two\none ::=\n  \"1\" # the first\ntwo ::= \"2\"\r\n", ["1"], ["12"]),
        ('root ::= (\n  "a"\n  | "b"\n) "c"', ["ac", "bc"], ["a", "abc"]),
        ('root ::= "a" root "b" | ""', ["", "ab", "aabb"], ["aab", "ba"]),
        ('root ::= "a"* | "b" ""', ["", "aaa", "b"], ["ab", "bb"]),
        ('a-b_C1 ::= "x"\nroot::=a-b_C1', ["x"], [""]),
    ],
)  # fmt: skip
def test_what_grammars_mean(grammar: str, valid: list[str], not_valid: list[str]) -> None:
    made = vocabulary().gbnf(grammar)
    for text in valid:
        assert accepts(made, text.encode()), text
    for text in not_valid:
        assert not accepts(made, text.encode()), text


@pytest.mark.parametrize(
    ("grammar", "sentence"),
    [
        ('root ::= "a"\nx ::= y\n\nz ::= "b"', r"rule y \(line 2\) is used but not defined"),
        ('x ::= "a"', "rule root is used but not defined"),
        ("", "rule root is used but not defined"),
        ('# two\nroot ::= root "a" | "b"', r"rule root \(line 2\) begins with itself"),
        ('root ::= a\na ::= b? c\nb ::= "x"\nc ::= a "y" | "z"', r"rule a \(line 2\) begins with"),
        ('root ::= "a"\nx ::= [a-', "without its end in line 2"),
        ('root ::= "a"\nx ::= [abc\ny ::= "d"', "without its end in line 2"),
        ('root ::= "a', "without its end in line 1"),
        ('root ::= ("a"', "without its \\) in line 1"),
        ('root ::= "a")', "after a rule's end in line 1"),
        ('root = "a"', "without its ::= in line 1"),
        ('root ::= "a"\n::= "b"', "something that is no rule in line 2"),
        ('root ::= "a" $', "neither text nor a rule's name in line 1"),
        ('root ::= "a"\nroot ::= "b"', "second rule of one name in line 2"),
        ('root ::= "a"{3,2}', "n < m in line 1"),
        ('root ::= "a"{x}', "{ without a number in line 1"),
        ('root ::= "a"{1', "{ without its } in line 1"),
        ('root ::= "a"{1000000}', "more than 100000 repetitions in line 1"),
        (r'root ::= "\q"', "unknown escape in line 1"),
        (r'root ::= "\u12"', "too few digits in line 1"),
        (r'root ::= "\ud800"', "escape of no character in line 1"),
        ("root ::= [z-a]", "range of no characters in line 1"),
        ('root ::= "a" root', "nothing can be written"),
        ("root ::= " + "(" * 300 + '"a"' + ")" * 300, "nested too deeply in line 1"),
    ],
)
def test_errors_name_the_place(grammar: str, sentence: str) -> None:
    with pytest.raises(_core.CoreError) as caught:
        vocabulary().gbnf(grammar)
    assert caught.value.args[0] == "invalid_argument"
    assert re.search(sentence, caught.value.args[1]), caught.value.args[1]


def chain(count: int, rule: str) -> str:
    rules = [rule.format(i, i + 1) for i in range(count)]
    return "\n".join(["root ::= r0", *rules, f'r{count} ::= "y"?'])


HOSTILE: dict[str, tuple[str, str]] = {
    "four of any number": ('root ::= a a a a\na ::= "x"* | ("xx")*', "x" * 1500),
    "any number of any number": ('root ::= a*\na ::= "x"*', "x" * 1500),
    "spaces between spaces": ('root ::= (ws item)* ws\nws ::= [ \\n]*\nitem ::= "a"?', " " * 1500),
    "two of itself": ('root ::= "x" root root | "x"', "x" * 200),
    "many ways": ('root ::= "x" root "y" | "x" root "z" | "x" root root | ""', "x" * 300),
    "palindromes": ('root ::= "a" root "a" | "b" root "b" | "a" | ""', "ab" * 500),
    "deep": ('root ::= "(" root ")" | "x"', "(" * 9000),
    "repetitions": ('root ::= "a"{0,100000}', ""),
    "repetitions of repetitions": ('root ::= (("a"{0,1000}){0,1000}){0,1000}', ""),
    "a rule many times": ('root ::= a{0,50000}\na ::= "x"', "x" * 200),
    "a chain of rules": (chain(10_000, 'r{} ::= r{} "x"?'), "y"),
    "a chain that doubles": (chain(40, "r{0} ::= r{1} r{1}"), "y" * 40),
    "many alternatives": ("root ::= " + " | ".join(f'"w{i}"' for i in range(20_000)), "w777"),
    "a long line": ('root ::= "' + "a" * 100_000 + '"', "a" * 500),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_grammars_end_quickly(name: str) -> None:
    grammar, text = HOSTILE[name]
    begin = time.process_time()
    try:
        matcher = _core.Matcher(vocabulary().gbnf(grammar))
        for token in vocabulary().encode(text.encode()):
            assert mask(matcher)[token]
            matcher.read(token)
    except _core.CoreError as error:
        assert error.args[0] == "unsupported"
        assert re.search("too ambiguous|too large|more than", error.args[1]), error.args[1]
        assert "number" not in name and name not in ("deep", "spaces between spaces", "palindromes")
    assert time.process_time() - begin < 8
