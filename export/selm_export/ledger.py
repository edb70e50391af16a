"""Stages that run once: each knows a hash of what it is made from, so a rerun repeats nothing."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selm_export.errors import RecipeError


def file_hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def hash_of(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def write_json(path: Path, value: Any) -> None:
    temporary = path.with_suffix(path.suffix + ".writing")
    temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)


@dataclass(frozen=True)
class Stage:
    """``inputs`` gives everything that decides the result; ``run`` is true when it finished."""

    name: str
    inputs: Callable[[], Any]
    outputs: Sequence[Path]
    run: Callable[[], bool]


class Ledger:
    """What is done, in one JSON file of the work folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, Any] = {}
        if path.exists():
            try:
                self.entries = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise RecipeError(
                    path, f"is damaged ({error})", "Remove it to start over"
                ) from error

    def done(self, stage: Stage, inputs: str) -> bool:
        """Finished with the same inputs, and its files still as it left them."""
        entry = self.entries.get(stage.name)
        if not entry or entry["inputs"] != inputs:
            return False
        return all(
            path.exists() and file_hash(path) == entry["outputs"].get(str(path))
            for path in stage.outputs
        )

    def record(self, stage: Stage, inputs: str, seconds: float) -> None:
        self.entries[stage.name] = {
            "inputs": inputs,
            "outputs": {str(path): file_hash(path) for path in stage.outputs},
            "seconds": round(seconds, 1),
        }
        write_json(self.path, self.entries)

    def digest(self, name: str) -> Any:
        """What a later stage depends on: the contents that an earlier one wrote."""
        entry = self.entries.get(name)
        return sorted(entry["outputs"].values()) if entry else None


def run_stages(
    stages: Sequence[Stage],
    ledger: Ledger,
    say: Callable[[str], None],
    *,
    first: str | None = None,
    last: str | None = None,
    dry: bool = False,
) -> bool:
    """Runs what is not done, in order. ``first`` forces that stage and all after it to run again;
    ``last`` is the last one to run. False when a stage was stopped on the way."""
    names = [s.name for s in stages]
    for name in (first, last):
        if name is not None and name not in names:
            raise RecipeError(name, "is no stage", f"Stages: {', '.join(names)}")
    forced = pending = False
    for number, stage in enumerate(stages, start=1):
        forced = forced or stage.name == first
        # In a dry run what comes after a stage that has to run cannot be known, so it has to run.
        inputs = "" if pending else hash_of(stage.inputs())
        label = f"[{number}/{len(stages)}] {stage.name}"
        if not forced and not pending and ledger.done(stage, inputs):
            say(f"{label}: done before")
        elif dry:
            pending = True
            say(f"{label}: would run")
        else:
            say(f"{label}: running")
            began = time.time()
            if not stage.run():
                say(f"{label}: stopped; run the same command again to go on")
                return False
            ledger.record(stage, inputs, time.time() - began)
            say(f"{label}: done in {time.time() - began:.0f} s")
        if stage.name == last:
            break
    return True
