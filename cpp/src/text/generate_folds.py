#!/usr/bin/env python3
"""Writes bert_folds.cpp: what BERT's uncased normaliser makes of every code point, as ranges.

Models that were trained with it learned its text as the `tokenizers` library cuts it, which goes by
several versions of Unicode at once (categories of version 8, newer letter case). So that library is
asked, code point by code point; how code points act on each other is Unicode's canonical ordering.

    python3.11 cpp/src/text/generate_folds.py > cpp/src/text/bert_folds.cpp

needs tokenizers 0.22 and Unicode 14 (Python 3.11). `enum class Fold` in bert_folds.h says what the
kinds of range are; a range reaches to the next one's first code point.
"""

from __future__ import annotations

import sys
import unicodedata
from importlib.metadata import version
from itertools import groupby

from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

# In the order of enum class Fold in bert_folds.h.
KINDS = ["text", "drop", "barrier", "space", "ideograph", "punctuation", "combining"]
KINDS += ["pairs", "list", "ideographs", "sequence", "hangul"]
HANGUL = range(0xAC00, 0xD7A4)
# Two combining marks that are kept, of classes 216 and 224: what stands where after ordering shows
# the class of what came between or beside them.
LOW, HIGH = "\U0001d165", "\u302e"

_whole = BertNormalizer()
_clean = BertNormalizer(strip_accents=False, lowercase=False, handle_chinese_chars=False)
_words = BertPreTokenizer()

Range = tuple[int, str, int]  # first code point, kind, argument


def folded(text: str) -> str:
    return str(_whole.normalize_str(text))


def is_punctuation(char: str) -> bool:
    return [word for word, _ in _words.pre_tokenize_str(f"a{char}b")] == ["a", char, "b"]


def moves(char: str) -> bool:
    """Whether canonical ordering moves it."""
    return folded(HIGH + char) != HIGH + folded(char) or folded(char + LOW) != folded(char) + LOW


def fold_of(code: int) -> tuple[str, list[int]]:
    """The kind of one code point and what it becomes."""
    if 0xD800 <= code <= 0xDFFF:  # never in valid UTF-8
        return "drop", []
    char = chr(code)
    cleaned, out = _clean.normalize_str(char), folded(char)
    kind, becomes = "text", out
    if cleaned == "":
        kind = "drop"
    elif cleaned == " ":
        kind, becomes = "space", ""
    elif out == "":
        kind = "drop" if folded(HIGH + char + LOW) == LOW + HIGH else "barrier"
    elif out[0] == " ":
        assert len(out) == 3 and out[2] == " ", hex(code)
        kind, becomes = "ideograph", out[1]
    elif len(out) > 1:
        kind = "sequence"
    elif is_punctuation(out):
        kind = "punctuation"
    elif moves(char):
        assert out == char and unicodedata.combining(char) > 0, hex(code)
        return "combining", [unicodedata.combining(char)]
    return kind, [ord(c) for c in becomes]


def ranges() -> tuple[list[Range], list[int]]:
    """The ranges, and the lists that some of them point to."""
    folds = [fold_of(code) for code in range(sys.maxunicode + 1)]
    check(folds)
    found: list[Range] = []
    lists: list[int] = []
    for code, (kind, out) in enumerate(folds):
        if code in HANGUL:
            found.append((code, "hangul", 0))
        elif kind == "sequence":
            found.append((code, kind, len(lists)))
            lists += [len(out), *out]
        elif kind == "combining":
            found.append((code, kind, out[0]))
        else:
            found.append((code, kind, out[0] - code if out else 0))
    return listed(paired(joined(found)), lists), lists


def check(folds: list[tuple[str, list[int]]]) -> None:
    """What the reader of the tables relies on."""
    for kind, out in folds:
        if kind == "sequence":
            for code in out:
                again, same = folds[code]
                assert again == "combining" or (again == "text" and same == [code]), hex(code)


def joined(found: list[Range]) -> list[Range]:
    """Neighbours of one kind and argument as one range; each sequence stays alone."""
    kept: list[Range] = []
    for code, kind, argument in found:
        if not kept or kept[-1][1:] != (kind, argument):
            kept.append((code, kind, argument))
    return kept


def paired(found: list[Range]) -> list[Range]:
    """Capital and small letters by turns (+1, 0, +1, 0 ...) as one range."""
    kept: list[Range] = []
    at = 0
    while at < len(found):
        end = at
        while (
            end + 2 < len(found)
            and found[end][1:] == ("text", 1)
            and found[end + 1][1:] == ("text", 0)
            and found[end + 1][0] == found[end][0] + 1
            and found[end + 2][0] == found[end][0] + 2
        ):
            end += 2
        if end - at >= 4:
            kept.append((found[at][0], "pairs", 0))
            at = end
        else:
            kept.append(found[at])
            at += 1
    return kept


def listed(found: list[Range], lists: list[int]) -> list[Range]:
    """Stretches of short ranges as one range that points to a list of what becomes of each."""
    ends = [first for first, _, _ in found[1:]] + [sys.maxunicode + 1]
    rows = list(zip(found, ends, strict=True))

    def short(row: tuple[Range, int]) -> str:
        (first, kind, _), end = row
        return kind if kind in ("text", "ideograph") and end - first <= 2 else ""

    kept: list[Range] = []
    for kind, group in groupby(rows, short):
        members = list(group)
        if kind == "" or len(members) < 3:
            kept += [row for row, _ in members]
            continue
        kept.append((members[0][0][0], "list" if kind == "text" else "ideographs", len(lists)))
        for (first, _, delta), end in members:
            lists.extend(range(first + delta, end + delta))
    return kept


def lines_of(words: list[str]) -> str:
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1]) + len(word) + 2 <= 108:
            lines[-1] += f" {word},"
        else:
            lines.append(f"    {word},")
    return "\n".join(lines)


def main() -> None:
    found, lists = ranges()
    known = f"tokenizers {version('tokenizers')} and Unicode {unicodedata.unidata_version}"
    print(f"// Made by generate_folds.py from {known}; do not edit.")
    print('#include "text/bert_folds.h"\n')
    print("namespace selm::text {\n")
    print("// clang-format off")
    print("const FoldRange kFoldRanges[] = {")
    print(lines_of([f"{{0x{code << 4 | KINDS.index(kind):x},{arg}}}" for code, kind, arg in found]))
    print("};")
    print(f"const size_t kFoldRangeCount = {len(found)};\n")
    print("const uint32_t kFoldLists[] = {")
    print(lines_of([f"0x{code:x}" for code in lists]))
    print("};")
    print("// clang-format on\n")
    print("}  // namespace selm::text")


if __name__ == "__main__":
    main()
