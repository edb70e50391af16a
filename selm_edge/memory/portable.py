"""Everything remembered as a file of JSON lines, to keep or to take to another device.

The first line says what it is; then one line for each space, document and memory. Ids are the
file's own. Reading it in twice changes nothing the second time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from selm_edge import paths
from selm_edge.clean import clean, clean_line
from selm_edge.errors import SelmError
from selm_edge.memory.memories import MOST_CHARACTERS, PERSONAL, Kind, Memories, Status, digest
from selm_edge.store.database import Database

FORMAT = "selm-memory"
VERSION = 1
_SHOWN = 10  # bad lines named in a message
_MEMORY = [
    *("id", "kind", "space", "text", "source", "document", "heading", "page", "line", "line_end"),
    *("created", "updated", "pinned", "status", "superseded_by"),
]
_DOCUMENT = [
    *("id", "space", "path", "kind", "sha256", "size", "modified", "state", "created", "updated"),
]


@dataclass(frozen=True)
class Imported:
    """How many memories were new, and how many were here already (and stayed as they were)."""

    new: int
    known: int


def export(memories: Memories, path: Path, *, overwrite: bool = False) -> int:
    """Write everything to ``path``; how many memories.

    SelmError where the file exists, unless ``overwrite``. Written beside and moved into place.
    """
    if not overwrite and path.exists():
        raise SelmError(f"{path} exists; choose another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    written = 0

    def lines() -> Iterator[str]:
        nonlocal written
        for line in export_lines(memories.database):
            written += line.startswith('{"memory"')
            yield line + "\n"

    paths.write_atomically(path, lines())
    return written


def export_lines(database: Database) -> Iterator[str]:
    """The same as lines. One state of the file: what others write meanwhile is not in it."""
    with database.write() as connection:
        yield _line({"format": FORMAT, "version": VERSION})
        for key, name, created in connection.execute("select id, name, created from space"):
            yield _line({"space": {"id": key, "name": name, "created": created}})
        for names, table in ((_DOCUMENT, "document"), (_MEMORY, "memory")):
            for row in connection.execute(f"select {','.join(names)} from {table} order by id"):
                yield _line({table: dict(zip(names, row, strict=True))})


def import_file(memories: Memories, path: Path) -> Imported:
    """Read a file of `export`. All or nothing: SelmError names each bad line by its number.

    Vectors are made afterwards (`selm_edge.memory.embedding`).
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SelmError(f"{path} cannot be read: {error}") from error
    try:
        return import_lines(memories, text.split("\n"))  # U+2028 may stand in a text
    except SelmError as error:
        raise SelmError(f"{path}: {error}") from error


def import_lines(memories: Memories, lines: Iterable[str]) -> Imported:
    """The same from lines."""
    entries = _read(lines)
    with memories.database.write():
        return _Import(memories).take(entries)


class _Import:
    """One import: the ids of the file are matched with those of the database as rows are made."""

    def __init__(self, memories: Memories) -> None:
        self._memories = memories
        self._database = memories.database
        self._ids: dict[str, dict[int, int]] = {"space": {}, "document": {}, "memory": {}}
        self._new: set[int] = set()

    def take(self, entries: Sequence[tuple[str, Mapping[str, Any]]]) -> Imported:
        for kind, make in (
            ("space", self._space),
            ("document", self._document),
            ("memory", self._memory),
        ):
            for what, entry in entries:
                if what == kind:
                    self._ids[kind][entry["id"]] = make(entry)
        self._link(entry for what, entry in entries if what == "memory")
        known = len(set(self._ids["memory"].values()) - self._new)
        return Imported(len(self._new), known)

    def _space(self, entry: Mapping[str, Any]) -> int:
        if entry["id"] == PERSONAL:
            return PERSONAL  # whatever it is called here
        self._database.rows(
            "insert into space(name, created) values(?, ?) on conflict do nothing",
            (clean_line(entry["name"]), entry["created"]),
        )
        return self._memories.space(entry["name"]).id

    def _document(self, entry: Mapping[str, Any]) -> int:
        row = {**entry, "space": self._ids["space"][entry["space"]]}
        # Half a document goes on being read on the device that has its file, not here.
        return self._insert_or_find("document", _DOCUMENT[1:], row, ("space", "path"))[0]

    def _memory(self, entry: Mapping[str, Any]) -> int:
        row = {**entry, "space": self._ids["space"][entry["space"]]}
        row["text"] = clean(entry["text"]).strip()
        row["sha256"] = digest(row["text"])
        if entry["document"] is not None:
            row["document"] = self._ids["document"][entry["document"]]
        columns = [name for name in _MEMORY[1:] if name != "superseded_by"]
        identity = ("space", "kind", "sha256", "ifnull(document, 0)")
        key, new = self._insert_or_find("memory", [*columns, "sha256"], row, identity)
        if new:
            self._new.add(key)
        return key

    def _insert_or_find(
        self,
        table: str,
        columns: Sequence[str],
        row: Mapping[str, Any],
        identity: Sequence[str],
    ) -> tuple[int, bool]:
        values = [row[name] for name in columns]
        made = self._database.one(
            f"insert into {table}({','.join(columns)}) values({','.join('?' * len(columns))})"
            " on conflict do nothing returning id",
            values,
        )
        if made is not None:
            return int(made[0]), True
        known = [(row.get(name) if "(" not in name else row["document"] or 0) for name in identity]
        found = self._database.one(
            f"select id from {table} where {' and '.join(f'{name} = ?' for name in identity)}",
            known,
        )
        if found is None:
            raise SelmError(f"a {table} could not be stored: {row}")
        return int(found[0]), False

    def _link(self, entries: Iterable[Mapping[str, Any]]) -> None:
        ids = self._ids["memory"]
        for entry in entries:
            old = entry["superseded_by"]
            if old is not None and ids[entry["id"]] in self._new:
                self._database.rows(
                    "update memory set superseded_by = ? where id = ?",
                    (ids.get(old), ids[entry["id"]]),
                )


