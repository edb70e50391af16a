"""A chat session on a fake engine with a file of its own, for tests."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selm_edge.chat.models import ModelChoice, OpenModel, opened
from selm_edge.chat.preferences import Preferences
from selm_edge.chat.session import ChatSession
from selm_edge.errors import ModelError
from selm_edge.model import Model
from selm_edge.store.opening import open_store
from support.fake_engine import FakeEngine, Script

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass
class FakeSource:
    """Models by name; any path that exists is a model, ``broken`` ones are refused."""

    replies: Script = ("Hello from the fake engine.",)
    delay: float = 0.0
    load_delay: float = 0.0
    broken: tuple[str, ...] = ("broken",)
    names: tuple[str, ...] = ("selm-mini", "other")
    trained_context: int = 8192
    engine_options: dict[str, Any] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    engines: list[FakeEngine] = field(default_factory=list)
    opened: list[tuple[str | None, int]] = field(default_factory=list)

    def choices(self) -> list[ModelChoice]:
        return [
            ModelChoice(name, f"/models/{name}.gguf", name == self.names[0], 16_500_000)
            for name in self.names
        ]

    def problems(self) -> list[str]:
        return self.wrong

    def open(self, name_or_path: str | None, context: int) -> OpenModel:
        time.sleep(self.load_delay)
        self.opened.append((name_or_path, context))
        name = name_or_path or self.names[0]
        if Path(name).stem in self.broken:
            raise ModelError(
                name, "not a GGUF file: the magic is 'NOPE'", offset=0, hint="Try one."
            )
        engine = FakeEngine(
            self.replies,
            delay=self.delay,
            context=context,
            metadata={
                "fake.context_length": self.trained_context,
                "fake.block_count": 12,
                "tokenizer.chat_template": CHATML,
            },
            **self.engine_options,
        )
        self.engines.append(engine)
        return opened(Model(engine), Path(name).stem, f"/models/{name}.gguf", name, "ab" * 32)

    @property
    def engine(self) -> FakeEngine:
        return self.engines[-1]


def make_session(folder: Path, source: FakeSource | None = None) -> ChatSession:
    return ChatSession(
        open_store(folder / "selm.db"),
        source or FakeSource(),
        Preferences(folder / "config.json"),
    )


def talk(session: ChatSession, text: str) -> None:
    """Ask and keep the whole reply, as both faces do."""
    plan = session.plan(session.path, text)
    question = session.ask(text)
    reply = session.reply(plan)
    for _ in reply:
        pass
    session.keep(question, reply)


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait until it holds; a failure after ``seconds``."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.005)
