"""A reply coloured by the experts that spoke it, with a legend."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.content import Content
from textual.widgets import Static

from selm_edge.clean import clean_line

if TYPE_CHECKING:
    from selm_edge.chat.experts import Spoken

_COLOURS = ("$text-primary", "$text-accent", "$text-success", "$text-error", "$text-secondary")
_FORMS = ("", "underline", "bold", "bold underline", "italic", "italic underline")


class SpokenText(Static):
    """Plain text, each expert's words in a colour and a form of its own: a reader who does not see
    the colours sees the forms."""

    DEFAULT_CSS = "SpokenText { height: auto; margin: 0 0 1 0; }"

    def show(self, spoken: Spoken) -> None:
        self.update(content(spoken))


def content(spoken: Spoken) -> Content:
    """The text, and below it who spoke how much of it, written as their words are."""
    styles = {name: _style(i) for i, name in enumerate(spoken.names)}
    text = Content.assemble(*((text, styles.get(name or "", "")) for name, text in spoken.runs))
    total = sum(spoken.tokens.values())
    legend = [
        Content.assemble((clean_line(name), styles[name]), f" {spoken.tokens[name] / total:.0%}")
        for name in spoken.names
        if spoken.tokens.get(name)
    ]
    line = Content.assemble(("Spoken by  ", "$foreground 65%"), Content(" · ").join(legend))
    return Content("\n\n").join([text.rstrip(), line]) if legend else text


def _style(index: int) -> str:
    """Different for thirty experts."""
    return f"{_COLOURS[index % len(_COLOURS)]} {_FORMS[index % len(_FORMS)]}".rstrip()
