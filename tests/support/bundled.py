"""The models of the project, as the tests need them."""

from __future__ import annotations

from pathlib import Path

MODELS = Path(__file__).parents[2] / "selm_edge" / "models"
DEFAULT = MODELS / "selm-tiny.gguf"
"""What a chat opens where nobody asks for another: an ensemble."""
STUDENT = MODELS / "selm-tiny-student.gguf"
"""Of a standard architecture (qwen2), for other engines."""
START = MODELS.parents[1] / "export" / "selm_export" / "recipes" / "selm-mini.gguf"
"""What the recipe of the bundled models starts from: trained, of a standard architecture, Q8_0."""
