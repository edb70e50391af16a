"""What is remembered: search, why it was recalled, edit, correct, pin, silence, forget."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from selm_edge.chat.screens.dialog import Box, Dialog
from selm_edge.chat.screens.editor import EditorScreen
from selm_edge.chat.text import ago, source_words
from selm_edge.clean import clean, clean_line
from selm_edge.errors import SelmError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from selm_edge.chat.memory import ChatMemory, Source
    from selm_edge.memory.memories import Added, Memory

_KEYS = "Enter whole · e edit · x correct · p pin · n never recall · d forget"


class MemoryScreen(Dialog[None]):
    """The memories of the space, or the ``sources`` of one reply."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down", "into_list", show=False),
        Binding("ctrl+f,slash", "find", show=False),
    ]

    def __init__(
        self, memory: ChatMemory, words: str = "", sources: Sequence[Source] | None = None
    ) -> None:
        super().__init__()
        self.memory = memory
        self._words = words
        self._sources = sources
        self._found: list[Source] = []

    def compose(self) -> ComposeResult:
        of_reply = self._sources is not None
        title = "What this reply was given" if of_reply else f"Memory: {self.memory.space_name}"
        with Box(title, "Esc back" if of_reply else "/ search · Esc back", classes="large"):
            if not of_reply:
                yield Input(self._words, placeholder="Search by words or meaning", id="search")
            yield MemoryList(id="memories")
            yield Static("", id="hits-note", markup=False)
            yield Static(_KEYS, classes="keys")

    def on_mount(self) -> None:
        self.refresh_list()
        searching = self._sources is None and not self._found
        self.query_one("#search" if searching else "#memories").focus()

    def refresh_list(self, keep: int | None = None) -> None:
        """Search again; the row of memory ``keep`` stays selected."""
        rows = self.query_one(MemoryList)
        place = rows.highlighted or 0
        try:
            self._found = self._look()
        except SelmError as error:
            self._found = []
            self.notify(clean_line(str(error)), severity="warning", markup=False)
        rows.clear_options()
        for source in self._found:
            rows.add_option(Option(_row(source), id=str(source.memory.id)))
        ids = [source.memory.id for source in self._found]
        if ids:
            rows.highlighted = ids.index(keep) if keep in ids else min(place, len(ids) - 1)
        self.query_one("#hits-note", Static).update(self._note())

    def _look(self) -> list[Source]:
        if self._sources is None:
            return self.memory.search(self.query_one(Input).value)
        # As they are now: one may have been changed or forgotten here.
        from dataclasses import replace

        known = [source.memory.id for source in self._sources]
        now = {one.id: one for one in self.memory.memories.get_many(known)}
        return [replace(s, memory=now[s.memory.id]) for s in self._sources if s.memory.id in now]

    def _note(self) -> str:
        if self._found:
            problem = (self.memory.problem or "").split("\n")[0]
            return f"By words alone: {problem}" if problem else ""
        if self._sources is not None:
            return "Nothing from memory went to the model."
        return "Nothing found." if self.query_one(Input).value else "Nothing is remembered yet."

    @on(Input.Changed)
    def search_changed(self) -> None:
        self.refresh_list()

    @on(Input.Submitted)
    def action_into_list(self) -> None:
        self.query_one("#memories").focus()

    def action_find(self) -> None:
        self.query("#search").focus()

    @property
    def selected(self) -> Memory | None:
        at = self.query_one(MemoryList).highlighted
        return self._found[at].memory if at is not None and at < len(self._found) else None

    # -- what can be done with one -------------------------------------------------------------

    @on(OptionList.OptionSelected)
    def opened(self) -> None:
        at = self.query_one(MemoryList).highlighted
        if at is not None and at < len(self._found):
            self.app.push_screen(OneMemoryScreen(self.memory, self._found[at]))

    @work(exit_on_error=False)
    async def action_edit(self) -> None:
        await self._written("Edit", "The text is changed in its place.", self.memory.edit)

    @work(exit_on_error=False)
    async def action_correct(self) -> None:
        note = "The old text stays, marked as superseded; only the new one is recalled."
        await self._written("Correct", note, self.memory.correct)

    async def _written(self, title: str, note: str, store: Callable[[int, str], Memory]) -> None:
        one = self.selected
        if one is None:
            return
        text = await self.app.push_screen_wait(EditorScreen(title, one.text, note))
        if text and text.strip() and text.strip() != one.text:
            self._try(lambda: store(one.id, text))

    def action_pin(self) -> None:
        if one := self.selected:
            self._try(lambda: self.memory.pin(one.id, not one.pinned))

    def action_never(self) -> None:
        if one := self.selected:
            self._try(lambda: self.memory.silence(one.id, one.status == "active"))

    @work(exit_on_error=False)
    async def action_forget(self) -> None:
        one = self.selected
        if one is not None and await self.app.push_screen_wait(ForgetScreen(one)):
            self._try(lambda: self.memory.forget([one.id]))

    def _try(self, action: Callable[[], object]) -> None:
        try:
            done = action()
        except (SelmError, ValueError, OSError) as error:
            self.notify(clean(str(error)), severity="warning", markup=False)
            return
        if done is False:
            words = "Forgotten. Its bytes leave the disk when the other window closes."
            self.notify(words, markup=False)
        self.refresh_list(getattr(done, "id", None))


