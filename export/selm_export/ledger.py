"""What is done: each step's result with a hash of what it was made from, so that a run that is
started again repeats nothing."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from selm_export.errors import RecipeError

HIDDEN = "."  # files of a step whose names begin so are its own affair: checkpoints, logs


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


def results(folder: Path) -> dict[str, str]:
    """The hash of each file that a step has left, by its path within the folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(HIDDEN) for part in inside.parts):
            found[inside.as_posix()] = file_hash(path)
    return found


class Ledger:
    """One JSON file of a run's folder; beside it ``report.json``, the same for readers."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "ledger.json"
        self.entries: dict[str, Any] = {}
        if self.path.exists():
            try:
                self.entries = json.loads(self.path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise RecipeError(
                    self.path, f"is damaged ({error})", "Remove it to start over"
                ) from error

    def done(self, name: str, inputs: str) -> bool:
        """Finished with the same inputs, and its files still as it left them."""
        entry = self.entries.get(name)
        if not entry or entry["inputs"] != inputs:
            return False
        return bool(results(self.folder / name) == entry["outputs"])

    def record(self, name: str, inputs: str, line: dict[str, Any]) -> None:
        """``line`` is what the report says of the step: stage, seconds, peak_mb, figures."""
        self.entries[name] = {
            "inputs": inputs, "outputs": results(self.folder / name), "line": line,
        }  # fmt: skip
        write_json(self.path, self.entries)

    def forget(self, names: list[str]) -> None:
        """Steps that no recipe has any more, or that are to run again."""
        for name in names:
            self.entries.pop(name, None)

    def write_report(self, order: list[str]) -> None:
        """The lines of the steps that are done, in the recipe's order."""
        lines = [{"name": n, **self.entries[n]["line"]} for n in order if n in self.entries]
        write_json(self.folder / "report.json", lines)

    def digest(self, name: str) -> Any:
        """What a later step depends on: the contents that this one wrote."""
        entry = self.entries.get(name)
        return entry["outputs"] if entry else None
