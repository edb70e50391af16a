"""The vectors of memories, in the same file, searched by sqlite-vec.

One ``vec0`` table holds each vector twice: as int8, and as the signs alone (one bit a dimension).
Up to `EXACT_UP_TO` vectors of a space the int8 are scanned; above, the bits are (an eighth of the
bytes), and the best `RESCORED` of them are measured again by their int8. Vectors have length 1 and
distances are L2: the same order as by cosine, 1.4 times as fast in sqlite-vec 0.1.9.

Vectors lie in `SHARDS` shards, block by block of memories, so that a large index is scanned by
several cores at once; a small one lies in the first. (Tables of early builds have no shards.)

The table is made when the first embedder is known, not by a migration: its width is the embedder's,
and a device without sqlite-vec does without it.
"""

from __future__ import annotations

import json
import math
import random
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import mul
from statistics import NormalDist, fmean, pstdev
from typing import Literal

import apsw

from selm_edge.store import vector_table
from selm_edge.store.database import Database
from selm_edge.store.reading import Reader, Row
from selm_edge.store.settings import Settings
from selm_edge.store.vector_table import TABLE

EXACT_UP_TO = 250_000
RESCORED = 512
SHARDS = 4
SHARED_ABOVE = 50_000  # vectors from which on the cores share the scan
KINDS = ("fact", "correction", "turn", "passage")  # stored by their place: integers filter fastest
_SCALE = 254  # a component of a unit vector is rarely above 0.5; 0.5 becomes 127
_CHUNK = 512  # vectors a chunk: a lookup reads on average half a chunk's pages, a scan all of it
_SHARD_BLOCK = 8192  # memories in a row whose vectors lie in one shard
_SETTING = "memory.embedder"  # {"id": ..., "dim": ..., "shards": ...}: whose vectors these are
_SAMPLED_CHUNKS = 16
_SAMPLED = 8  # vectors of each
_SAMPLED_ABOVE = 20_000
_MOST_FOUND = 4096  # sqlite-vec's own limit
_ROWS = f"{TABLE}_rowids"  # sqlite-vec's own table of what is stored where
_CHUNKS = f"{TABLE}_chunks"
_PLACE = {"vector": "00", "bits": "01"}
_UNIT = 0.01  # how far from 1 a length may be

Column = Literal["vector", "bits"]
Filter = tuple[int | None, Sequence[str] | None, int | None, int | None]
"""Space, kinds, created at or after, created before (milliseconds); None: any."""
ToStore = tuple[int, int, str, int, bytes | None]
"""Memory, space, kind, created, float32 vector."""


