"""Feedback as one file that leaves the device: whole, checked, and encrypted where the user wants.

An SQLite file with two tables: ``manifest(key, value)`` says what is in it, ``row(uid, sha256,
line)`` has each row of feedback as JSON. The same rows give the same manifest, and rows of several
bundles merge by ``uid``. With a passphrase the file is encrypted as the device's own data is
(`selm_edge.store.keys`).
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import apsw

from selm_edge.errors import SelmError
from selm_edge.feedback.log import Feedback, app_version
from selm_edge.store import keys
from selm_edge.store.errors import StoreError

FORMAT, VERSION = "selm-feedback", 1
_HERE = ("conversation", "message")  # keys that mean something on this device alone


@dataclass(frozen=True)
class Bundle:
    """``manifest`` as it was written, ``rows`` by uid."""

    manifest: dict[str, Any]
    rows: list[dict[str, Any]]


def row_of(feedback: Feedback) -> dict[str, Any]:
    """A row as it leaves the device."""
    record = {k: v for k, v in asdict(feedback.record).items() if k not in _HERE}
    if feedback.rejected is not None:
        other = asdict(feedback.rejected).items()
        record["rejected"] = {k: v for k, v in other if k not in (*_HERE, "messages", "prompt")}
    head = {"uid": feedback.uid, "kind": feedback.kind, "created": feedback.created}
    return {
        **head,
        "correction": feedback.correction,
        **record,
        "app_version": feedback.app_version,
    }


def manifest_of(rows: Sequence[dict[str, Any]], redacted: bool) -> dict[str, Any]:
    """What is in a bundle: counts, the models it is about, and a hash over all rows."""
    kinds: dict[str, int] = {}
    models: dict[str, int] = {}
    for row in rows:
        kinds[row["kind"]] = kinds.get(row["kind"], 0) + 1
        model = row.get("model_sha256") or row.get("model") or "unknown"
        models[model] = models.get(model, 0) + 1
    return {
        "format": FORMAT, "version": VERSION, "made_by": app_version(), "redacted": redacted,
        "rows": len(rows), "kinds": dict(sorted(kinds.items())),
        "models": dict(sorted(models.items())), "sha256": _sum(map(_line, rows)),
    }  # fmt: skip


def write(
    rows: Iterable[dict[str, Any]],
    path: Path,
    passphrase: str | None = None,
    *,
    redacted: bool = False,
) -> dict[str, Any]:
    """Write a bundle of rows (`row_of`); returns its manifest. The file is replaced whole or, on an
    error (SelmError), not at all."""
    kept = sorted(rows, key=lambda row: str(row["uid"]))
    manifest = manifest_of(kept, redacted)
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        try:
            _fill(Path(name), manifest, kept, passphrase)
            Path(name).replace(path)
        except BaseException:
            with suppress(OSError):
                Path(name).unlink()
            raise
    except (OSError, apsw.Error) as error:
        raise SelmError(
            f"{path} cannot be written: {error}\n"
            "Choose a file in a folder that exists, that you may write, and with room on its disk."
        ) from None
    return manifest


def _fill(
    path: Path, manifest: dict[str, Any], rows: list[dict[str, Any]], passphrase: str | None
) -> None:
    with closing(apsw.Connection(str(path))) as connection:
        if passphrase is not None:
            keys.unlock(connection, keys.make_key(passphrase, os.urandom(keys.SALT_BYTES)))
        connection.pragma("journal_mode", "memory")  # nothing beside the one file
        with connection:
            connection.execute("create table manifest(key text primary key, value text not null)")
            connection.execute(
                "create table row(uid text primary key, sha256 text not null, line text not null)"
            )
            connection.executemany(
                "insert into manifest values(?, ?)",
                [(key, json.dumps(value)) for key, value in manifest.items()],
            )
            connection.executemany(
                "insert into row values(?, ?, ?)",
                [(row["uid"], _sum([_line(row)]), _line(row)) for row in rows],
            )
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def read(path: Path, passphrase: str | None = None) -> Bundle:
    """A bundle, every row checked. SelmError says what is wrong with the file."""
    if not path.is_file():
        raise SelmError(f"{path}: there is no such file")
    try:
        keys.check_state(path, passphrase)
        with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
            if passphrase is not None:
                keys.unlock(connection, keys.key_for(path, passphrase))
            manifest = {k: json.loads(v) for k, v in connection.execute("select * from manifest")}
            found = list(connection.execute("select uid, sha256, line from row order by uid"))
    except StoreError as error:
        raise SelmError(str(error)) from None
    except (apsw.NotADBError, apsw.SQLError, apsw.CorruptError, ValueError) as error:
        wrong = "the passphrase is wrong, or the file is damaged" if passphrase else str(error)
        raise SelmError(f"{path} is no bundle that can be read: {wrong}") from None
    if manifest.get("format") != FORMAT or manifest.get("version") != VERSION:
        raise SelmError(
            f"{path} says that it is {manifest.get('format')!r} {manifest.get('version')!r};"
            f" this package reads {FORMAT!r} {VERSION}"
        )
    lines = [line for _, _, line in found]
    damaged = [uid for uid, digest, line in found if _sum([line]) != digest]
    if damaged or _sum(lines) != manifest.get("sha256") or len(lines) != manifest.get("rows"):
        what = f"row {damaged[0]}" if damaged else "the list of its rows"
        raise SelmError(f"{path}: {what} is not what was written\nExport it anew.")
    return Bundle(manifest, [json.loads(line) for line in lines])


def merge(bundles: Iterable[Bundle]) -> list[dict[str, Any]]:
    """The rows of several bundles, each once."""
    rows = {row["uid"]: row for bundle in bundles for row in bundle.rows}
    return [rows[uid] for uid in sorted(rows)]


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, sort_keys=True)


def _sum(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode())
        digest.update(b"\n")
    return digest.hexdigest()
