"""PDF files written by hand: what a test needs and no library would write."""

from __future__ import annotations

import zlib
from collections.abc import Sequence


def pdf(pages: Sequence[str | bytes], *, compress: bool = True) -> bytes:
    """A file with one page for each text, its lines one below the other; bytes are the content
    stream as it is."""
    objects: list[bytes] = [b"", b""]  # the catalogue and the list of pages come last
    font = _add(objects, b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>")
    kids: list[int] = []
    for page in pages:
        content = page if isinstance(page, bytes) else _content(page)
        filter_ = b""
        if compress and not isinstance(page, bytes):
            content, filter_ = zlib.compress(content), b" /Filter /FlateDecode"
        stream = _add(
            objects,
            b"<< /Length %d%s >>\nstream\n%s\nendstream" % (len(content), filter_, content),
        )
        kids.append(_page(objects, stream, font))
    return _file(objects, kids)


def bomb(unpacked: int) -> bytes:
    """A page whose content unpacks to so many bytes, packed twice: some hundred bytes."""
    packer = zlib.compressobj(9)
    parts = [packer.compress(b"(a) Tj " * 100_000) for _ in range(unpacked // 700_000)]
    content = zlib.compress(b"".join(parts) + packer.flush(), 9)
    objects: list[bytes] = [b"", b""]
    font = _add(objects, b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>")
    stream = _add(
        objects,
        b"<< /Length %d /Filter [/FlateDecode /FlateDecode] >>\nstream\n%s\nendstream"
        % (len(content), content),
    )
    return _file(objects, [_page(objects, stream, font)])


def loop() -> bytes:
    """A list of pages that holds itself."""
    objects = [b"", b""]
    return _file(objects, [2])


def _content(text: str) -> bytes:
    lines = [
        b"(%s) Tj 0 -14 Td"
        % line.encode("latin-1").replace(b"\\", b"\\\\").replace(b"(", b"\\(").replace(b")", b"\\)")
        for line in text.split("\n")
    ]
    return b"BT /F1 12 Tf 50 780 Td\n" + b"\n".join(lines) + b"\nET"


def _page(objects: list[bytes], stream: int, font: int) -> int:
    return _add(
        objects,
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents %d 0 R"
        b" /Resources << /Font << /F1 %d 0 R >> >> >>" % (stream, font),
    )


def _add(objects: list[bytes], body: bytes) -> int:
    objects.append(body)
    return len(objects)


def _file(objects: list[bytes], kids: list[int]) -> bytes:
    objects[0] = b"<< /Type /Catalog /Pages 2 0 R >>"
    listed = b" ".join(b"%d 0 R" % kid for kid in kids)
    objects[1] = b"<< /Type /Pages /Kids [%s] /Count %d >>" % (listed, len(kids))
    out = bytearray(b"%PDF-1.4\n")
    offsets: list[int] = []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    out += b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (
        len(objects) + 1,
        start,
    )
    return bytes(out)
