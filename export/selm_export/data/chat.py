"""What a conversation is, and how it is written as text (ChatML)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# "text" is no turn of a conversation: a document, to learn the language from.
Role = Literal["system", "user", "assistant", "text"]

END_OF_TEXT = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END)

# Plain ChatML. No default system prompt is slipped in: what the user sees is what the model gets.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Message:
    role: Role
    content: str


@dataclass(frozen=True)
class Conversation:
    messages: tuple[Message, ...]
    source: str

    def with_system(self, prompt: str) -> Conversation:
        return Conversation((Message("system", prompt), *self.messages), self.source)

    def text(self) -> str:
        return "\n".join(f"{m.role}: {m.content}" for m in self.messages)


@dataclass(frozen=True)
class Piece:
    """A stretch of the rendered text; ``reply`` is true for what the assistant has to write."""

    text: str
    reply: bool


def render(conversation: Conversation) -> list[Piece]:
    """The pieces whose texts, joined, are the ChatML of the conversation.

    A reply's piece ends with the end-of-turn token, since ending a turn is part of replying.
    """
    pieces: list[Piece] = []
    for message in conversation.messages:
        if message.role == "text":
            pieces.append(Piece(f"{message.content}{END_OF_TEXT}", True))
            continue
        pieces.append(Piece(f"{TURN_START}{message.role}\n", False))
        pieces.append(Piece(f"{message.content}{TURN_END}", message.role == "assistant"))
        pieces.append(Piece("\n", False))
    return pieces


def chat(source: str, *turns: str) -> Conversation:
    """A conversation from turns that alternate user, assistant, user, ..."""
    roles: tuple[Role, Role] = ("user", "assistant")
    return Conversation(tuple(Message(roles[i % 2], t) for i, t in enumerate(turns)), source)
