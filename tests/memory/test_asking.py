"""What goes before a question: few memories for a small model, and never more than fits."""

from __future__ import annotations

from pathlib import Path

from selm_edge.memory.asking import NEAR, gather
from selm_edge.memory.embedder import open_embedder
from selm_edge.memory.memories import PERSONAL, Memories
from selm_edge.memory.prompting import line_of
from selm_edge.store.database import Database

TOLD = (
    "Nora is allergic to walnuts.",
    "Nora is allergic to cats.",
    "Hugo is allergic to wheat.",
    "Nora takes the bus to school.",
    "The spare key is under the blue pot.",
)


def memories(*texts: str) -> Memories:
    found = Memories(Database(None), open_embedder("builtin"))
    for text in texts:
        found.add(text, kind="fact")
    return found


def ask(told: Memories, question: str, *, free: int = 500, sparing: bool = False,
        files: tuple[Path, ...] = ()) -> list[str]:  # fmt: skip
    found = gather(
        told, question, space=PERSONAL, context=1024, free=free, files=files, sparing=sparing,
        count_tokens=len,
    )  # fmt: skip
    return [one.memory.text for one in found]


def test_a_small_model_gets_what_is_nearly_as_good_as_the_best() -> None:
    told = memories(*TOLD)
    question = "Which allergy does Hugo have?"
    found = gather(told, question, space=PERSONAL, context=1024, free=500, count_tokens=len)
    scores = {one.memory.text: one.why.score for one in found if one.why}
    best = max(scores.values())
    assert len(scores) > 1 and min(scores.values()) < NEAR * best
    few = ask(told, question, sparing=True)
    assert few == [text for text in scores if scores[text] >= NEAR * best]
    assert few[0] == TOLD[2] and len(few) < len(scores)


def test_what_is_pinned_stays() -> None:
    told = memories(*TOLD)
    pinned = next(one for one in told.list() if one.text == TOLD[4])
    told.pin(pinned.id)
    assert ask(told, "Which allergy does Hugo have?", sparing=True)[:2] == [TOLD[4], TOLD[2]]


def test_nothing_is_recalled_for_nothing() -> None:
    assert ask(memories(), "Which allergy does Hugo have?", sparing=True) == []


def test_a_passage_of_too_many_tokens_is_cut(tmp_path: Path) -> None:
    """One of strange letters may be several times what passages are cut to."""
    told = memories()
    path = tmp_path / "strange.txt"
    path.write_text("The station was opened in 1872. " + "[" * 3000)
    for free in (400, 120):
        [text] = ask(told, "When was the station opened?", free=free, files=(path,))
        memory = min(told.list(), key=lambda one: one.id)
        assert text.startswith("The station was opened in 1872.") and memory.text.startswith(text)
        assert free - 2 <= len(line_of(memory)) - len(memory.text) + len(text) <= free
