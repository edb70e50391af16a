"""A fake engine that takes adapters, and a list of adapters for its model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pytest

from selm_edge.adapters import Adapter, AdapterShelf
from selm_edge.backends.base import AdapterInfo
from support.chatting import FakeSource
from support.fake_engine import FakeEngine

SHA256 = "ab" * 32  # of every model of `FakeSource`


def with_adapters(
    home: Path, monkeypatch: pytest.MonkeyPatch, *names: str
) -> tuple[FakeSource, list[list[str]]]:
    """A source whose models reply ``plain``, or with the names of the adapters in use; ``names``
    are on the list, and none of them in use. The second value grows with each change."""
    monkeypatch.setenv("SELM_HOME", str(home))
    changes: list[list[str]] = []

    def set_adapters(
        engine: FakeEngine, adapters: Sequence[tuple[str, float]]
    ) -> Sequence[AdapterInfo]:
        used = [Path(path).name.split("-")[0] for path, _ in adapters]
        changes.append(used)
        engine.replies = [" ".join(used) or "plain"]
        return [AdapterInfo(name, SHA256, 4) for name in used]

    monkeypatch.setattr(FakeEngine, "set_adapters", set_adapters, raising=False)
    monkeypatch.setattr("selm_edge.catalog.size_of", lambda _: 1)
    shelf = AdapterShelf()
    (shelf.directory / "adapters").mkdir(parents=True)
    made = [
        Adapter(name, f"{name}-0.gguf", 4, name, "/models/selm-mini.gguf", SHA256, "selm-mini", 4)
        for name in names
    ]
    for adapter in made:
        shelf.path_of(adapter).write_bytes(b"lora")
    text = json.dumps({"adapters": [asdict(one) for one in made], "states": {}})
    shelf.file.write_text(text, encoding="utf-8")
    return FakeSource(["plain"]), changes
