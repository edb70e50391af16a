"""A reply token by token, for engines that only give tokens: whole text, cut at stop strings."""

from __future__ import annotations

import codecs
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from selm_edge.backends.base import FinishReason, GenerationStats


class TextStream:
    """Feeds on the bytes of tokens; gives valid UTF-8 that can no longer become a stop string."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = [text for text in stop if text]
        self._held = ""
        self.stopped = False

    def feed(self, data: bytes) -> str:
        return self._release(self._held + self._decoder.decode(data), final=False)

    def finish(self) -> str:
        """The rest, when nothing follows."""
        return self._release(self._held + self._decoder.decode(b"", final=True), final=True)

    def _release(self, text: str, final: bool) -> str:
        if self.stopped:
            return ""
        found = [at for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = 0 if final else self._beginning(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _beginning(self, text: str) -> int:
        """Length of the longest end of `text` with which a stop string begins."""
        longest = max((len(stop) - 1 for stop in self._stop), default=0)
        for size in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[len(text) - size :]) for stop in self._stop):
                return size
        return 0


class Reader(Protocol):
    """What a stream needs of a session."""

    tokens: list[int]
    """Those that it holds."""
    context: int
    chunk: int
    """The most that `read` takes at once."""
    layers: float
    speaker: str | None
    """The expert whose logits the last ones are."""

    def truncate(self, length: int) -> int: ...
    def read(self, ids: Sequence[int], logits: bool) -> bool:
        """Append tokens, the last one's logits kept to choose from; SelmError says why it cannot.

        False where that was cancelled: then the session is as before.
        """
        ...

    def cancel(self) -> None: ...
    @property
    def cancelled(self) -> bool: ...
    def clear_cancel(self) -> None: ...


@dataclass(frozen=True)
class Voice:
    """How logits become text: a token from the last ones, whether it ends the reply, its bytes
    (perhaps later), those that were held back; and what to let go of in the end."""

    pick: Callable[[], int]
    is_end: Callable[[int], bool]
    piece: Callable[[int], bytes]
    rest: Callable[[], bytes] = bytes
    close: Callable[[], None] = lambda: None


class ReplyStream:
    """One reply: a `TokenStream` over any `Reader`."""

    def __init__(
        self,
        session: Reader,
        prompt: Sequence[int],
        voice: Voice,
        *,
        max_tokens: int | None,
        stop: Sequence[str],
        deadline: float | None,
    ) -> None:
        self._session = session
        self._voice = voice
        self._limit = max_tokens
        self._text = TextStream(stop)
        self._began = time.monotonic()
        self._ends = None if deadline is None else self._began + deadline
        self.speaker: str | None = None
        same = 0
        while same < min(len(session.tokens), len(prompt) - 1):
            if session.tokens[same] != prompt[same]:
                break
            same += 1
        same = session.truncate(same)
        self._pending = list(prompt[same:])
        self._stats = GenerationStats(
            prompt_tokens=len(prompt), cached_tokens=same, mean_layers=session.layers
        )
        self._timer: threading.Timer | None = None
        if deadline is not None:
            self._timer = threading.Timer(deadline, session.cancel)
            self._timer.daemon = True
            self._timer.start()

    @property
    def stats(self) -> GenerationStats:
        return self._stats

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        while self._stats.finish_reason is None:
            piece = self._step()
            if piece:
                return piece
        raise StopIteration

    def _step(self) -> str:
        stats, session, voice = self._stats, self._session, self._voice
        start = time.monotonic()
        failed = self._read_pending()
        now = time.monotonic()
        if failed is not None:
            return self._end(failed)
        if stats.tokens == 0:
            stats.prompt_seconds = now - self._began
        token = voice.pick()
        if stats.tokens > 0:
            stats.decode_seconds += time.monotonic() - start
            stats.decode_steps += 1
        if voice.is_end(token):
            return self._end("stop")
        stats.tokens += 1
        self.speaker = session.speaker
        if session.speaker is not None:
            stats.experts[session.speaker] = stats.experts.get(session.speaker, 0) + 1
        if stats.tokens == 1:
            stats.time_to_first_token = time.monotonic() - self._began
        text = self._text.feed(voice.piece(token))
        if self._text.stopped:
            return text + self._end("stop")
        if self._limit is not None and stats.tokens >= self._limit:
            return text + self._end("length")
        if len(session.tokens) >= session.context:
            return text + self._end("context")
        self._pending = [token]
        return text

    def _read_pending(self) -> FinishReason | None:
        """Evaluate what was not yet; why it ended instead, if it did."""
        session = self._session
        while self._pending:
            if session.cancelled:
                late = self._ends is not None and time.monotonic() >= self._ends
                return "deadline" if late else "cancelled"
            chunk, rest = self._pending[: session.chunk], self._pending[session.chunk :]
            try:
                if session.read(chunk, logits=not rest):
                    self._pending = rest
            except BaseException:
                self.close()
                raise
        return None

    def _end(self, reason: FinishReason) -> str:
        self._stats.finish_reason = reason
        text = self._text.feed(self._voice.rest()) + self._text.finish()
        self._let_go()
        return text

    def cancel(self) -> None:
        if self._stats.finish_reason is None:
            self._session.cancel()

    def close(self) -> None:
        if self._stats.finish_reason is None:
            self._stats.finish_reason = "cancelled"
            self._let_go()

    def _let_go(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._voice.close()
        self._session.clear_cancel()
