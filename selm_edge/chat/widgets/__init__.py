"""The parts of the chat's main screen."""

from __future__ import annotations