class VectorIndex:
    """The vector table of one database. Writes belong inside `Database.write`."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._settings = Settings(database)

    @property
    def problem(self) -> str | None:
        """Why there can be no vectors here; None where there can."""
        return self.database.vectors_problem

    @property
    def large(self) -> bool:
        """Whether several cores share a search."""
        return self._size(None) > SHARED_ABOVE

    @property
    def made_by(self) -> str | None:
        """The id of the embedder whose vectors these are; None where there is no table."""
        about = self._settings.get(_SETTING)
        return about["id"] if about and self._exists() else None

    def create(self, embedder: str, dim: int) -> None:
        """An empty index for this embedder, in place of any other; every memory is to be embedded.

        ValueError where ``dim`` is not a multiple of 8.
        """
        if dim % 8:
            raise ValueError(f"vectors of {dim} numbers: their signs do not fill whole bytes")
        with self.database.write() as connection:
            self.drop()
            connection.execute(
                f"create virtual table {TABLE} using vec0(id integer primary key,"
                " space integer partition key, shard integer partition key, kind integer,"
                f" created integer, vector int8[{dim}], bits bit[{dim}], chunk_size={_CHUNK})"
            )
            self._settings.set(_SETTING, {"id": embedder, "dim": dim, "shards": SHARDS})

    def drop(self) -> None:
        """No index; every memory is to be embedded again."""
        with self.database.write() as connection:
            vector_table.drop(connection)
            connection.execute("update memory set embedded = 0 where embedded = 1")
            self._settings.set(_SETTING, None)

    def put(self, connection: apsw.Connection, rows: Iterable[ToStore]) -> None:
        """Store these vectors; those that are None or zero are left out.

        ValueError where one is of another length than the index, or not finite.
        """
        about = self._settings.get(_SETTING)
        dim, shards = about["dim"], about.get("shards", 1)
        column, value = (", shard", ", ?") if shards > 1 else ("", "")
        for memory, space, kind, created, vector in rows:
            found = _unit(vector, dim) if vector is not None else None
            if found is None:
                continue
            quantised = _to_int8(found)
            connection.execute(
                f"insert into {TABLE}(id, space{column}, kind, created, vector, bits)"
                f" values(?, ?{value}, ?, ?, vec_int8(?), vec_bit(?))",
                (memory, space, *([memory // _SHARD_BLOCK % shards] if column else []),
                 KINDS.index(kind), created, quantised, _to_bits(quantised)),
            )  # fmt: skip

    def remove(self, connection: apsw.Connection, memory: int) -> None:
        """Nothing where there is no vector of it."""
        if self.problem is None and self._exists():
            connection.execute(f"delete from {TABLE} where id = ?", (memory,))

    def holds(self, memory: int) -> bool:
        return bool(self.database.rows(f"select 1 from {_ROWS} where rowid = ?", (memory,)))

    def search(
        self, vector: bytes, limit: int, filters: Filter = (None, None, None, None)
    ) -> list[tuple[int, float]]:
        """The ``limit`` nearest memories and their cosine with ``vector``, nearest first."""
        about = self._settings.get(_SETTING)
        unit = _unit(vector, about["dim"]) if about else None
        if unit is None:
            return []
        query = _to_int8(unit)
        size = self._size(filters[0])
        if size <= EXACT_UP_TO:
            found = self._nearest(_Scan("vector", query, limit, filters), size)
        else:
            wanted = max(RESCORED, 4 * limit)
            rough = self._nearest(_Scan("bits", _to_bits(query), wanted, filters), size)
            found = self._rescored(query, [memory for memory, _ in rough])[:limit]
        return [(memory, 1 - distance**2 / (2 * _SCALE**2)) for memory, distance in found]

    def nearest_of(self, vector: bytes, memories: Sequence[int]) -> list[tuple[int, float]]:
        """`search` among these memories alone."""
        about = self._settings.get(_SETTING)
        unit = _unit(vector, about["dim"]) if about else None
        if unit is None:
            return []
        found = self._rescored(_to_int8(unit), memories)
        return [(memory, 1 - distance**2 / (2 * _SCALE**2)) for memory, distance in found]

    def vectors(self, memories: Sequence[int]) -> dict[int, bytes]:
        """The stored int8 vectors, by memory; those without one are left out."""
        rows = self.database.rows(
            f"select v.id, v.vector from json_each(?) join {TABLE} v on v.id = value",
            (json.dumps(list(memories)),),
        )
        return {memory: vector for memory, vector in rows}  # noqa: C416 - rows are wider typed

    def count(self) -> int:
        """Vectors stored."""
        found = self.database.one(f"select count(*) from {_ROWS}") if self._exists() else None
        return int(found[0]) if found else 0

    def strays(self) -> int:
        """Vectors whose memory is gone."""
        found = self.database.one(
            f"select count(*) from {_ROWS} where rowid not in (select id from memory)"
        )
        return int(found[0]) if found else 0

    # -- scanning ------------------------------------------------------------------------------

    def _exists(self) -> bool:
        return self.database.has_table(TABLE)

    def _size(self, space: int | None) -> int:
        """Vectors to scan, rounded up to whole chunks: counting rows would read a million."""
        where, params = ("", ()) if space is None else (" where partition00 = ?", (space,))
        found = self.database.one(f"select count(*) from {_CHUNKS}{where}", params)
        return int(found[0]) * _CHUNK if found else 0

    def _nearest(self, scan: _Scan, size: int) -> list[Row]:
        """The nearest by one column.

        sqlite-vec selects in time rows x limit, but what lies beyond a given distance costs it
        nothing. So a distance is guessed from a sample that leaves about four times the limit
        inside; the answer is exact once at least ``limit`` came back, and asked again wider when
        not (with twice the limit, of a million, one question in eight scanned twice).
        """
        share = 4 * scan.limit / max(size, 1)
        spread = self._spread(scan) if size > _SAMPLED_ABOVE else None
        while spread is not None and share < 0.02:
            within = spread.mean + spread.stdev * NormalDist().inv_cdf(share)
            rows = self._found(replace(scan, within=within), size)
            if len(rows) >= scan.limit:
                return rows
            share *= 2 * scan.limit / max(len(rows), 1)
        return self._found(scan, size)

    def _found(self, scan: _Scan, size: int) -> list[Row]:
        """What sqlite-vec finds; of a large index every shard by itself, as cores are free."""
        shards = self._settings.get(_SETTING).get("shards", 1)
        if size <= SHARED_ABOVE or shards == 1:
            return scan.rows(self.database)
        parts = [replace(scan, shard=shard) for shard in range(shards)]
        begun = [self.database.begin(one.rows) for one in parts]
        found = [row for rows in begun for row in rows.result()]
        return sorted(found, key=lambda row: row[1])[: scan.limit]

    def _spread(self, scan: _Scan) -> NormalDist | None:
        """How the distances to the query lie, from vectors taken at random.

        Read from sqlite-vec's own chunks: a lookup of each would take 80 microseconds.
        """
        column, query, space = scan.column, scan.query, scan.filters[0]
        where, params = ("", ()) if space is None else (" where partition00 = ?", (space,))
        chunks = [
            row[0] for row in self.database.rows(f"select chunk_id from {_CHUNKS}{where}", params)
        ]
        width = len(query)
        taken = random.Random(len(chunks)).sample(chunks, min(_SAMPLED_CHUNKS, len(chunks)))
        rows = self.database.rows(
            f"select substr(vectors, 1 + ? * (abs(random()) % {_CHUNK - _SAMPLED + 1}), ?)"
            f" from {TABLE}_vector_chunks{_PLACE[column]}"
            " where rowid in (select value from json_each(?))",
            (width, width * _SAMPLED, json.dumps(taken)),
        )
        vectors = [row[0][at : at + width] for row in rows for at in range(0, len(row[0]), width)]
        empty = bytes(width)  # what a forgotten one leaves
        distances = [_DISTANCE[column](query, vector) for vector in vectors if vector != empty]
        return NormalDist(fmean(distances), max(pstdev(distances), 1e-6)) if distances else None

    def _rescored(self, query: bytes, memories: Sequence[int]) -> list[Row]:
        """Their distances by int8, nearest first; many are looked up as cores are free."""
        if len(memories) < RESCORED:
            parts = [_looked_up(self.database, query, memories)]
        else:
            apart = [memories[shard::SHARDS] for shard in range(SHARDS)]
            begun = [
                self.database.begin(partial(_looked_up, query=query, memories=part))
                for part in apart
            ]
            parts = [found.result() for found in begun]
        return sorted((row for part in parts for row in part), key=lambda row: row[1])


@dataclass(frozen=True)
class _Scan:
    """What sqlite-vec is asked: the ``limit`` nearest by one column, of one shard (None: of all),
    nearer than ``within`` (None: however far)."""

    column: Column
    query: bytes
    limit: int
    filters: Filter
    within: float | None = None
    shard: int | None = None

    def rows(self, reader: Reader) -> list[Row]:
        """Memories and their distances, nearest first."""
        space, kinds, since, until = self.filters
        function = "vec_int8" if self.column == "vector" else "vec_bit"
        sql = f"select id, distance from {TABLE} where {self.column} match {function}(?)"
        sql += " and k = ?"
        params: list[object] = [self.query, min(self.limit, _MOST_FOUND)]
        for condition, value in (
            (" and space = ?", space),
            (" and shard = ?", self.shard),
            (" and created >= ?", since),
            (" and created < ?", until),
            (" and distance < ?", self.within),
        ):
            if value is not None:
                sql += condition
                params.append(value)
        for condition, kind in _kind_conditions(kinds):
            sql += condition
            params.append(kind)
        return reader.rows(sql, params)


def _looked_up(reader: Reader, query: bytes, memories: Sequence[int]) -> list[Row]:
    return reader.rows(
        f"select v.id, vec_distance_l2(v.vector, vec_int8(?)) from json_each(?)"
        f" join {TABLE} v on v.id = value",
        (query, json.dumps(list(memories))),
    )


def _kind_conditions(kinds: Sequence[str] | None) -> list[tuple[str, int]]:
    """Conditions that leave these kinds: ``in`` costs sqlite-vec more than all the rest."""
    if kinds is None:
        return []
    if len(set(kinds)) == 1:
        return [(" and kind = ?", KINDS.index(kinds[0]))]
    return [(" and kind != ?", n) for n, kind in enumerate(KINDS) if kind not in kinds]


def cosine(one: bytes, other: bytes) -> float:
    """Of two stored int8 vectors."""
    return float(sum(map(mul, array("b", one), array("b", other)))) / _SCALE**2


def _l2(one: bytes, other: bytes) -> float:
    return math.sqrt(
        sum((a - b) ** 2 for a, b in zip(array("b", one), array("b", other), strict=True))
    )


def _hamming(one: bytes, other: bytes) -> float:
    return float((int.from_bytes(one, "little") ^ int.from_bytes(other, "little")).bit_count())


_DISTANCE = {"vector": _l2, "bits": _hamming}


def _unit(vector: bytes, dim: int) -> array[float] | None:
    """As numbers, brought to length 1; None for a zero vector."""
    if len(vector) != 4 * dim:
        raise ValueError(f"a vector of {len(vector)} bytes where {dim} float32 were expected")
    numbers = array("f", vector)
    length = math.sqrt(sum(map(mul, numbers, numbers)))
    if not math.isfinite(length):
        raise ValueError("a vector with numbers that are not finite")
    if length == 0:
        return None
    if abs(length - 1) > _UNIT:
        return array("f", [number / length for number in numbers])
    return numbers


# Quantising is most of what storing a vector costs Python, so the loops are those of C: numbers
# above 0 as bytes, then a table from each to the same below, and one from each to its sign.
_HALF = 128
_SIGNED = bytes((byte - _HALF) % 256 for byte in range(256))
_IS_POSITIVE = bytes(ord("1") if 0 < byte < _HALF else ord("0") for byte in range(256))


def _to_int8(unit: array[float]) -> bytes:
    if max(unit) * _SCALE > 127 or min(unit) * _SCALE < -127:
        most = 127 / _SCALE
        unit = array("f", [max(-most, min(most, x)) for x in unit])
    rounded = _HALF + 0.5
    return bytes([int(x * _SCALE + rounded) for x in unit]).translate(_SIGNED)


def _to_bits(quantised: bytes) -> bytes:
    """The signs, first dimension in the lowest bit, as sqlite-vec packs them."""
    signs = quantised.translate(_IS_POSITIVE)[::-1]
    return int(signs, 2).to_bytes(len(quantised) // 8, "little")
