"""What the user prefers: one small JSON file (`selm doctor` says where).

    {"model": "selm-tiny", "backend": "native", "threads": 2, "context": 4096,
     "system": "Answer briefly.", "max_tokens": 512, "sampling": {"temperature": 0.5}}

Each entry may be left out. `SELM_MODEL`, `SELM_BACKEND`, `SELM_THREADS` and `SELM_CONTEXT` come
before the file. A file that cannot be understood is never overwritten: its problems are listed, the
entries that are right count, and the rest are defaults.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selm_edge import paths
from selm_edge.backends.base import SAMPLING_RANGES, range_problem

_NUMBERS = {"threads": (1, 4096), "context": (16, 1 << 24), "max_tokens": (1, 1 << 24)}
_TEXTS = ("model", "backend", "system", "theme", "embedder")


@dataclass
class Config:
    model: str | None = None
    backend: str | None = None
    threads: int | None = None
    context: int = 4096
    max_tokens: int | None = None
    system: str | None = None
    theme: str | None = None
    embedder: str | None = None
    """Of memory: "builtin" (None too), "off", or the path of a GGUF file."""
    sampling: dict[str, float | int] = field(default_factory=dict)
    """Fields of `Sampling` that differ from its defaults."""
    path: Path | None = None
    problems: list[str] = field(default_factory=list)
    """What is wrong with the file, in sentences."""


def load(path: Path | None = None) -> Config:
    """The preferences in force. Never raises for what the file holds: see `problems`."""
    config = Config(path=path or paths.config_file())
    assert config.path is not None
    try:
        data = json.loads(config.path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        data = {}
    except (OSError, ValueError) as error:
        config.problems.append(f"{config.path}: cannot be read: {error}")
        data = {}
    if not isinstance(data, dict):
        config.problems.append(f"{config.path}: is not a JSON object")
        data = {}
    for key, value in data.items():
        _take(config, key, value)
    for key in ("model", "backend", "threads", "context"):
        text = os.environ.get(f"SELM_{key.upper()}", "")
        if text:
            value = int(text) if key in _NUMBERS and text.isdecimal() else text
            _take(config, key, value, f"SELM_{key.upper()}")
    return config


def _take(config: Config, key: str, value: Any, source: str | None = None) -> None:
    where = source or f"{config.path}: {key}"
    if key in _TEXTS:
        if not isinstance(value, str) or not value.strip():
            config.problems.append(f"{where} is not a text")
        else:
            setattr(config, key, value)
    elif key in _NUMBERS:
        problem = range_problem(where, value, int, *_NUMBERS[key])
        if problem is not None:
            config.problems.append(problem)  # "SELM_THREADS is a whole number from 1 to 4096"
        else:
            setattr(config, key, value)
    elif key == "sampling" and isinstance(value, dict):
        for name, number in value.items():
            problem = sampling_problem(name, number)
            if problem is None:
                config.sampling[name] = number
            else:
                config.problems.append(f"{where}.{problem}")
    else:
        config.problems.append(f"{where} is not a preference that SELM Edge knows")


def sampling_problem(name: str, value: object) -> str | None:
    """Why that is no sampling setting, or None if it is one."""
    if name not in SAMPLING_RANGES:
        return f"{name} is not a sampling setting; there are: {', '.join(SAMPLING_RANGES)}"
    return range_problem(name, value, *SAMPLING_RANGES[name])


def number_problem(name: str, value: object) -> str | None:
    """Why that is no value of a number preference (`threads`, `context`, `max_tokens`) or of a
    sampling setting, in a sentence that gives the range; None if it is one."""
    if name in _NUMBERS:
        return range_problem(name, value, int, *_NUMBERS[name])
    return sampling_problem(name, value)
