"""What lies over the conversation for a moment; each is imported when it is first shown."""

from __future__ import annotations
