"""A GGUF file taken apart and put together again byte by byte, to make files no writer makes.

`RawFile.read` takes a good file apart; every part may then be changed, also into nonsense;
`RawFile.build` puts the bytes together without a question. Layout: ggml docs/gguf.md.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
FORMATS = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B"}
FORMATS |= {U64: "Q", I64: "q", F64: "d"}


def text(value: bytes | str) -> bytes:
    """Length and bytes."""
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def scalar(kind: int, value: float | str | bytes) -> bytes:
    if kind == STRING:
        assert isinstance(value, str | bytes)
        return text(value)
    return struct.pack("<" + FORMATS[kind], value)


def array(kind: int, values: list) -> bytes:
    return struct.pack("<IQ", kind, len(values)) + b"".join(scalar(kind, v) for v in values)


@dataclass
class Tensor:
    name: bytes
    dims: list[int]
    kind: int
    data: bytes
    offset: int | None = None  # None: where it belongs


@dataclass
class RawFile:
    magic: bytes = b"GGUF"
    version: int = 3
    n_tensors: int | None = None  # None: the truth
    n_keys: int | None = None
    keys: dict[bytes, tuple[int, bytes]] = field(default_factory=dict)  # type, encoded value
    more_keys: list[tuple[bytes, int, bytes]] = field(default_factory=list)  # also duplicates
    tensors: list[Tensor] = field(default_factory=list)
    alignment: int = 32
    tail: bytes = b""

    @classmethod
    def read(cls, path: Path) -> RawFile:
        data, at = path.read_bytes(), 24
        _, version, n_tensors, n_keys = struct.unpack_from("<4sIQQ", data)
        raw = cls(version=version)

        def take(kind: int) -> bytes:  # the encoded value at `at`
            nonlocal at
            start = at
            if kind == STRING:
                at += 8 + struct.unpack_from("<Q", data, at)[0]
            elif kind == ARRAY:
                element, count = struct.unpack_from("<IQ", data, at)
                at += 12
                for _ in range(count):
                    take(element)
            else:
                at += struct.calcsize("<" + FORMATS[kind])
            return data[start:at]

        for _ in range(n_keys):
            key = take(STRING)[8:]
            kind = struct.unpack("<I", take(U32))[0]
            raw.keys[key] = (kind, take(kind))
        for _ in range(n_tensors):
            name = take(STRING)[8:]
            n_dims = struct.unpack("<I", take(U32))[0]
            dims = [struct.unpack("<Q", take(U64))[0] for _ in range(n_dims)]
            kind, offset = struct.unpack("<IQ", take(U32) + take(U64))
            raw.tensors.append(Tensor(name, dims, kind, b"", offset))
        start = (at + 31) // 32 * 32
        ends = [t.offset for t in raw.tensors[1:]] + [len(data) - start]
        for tensor, end in zip(raw.tensors, ends, strict=True):
            tensor.data, tensor.offset = data[start + tensor.offset : start + end], None
        return raw

    def set(self, key: str, kind: int, value: object) -> RawFile:
        """Sets a key to a single value, or to an array if the value is a list."""
        if isinstance(value, list):
            self.keys[key.encode()] = (ARRAY, array(kind, value))
        else:
            self.keys[key.encode()] = (kind, scalar(kind, value))
        return self

    def drop(self, key: str) -> RawFile:
        del self.keys[key.encode()]
        return self

    def tensor(self, name: str) -> Tensor:
        return next(t for t in self.tensors if t.name == name.encode())

    def remove_tensor(self, name: str) -> RawFile:
        self.tensors.remove(self.tensor(name))
        return self

    def padded(self, data: bytes) -> bytes:
        return data + bytes(-len(data) % self.alignment) if self.alignment else data

    def head(self) -> bytes:
        """Everything before the data section, unpadded."""
        keys = [(k, kind, value) for k, (kind, value) in self.keys.items()] + self.more_keys
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        n_keys = len(keys) if self.n_keys is None else self.n_keys
        out = struct.pack("<4sIQQ", self.magic, self.version, n_tensors, n_keys)
        for key, kind, value in keys:
            out += text(key) + struct.pack("<I", kind) + value
        offset = 0
        for t in self.tensors:
            place = offset if t.offset is None else t.offset
            out += text(t.name) + struct.pack("<I", len(t.dims))
            out += b"".join(struct.pack("<Q", d % 2**64) for d in t.dims)
            out += struct.pack("<IQ", t.kind, place % 2**64)
            offset += len(self.padded(t.data))
        return out

    def build(self) -> bytes:
        out = self.head()
        if self.tensors:
            out = self.padded(out)
        return out + b"".join(self.padded(t.data) for t in self.tensors) + self.tail
