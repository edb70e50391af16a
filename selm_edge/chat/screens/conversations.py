"""All conversations: list, search, open, rename, delete, export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from selm_edge.chat.screens.ask import DeleteScreen, TextScreen
from selm_edge.chat.screens.dialog import Box, Dialog
from selm_edge.chat.text import ago, amount, free_path, spoken_path
from selm_edge.clean import clean_line
from selm_edge.errors import SelmError

if TYPE_CHECKING:
    from collections.abc import Callable

    from selm_edge.chat.session import ChatSession
    from selm_edge.store.conversations import Hit


class ConversationsScreen(Dialog[int]):
    """A drawer at the left. Gives the conversation to open, or None."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down", "into_list", show=False),
        Binding("ctrl+f,slash", "find", show=False),
    ]

    def __init__(self, session: ChatSession, words: str = "", *, searching: bool = False) -> None:
        super().__init__()
        self.session = session
        self._words = words
        self._searching = searching or bool(words)
        self._hits: list[Hit] = []

    def compose(self) -> ComposeResult:
        with Box("Conversations", "/ search · Esc back", classes="drawer"):
            yield Input(self._words, placeholder="Search every turn", id="search")
            yield HitList(id="hits")
            yield Static("", id="hits-note", markup=False)
            yield Static("Enter open · r rename · d delete · e export", classes="keys")

    def on_mount(self) -> None:
        self.refresh_hits()
        self.query_one("#search" if self._searching else "#hits").focus()

    def refresh_hits(self, keep: int | None = None) -> None:
        """Search again; the row of conversation ``keep`` stays selected."""
        search = self.session.store.conversations.search
        try:
            self._hits = search(self.query_one(Input).value, 100)
        except SelmError as error:
            self._hits = []
            self.notify(clean_line(str(error)), severity="warning", markup=False)
        rows = self.query_one(HitList)
        rows.clear_options()
        for hit in self._hits:
            rows.add_option(Option(_row(hit), id=str(hit.conversation.id)))
        ids = [hit.conversation.id for hit in self._hits]
        current = self.session.conversation
        wanted = keep or (current.id if current else None)
        if ids:
            rows.highlighted = ids.index(wanted) if wanted in ids else 0
        note = "" if ids else "Nothing found." if self.query_one(Input).value else "None yet."
        self.query_one("#hits-note", Static).update(note)

    @on(Input.Changed)
    def search_changed(self) -> None:
        self.refresh_hits()

    @on(Input.Submitted)
    def action_into_list(self) -> None:
        self.query_one("#hits").focus()

    def action_find(self) -> None:
        self.query_one(Input).focus()

    @on(OptionList.OptionSelected)
    def chosen(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(int(event.option.id or 0))

    @property
    def selected(self) -> Hit | None:
        at = self.query_one(HitList).highlighted
        return self._hits[at] if at is not None and at < len(self._hits) else None

    @work(exit_on_error=False)
    async def action_rename(self) -> None:
        if hit := self.selected:
            key = hit.conversation.id
            title = await self.app.push_screen_wait(TextScreen("Rename", hit.conversation.title))
            if title and title.strip():
                self._try(lambda: self.session.rename(key, title))
                self.refresh_hits(key)

    @work(exit_on_error=False)
    async def action_delete(self) -> None:
        if hit := self.selected:
            key = hit.conversation.id
            keep = await self.app.push_screen_wait(DeleteScreen(self.session, key))
            if keep is not None:
                self._try(lambda: self.session.delete(key, keep_feedback=keep))
                self.refresh_hits()

    @work(exit_on_error=False)
    async def action_export(self) -> None:
        from selm_edge.store.export import file_name

        if hit := self.selected:
            name = file_name(hit.conversation, ".md")
            path = await self.app.push_screen_wait(
                TextScreen("Export to a file", str(free_path(Path.cwd() / name)))
            )
            if path:
                key = hit.conversation.id
                self._try(lambda: self.session.export(spoken_path(path), key))

    def _try(self, action: Callable[[], object]) -> None:
        try:
            done = action()
        except (SelmError, ValueError, OSError) as error:
            self.notify(clean_line(str(error)), severity="warning", markup=False)
        else:
            if isinstance(done, Path):
                self.notify(f"Written: {done}", markup=False)


class HitList(OptionList):
    """The list, with its keys."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("r", "screen.rename", show=False),
        Binding("d,delete", "screen.delete", show=False),
        Binding("e", "screen.export", show=False),
    ]


def _row(hit: Hit) -> Content:
    conversation = hit.conversation
    facts = f"{amount(conversation.turns, 'turn')} · {ago(conversation.updated)}"
    second = hit.snippet if hit.message is not None else facts
    return Content.assemble(
        (clean_line(conversation.title), "bold"),
        "\n",
        (clean_line(second), "$foreground 60%"),
    )
