"""A random model that is held to a grammar: any token that may come next comes next."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from selm_edge import _core
from support.bundled import DEFAULT

_CLOSING = (b'"', b"}", b"]", b'"}', b'"]', b"null", b")")
Mask = npt.NDArray[np.bool_]


class Vocabulary:
    """The bundled model's, whose tokens are of any bytes."""

    def __init__(self) -> None:
        self.tokenizer = _core.Tokenizer(str(DEFAULT))
        self.size = self.tokenizer.info.size
        self.texts = [self.tokenizer.decode([token], False) for token in range(self.size)]
        self.ends = np.array([self.tokenizer.is_end(token) for token in range(self.size)])
        self.quotes = np.array([text.startswith(b'"') for text in self.texts])
        self.closing = np.array([text in _CLOSING for text in self.texts])
        self.short = np.array([len(text) == 1 for text in self.texts])

    def encode(self, text: bytes) -> list[int]:
        tokens = list(self.tokenizer.encode(text, False, False))
        assert self.tokenizer.decode(tokens, False) == text
        return tokens

    def decode(self, tokens: list[int]) -> bytes:
        return self.tokenizer.decode(tokens, False)

    def schema(self, schema: Mapping[str, Any] | bool | str) -> _core.Grammar:
        text = schema if isinstance(schema, str) else json.dumps(schema)
        return _core.Grammar(self.tokenizer, "schema", text)

    def gbnf(self, text: str) -> _core.Grammar:
        return _core.Grammar(self.tokenizer, "gbnf", text)


@functools.cache
def vocabulary() -> Vocabulary:
    return Vocabulary()


def mask(matcher: _core.Matcher) -> Mask:
    return np.frombuffer(matcher.allowed(), dtype=np.bool_)


def after(grammar: _core.Grammar, tokens: list[int]) -> _core.Matcher:
    matcher = _core.Matcher(grammar)
    for token in tokens:
        matcher.read(token)
    return matcher


def write(grammar: _core.Grammar, rng: random.Random, length: int = 40, letters: str = "") -> bytes:
    """A text of the grammar, mostly of these letters, if any; from `length` tokens on it is brought
    to an end."""
    words = vocabulary()
    liked = np.array([text in [c.encode() for c in letters] for text in words.texts])
    matcher, tokens = _core.Matcher(grammar), list[int]()
    while True:
        allowed = mask(matcher)
        assert bool((allowed & words.ends).any()) == matcher.complete
        ids = np.flatnonzero(allowed & ~words.ends)
        late = len(tokens) >= length
        if len(ids) == 0 or (matcher.complete and (late or rng.random() < 0.3)):
            assert matcher.complete
            return words.decode(tokens)
        assert len(tokens) < 100 * length, words.decode(tokens[:100])
        for preferred, chance in (
            (words.quotes, 0.8 * late),
            (liked, 0.9),
            (words.closing, 0.6 if late else 0.3),
            (words.short, late),
        ):
            some = np.flatnonzero(allowed & preferred)
            if len(some) and rng.random() < chance:
                ids = some
                break
        tokens.append(int(ids[rng.randrange(len(ids))]))
        matcher.read(tokens[-1])


def accepts(grammar: _core.Grammar, text: bytes) -> bool:
    try:
        return after(grammar, vocabulary().encode(text)).complete
    except _core.CoreError as error:
        assert error.args[0] == "invalid_argument", error
        return False
