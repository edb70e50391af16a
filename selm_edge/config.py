"""What the user prefers: one small JSON file (`selm doctor` says where).

    {"model": "selm-mini", "backend": "native", "threads": 2, "context": 4096,
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

_SAMPLING: dict[str, tuple[type, float, float]] = {  # name: type, least, most
    "temperature": (float, 0.0, 100.0),
    "top_k": (int, 0, 1 << 31),
    "top_p": (float, 0.0, 1.0),
    "min_p": (float, 0.0, 1.0),
    "typical_p": (float, 0.0, 1.0),
    "repeat_penalty": (float, 0.01, 100.0),
    "frequency_penalty": (float, -100.0, 100.0),
    "presence_penalty": (float, -100.0, 100.0),
    "penalty_last_n": (int, 0, 1 << 31),
    "seed": (int, 0, (1 << 63) - 1),
}
_NUMBERS = {"threads": (1, 4096), "context": (16, 1 << 24), "max_tokens": (1, 1 << 24)}
_TEXTS = ("model", "backend", "system", "theme")


@dataclass
class Config:
    model: str | None = None
    backend: str | None = None
    threads: int | None = None
    context: int = 4096
    max_tokens: int | None = None
    system: str | None = None
    theme: str | None = None
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
        least, most = _NUMBERS[key]
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            config.problems.append(f"{where} is not a whole number from {least} to {most}")
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
    if name not in _SAMPLING:
        return f"{name} is not a sampling setting; there are: {', '.join(_SAMPLING)}"
    kind, least, most = _SAMPLING[name]
    right = isinstance(value, int) if kind is int else isinstance(value, (int, float))
    if isinstance(value, bool) or not right or not least <= float(value) <= most:  # type: ignore[arg-type]
        noun = "whole number" if kind is int else "number"
        return f"{name} is a {noun} from {least:g} to {most:g}"
    return None
