#!/usr/bin/env python3
"""Writes pretokenizer_cases.txt: how the `tokenizers` package (Hugging Face) cuts texts.

The expressions are those of the models' tokenizer.json files (`default` is llama.cpp's own); the
package runs them with Oniguruma, as the models were trained. Needs `pip install tokenizers`. Run
with Python 3.11 (its unicodedata 14.0.0 chooses the random characters):

    python cpp/tests/data/make_pretokenizer_cases.py > cpp/tests/data/pretokenizer_cases.txt

A line is a name of `tokenizer.ggml.pre` and the pieces of one text, each in hexadecimal UTF-8.
"""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterator

from tokenizers import Regex
from tokenizers.pre_tokenizers import Digits, PreTokenizer, Sequence, Split

SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|" + SPACES
SLASHED_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|" + SPACES
SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
PREFIX = r"[^\r\n\p{L}\p{N}]?"
CAPITAL = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
SMALL = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{SHORT}|{PREFIX}\p{{L}}+|\p{{N}}{{1,3}}|{TAIL}"
QWEN2 = rf"{SHORT}|{PREFIX}\p{{L}}+|\p{{N}}|{TAIL}"
QWEN35 = rf"{SHORT}|{PREFIX}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{SPACES}"
TEKKEN = rf"{PREFIX}{CAPITAL}*{SMALL}+|{PREFIX}{CAPITAL}+{SMALL}*|\p{{N}}|{SLASHED_TAIL}"
O200K = (
    rf"{PREFIX}{CAPITAL}*{SMALL}+{SHORT}?|{PREFIX}{CAPITAL}+{SMALL}*{SHORT}?"
    rf"|\p{{N}}{{1,3}}|{SLASHED_TAIL}"
)
SEED = rf"{SHORT}|{PREFIX}\p{{L}}+|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{SPACES}"
BAILING = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
MINICPM5 = rf"{SHORT}|{PREFIX}\p{{L}}+|\p{{N}}+|{TAIL}"
DEEPSEEK_V3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|" + SPACES
)
HAN_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
EAST_ASIAN = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
# DeepSeek LLM lists its letters one range after the other.
LETTERS = """
41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376 377 37B-37D 37F 386
388-38A 38C 38E-3A1 3A3-3F5 3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA
1CBD-1CBF 1D00-1D2B 1D6B-1D77 1D79-1D9A 1E00-1F15 1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57
1F59 1F5B 1F5D 1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4 1FC6-1FCC 1FD0-1FD3 1FD6-1FDB
1FE0-1FEC 1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113 2115 2119-211D 2124 2126 2128 212A-212D
212F-2134 2139 213C-213F 2145-2149 214E 2183 2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2 2CF3
A640-A66D A680-A69B A722-A76F A771-A787 A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 FF21-FF3A
FF41-FF5A 10400-1044F 104B0-104D3 104D8-104FB 10C80-10CB2 10CC0-10CF2 118A0-118DF
1E900-1E943
"""
RANGES = ["-".join(chr(int(end, 16)) for end in part.split("-")) for part in LETTERS.split()]
DEEPSEEK_LETTERS = "\\s?[" + "".join(RANGES) + "]+"
DEEPSEEK_SIGNS = "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"
SIGNS = r"[\p{P}\$\+<=>\^~\|]+"
NORDIC = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"


def rules(*stages: str | PreTokenizer) -> PreTokenizer:
    return Sequence([Split(Regex(s), "isolated") if isinstance(s, str) else s for s in stages])


def every_rule() -> dict[str, PreTokenizer]:
    digit = Digits(individual_digits=True)
    return {
        "default": rules(SIGNS, GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
        "gpt-2": rules(GPT2),
        "smollm": rules(digit, GPT2),
        "llama-bpe": rules(LLAMA3),
        "minicpm5": rules(r"\p{N}{1,3}", MINICPM5),
        "qwen2": rules(QWEN2),
        "qwen35": rules(QWEN35),
        "seed-coder": rules(SEED),
        "bailingmoe": rules(BAILING),
        "tekken": rules(TEKKEN),
        "gpt-4o": rules(O200K),
        "deepseek-llm": rules(
            "[\r\n]", DEEPSEEK_LETTERS, DEEPSEEK_SIGNS, r"\s+$", EAST_ASIAN, digit
        ),
        "deepseek-coder": rules("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", EAST_ASIAN, digit),
        "deepseek-v3": rules(r"\p{N}{1,3}", HAN_KANA, DEEPSEEK_V3),
        "falcon": rules(r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"),
        "viking": rules(NORDIC, r"\p{N}"),
        "bloom": rules(NORDIC),
    }


FIXED = [
    "Hello, world! It's 1234567 o'clock; they'LL don't we'Ve.",
    "  leading,\ttabs\t\tand   runs \n\n  of \r\n spaces  ",
    "def f(x):\n    return x**2 // 3  # /path/to\n\n\n",
    "parseHTTPResponse iPhoneXS ǅungla ʰA\u0301BC éÉé",
    "日本語のテキスト、한국어 텍스트 русский ไทย हिन्दी ١٢٣ ½ Ⅷ",
    "'S'\u017f'\u2019s 'R'rE 'LL\u0301 \u00a0x \u3000、y \u200b\x1c\x85z",
    "😀🏽\u200d🚀 $5 +a =b `c` ^d |e| ~f «g» … 。 ، (h)",
]


def texts() -> Iterator[str]:
    yield from FIXED
    chance = random.Random(7)
    by_category: dict[str, list[str]] = {}
    for code in range(1, 0x110000):
        by_category.setdefault(unicodedata.category(chr(code)), []).append(chr(code))
    categories = sorted(set(by_category) - {"Cs", "Cn"})
    parts = ["'s", "'Ll", " ", "  ", "\n", "\r\n", "\t", "/", "A", "b", "\u0301", "中", "12345"]
    parts += ["\u00a0", "!", "\u017f"]
    for _ in range(24):
        text = ""
        for _ in range(chance.randint(4, 14)):
            random_char = chance.choice(by_category[chance.choice(categories)])
            text += chance.choice(parts) if chance.random() < 0.6 else random_char
        yield text


def main() -> None:
    for name, cut in every_rule().items():
        for text in texts():
            pieces = [piece.encode().hex() for piece, _ in cut.pre_tokenize_str(text)]
            print(name, *pieces)


if __name__ == "__main__":
    main()
