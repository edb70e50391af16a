"""The model picker: those of this device, and any GGUF file where it lies."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.widgets import DirectoryTree, Input, OptionList, Static
from textual.widgets.option_list import Option

from selm_edge.chat.screens.dialog import Box, Dialog
from selm_edge.chat.text import spoken_path
from selm_edge.clean import clean_line
from selm_edge.errors import SelmError

if TYPE_CHECKING:
    from selm_edge.chat.models import ModelChoice
    from selm_edge.chat.session import ChatSession


class ModelScreen(Dialog[str]):
    """Gives the name or path of a model, or None."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("f3,ctrl+o", "browse", show=False)]

    def __init__(self, session: ChatSession) -> None:
        super().__init__()
        self.session = session
        self._choices = session.models.choices()

    def compose(self) -> ComposeResult:
        with Box("Choose a model", "Enter opens it · F3 browses files · Esc back"):
            yield OptionList(*(self._option(choice) for choice in self._choices))
            yield Static(
                "\nOr the path of a GGUF file. It is read where it lies, never copied.",
                classes="note",
                markup=False,
            )
            yield Input(placeholder="~/models/model.gguf")
            yield Static("", id="browser-space")

    def _option(self, choice: ModelChoice) -> Option:
        model = self.session.model
        here = model is not None and model.path == choice.path
        note = choice.problem or f"{'bundled · ' if choice.bundled else ''}{_size(choice.size)}"
        words = Content.assemble(
            ("● " if here else "  ", "$text-success"),
            (clean_line(choice.name), "bold"),
            (f"   {clean_line(note)}", "$text-error" if choice.problem else "$foreground 65%"),
            (f"\n  {clean_line(choice.path)}", "$foreground 40%"),
        )
        return Option(words, id=choice.name)

    @on(OptionList.OptionSelected)
    def picked(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option.id)

    @on(Input.Submitted)
    def typed(self, event: Input.Submitted) -> None:
        try:
            self.dismiss(str(spoken_path(event.value)))
        except SelmError as error:
            self.notify(str(error), severity="warning", markup=False)

    async def action_browse(self) -> None:
        """A tree of folders that shows GGUF files only; it begins at the path typed so far."""
        typed = self.query_one(Input).value.strip()
        start = spoken_path(typed) if typed else Path.home()
        while not start.is_dir() and start.parent != start:
            start = start.parent
        await self.query(GgufTree).remove()
        tree = GgufTree(start)
        await self.query_one(Box).mount(tree)
        tree.focus()

    @on(DirectoryTree.FileSelected)
    def browsed(self, event: DirectoryTree.FileSelected) -> None:
        self.dismiss(str(event.path))


class GgufTree(DirectoryTree):
    """Folders, GGUF and ONNX files; hidden folders are left out."""

    def filter_paths(self, paths: Iterable[Path]) -> Iterable[Path]:
        for path in paths:
            try:
                folder = path.is_dir()
            except OSError:
                continue
            if not path.name.startswith(".") and (
                folder or path.suffix.lower() in (".gguf", ".onnx")
            ):
                yield path


def _size(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"
