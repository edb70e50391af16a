#!/usr/bin/env python3
"""Writes unicode_tables.cpp: the class of every code point, as sorted ranges.

Run with Python 3.11 (unicodedata 14.0.0, the version that Oniguruma 6.9.8 knows, with which the
tokenizers of today's models split their text):

    python3.11 cpp/src/text/generate_unicode.py > cpp/src/text/unicode_tables.cpp

A range is one number, `first << 4 | class`, and reaches to the next one's first. Stretches where
capital and small letters alternate (Latin Extended, Cyrillic) are one range of class `cased_pairs`.
"""

from __future__ import annotations

import sys
import unicodedata

# In the order of enum class CharClass in unicode.h.
CLASSES = ["other", "space", "upper", "lower", "title", "modifier", "letter", "mark", "number"]
CLASSES += ["punctuation", "symbol", "cased_pairs"]
NUMBER_OF = {name: index for index, name in enumerate(CLASSES)}
LETTERS = {"Lu": "upper", "Ll": "lower", "Lt": "title", "Lm": "modifier", "Lo": "letter"}
KINDS = {"M": "mark", "N": "number", "P": "punctuation", "S": "symbol", "Z": "space"}
# White_Space outside category Z (PropList.txt).
CONTROL_SPACES = {0x09, 0x0A, 0x0B, 0x0C, 0x0D, 0x85}


def class_of(code: int) -> str:
    if code in CONTROL_SPACES:
        return "space"
    category = unicodedata.category(chr(code))
    return LETTERS.get(category) or KINDS.get(category[0], "other")


def ranges() -> list[tuple[int, str]]:
    """(first code point, class), sorted; runs of `upper lower upper lower ...` joined."""
    classes = [class_of(code) for code in range(sys.maxunicode + 1)]
    found: list[tuple[int, str]] = []
    code = 0
    while code < len(classes):
        end = code
        while end + 1 < len(classes) and classes[end : end + 2] == ["upper", "lower"]:
            end += 2
        if end - code >= 4:
            found.append((code, "cased_pairs"))
        else:
            end = code + 1
            while end < len(classes) and classes[end] == classes[code]:
                end += 1
            # `upper` before a pair: leave the last capital to it.
            pairs_follow = classes[end : end + 3] == ["lower", "upper", "lower"]
            if classes[code] == "upper" and end - code > 1 and pairs_follow:
                end -= 1
            found.append((code, classes[code]))
        code = end
    return found


def main() -> None:
    words = [f"0x{code << 4 | NUMBER_OF[name]:x}" for code, name in ranges()]
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1]) + len(word) + 2 <= 108:
            lines[-1] += f" {word},"
        else:
            lines.append(f"    {word},")
    version = unicodedata.unidata_version
    print(f"// Made by generate_unicode.py from Unicode {version}; do not edit.")
    print("// {first code point} << 4 | class, sorted; each range reaches to the next.")
    print('#include "text/unicode.h"\n')
    print("namespace selm::text {\n")
    print("// clang-format off")
    print("const uint32_t kClassRanges[] = {")
    print("\n".join(lines))
    print("};")
    print("// clang-format on")
    print(f"const size_t kClassRangeCount = {len(words)};\n")
    print("}  // namespace selm::text")


if __name__ == "__main__":
    main()