class MemoryList(OptionList):
    """The list, with its keys."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("e", "screen.edit", show=False),
        Binding("x", "screen.correct", show=False),
        Binding("p", "screen.pin", show=False),
        Binding("n", "screen.never", show=False),
        Binding("d,delete", "screen.forget", show=False),
    ]


class OneMemoryScreen(Dialog[None]):
    """One memory, whole: where it comes from, why it was recalled, and what stands around it."""

    def __init__(self, memory: ChatMemory, source: Source) -> None:
        super().__init__()
        self._source = source
        self._around = memory.around(source.memory)

    def compose(self) -> ComposeResult:
        one = self._source.memory
        with Box(clean_line(source_words(self._source)), "Esc back", classes="large"):
            yield Static(origin(one), classes="note", markup=False)
            if why := why_words(self._source):
                yield Static(why, classes="note", markup=False)
            with VerticalScroll(id="passage"):
                before, after = self._around
                parts = [(clean(one.text), "")]
                if before:
                    parts.insert(0, (f"… {clean(before.text)}\n\n", "$foreground 50%"))
                if after:
                    parts.append((f"\n\n{clean(after.text)} …", "$foreground 50%"))
                yield Static(Content.assemble(*parts))


class ForgetScreen(Dialog[bool]):
    """Asks before forgetting."""

    def __init__(self, memory: Memory) -> None:
        super().__init__()
        self._memory = memory

    def compose(self) -> ComposeResult:
        with Box("Forget this?", "Enter chooses · Esc goes back"):
            text = clean_line(self._memory.text)
            yield Static(
                (text if len(text) <= 300 else text[:299] + "…") + "\nThis cannot be undone.",
                classes="note", markup=False,
            )  # fmt: skip
            yield OptionList(Option("Keep it", id="keep"), Option("Forget it", id="forget"))

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option.id == "forget")


class NearScreen(Dialog[str]):
    """What to do where something very like it is remembered: ``both``, or the number of the memory
    that it takes the place of."""

    def __init__(self, text: str, added: Added) -> None:
        super().__init__()
        self._text, self._near = text, added.near

    def compose(self) -> ComposeResult:
        with Box("Something like it is remembered", "Enter chooses · Esc goes back"):
            yield Static(clean_line(self._text), classes="note", markup=False)
            options = [
                Option(f"Put it in place of: {clean_line(one.text)}", id=str(one.id))
                for one in self._near
            ]
            yield OptionList(*options, Option("Keep both", id="both"))

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option.id)


def _row(source: Source) -> Content:
    one = source.memory
    number = f"[{source.number}] " if source.number is not None else ""
    text = clean_line(one.text)
    facts = [one.kind, ago(one.updated)]
    if one.kind == "passage":
        facts.insert(0, source_words(source).removeprefix(number))
    if one.pinned:
        facts.append("pinned")
    if one.status != "active":
        facts.append("never recalled" if one.status == "never" else one.status)
    if why := why_words(source):
        facts.append(why)
    return Content.assemble(
        (number, "bold $text-accent"), (text if len(text) <= 160 else text[:159] + "…", "bold"),
        "\n", (" · ".join(facts), "$foreground 60%"),
    )  # fmt: skip


def origin(one: Memory) -> str:
    """Where a memory comes from, in a line."""
    parts = [clean_line(one.source if one.kind == "passage" else f"{one.kind} from {one.source}")]
    if one.heading:
        parts.append(clean_line(one.heading))
    if one.page is not None:
        parts.append(f"page {one.page}")
    if one.line is not None:
        last = f" to {one.line_end}" if one.line_end and one.line_end != one.line else ""
        parts.append(f"line {one.line}{last}")
    age = ago(one.created)
    return " · ".join([*parts, "just now" if age == "now" else f"{age} ago"])


def why_words(source: Source) -> str:
    """Why it was found, in words; nothing where that was not by a search."""
    why = source.why
    if why is None:
        return ""
    parts = []
    if why.lexical_rank is not None:
        words = f" ({', '.join(map(clean_line, why.words))})" if why.words else ""
        parts.append(f"{why.lexical_rank}. by words{words}")
    if why.vector_rank is not None:
        parts.append(f"{why.vector_rank}. by meaning")
    return ", ".join(parts)
