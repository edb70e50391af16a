"""Documents: reading files, cutting them into passages, keeping the passages in memory.

A document never writes anything but passages: what it says about itself, or asks of its reader,
stays text.
"""

from __future__ import annotations
