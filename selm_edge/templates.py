"""Chat templates: from messages to the text that a model was trained to continue.

The template is in the model's file (``tokenizer.chat_template``, Jinja2 as transformers renders
it). It comes from whoever made the file, so it runs in `selm_edge._sandbox`. Where a file has none,
or its template fails, ChatML takes its place and the result says so with a `Notice`: a model that
was trained on another format may answer badly, and its user should know why.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from selm_edge.backends.base import EngineTokenizer, MetadataValue

if TYPE_CHECKING:
    from jinja2 import Template

    from selm_edge._sandbox import BoundedEnvironment

Message = Mapping[str, Any]
"""``{"role": "system" | "user" | "assistant" | "tool", "content": str, ...}``"""


@dataclass(frozen=True)
class Notice:
    """Something that the user should see, though the work goes on.

    ``code`` is one of ``template-missing``, ``template-failed``, ``system-merged``, ``trimmed``.
    """

    code: str
    message: str


@dataclass(frozen=True)
class Rendered:
    """The text for the model, what ends a reply besides its end tokens, and what went wrong."""

    text: str
    stop: tuple[str, ...] = ()
    notices: tuple[Notice, ...] = ()


class ChatTemplate:
    """A model's template. Rendering never raises for what the *template* does: it falls back.

    ``source`` is None where the file has none. Compiled on first use; safe to use from several
    threads.
    """

    CHATML_STOP = ("<|im_end|>", "<|im_start|>")

    def __init__(
        self, source: str | None, *, bos_token: str = "", eos_token: str = "", unk_token: str = ""
    ) -> None:
        self.source = source
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token, "unk_token": unk_token}
        self._compiled: tuple[BoundedEnvironment, Template] | None = None
        # What used up its time once is not run again: from that many characters on, and why.
        self._refused: tuple[int, str] | None = None

    @classmethod
    def of(cls, metadata: Mapping[str, MetadataValue], tokenizer: EngineTokenizer) -> ChatTemplate:
        """The template of an open model."""
        source = metadata.get("tokenizer.chat_template")
        if source is None:
            source = metadata.get("tokenizer.chat_template.default")

        def text(token: int | None) -> str:
            return "" if token is None else tokenizer.token_text(token)

        return cls(
            source if isinstance(source, str) else None,
            bos_token=text(tokenizer.bos),
            eos_token=text(tokenizer.eos),
        )

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> Rendered:
        """Messages as text; ``variables`` go to the template (``enable_thinking=False``, ...)."""
        for message in messages:
            if not isinstance(message.get("role"), str) or "content" not in message:
                raise ValueError(f"a message needs a role and a content: {message!r}")
        if self.source is None:
            notice = Notice(
                "template-missing",
                "The model's file has no chat template; ChatML is used instead."
                " Replies may suffer if it was trained on another format.",
            )
            return self._fall_back(messages, add_generation_prompt, notice)
        variables["add_generation_prompt"] = add_generation_prompt
        try:
            return Rendered(self._run(messages, variables))
        except Exception as error:  # whatever a template raises: it is a stranger's program
            reason = _reason(error)
        merged = None if self._is_refused(messages) else _merge_system(messages)
        if merged is not None:
            try:
                text = self._run(merged, variables)
            except Exception:
                pass
            else:
                notice = Notice(
                    "system-merged",
                    f"The model's template takes no system prompt ({reason});"
                    " it was put before the first question.",
                )
                return Rendered(text, notices=(notice,))
        notice = Notice(
            "template-failed",
            f"The model's chat template failed ({reason}); ChatML is used instead."
            " Replies may suffer.",
        )
        return self._fall_back(messages, add_generation_prompt, notice)

    def _run(self, messages: Sequence[Message], variables: Mapping[str, Any]) -> str:
        from selm_edge._sandbox import BoundedEnvironment, TemplateRefused, TemplateTooSlow

        if self._refused is not None and self._is_refused(messages):
            raise TemplateRefused(self._refused[1])
        if self._compiled is None:
            environment = BoundedEnvironment()
            try:
                self._compiled = environment, environment.load(self.source or "")
            except Exception as error:
                self._refused = 0, _reason(error)  # it never will compile
                raise
        environment, template = self._compiled
        values = {"messages": [dict(m) for m in messages], "tools": None, "documents": None}
        values |= self._tokens | dict(variables)
        size = _text_size(messages)
        try:
            return environment.run(template, values, size)
        except TemplateTooSlow as error:
            self._refused = size, str(error)
            raise

    def _is_refused(self, messages: Sequence[Message]) -> bool:
        return self._refused is not None and _text_size(messages) >= self._refused[0]

    def _fall_back(
        self, messages: Sequence[Message], add_generation_prompt: bool, notice: Notice
    ) -> Rendered:
        # A vocabulary without these tokens still stops at their texts, so they must not be forged.
        clean = [defused(message, self.CHATML_STOP) for message in messages]
        return Rendered(chatml(clean, add_generation_prompt), self.CHATML_STOP, (notice,))


def chatml(messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
    """The ChatML format: ``<|im_start|>role\\ncontent<|im_end|>\\n`` for each message."""
    turns = [f"<|im_start|>{m['role']}\n{_content(m)}<|im_end|>\n" for m in messages]
    return "".join(turns) + ("<|im_start|>assistant\n" if add_generation_prompt else "")


def defuse(text: str, control_tokens: Iterable[str]) -> str:
    """Text from a user or a file in which no control token can be read.

    ``<|im_end|>`` in a pasted file would end the turn and let the file speak as somebody else. A
    zero-width space after its first character leaves it readable and harmless.
    """
    for token in control_tokens:
        if len(token) > 1 and token in text:
            text = text.replace(token, token[0] + "\u200b" + token[1:])
    return text


def defused(message: Message, control_tokens: Iterable[str]) -> Message:
    """The message without what would read as control tokens; the model's own words stay."""
    if message.get("role") == "assistant":
        return message
    return {**message, "content": _harmless(message.get("content"), control_tokens)}


def _harmless(content: Any, control_tokens: Iterable[str]) -> Any:
    if isinstance(content, str):
        return defuse(content, control_tokens)
    if isinstance(content, Mapping):  # a part: {"type": "text", "text": ...}
        return {key: _harmless(value, control_tokens) for key, value in content.items()}
    if isinstance(content, Sequence) and not isinstance(content, (bytes, bytearray)):
        return [_harmless(part, control_tokens) for part in content]
    return content


def _content(message: Message) -> str:
    content = message["content"]
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):  # [{"type": "text", "text": ...}, ...]
        return "".join(str(p.get("text", "")) for p in content if isinstance(p, Mapping))
    return "" if content is None else str(content)


def _merge_system(messages: Sequence[Message]) -> list[Message] | None:
    """The messages with the system prompt in front of the first user message."""
    if len(messages) < 2 or messages[0]["role"] != "system" or messages[1]["role"] != "user":
        return None
    first = {**messages[1], "content": f"{_content(messages[0])}\n\n{_content(messages[1])}"}
    return [first, *messages[2:]]


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:199] + "…"


def _text_size(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(_text_size(item) for pair in value.items() for item in pair)
    if isinstance(value, Sequence):
        return sum(map(_text_size, value))
    return 8
