"""The user's settings: small JSON values under a name, in the same file as the rest."""

from __future__ import annotations

import json
from typing import Any

from selm_edge.store.database import Database


class Settings:
    """Read and written at once; a value that cannot be read counts as absent."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def get(self, key: str, default: Any = None) -> Any:
        found = self.database.one("select value from setting where key = ?", (key,))
        if found is None:
            return default
        try:
            return json.loads(found[0])
        except ValueError:
            return default

    def set(self, key: str, value: Any) -> None:
        """None removes it."""
        with self.database.write() as connection:
            if value is None:
                connection.execute("delete from setting where key = ?", (key,))
            else:
                connection.execute(
                    "insert into setting values(?, ?) on conflict(key) do update"
                    " set value = excluded.value",
                    (key, json.dumps(value, ensure_ascii=False)),
                )
