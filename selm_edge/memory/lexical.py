"""From a user's words to an FTS5 query that stays cheap with a million rows.

BM25 takes 1.2 microseconds for each row that it scores and 0.04 for each row of a word's list that
it counts (on a busy core at 2.3 GHz, 200,000 rows). So rows are scored that hold one of the rarest
words, as many words as make `MOST_SCORED` rows; the less rare ones only add to the score of these;
words that more than `MOST_COUNTED` rows hold are left out. Where even the rarest word is common,
rows must hold all words (AND), and of too many the newest are taken.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from selm_edge.store.reading import Reader

MOST_WORDS = 48  # of a question; a pasted page would ask for hundreds
MOST_SCORED = 5_000
MOST_COUNTED = 15_000

# Words that say nothing of what is asked for: function words, greetings, the chat's own verbs.
STOP_WORDS = frozenset(
    """
    a about after again all am an and any are aren't as at be been before being but by can can't
    cannot could couldn't did didn't do does doesn't doing don't down for from further had has have
    having he her here hers him his how i i'd i'll i'm i've if in into is isn't it it's its just let
    let's me more most my no nor not now of off on once only or other our ours out over own please
    same shall she should so some such than that that's the their theirs them then there these they
    this those through to too under until up us very was wasn't we were what what's when where which
    while who whom why will with won't would you you'd you'll you're you've your yours
    hi hello hey thanks thank ok okay yes bye good morning evening tell know remember recall
    """.split()  # noqa: SIM905 - a list of words is read as words
)
_CHUNK = re.compile(r"\S+")
_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)?")


@dataclass(frozen=True)
class Query:
    """``match`` for FTS5; ``scored``: whether BM25 may rank it, or the newest rows are taken.

    ``scale`` brings BM25 back to what the rarest words alone would have.
    """

    match: str
    scored: bool
    scale: float = 1.0


def words_of(text: str) -> list[str]:
    """The words worth looking for, each once, in their order: phrases of codes, then plain words.

    What is written together ("A-113/B", "3.5mm") is one phrase, and its parts count too.
    """
    found: dict[str, None] = {}
    for chunk in _CHUNK.findall(text.replace("\0", " ")):
        parts = [part for part in _WORD.findall(chunk) if part]
        if len(parts) > 1:
            found.setdefault(" ".join(parts).casefold())
        for part in parts:
            word = part.casefold().replace("\u2019", "'")
            if word not in STOP_WORDS:
                found.setdefault(word.removesuffix("'s"))
    kept = [word for word in found if not all(part in STOP_WORDS for part in word.split())]
    return kept[:MOST_WORDS]


def plan(reader: Reader, text: str) -> Query | None:
    """How to look for ``text``; None where it holds nothing to look for."""
    words = words_of(text)
    if not words:
        return None
    newest = reader.one("select max(id) from memory")
    if newest is None or (newest[0] or 0) <= MOST_SCORED:  # all words together cannot be more
        return Query(" OR ".join(map(quoted, words)), scored=True)
    counted = sorted((count(reader, quoted(word)), quoted(word)) for word in words)
    counted = [(number, word) for number, word in counted if number]
    if not counted:
        return None
    if counted[0][0] > MOST_SCORED:
        return _of_common_words(reader, counted)
    rare: list[str] = []
    total = 0
    for number, word in counted:
        total += number
        if total > MOST_SCORED:
            break
        rare.append(word)
    match = " OR ".join(rare)
    known = [word for number, word in counted if number <= MOST_COUNTED]
    if len(known) > len(rare):  # the rarest stand twice and count twice, so the others count half
        return Query(f"({match}) AND ({' OR '.join(known)})", scored=True, scale=0.5)
    return Query(match, scored=True)


def _of_common_words(reader: Reader, counted: Sequence[tuple[int, str]]) -> Query:
    match = " AND ".join(word for _, word in counted)
    found = count(reader, match)
    if not found:
        return Query(counted[0][1], scored=False)
    cheap = found <= MOST_SCORED and all(number <= MOST_COUNTED for number, _ in counted)
    return Query(match, scored=cheap)


def count(reader: Reader, match: str) -> int:
    """Rows that match, as far as it matters: `MOST_COUNTED` + 1 means "or more"."""
    found = reader.one(
        "select count(*) from (select 1 from memory_fts where memory_fts match ? limit ?)",
        (match, MOST_COUNTED + 1),
    )
    return int(found[0]) if found else 0


def quoted(word: str) -> str:
    """As FTS5 takes any text: in double quotes, so that nothing in it is syntax."""
    return '"' + word.replace('"', '""') + '"'
