"""Opening the data of this user, or going on without a file where there can be none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from selm_edge.feedback.log import FeedbackLog
from selm_edge.store.conversations import Conversations
from selm_edge.store.database import Database
from selm_edge.store.errors import StoreError
from selm_edge.store.settings import Settings


@dataclass
class Store:
    """Everything that the device keeps. ``problem`` says why nothing is being saved, if so."""

    database: Database
    problem: StoreError | None = None

    def __post_init__(self) -> None:
        self._use(self.database)

    def _use(self, database: Database) -> None:
        self.database = database
        self.conversations = Conversations(database)
        self.feedback = FeedbackLog(database)
        self.settings = Settings(database)

    @property
    def saving(self) -> bool:
        return self.database.path is not None

    def go_on_in_memory(self, problem: StoreError) -> None:
        """After the disk refused a write: the same data in memory, the file left as it is."""
        on_disk = self.database
        self._use(on_disk.copy_to_memory())
        self.problem = problem
        on_disk.close()

    def close(self) -> None:
        self.database.close()


def open_store(path: Path, passphrase: str | None = None) -> Store:
    """Raises StoreError where the file cannot be used, cause ``key`` where it needs another
    passphrase or none (`selm_edge.store.keys.state_of` tells beforehand)."""
    return Store(Database(path, passphrase=passphrase))


def open_store_or_memory(path: Path, passphrase: str | None = None) -> Store:
    """As `open_store`, but with an empty store in memory and ``problem`` set where that fails."""
    try:
        return open_store(path, passphrase)
    except StoreError as problem:
        return Store(Database(None), problem)
