"""What the user said that may be worth remembering; the chat asks, one key confirms.

Plain rules on the user's own typed words, never on a reply, a document or what was recalled: a
memory cannot grow out of itself. A rule that finds nothing costs one ``/remember``; one that finds
too much costs trust, so doubtful sentences are left out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from selm_edge.clean import clean

MOST_PROPOSED = 3  # from one turn
_LONGEST = 240  # characters of a sentence somebody says about himself
_PASTED_LINES = 6
_PASTED_CHARACTERS = 700


@dataclass(frozen=True)
class Proposal:
    """``text`` to remember as a fact, or as the correction of what was told before."""

    text: str
    kind: Literal["fact", "correction"]


_ASKED = re.compile(
    r"^(?:please\s+|and\s+|also\s+|can you\s+|could you\s+)*"
    r"(?:remember|note|don['\u2019]?t forget|do not forget|keep in mind|make a note)"
    r"(?:\s+that\b|\s*[:,]|\s+this\s*:|(?=\s+(?:my|our|i|we|the)\b))\s*(?P<said>.+)$",
    re.I,
)
_CORRECTING = re.compile(
    r"^(?:(?:no|nope|actually|sorry|wait|correction|that['\u2019]?s (?:wrong|not right|not true"
    r"|no longer true))\b[\s,.:;!\u2014-]*)+(?P<said>.+)$",
    re.I,
)
_CHANGED = re.compile(
    r"\b(?:no longer|any ?more|not any more|now (?:live|work)|(?:have )?moved to|(?:has |have )"
    r"?changed (?:my|to)|instead of|,? not [\w' -]+$)",
    re.I,
)
_ABOUT_SELF = re.compile(
    r"^(?:"
    r"(?:my|our) (?P<thing>[\w' -]{2,40}?) (?:is|are|was|were|has|have|lives?|works?)\b"
    r"|(?:my|our) \w+(?:'s|s')? (?:name|birthday|number|address) (?:is|was)\b"
    r"|i (?:now |no longer |don['\u2019]?t |do not |also |really |mostly |always |usually |never )*"
    r"(?:live|work|study|drive|own|speak|prefer|like|love|hate|dislike|eat|drink|take|play|support"
    r"|was born|grew up|moved|married|keep|store)\b"
    r"|i (?:have|['\u2019]ve got) (?:a |an |two |three |four |\d+ )"
    r"|i(?:['\u2019]m| am) (?:(?:also|now|not|no longer) )*"
    r"(?:allergic|vegetarian|vegan|married|single|divorced|retired|\d+ years old|from |called "
    r"|left-handed|diabetic|an? (?!bit|little|lot|fan of you)[\w -]{3,30}$)"
    r"|(?:please )?call me \w"
    r"|(?:[A-Z][\w'-]+ )?[A-Z][\w-]+['\u2019]s (?:birthday|phone number|number|address|e-?mail"
    r"|name|favou?rite [\w ]+|job|partner|wife|husband) (?:is|was)\b"
    r")",
    re.I,
)
# "My question is ..." says nothing of the person.
_OF_THE_MOMENT = re.compile(
    r"\b(?:question|problem|issue|point|guess|idea|understanding|answer|code|input|prompt|text"
    r"|message|error|goal|task|plan here|hope|thought|assumption|apolog\w+|turn|bad|fault)\b",
    re.I,
)
_HAVE_NOTHING = re.compile(
    r"^i (?:have|like|love) (?:a |an |the |this |that |your |it\b|how )?"
    r"(?:question|problem|issue|feeling|idea|doubt|request|it|this|that|your|how)\b",
    re.I,
)
_NO_STATEMENT = re.compile(
    r"^(?:if|when|what|who|where|why|how|which|is|are|am|was|were|do|does|did|can|could|would"
    r"|should|will|suppose|imagine|pretend|assume|say|let['\u2019]?s|write|translate|explain"
    r"|summari[sz]e|act|give|tell|show)\b",
    re.I,
)
# Never offered unasked; whoever wants them kept says so.
_SECRET = re.compile(
    r"\b(?:pass ?word|pass ?phrase|passcode|pin|cvv|cvc|credit card|iban|social security|ssn"
    r"|api[ -]?key|secret|private key|token|login)\b",
    re.I,
)
_QUOTED = re.compile(r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|^\s*>.*$|`[^`\n]*`", re.S | re.M)
_IN_QUOTES = re.compile('["\u201c\u201e\u00ab][^"\u201c\u201d\u00bb]{12,}["\u201d\u00bb]')
_SENTENCE = re.compile(
    r"(?<=[!?])\s+|\n+"
    r"|(?<=\.)(?<!\bDr\.)(?<!\bMr\.)(?<!\bMrs\.)(?<!\bMs\.)(?<!\bSt\.)\s+"
    r"(?=[\"'A-Z\u00c0-\u00dei])"
)


def proposals(turn: str) -> list[Proposal]:
    """What to offer after the user's turn ``turn``, as it was typed: without anything attached."""
    own = _own_words(turn)
    found: dict[str, Proposal] = {}
    for sentence in _SENTENCE.split(own):
        made = _proposal(sentence.strip())
        if made is not None:
            found.setdefault(made.text.casefold(), made)
    return list(found.values())[:MOST_PROPOSED]


def _proposal(sentence: str) -> Proposal | None:
    if not sentence or len(sentence) > _LONGEST or sentence.endswith("?"):
        return None
    asked = _ASKED.match(sentence)
    if asked:
        said = asked["said"]
        return Proposal(_as_sentence(said), "correction" if _CHANGED.search(said) else "fact")
    correcting = _CORRECTING.match(sentence)
    said = correcting["said"] if correcting else sentence
    if _SECRET.search(said) or _NO_STATEMENT.match(said) or not _about_the_user(said):
        return None
    kind: Literal["fact", "correction"] = (
        "correction" if correcting or _CHANGED.search(said) else "fact"
    )
    return Proposal(_as_sentence(said), kind)


def _about_the_user(said: str) -> bool:
    found = _ABOUT_SELF.match(said)
    if found is None or _HAVE_NOTHING.match(said):
        return False
    return not (found["thing"] and _OF_THE_MOMENT.search(found["thing"]))


def _own_words(turn: str) -> str:
    """Without code, quotations and whatever was pasted: many lines, or a long text, are no talk.

    Of a turn that brings a text along, the first line is still the user's.
    """
    text = clean(_QUOTED.sub("\n", turn)).strip()
    if text.count("\n") >= _PASTED_LINES or len(text) > _PASTED_CHARACTERS:
        text = text.split("\n", 1)[0]
        if len(text) > _LONGEST:
            return ""
    return _IN_QUOTES.sub(" ", text)


def _as_sentence(said: str) -> str:
    said = " ".join(said.split()).strip(" ,;:")
    return said[:1].upper() + said[1:]
