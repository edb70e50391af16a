"""A question in other words, by rule: who corrects a reply means it for whoever asks alike.

Random deletion and exchange of words as in EDA (arXiv 1901.11196), and openings that people use.
Names and numbers stay, as they are what is asked about.
"""

from __future__ import annotations

import random

LONGEST = 24
"""Words; what is longer is no question but a text, and stays as it is."""
OPENINGS = (
    "Tell me: {}", "Please tell me, {}", "I would like to know: {}", "Can you help? {}", "Hi! {}",
    "Do you know {}", "One question: {}", "{} Thanks.", "Remind me: {}", "So, {}",
)  # fmt: skip
DELETED, EXCHANGED = 0.35, 0.3


def reworded(text: str, draw: random.Random) -> str:
    """The same question, or a longer text as it is."""
    words = text.split()
    if not 2 <= len(words) <= LONGEST or "\n" in text:
        return text
    free = [i for i, word in enumerate(words) if _free(word, i)]
    if len(free) > 1 and draw.random() < EXCHANGED:
        a, b = draw.sample(free, 2)
        words[a], words[b] = words[b], words[a]
    gone = {i for i in free if draw.random() < DELETED} if len(free) > 2 else set()
    kept = " ".join(word for i, word in enumerate(words) if i not in gone)
    if draw.random() < 0.5:
        kept = draw.choice(OPENINGS).format(kept)
    return kept.rstrip("?.! ") if draw.random() < 0.2 else kept


def _free(word: str, place: int) -> bool:
    """Whether a question is still the same without it: no name, no number."""
    return word[:1].islower() or (place == 0 and word.isalpha())
