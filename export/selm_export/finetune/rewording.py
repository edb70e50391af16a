"""A question in other words, by rule: who corrects a reply means it for whoever asks alike.

Other forms of the question, random deletion and exchange of words as in EDA (arXiv 1901.11196),
and openings that people use. Names and numbers stay, as they are what is asked about.
"""

from __future__ import annotations

import random
import re

LONGEST = 24
"""Words; what is longer is no question but a text, and stays as it is."""
OPENINGS = (
    "Tell me: {}", "Please tell me, {}", "I would like to know: {}", "Can you help? {}", "Hi! {}",
    "Do you know {}", "One question: {}", "{} Thanks.", "Remind me: {}", "So, {}",
)  # fmt: skip
DELETED, EXCHANGED, FORMED = 0.35, 0.3, 0.5
_INDIRECT = ("Do you know {}?", "Can you tell me {}?", "I want to know {}.", "{}, please?")
FORMS = (
    (r"What is the (?P<of>[\w ]+) of (?P<who>.+)",
     ("What is {who}'s {of}?", "Tell me {who}'s {of}.", "Do you know the {of} of {who}?",
      "The {of} of {who}?")),
    (r"Which (?P<of>[\w ]+) (?:does|do) (?P<who>.+) have",
     ("What is the {of} of {who}?", "What is {who}'s {of}?", "Tell me {who}'s {of}.")),
    (r"What (?P<is>is|are) (?P<thing>(?!(?:you|i|we|he|she|it|they|this|that|there)\b)\D+)",
     ("Tell me about {thing}.", "Describe {thing}.", "Do you know what {thing} {is}?",
      "Can you tell me what {thing} {is}?")),
)  # fmt: skip
"""What a question looks like, and the same otherwise; the first that fits."""
# Whoever does it is named, a pronoun or a thing of somebody's: else the last word may be no verb.
_ABOUT_DOING = re.compile(
    r"(Where|When|Why|How|Who|What|Which \w+) (does|do)"
    r" ([A-Z]\w*(?: [A-Z]\w*)*|it|he|she|they|we|you|(?:the|my|your|our|his|her) \w+) ([a-z]+)"
)


def reworded(text: str, draw: random.Random) -> str:
    """The same question, or a longer text as it is."""
    words = text.split()
    if not 2 <= len(words) <= LONGEST or "\n" in text:
        return text
    form = _formed(text.rstrip("?.! "), draw) if draw.random() < FORMED else None
    if form is not None:
        return form
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


def _formed(question: str, draw: random.Random) -> str | None:
    """The question in another form, where one is known."""
    doing = _ABOUT_DOING.fullmatch(question)
    if doing and doing[4] != "have":
        verb = _third_person(doing[4]) if doing[2] == "does" else doing[4]
        asked = f"{doing[1][0].lower()}{doing[1][1:]} {doing[3]} {verb}"
        return draw.choice(_INDIRECT).format(asked)
    for form, others in FORMS:
        if found := re.fullmatch(form, question):
            return draw.choice(others).format(**found.groupdict())
    return None


def _third_person(verb: str) -> str:
    if re.search(r"[^aeiou]y$", verb):
        return verb[:-1] + "ies"
    return verb + ("es" if re.search(r"(?:s|sh|ch|x|z|o)$", verb) else "s")