# -- reading and checking --------------------------------------------------------------------------


def _read(lines: Iterable[str]) -> list[tuple[str, Mapping[str, Any]]]:
    entries: list[tuple[str, Mapping[str, Any]]] = []
    known: dict[str, set[int]] = {"space": set(), "document": set(), "memory": set()}
    bad: list[str] = []
    begun = False
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            if not begun:
                _check_head(value)
                begun = True
                continue
            what, entry = _entry(value, known)
            known[what].add(entry["id"])
            entries.append((what, entry))
        except _Foreign:
            raise
        except (ValueError, RecursionError) as error:
            bad.append(f"line {number}: {error}")
    if bad:
        more = f"\nand {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise SelmError("nothing was imported:\n" + "\n".join(bad[:_SHOWN]) + more)
    if not begun:
        raise _Foreign("this is no file of exported memories")
    return entries


class _Foreign(SelmError):
    pass


def _check_head(value: object) -> None:
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise _Foreign(f"this is no file of exported memories (its first line names no {FORMAT})")
    if value.get("version") != VERSION:
        raise _Foreign("written by a newer SELM Edge; update this one")


def _entry(value: object, known: Mapping[str, set[int]]) -> tuple[str, Mapping[str, Any]]:
    """What a line holds; ValueError says what is wrong with it."""
    if not isinstance(value, dict) or len(value) != 1 or not (set(value) <= set(_CHECKS)):
        raise ValueError("neither a space nor a document nor a memory")
    what, entry = next(iter(value.items()))
    if not isinstance(entry, dict):
        raise ValueError(f"the {what} is no object")
    entry = {**_DEFAULTS[what], **entry}
    for name, (fits, wanted) in _CHECKS[what].items():
        if name not in entry:
            raise ValueError(f"{name} is missing")
        if not fits(entry[name]):
            raise ValueError(f"{name} is not {wanted}")
    if entry["id"] in known[what]:
        raise ValueError(f"a second {what} with the id {entry['id']}")
    for name in ("space", "document"):
        if entry.get(name) is not None and entry[name] not in known[name]:
            raise ValueError(f"its {name} {entry[name]} is not in the file before it")
    return what, {name: entry[name] for name in _CHECKS[what]}


_Check = tuple[Callable[[Any], bool], str]


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 62


def _text(value: Any) -> bool:
    return isinstance(value, str) and clean(value).strip() != ""


def _one_of(*values: str) -> _Check:
    return (lambda value: value in values), "one of " + ", ".join(values)


_WHOLE: _Check = (_whole, "a whole number")
_NUMBER_OR_NOT: _Check = ((lambda value: value is None or _whole(value)), "a whole number or null")
_TEXT: _Check = (_text, "a text")
_CHECKS: dict[str, dict[str, _Check]] = {
    "space": {"id": _WHOLE, "name": _TEXT, "created": _WHOLE},
    "document": {
        **dict.fromkeys(_DOCUMENT, _WHOLE),
        "path": _TEXT,
        "kind": _TEXT,
        "sha256": _TEXT,
        "state": _one_of("reading", "complete"),
    },
    "memory": {
        **dict.fromkeys(_MEMORY, _NUMBER_OR_NOT),
        "id": _WHOLE,
        "space": _WHOLE,
        "created": _WHOLE,
        "updated": _WHOLE,
        "kind": _one_of(*get_args(Kind)),
        "status": _one_of(*get_args(Status)),
        "text": (
            lambda value: _text(value) and len(value) <= MOST_CHARACTERS,
            f"a text of at most {MOST_CHARACTERS} characters",
        ),
        "source": _TEXT,
        "heading": (lambda value: value is None or isinstance(value, str), "a text or null"),
        "pinned": (lambda value: value in (0, 1), "true or false"),
    },
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "space": {},
    "document": {},
    "memory": {
        **dict.fromkeys(("document", "heading", "page", "line", "line_end", "superseded_by")),
        "pinned": False,
        "status": "active",
        "source": "import",
    },
}


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
