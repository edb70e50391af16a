"""JSON Schemas of random keywords, most of which hold a value to something."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

_TYPES: list[Any] = ["string", "integer", "number", "object", "array", "null", "boolean"]
_VALUES: list[Any] = [1, 2, 1.0, "a", "ab", None, True, False, [1], {"a": 1}, 0, ""]
LETTERS = 'ax1"b'  # that names and patterns are of


def random_schema(rng: random.Random) -> dict[str, Any]:
    return {
        **_keywords(rng, 0),
        "$defs": {"p": _schema(rng, 1), "q": _schema(rng, 1)},
    }


def _schema(rng: random.Random, depth: int) -> Any:
    return rng.choice([True, {}, False]) if rng.random() < 0.04 else _keywords(rng, depth)


def _keywords(rng: random.Random, depth: int) -> dict[str, Any]:
    def some(least: int, most: int) -> list[Any]:
        return [_schema(rng, depth + 1) for _ in range(rng.randint(least, most))]

    def named(names: list[str]) -> dict[str, Any]:
        return {rng.choice(names): each for each in some(1, 2)}

    plain: dict[str, Callable[[], Any]] = {
        "type": lambda: rng.choice([*_TYPES, ["string", "integer"], ["object", "null"]]),
        "minLength": lambda: rng.randint(0, 3),
        "maxLength": lambda: rng.randint(0, 4),
        "pattern": lambda: rng.choice(["^a", "b$", "^[ab]*$", "x"]),
        "minimum": lambda: rng.choice([-5, 0, 2.5]),
        "maximum": lambda: rng.choice([3, 7.5, -1]),
        "exclusiveMinimum": lambda: rng.choice([0, 1.5, -3]),
        "multipleOf": lambda: rng.choice([1, 2, 5]),
        "enum": lambda: rng.sample(_VALUES, rng.randint(1, 4)),
        "const": lambda: rng.choice([1, "a", None, [1, 2], {"a": 1, "b": "a"}]),
        "required": lambda: rng.sample(["a", "b", "x1"], rng.randint(0, 2)),
        "propertyNames": lambda: rng.choice(
            [{"pattern": "^[ax]"}, {"maxLength": 1}, {"enum": ["a", "q", "x1"]}]
        ),
        "minProperties": lambda: rng.randint(0, 2),
        "maxProperties": lambda: rng.randint(0, 3),
        "minItems": lambda: rng.randint(0, 2),
        "maxItems": lambda: rng.randint(0, 3),
        "uniqueItems": lambda: rng.random() < 0.5,
        "$ref": lambda: rng.choice(["#", "#/$defs/p", "#/$defs/q"]),
        "unevaluatedItems": lambda: False,
        "unevaluatedProperties": lambda: False,
    }
    holding: dict[str, Callable[[], Any]] = {
        "properties": lambda: named(["a", "b", "x1", "x2"]),
        "patternProperties": lambda: named(["^x", "a", "1$"]),
        "additionalProperties": lambda: some(1, 1)[0],
        "items": lambda: some(1, 1)[0],
        "prefixItems": lambda: some(1, 2),
        "anyOf": lambda: some(1, 3),
        "oneOf": lambda: some(1, 3),
        "allOf": lambda: some(1, 2),
    }
    keywords = {**plain, **holding} if depth < 3 else plain
    chosen = rng.choices(["type", *keywords], k=rng.randint(1, 4))
    return {name: keywords[name]() for name in dict.fromkeys(chosen)}
