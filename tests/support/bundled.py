"""The models that ship, as the tests need them."""

from __future__ import annotations

from pathlib import Path

MODELS = Path(__file__).parents[2] / "selm_edge" / "models"
DEFAULT = MODELS / "selm-tiny.gguf"
"""What a chat opens where nobody asks for another: an ensemble."""
PLAIN = MODELS / "selm-mini-q8_0.gguf"
"""Trained, and of a standard architecture (qwen2): for other engines, and for compressing."""
