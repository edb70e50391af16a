"""The user's preferences as the chat changes them: shared with every other command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from selm_edge import config, paths
from selm_edge.errors import SelmError


class Preferences:
    """What `selm_edge.config` holds, read once, and written where the user changes it here."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or paths.config_file()
        self.config = config.load(self.path)

    def change(self, **values: Any) -> None:
        """Put these in force at once and save them; None takes an entry out
        and puts its default in force.

        Only these entries are written, onto what the file says at that moment: neither another
        window's change nor a value that came from the environment is overwritten or made
        permanent. SelmError where that fails; the values are in force all the same.
        """
        for key, value in values.items():
            setattr(self.config, key, getattr(config.Config(), key) if value is None else value)
        try:
            stored = self._stored()
            stored.update(values)
            kept = {key: value for key, value in stored.items() if value not in (None, {})}
            reason = paths.ensure_dir(self.path.parent)
            if reason is not None:
                raise OSError(reason)
            text = json.dumps(kept, indent=2, ensure_ascii=False) + "\n"
            paths.write_atomically(self.path, text)
        except (OSError, ValueError) as error:
            raise SelmError(
                f"{self.path}: the settings hold, but were not saved: {error}"
            ) from None

    def _stored(self) -> dict[str, Any]:
        try:
            stored = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        if not isinstance(stored, dict):
            raise ValueError("the file is not a JSON object; it was left as it is")
        return stored
