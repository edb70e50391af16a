"""Personal details out of texts, by rule, before they leave the device.

Rules find what has a form: mail and web addresses, numbers that name something, streets and postal
codes, dates of birth, names that a text introduces ("my name is ...", "Dr. ...", a greeting). A
name that was found once is taken out wherever it stands in the same export. What nothing
introduces is not found: the preview (`Redactor.seen`) is there to be read before writing.

The same value gets the same placeholder throughout, ``[NAME 1]``, so that who said what still can
be learnt from.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

_CAPITAL = r"[A-ZÀ-ÖØ-ÞĀ-Ž]"
_WORD = rf"{_CAPITAL}[\w\u2019'-]+"  # of a name
_NAME = rf"{_WORD}(?:[ \t]+(?:(?:van|von|de|der|den|la|le|al|bin|di|da)[ \t]+)*{_WORD}){{0,3}}"
_STREET_WORD = (
    r"(?:Street|St|Road|Rd|Avenue|Ave|Lane|Ln|Drive|Dr|Boulevard|Blvd|Way|Court|Ct|Square|Sq|"
    r"Place|Pl|Terrace|Crescent|Close|Highway|Hwy)"
)


class Finding(NamedTuple):
    """``kind`` as in the placeholder; ``text`` as it stood there."""

    kind: str
    text: str
    placeholder: str


# In this order: what an earlier rule takes, a later one does not see.
_RULES: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("MAIL", re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")),
    ("LINK", re.compile(r"(?:https?|ftp)://[^\s<>\"')\]]+|\bwww\.[^\s<>\"')\]]+")),
    (
        "ADDRESS",
        re.compile(r"\b(?:\d{1,3}\.){3}\d{1,3}\b|\b(?:[0-9A-Fa-f]{1,4}:){3,7}[0-9A-Fa-f]{1,4}\b"),
    ),
    # IBAN; then whatever is called a number of something.
    ("NUMBER", re.compile(r"\b[A-Z]{2}\d{2}(?:[ ]?[A-Z0-9]{4}){2,7}(?:[ ]?[A-Z0-9]{1,3})?\b")),
    (
        "NUMBER",
        re.compile(
            r"(?i:\b(?:phone|telephone|tel|mobile|cell|fax|account|card|iban|pin|password|passcode|"
            r"passport|licen[cs]e|insurance|policy|customer|member|patient|order|booking|reference|"
            r"ssn|social security)(?:[ ]?(?:no\.?|number|nr\.?|code|id))?(?:[ ]is)?[ ]?[:#]?[ ]*)"
            r"(?P<it>(?=[A-Z0-9/-]*\d)[+(]?[A-Z0-9][A-Z0-9()/. -]{1,}[A-Z0-9])"
        ),
    ),
    # Telephone, card and other long numbers: at least seven digits in groups, or in one.
    ("NUMBER", re.compile(r"(?<![\w.,])\+?\(?\d(?:[ ()/.-]{0,2}\d){6,18}(?![\w]|[.,]\d)")),
    (
        "DATE",
        re.compile(
            r"(?i:\b(?:born|birthday|birth|dob)\b[^.\n]{0,20}?)"
            r"(?P<it>\d{1,4}[./-]\d{1,2}[./-]\d{1,4}|\d{1,2}(?:st|nd|rd|th)?[ ]\w{3,9}[ ]\d{4}|"
            r"[A-Z][a-z]{2,8}[ ]\d{1,2},?[ ]\d{4})"
        ),
    ),
    ("ADDRESS", re.compile(rf"\b\d{{1,5}}[A-Za-z]?[ ](?:{_WORD}[ ]){{1,3}}{_STREET_WORD}\b\.?")),
    (
        "ADDRESS",
        re.compile(
            rf"\b{_CAPITAL}[\w-]*(?:straße|strasse|str\.|weg|platz|gasse|allee|laan|straat)"
            r"[ ]\d{1,4}[a-z]?\b"
            rf"|\b(?:Rue|Via|Calle|Rua)[ ](?:[\w\u2019'-]+[ ]){{1,4}}\d{{1,4}}\b"
        ),
    ),
    (
        "ADDRESS",
        re.compile(r"\b[A-Z]{1,2}\d[A-Z\d]?[ ]\d[A-Z]{2}\b|\b[A-Z]{2}[ ]\d{5}(?:-\d{4})?\b"),
    ),
    ("ADDRESS", re.compile(rf"\b\d{{5}}[ ]{_WORD}")),
)
# What introduces a name. The group `it` is the name.
_INTRODUCED: tuple[re.Pattern[str], ...] = (
    re.compile(
        r"(?i:\b(?:my|his|her|their|whose|the) (?:full )?name(?: is|'s|\u2019s|:))[ ]+"
        rf"(?P<it>{_NAME})"
    ),
    re.compile(rf"(?i:\b(?:i am|i'm|i\u2019m|this is) called)[ ]+(?P<it>{_NAME})"),
    re.compile(
        r"(?i:\b(?:call me|signed,?|sincerely,?|regards,?|yours,?|love,?|cheers,?)\s+)"
        rf"(?P<it>{_NAME})"
    ),
    re.compile(rf"\b(?:Mr|Mrs|Ms|Miss|Dr|Prof|Sir|Herr|Frau|Mme|Mlle)\.?[ ]+(?P<it>{_NAME})"),
    re.compile(
        r"(?i:\bmy (?:\w+ )?(?:wife|husband|partner|son|daughter|mother|father|mum|mom|dad|sister|"
        r"brother|friend|boss|neighbou?r|colleague|doctor|dentist|landlord|teacher|girlfriend|"
        r"boyfriend|aunt|uncle|grandmother|grandfather|cousin|niece|nephew)"
        rf"(?:,| is| named| called)?)[ ]+(?P<it>{_NAME})"
    ),
    re.compile(rf"(?m:^)(?:Hi|Hello|Dear|Hey)[ ]+(?P<it>{_NAME})(?=[,!])"),
)
# Capitalised words that follow an introduction without being somebody's name.
_NO_NAMES = frozenset(
    """
    I The A An My Your Our We You He She It They This That There Here And But So If When What Who
    How Why Where Is Are Was Were Do Does Did Can Could Will Would Should May Might Not No Yes
    Monday Tuesday Wednesday Thursday Friday Saturday Sunday January February March April June
    July August September October November December English German French Spanish SELM Sir Madam
    All Everyone Team World
    """.split()  # noqa: SIM905 (as a list it would be a screen long)
)
# Numbers that are reckoned with, or written as a fraction, name nothing.
_BEFORE_SUM = re.compile(r"(?:[+*/×÷=^<>]|[\d)] [-x])\s*$")
_AFTER_SUM = re.compile(r"^\s*(?:[+*/×÷=^<>%]|[-x] \d)")
_FRACTION = re.compile(r"\d+\.\d+")


class Redactor:
    """Takes personal details out of the texts of one export; ``seen`` is what it took, in order."""

    def __init__(self) -> None:
        self.seen: list[Finding] = []
        self._placeholders: dict[tuple[str, str], str] = {}
        self._names: dict[str, str] = {}  # by what is written, parts of names too

    def learn(self, texts: Iterable[str]) -> None:
        """Names that these texts introduce: to be taken out of every text from now on."""
        for text in texts:
            for rule in _INTRODUCED:
                for match in rule.finditer(text):
                    self._learn_name(match["it"])

    def text(self, text: str) -> str:
        """The text with placeholders."""
        self.learn([text])
        for kind, rule in _RULES:
            text = rule.sub(partial(self._replaced, kind), text)
        if not self._names:
            return text
        longest_first = sorted(self._names, key=len, reverse=True)
        names = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)")
        return names.sub(self._named, text)

    def turns(self, turns: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Messages: their contents."""
        return [{**turn, "content": self.text(str(turn.get("content", "")))} for turn in turns]

    def _learn_name(self, name: str) -> None:
        parts = [part for part in name.split() if part not in _NO_NAMES]
        if not parts or parts[0] != name.split(maxsplit=1)[0]:
            return
        whole = " ".join(name.split())
        if whole in self._names:
            return
        known = next((self._names[part] for part in parts if part in self._names), None)
        placeholder = known or self._placeholder("NAME", whole)
        for written in (whole, *(p for p in parts if len(p) > 2 and p[0].isupper())):
            self._names.setdefault(written, placeholder)

    def _named(self, match: re.Match[str]) -> str:
        finding = Finding("NAME", match[0], self._names[match[0]])
        self.seen.append(finding)
        return finding.placeholder

    def _replaced(self, kind: str, match: re.Match[str]) -> str:
        groups = match.groupdict()
        part = "it" if groups.get("it") is not None else 0
        found = match[part].strip()
        if kind == "NUMBER" and not _names_something(match, part, found):
            return match[0]
        finding = Finding(kind, found, self._placeholder(kind, found))
        self.seen.append(finding)
        start = match.start(part) - match.start()
        end = start + len(match[part].rstrip())
        return match[0][:start] + finding.placeholder + match[0][end:]

    def _placeholder(self, kind: str, value: str) -> str:
        key = (kind, re.sub(r"[\s()/.-]+", "", value).casefold())
        if key not in self._placeholders:
            number = sum(known == kind for known, _ in self._placeholders) + 1
            self._placeholders[key] = f"[{kind} {number}]"
        return self._placeholders[key]


def _names_something(match: re.Match[str], part: str | int, found: str) -> bool:
    """Whether a number stands for a person's thing: no sum, no fraction, not "order two"."""
    if sum(char.isdigit() for char in found) < 3 or _FRACTION.fullmatch(found):
        return False
    before, after = match.string[: match.start(part)], match.string[match.end(part) :]
    return not (_BEFORE_SUM.search(before) or _AFTER_SUM.search(after))
