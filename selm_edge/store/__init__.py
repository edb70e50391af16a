"""What the device keeps: one private SQLite file with conversations, settings and feedback."""

from __future__ import annotations
