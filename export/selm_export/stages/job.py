"""What every stage is given, whether a recipe or a command of its own starts it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from selm_export.errors import RecipeError


@dataclass(frozen=True)
class Job:
    """``inputs`` are the folders that earlier stages (or the user) filled, in the order in which
    the recipe names them. ``output`` exists; it may hold what an interrupted run of the same stage
    with the same inputs left, to go on from. ``data`` is the folder of prepared data
    (``train.jsonl``, ``held-out.jsonl``, ``test-DOMAIN.jsonl``).

    A stage writes its results into ``output`` whole or not at all, tells how it gets on through
    ``say``, and returns its figures for the report (plain JSON values).
    """

    name: str
    inputs: tuple[Path, ...]
    output: Path
    data: Path
    seed: int
    say: Callable[[str], None]

    def one(self) -> Path:
        """The input of a stage that takes one."""
        if len(self.inputs) != 1:
            raise RecipeError(
                self.name, f"is given {len(self.inputs)} models", "Name one under `from`"
            )
        return self.inputs[0]
