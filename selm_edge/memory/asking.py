"""What goes before a question: memories about it, or the files that it names.

``@contract.pdf how long is the notice?`` remembers the file as a document first, so that its
passages can be cited, found again later and forgotten. A file that fits goes before the question
whole, of a longer one the passages that matter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from selm_edge.errors import SelmError
from selm_edge.memory.memories import Filters, Memories, Memory
from selm_edge.memory.prompting import line_of
from selm_edge.memory.recall import Recalled, recall

_NAMED = re.compile(r"""(?<!\S)@(?:"([^"\n]+)"|'([^'\n]+)'|(\S+))""")
MOST = 6  # memories for one question
# Of what is recalled for a small model, the least part of the best one's score: it takes the value
# of any line that is there. Of 200 facts each asked for in three ways the bundled model then has
# 41 % right in place of 14 %, of notes as it was trained on 91 in place of 83, and declines 80 % of
# questions that nothing answers in place of 62 (`scripts/remembering.py`; 0.95 declines 83 %, and
# leaves out more of what would answer).
NEAR = 0.9
_PART = 3  # memories take at most this part of the context (one third), files a half
_MOST_PASSAGES = 500  # passages of one document that are weighed


@dataclass(frozen=True)
class Found:
    """A memory to go before a question; ``why`` is None for passages of a file that was named."""

    memory: Memory
    why: Recalled | None = None


def gather(
    memories: Memories,
    question: str,
    *,
    space: int,
    context: int,
    free: int,
    count_tokens: Callable[[str], int],
    files: Sequence[Path] = (),
    recalling: bool = True,
    sparing: bool = False,
    known: Collection[int] = (),
    cancelled: Callable[[], bool] | None = None,
) -> list[Found]:
    """What goes before ``question``, but for the memories ``known`` to stand there already.

    ``files`` come in place of what is recalled; nothing is unless ``recalling``. ``sparing``, for a
    small model, leaves out what is not nearly as good as the best (pinned memories stay). ``free``
    of the ``context`` tokens are not taken yet. SelmError where a file cannot be read, or reading
    was ``cancelled``.
    """
    if files:
        documents = take_in(memories, files, space=space, cancelled=cancelled)
        passages = passages_for(
            memories, question, documents,
            budget=min(context // 2, free), count_tokens=count_tokens,
        )  # fmt: skip
        return [Found(one) for one in passages if one.id not in known]
    if not recalling or free <= 0:
        return []
    found = recall(
        memories, question, space=space, limit=MOST + len(known),
        budget=min(context // _PART, free), count_tokens=count_tokens,
    )  # fmt: skip
    if sparing:
        least = NEAR * max((one.score for one in found if not one.memory.pinned), default=0.0)
        found = [one for one in found if one.memory.pinned or one.score >= least]
    return [Found(one.memory, one) for one in found if one.memory.id not in known][:MOST]


def named_files(question: str) -> list[Path]:
    """The files and folders that ``@`` names, in their order; SelmError where one is not there.

    A word that could be no file (``@nora``) stays a word.
    """
    found: list[Path] = []
    for match in _NAMED.finditer(question):
        quoted = match[1] or match[2]
        name = quoted or match[3].rstrip(",;:!?)")
        path = Path(name).expanduser()
        if not path.exists() and path.suffix == ".":  # the end of the sentence
            path = Path(name.rstrip(".")).expanduser()
        if path.exists():
            found.append(path.absolute())
        elif quoted or "/" in name or re.search(r"\.\w{1,5}$", name):
            raise SelmError(f"there is no file {path}\nWithout the @ it is a word like any other.")
    return list(dict.fromkeys(found))


def take_in(
    memories: Memories,
    files: Sequence[Path],
    *,
    space: int,
    cancelled: Callable[[], bool] | None = None,
) -> list[int]:
    """Remember these files; the numbers of their documents. SelmError where one cannot be read."""
    from selm_edge.memory.documents.ingest import ingest

    report = ingest(memories, files, space=space, cancelled=cancelled)
    if report.interrupted:
        raise SelmError("stopped; what was read so far is remembered")
    known = [*report.added, *report.updated, *report.unchanged]
    wrong = [refused for refused in (*report.failed, *report.skipped) if refused.path in files]
    if wrong or not known:
        reasons = [f"{one.path}: {one.reason}" for one in wrong or report.skipped]
        raise SelmError("\n".join(reasons) or "there is nothing to read")
    rows = [
        memories.database.one("select id from document where path = ? and space = ?",
                              (str(path), space))
        for path in known
    ]  # fmt: skip
    return [row[0] for row in rows if row]


def passages_for(
    memories: Memories,
    question: str,
    documents: Sequence[int],
    *,
    budget: int,
    count_tokens: Callable[[str], int],
) -> list[Memory]:
    """What of these documents goes before the question, within ``budget`` tokens in all.

    Everything, in its order, where that fits; else the passages that answer best, or as much as
    fits of the first.
    """
    chosen: list[Memory] = []
    for left, document in zip(range(len(documents), 0, -1), documents, strict=True):
        share = budget // left
        found = memories.list(Filters(document=document), _MOST_PASSAGES)
        whole = sorted(found, key=lambda one: one.id)
        taken = sum(count_tokens(line_of(one)) for one in whole)
        if taken > share or len(whole) == _MOST_PASSAGES:
            best = recall(
                memories, question, document=document, limit=8, relevant_only=False,
                budget=share, count_tokens=count_tokens,
            )  # fmt: skip
            whole = sorted((one.memory for one in best), key=lambda one: one.id) or [
                _beginning(one, share, count_tokens) for one in whole[:1]
            ]
            taken = sum(count_tokens(line_of(one)) for one in whole)
        chosen += whole
        budget -= taken
    return chosen


def _beginning(memory: Memory, budget: int, count_tokens: Callable[[str], int]) -> Memory:
    """As much of a passage as fits: one of strange letters has many times the usual tokens."""
    short = memory
    while short.text and (taken := count_tokens(line_of(short))) > budget:
        length = len(short.text)
        most = max(0, min(length - 1, length * budget // taken))
        short = replace(short, text=short.text[:most])
    return short
