"""What the device remembers: facts, corrections, turns and passages of documents."""

from __future__ import annotations
