"""What the user thought of a reply: kept as rows, exported for training when the user asks."""

from __future__ import annotations
