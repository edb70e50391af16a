"""The one error that a user of the recipe sees."""

from __future__ import annotations

from pathlib import Path


class RecipeError(Exception):
    """Says which file, what is wrong with it and what to do next."""

    def __init__(self, where: Path | str, cause: str, next_step: str) -> None:
        super().__init__(f"{where}: {cause}. {next_step}")
