"""The palette of all actions, in the frame that the other screens have."""

from __future__ import annotations

from textual.command import CommandPalette


class Palette(CommandPalette):
    """Textual's palette with our looks."""

    DEFAULT_CSS = """
    Palette { background: $background 70%; }
    Palette > Vertical { width: 84; max-width: 96%; margin-top: 2; }
    Palette SearchIcon { display: none; }
    Palette #--input { height: 3; border: round $primary 60%; background: $surface; padding: 0 1; }
    Palette #--input.--list-visible { border: round $primary 60%; }
    Palette CommandInput, Palette CommandInput:focus { border: none; padding: 0; }
    Palette CommandList, Palette CommandList:focus {
        background: $surface; border: none; padding: 0 1; scrollbar-size-vertical: 1;
        scrollbar-background: $surface;
    }
    Palette CommandList > .option-list--option-highlighted,
    Palette CommandList:focus > .option-list--option-highlighted {
        background: $accent 20%; color: $text;
    }
    """
