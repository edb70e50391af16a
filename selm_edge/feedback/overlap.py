"""How much of one text is in another: BLEU, and precision, recall and F1 of words.

For written answers against references (`selm_export.report.scores`) and for replies against what
their user wrote in place of them (`selm_edge.feedback.dialogues`).
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_ORDER = 4
_LEFT_OUT = str.maketrans("", "", string.punctuation)
# The tokens of mteval-v13a, WMT's own: symbols stand alone, but for , and . inside a number.
_SPLITS = (
    (re.compile(r"([\{-\~\[-\` -\&\(-\+\:-\@\/])"), r" \1 "),
    (re.compile(r"([^0-9])([\.,])"), r"\1 \2 "),
    (re.compile(r"([\.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)
_ENTITIES = (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))


def words(text: str) -> list[str]:
    """As SQuAD's evaluation: lower case, no punctuation, no articles."""
    plain = text.lower().translate(_LEFT_OUT)
    return [word for word in plain.split() if word not in ("a", "an", "the")]


def overlap(reply: str, reference: str) -> tuple[float, float, float]:
    """Precision, recall and F1 of the reply's words, 0 to 1, as SQuAD counts them (Rajpurkar et
    al. 2016, arXiv 1606.05250). Where neither text has a word they are 1."""
    said, wanted = words(reply), words(reference)
    common = sum((Counter(said) & Counter(wanted)).values())
    if not common:
        return (0.0, 0.0, 0.0) if said or wanted else (1.0, 1.0, 1.0)
    precision, recall = common / len(said), common / len(wanted)
    return precision, recall, 2 * precision * recall / (precision + recall)


@dataclass(frozen=True)
class Grams:
    """What BLEU is computed from; of several texts, the sums.

    ``matching`` and ``possible`` n-grams of 1 to 4 tokens; how many tokens were ``said`` and
    ``wanted``.
    """

    said: int = 0
    wanted: int = 0
    matching: tuple[int, ...] = (0,) * _ORDER
    possible: tuple[int, ...] = (0,) * _ORDER

    @classmethod
    def of(cls, reply: str, reference: str) -> Grams:
        said, wanted = _tokens(reply), _tokens(reference)
        pairs = [(_grams(said, n), _grams(wanted, n)) for n in range(1, _ORDER + 1)]
        return cls(
            len(said), len(wanted),
            tuple(sum((one & other).values()) for one, other in pairs),
            tuple(sum(one.values()) for one, _ in pairs),
        )  # fmt: skip

    @classmethod
    def total(cls, each: Iterable[Grams]) -> Grams:
        found = list(each)
        return cls(
            sum(one.said for one in found), sum(one.wanted for one in found),
            tuple(sum(one.matching[n] for one in found) for n in range(_ORDER)),
            tuple(sum(one.possible[n] for one in found) for n in range(_ORDER)),
        )  # fmt: skip

    @property
    def bleu(self) -> float:
        """0 to 100: Papineni et al. 2002 (ACL, P02-1040), orders without a match smoothed as by
        NIST's mteval-v13a. It is what sacrebleu gives in its own settings (Post 2018, arXiv
        1804.08771). 0 where all replies are shorter than 4 tokens: see `long_enough`."""
        if not any(self.matching) or not self.long_enough:
            return 0.0
        logs, smoothing = 0.0, 1.0
        for matching, possible in zip(self.matching, self.possible, strict=True):
            if not matching:
                smoothing *= 2
            logs += math.log(matching / possible if matching else 1 / (smoothing * possible))
        brevity = min(0.0, 1 - self.wanted / self.said)
        return 100 * math.exp(brevity + logs / _ORDER)

    @property
    def long_enough(self) -> bool:
        """Whether any reply has the 4 tokens without which BLEU says nothing."""
        return self.possible[-1] > 0


def bleu(replies: Sequence[str], references: Sequence[str]) -> float:
    """Of the corpus, 0 to 100; one reference for each reply. See `Grams.bleu`."""
    pairs = zip(replies, references, strict=True)
    return Grams.total(Grams.of(reply, reference) for reply, reference in pairs).bleu


def _tokens(text: str) -> list[str]:
    line = text.rstrip().replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, character in _ENTITIES:
        line = line.replace(entity, character)
    line = f" {line} "
    for rule, parts in _SPLITS:
        line = rule.sub(parts, line)
    return line.split()


def _grams(tokens: Sequence[str], size: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(tokens[start:] for start in range(size)), strict=False))
