"""What holding a reply to a schema costs for each token.

    python scripts/constraint_speed.py VOCABULARY.gguf
    python scripts/constraint_speed.py MODEL.gguf --generate 64

Reads texts token by token and masks logits before each token, as a generation does, with a grammar
that knows no state yet (first) and once more (then). Prints JSON, in microseconds for each token:
`mask` (mean and most) and `read` (mean), and for each schema how long it takes to compile.
With `--generate N`, instead, what a token of a reply costs a whole model in milliseconds, and how
many times that once a schema holds it: the first reply, compiling included, and the later ones.
"""

from __future__ import annotations

import argparse
import array
import json
import statistics
import time
from typing import Any

from selm_edge import Model, _core

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


def masks(path: str) -> dict[str, Any]:
    tokenizer = _core.Tokenizer(path)
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
    return found


def replies(path: str, tokens: int, rounds: int = 5) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with Model.load(path) as model:

        def each(schema: Any = None) -> float:
            """What a token of one reply takes, its prompt apart."""
            begin = time.perf_counter()
            reply = model.generate(
                "Who is it?", max_tokens=tokens, schema=schema, temperature=1.0, seed=1
            )
            stats = reply.finish().stats
            return 1e3 * (time.perf_counter() - begin - stats.prompt_seconds) / stats.decode_steps

        each()
        each({"const": 1})  # the vocabulary is sorted for the first one
        for name, (schema, _) in CASES.items():
            free, held = [], []
            for _ in range(rounds):
                free.append(each())
                held.append(each(schema))
            found[name] = {
                "free": round(statistics.median(free), 2),
                "first": round(held[0] / free[0], 3),
                "then": round(statistics.median(held[1:]) / statistics.median(free[1:]), 3),
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("file", help="a GGUF file")
    parser.add_argument("--generate", type=int, metavar="N", help="replies of N tokens")
    options = parser.parse_args()
    found = replies(options.file, options.generate) if options.generate else masks(options.file)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
