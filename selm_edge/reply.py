"""What a model is about to read, and the reply that comes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from selm_edge.backends.base import GenerationStats, Sampling, TokenStream
from selm_edge.templates import Notice

if TYPE_CHECKING:
    from typing_extensions import Self


class Prompt:
    """What a model is about to read: its tokens, and what was done to make them."""

    def __init__(
        self,
        ids: list[int],
        *,
        stop: Sequence[str] = (),
        notices: Sequence[Notice] = (),
        trimmed_turns: int = 0,
        trimmed_tokens: int = 0,
    ) -> None:
        self.ids = ids
        self.stop = tuple(stop)
        self.notices = tuple(notices)
        self.trimmed_turns = trimmed_turns
        self.trimmed_tokens = trimmed_tokens

    def __len__(self) -> int:
        return len(self.ids)


class Reply:
    """A reply being made: iterate for its pieces. Leaving it early or closing it stops the work.

    `text` is what has come so far, `stats` the figures, `notices` what the user should see,
    `sampling` what it was sampled with (its seed included, so that it can be made again).
    """

    def __init__(
        self,
        stream: TokenStream,
        prompt: Prompt,
        sampling: Sampling,
        release: Callable[[], None] | None = None,
    ) -> None:
        self._stream = stream
        self._release = release  # called once, when the session is free again
        self._closed = False
        self._pieces: list[str] = []
        self.prompt = prompt
        self.notices = prompt.notices
        self.sampling = sampling

    @property
    def stats(self) -> GenerationStats:
        return self._stream.stats

    @property
    def speaker(self) -> str | None:
        """The expert that spoke the last piece (its last token); None without experts."""
        return self._stream.speaker

    @property
    def text(self) -> str:
        if len(self._pieces) > 1:
            self._pieces = ["".join(self._pieces)]
        return self._pieces[0] if self._pieces else ""

    def __str__(self) -> str:
        return self.text

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        try:
            piece = next(self._stream)
        except BaseException:  # the end, an error, an interrupt: none goes on
            self.close()
            raise
        self._pieces.append(piece)
        return piece

    def finish(self) -> Self:
        """Wait for all of it."""
        for _ in self:
            pass
        return self

    def cancel(self) -> None:
        """Stop the compute within one layer; from any thread. The text so far stays."""
        self._stream.cancel()

    def close(self) -> None:
        """End it and give its session back; more than once is fine."""
        if self._closed:
            return
        self._closed = True
        self._stream.close()
        if self._release is not None:
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            self.close()
