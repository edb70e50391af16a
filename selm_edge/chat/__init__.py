"""The chat: one talk (`session`), shown as a Textual app (`app`) or as lines (`plain`)."""

from __future__ import annotations
