"""What holding a reply to a schema costs for each token.

    python scripts/constraint_speed.py VOCABULARY.gguf

Reads texts token by token and masks logits before each token, as a generation does, with a grammar
that knows no state yet (first) and once more (then). Prints JSON, in microseconds for each token:
`mask` (mean and most) and `read` (mean), and for each schema how long it takes to compile.
"""

from __future__ import annotations

import array
import json
import statistics
import sys
import time
from typing import Any

from selm_edge import _core

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "mail": {"type": "string", "format": "email"},
        "tags": {"type": "array", "items": {"enum": ["new", "old", "lost"]}},
    },
    "required": ["name", "age"],
}
COMMENT = {
    "type": "object",
    "properties": {
        "by": {"type": "string"},
        "text": {"type": "string"},
        "replies": {"type": "array", "items": {"$ref": "#"}},
    },
    "required": ["by", "text"],
}
SENTENCE = "The quick brown fox doesn't jump over 13 lazy dogs, über die Straße, 日本語も少し"
CASES: dict[str, tuple[Any, str]] = {
    "object": (
        PERSON,
        '{"name": "Anna-Maria van der Berg", "age": 34, "mail": "anna@example.org", '
        '"tags": ["new", "lost"]}',
    ),
    "free string": ({"type": "string"}, f'"{SENTENCE}"'),
    "maxLength 100": ({"type": "string", "maxLength": 100}, f'"{SENTENCE}"'),
    "pattern": ({"pattern": r"^[A-Z]{3}-\d{4}(?:/[a-z]+)*$"}, '"ABC-2041/first/second"'),
    "recursive": (
        COMMENT,
        '{"by": "Bo", "text": "What now?", "replies": [{"by": "Al", "text": "Wait."}]}',
    ),
    "any JSON": ({}, '{"a": [1, -2.5, {"b": null}], "long name": "some text", "c": [[], {}]}'),
}


def pass_over(grammar: _core.Grammar, tokens: list[int], size: int) -> dict[str, float]:
    matcher = _core.Matcher(grammar)
    logits = array.array("f", bytes(4 * size))
    masks, reads = [], []
    for token in tokens:
        begin = time.perf_counter()
        matcher.mask(logits)
        masked = time.perf_counter()
        matcher.read(token)
        masks.append(1e6 * (masked - begin))
        reads.append(1e6 * (time.perf_counter() - masked))
    return {
        "mask": round(statistics.mean(masks), 1),
        "mask_most": round(max(masks), 1),
        "read": round(statistics.mean(reads), 2),
    }


def main() -> None:
    tokenizer = _core.Tokenizer(sys.argv[1])
    size = tokenizer.info.size
    _core.Grammar(tokenizer, "schema", "true")  # the vocabulary is sorted for the first one
    found: dict[str, Any] = {"vocabulary": size}
    for name, (schema, text) in CASES.items():
        tokens = list(tokenizer.encode(text.encode(), False, False))
        begin = time.perf_counter()
        grammar = _core.Grammar(tokenizer, "schema", json.dumps(schema))
        compiled = round(1e6 * (time.perf_counter() - begin))
        first, then = (pass_over(grammar, tokens, size) for _ in range(2))
        found[name] = {"tokens": len(tokens), "compile": compiled, "first": first, "then": then}
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
