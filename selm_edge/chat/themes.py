"""Our own colours, dark and light; Textual's themes can be chosen too."""

from __future__ import annotations

from textual.theme import Theme

DEFAULT = "selm-dark"
THEMES = (
    Theme(
        name="selm-dark",
        primary="#7fa8c9",
        secondary="#93b8a6",
        accent="#e3b576",
        foreground="#d5d9e0",
        background="#14171c",
        surface="#1b1f26",
        panel="#232831",
        success="#8fbf8f",
        warning="#e3b576",
        error="#dd8079",
        dark=True,
    ),
    Theme(
        name="selm-light",
        primary="#2f6690",
        secondary="#47735e",
        accent="#a4631d",
        foreground="#2a2e35",
        background="#faf8f4",
        surface="#f1eee8",
        panel="#e7e3da",
        success="#3d7a3d",
        warning="#a4631d",
        error="#b3453c",
        dark=False,
    ),
)
