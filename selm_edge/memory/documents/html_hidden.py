"""What of an HTML page is hidden from who looks at it: the place where instructions hide.

Known are the ``hidden`` and ``aria-hidden`` attributes, the styles below where they stand inline
or in a ``<style>`` for a class, an id or an element, and text in the colour of its background
where both are stated. A page that hides text by other means (a script, a style sheet in another
file) is not found out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from selm_edge.memory.documents.blocks import words

NEVER_SHOWN = words(
    "script style template head noembed noframes iframe object embed canvas audio video svg math"
    " select datalist textarea button map applet"
)
"""Elements whose content is not the page's text."""

_DECLARATION = re.compile(r"([a-z-]+)\s*:\s*([^;]+)")
_NUMBER = re.compile(r"-?(?:\d+\.?\d*|\.\d+)")
_RULE = re.compile(r"([^{}]{1,2000})\{([^{}]{0,5000})\}")
_SELECTOR = re.compile(r"[.#]?[a-z_][\w-]*\Z")
_WHITE = (255, 255, 255)
_NAMES = {
    "white": _WHITE, "black": (0, 0, 0), "red": (255, 0, 0), "yellow": (255, 255, 0),
    "snow": (255, 250, 250), "ivory": (255, 255, 240), "whitesmoke": (245, 245, 245),
    "ghostwhite": (248, 248, 255), "floralwhite": (255, 250, 240), "mintcream": (245, 255, 250),
    "azure": (240, 255, 255), "gray": (128, 128, 128), "grey": (128, 128, 128),
    "silver": (192, 192, 192), "blue": (0, 0, 255), "green": (0, 128, 0), "navy": (0, 0, 128),
}  # fmt: skip
_CLOSE = 24  # two colours that differ by no more than this in each channel look the same

Colour = tuple[int, int, int]
Attributes = Mapping[str, str]


class StyleSheet:
    """The rules of a page's ``<style>`` elements that can hide something."""

    def __init__(self) -> None:
        self._rules: dict[str, dict[str, str]] = {}
        self.foreign = False  # the page's colours may come from where we cannot see

    @property
    def empty(self) -> bool:
        """Whether it hides nothing."""
        return not self._rules

    def add(self, css: str) -> None:
        """Rules for one class, one id or one element; others are not applied."""
        css = re.sub(r"/\*.*?(?:\*/|\Z)", "", css, flags=re.DOTALL).lower()
        for selectors, body in _RULE.findall(css):
            style = declarations(body)
            if "background" in style or "background-color" in style:
                self.foreign = True
            for selector in selectors.split(","):
                if _SELECTOR.match(selector.strip()):
                    self._rules.setdefault(selector.strip(), {}).update(style)

    def style(self, tag: str, attributes: Attributes) -> dict[str, str]:
        """What holds for an element: the page's rules, then its own ``style``."""
        found: dict[str, str] = {}
        if self._rules:
            names = [tag, *(f".{name}" for name in attributes.get("class", "").lower().split())]
            for name in (*names, f"#{attributes.get('id', '').lower()}"):
                found.update(self._rules.get(name, {}))
        if own := attributes.get("style"):
            found.update(declarations(own.lower()))
        return found


def declarations(css: str) -> dict[str, str]:
    """``a: b; c: d`` as a mapping."""
    css = re.sub(r"/\*.*?(?:\*/|\Z)", "", css[:20_000], flags=re.DOTALL)
    found = _DECLARATION.findall(css)
    return {name: value.replace("!important", "").strip() for name, value in found}


def is_hidden(attributes: Attributes, style: Mapping[str, str]) -> bool:
    """Whether an element with these is not seen, its colours apart."""
    if "hidden" in attributes or attributes.get("aria-hidden", "").strip().lower() == "true":
        return True
    if not style:
        return False
    return (
        style.get("display", "").startswith("none")
        or style.get("visibility", "") in ("hidden", "collapse")
        or _at_most(style.get("font-size"), 1, fractions=("em", "rem"))
        or _at_most(style.get("font", "").split("/")[0].split(" ")[-1], 1, fractions=("em", "rem"))
        or _at_most(style.get("opacity"), 0.05, per_cent=5)
        or any(_at_most(style.get(side), -500) for side in ("left", "top", "right", "bottom"))
        or any(_at_most(style.get(name), -500) for name in ("text-indent", "margin-left"))
        or (_clipped(style) and style.get("overflow", "").startswith("hidden"))
        or style.get("clip", "").replace(" ", "").startswith(("rect(0", "rect(1px"))
        or style.get("clip-path", "").replace(" ", "").startswith(("inset(50%", "inset(100%"))
        or "scale(0)" in style.get("transform", "")
    )


def _clipped(style: Mapping[str, str]) -> bool:
    names = ("height", "width", "max-height", "max-width")
    return any(_at_most(style.get(name), 1) for name in names)


def _at_most(
    value: str | None, limit: float, *, per_cent: float = 0, fractions: tuple[str, ...] = ()
) -> bool:
    """Whether a length or number is at most ``limit``; relative ones (``fractions``) at most a
    tenth of it."""
    found = _NUMBER.match(value) if value else None
    if found is None or value is None:
        return False
    number, rest = float(found.group()), value[found.end() :].strip()
    if rest.startswith("%"):
        return number <= per_cent
    if rest.startswith(fractions or ("\0",)):
        return number <= limit / 10
    large = rest.startswith(("rem", "em", "vw", "vh", "cm", "in"))
    return number <= (0 if large and limit > 0 else limit)


def colour(value: str | None) -> Colour | None:
    """A stated colour, None where it is none that we know (also ``transparent``)."""
    for word in re.sub(r"\s*,\s*", ",", (value or "").strip().lower()).split(" "):
        if word in _NAMES:
            return _NAMES[word]
        if re.fullmatch(r"#[0-9a-f]{3,4}", word):
            red, green, blue = (int(digit * 2, 16) for digit in word[1:4])
            return red, green, blue
        if re.fullmatch(r"#(?:[0-9a-f]{2}){3,4}", word):
            return int(word[1:3], 16), int(word[3:5], 16), int(word[5:7], 16)
        if found := re.match(r"rgba?\((\d{1,3}),(\d{1,3}),(\d{1,3})", word):
            red, green, blue = (int(part) for part in found.groups())
            return red, green, blue
    return None


def same_colour(one: Colour | None, other: Colour | None) -> bool:
    """Whether text of one is invisible on the other; False where either is not known."""
    if one is None or other is None:
        return False
    return all(abs(a - b) <= _CLOSE for a, b in zip(one, other, strict=True))


def colours(tag: str, attributes: Attributes, style: Mapping[str, str]) -> tuple[str, str]:
    """The colours that an element states for its text and its background, '' where it does not."""
    text = style.get("color", "") or (attributes.get("color", "") if tag == "font" else "")
    background = style.get("background-color", "") or style.get("background", "")
    return text, background or attributes.get("bgcolor", "")
