"""The page of a run: whole, valid, without a word from outside; and it judges by the figures."""

from __future__ import annotations

import copy
import json
import math
import random
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

pytest.importorskip("matplotlib", reason="needs the [export] extra: matplotlib is not installed")

from selm_export.errors import RecipeError
from selm_export.report import document, form, page, plots, verdict
from selm_export.report.form import Build, Figure
from selm_export.report.page import number


def quality(kld: float, error: float = 0.002) -> dict[str, Any]:
    def figure(value: float) -> dict[str, float]:
        return {"value": value, "error": error}

    return {"replies": {
        "tokens": 900, "documents": 40, "perplexity_ratio": figure(1 + kld),
        "mean_kld": figure(kld), "kld_99": 11 * kld, "rms_delta_p": figure(0.1),
        "same_top_token": figure(0.9),
    }}  # fmt: skip


def scored(value: float, chance: float, above: bool) -> dict[str, Any]:
    return {"count": 640, "too_long": 12, "chance": chance, "above_chance": above,
            "figures": {"accuracy": {"value": value, "error": 0.017},
                        "accuracy_per_byte": {"value": 0.3, "error": 0.02}}}  # fmt: skip


PART = {
    "tokens": 2000, "replies": 99, "nll": {"value": 1.35, "error": 0.01},
    "by_expert": {"general": {"value": 1.5, "error": None}, "math": {"value": 1.354, "error": 0.1}},
    "route": {"general": 0.25, "math": 0.75}, "best": "math",
    "behind_best": {"value": -0.004, "error": 0.001}, "own": 0.97,
    "behind_own": {"value": 0.0123, "error": 0.002},
}  # fmt: skip
ROUTING = {"experts": ["general", "math"], "route": "early", "domains": {"math": PART},
           "mixed": PART}  # fmt: skip
SPEED = {"prompt": 1234.5, "decode": 210.3, "peak_mb": 77.1, "threads": 2}


def build(maker: str, size: float, kld: float, **more: Any) -> dict[str, Any]:
    return {"from": maker, "file_bytes": int(1e6 * size), "parameters": 12_000_000,
            "reference": "teacher", "quality": quality(kld), "speed": SPEED, **more}  # fmt: skip


LINES: list[dict[str, Any]] = [
    {"name": "data", "stage": "data", "from": [], "seconds": 3.25, "peak_mb": 200.0,
     "figures": {"conversations": {"talk": 4321}}},
    {"name": "teacher", "stage": "route", "from": ["data"], "seconds": 620.0, "peak_mb": 1900.0,
     "figures": {"parameters": 12_000_000, "bits_per_byte": 1.0876}},
    {"name": "small", "stage": "prune", "from": ["teacher"], "seconds": 61.0, "peak_mb": 800.0,
     "figures": {"parameters": 5_000_000, "quality": quality(0.9), "reference": "teacher"}},
    {"name": "healed", "stage": "distill", "from": ["small", "teacher"], "seconds": 700.0,
     "peak_mb": 1500.0, "figures": {"quality": quality(0.1), "reference": "teacher"}},
    {"name": "flat", "stage": "factorize", "from": ["teacher"], "seconds": 9.0, "peak_mb": 500.0,
     "figures": {"ranks": {"up": 12}}},
    {"name": "report", "stage": "report", "from": ["q8"], "seconds": 80.0, "peak_mb": 400.0,
     "figures": {
         "routes": {"early": "q8", "full": "q8-full",
                    "replies": {**quality(0.001)["replies"],
                                "perplexity_ratio": {"value": math.exp(0.015), "error": 0.002}}},
         "builds": {
             "q8": build("teacher", 12.0, 0.001, routing=ROUTING,
                         scores={"medqa": scored(0.26, 0.25, False)}),
             "q4": build("teacher", 6.0, 0.2, scores={"medqa": scored(0.41, 0.25, True)}),
             "healed q8": build("healed", 6.5, 0.11),
             "flat q8": build("flat", 8.0, 0.3),
         }}},
]  # fmt: skip


def html_of(title: str, lines: Any) -> str:
    return document.to_html(title, page.sections(form.stages(lines)))


def markdown_of(title: str, lines: Any) -> str:
    return document.to_markdown(title, page.sections(form.stages(lines)))


def parsed(html: str) -> ET.Element:
    """Well-formed, every tag closed, every id there once, every reference to one that is there."""
    assert html.startswith("<!DOCTYPE html>\n")
    root = ET.fromstring(html.split("\n", 1)[1])
    ids = [e.attrib["id"] for e in root.iter() if "id" in e.attrib]
    assert len(ids) == len(set(ids))
    used = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', html)
    assert {a or b for a, b in used} <= set(ids)
    allowed = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "section", "p", "ul",
               "li", "div", "table", "thead", "tbody", "tr", "th", "td", "figure", "figcaption",
               "details", "summary"}  # fmt: skip
    drawn = {e for svg in root.iter("svg") for e in svg.iter()}
    assert {e.tag for e in root.iter() if e not in drawn} <= allowed
    return root


def text_of(root: ET.Element) -> str:
    return " ".join(" ".join(root.itertext()).split())


def test_the_page_tells_all_and_fetches_nothing() -> None:
    html = html_of("A run <1> & more", LINES)
    root = parsed(html)
    assert not re.search(r"https?:|//\w|@import|<script|src=|url\((?!#)", html)
    text = text_of(root)
    for line in LINES:
        assert line["name"] in text
    for told in ("A run <1> & more", "1.088", "0.1100 ± 0.0020", "1,23", "210", "77.1", "4321",
                 "10.3 min", "0.0150 ± 0.0020 nats", "26.0 ± 1.7 % (chance)", "41.0 ± 1.7 %",
                 "25.0 %", "97.0 %", "medqa 12"):  # fmt: skip
        assert told in text, told
    assert len([*root.iter("svg")]) == 3  # size and quality, who speaks, time
    assert "41.0 ± 1.7 % (chance)" not in text


def test_markdown_tells_the_same() -> None:
    markdown = markdown_of("A run", LINES)
    html = text_of(parsed(html_of("A run", LINES)))
    for line in markdown.split("\n"):
        if line.startswith("| ") and "---" not in line:
            for cell in line.strip("| ").split(" | "):
                assert re.sub(r"\\(.)", r"\1", cell).strip() in html
    tables = re.findall(r"(?:^\|.*\n)+", markdown, re.M)
    for found in tables:  # as many cells in every row
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in found.splitlines()}) == 1
    assert len(tables) >= 5


def test_what_pays_is_decided_by_the_figures() -> None:
    found = {v.build.name: v for v in verdict.verdicts(form.builds(form.stages(LINES)))}
    assert set(found) == {"healed q8", "flat q8"}  # those of the teacher's shape are the measure
    assert found["healed q8"].pays and found["healed q8"].certain
    assert found["healed q8"].rival is not None and found["healed q8"].rival.name == "q4"
    assert found["healed q8"].build.path == "prune + distill + quantised"
    assert not found["flat q8"].pays
    said = verdict.conclusions(form.builds(form.stages(LINES)))
    assert [s.split(":")[0] for s in said[:3]] == [
        "prune pays at this size", "distill pays at this size",
        "factorize does not pay at this size",
    ]  # fmt: skip
    assert any("flat q8" in s and "does not pay: q4" in s for s in said)


def some_build(name: str, way: Any, size: float, kld: float, error: float = 0.001) -> Build:
    return Build(name, way, {"file_bytes": size, "quality": quality(kld, error)})


@pytest.mark.parametrize(
    ("builds", "expected"),
    [
        ([], "no plainly quantised file was measured"),
        ([("a", (), 10, 0.1)], "only plainly quantised files were measured"),
        ([("a", ("prune",), 10, 0.1)], "no plainly quantised file was measured"),
        ([("a", (), 10, 0.1), ("b", ("prune",), 9, 9.0)], "no plainly quantised file is as small"),
        ([("a", (), 10, 0.1), ("b", ("prune",), 10, 0.1)], "b .* pays"),  # not worse is enough
        ([("a", (), 10, 0.1), ("b", ("prune",), 10, 0.1001)], "not pay.*Chance may explain"),
        ([("a", (), 10, 0.1), ("c", (), 8, 0.05), ("b", ("prune",), 11, 0.07)], "does not pay: c"),
        ([("a", (), 10, 0.1), ("b", None, 9, 0.01)], "only plainly quantised"),
    ],
)
def test_verdicts(builds: list[Any], expected: str) -> None:
    said = " ".join(verdict.conclusions([some_build(*b) for b in builds]))
    assert re.search(expected, said), said


def test_ways_follow_what_each_stage_changed() -> None:
    lines = form.stages(LINES)
    ways = {b.name: b.way for b in form.builds(lines)}
    assert ways == {"q8": (), "q4": (), "healed q8": ("prune", "distill"),
                    "flat q8": ("factorize",)}  # fmt: skip
    # Without a teacher in its past a model's way begins at the beginning; without "from" nobody
    # knows.
    other = [
        {"name": "base", "stage": "base", "from": []},
        {"name": "student", "stage": "distill", "from": ["base", "teacher"]},
        {"name": "q", "stage": "quantize", "from": ["student"], "figures": build("q", 1.0, 0.5)},
        {"name": "lost", "stage": "quantize", "figures": {"bytes": 9e6, "bits_per_weight": 4.5}},
    ]
    found = {b.name: b for b in form.builds(form.stages([*LINES, *other]))}
    assert found["q"].way == ("base", "distill")
    assert found["lost"].way is None
    assert found["lost"].size.value == 9e6
    loop = [{"name": "a", "stage": "prune", "from": ["a"], "figures": {"builds": {"x": {}}}}]
    assert form.builds(form.stages(loop))[0].way is None


ODD: list[Any] = [
    {"name": "sunk", "stage": "base", "seconds": math.nan, "peak_mb": "lots",
     "figures": {"loss": math.nan, "curve": [1.0, math.inf], "quality": {"replies": None}}},
    {"stage": "prune", "figures": None},
    {"name": "flat",
     "figures": {"quality": 7, "builds": [1, 2], "scores": "none", "routes": {"x": 1},
                 "routing": {"experts": None, "domains": {"a": 1}}}},
    {"name": "broken", "stage": "distill", "from": "base",
     "figures": {"error": "the loss is no number"}},
    {"name": "q", "stage": "quantize", "from": ["sunk"],
     "figures": {"file_bytes": math.nan, "quality": {"replies": {"mean_kld": {"value": None}}}}},
    {"name": "report", "stage": "report", "figures": {"builds": {
        "$a$ <b> | c": {"error": "no tokenizer"}, "none": None, "zero": build("sunk", 1.0, 0.0),
        "minus": {"file_bytes": -1, "quality": {"mean_kld": -0.1}},
        "one": {"scores": {"medqa": {"figures": {}}, "gsm8k": None, "x": scored(math.nan, 0.2, True)
                           },
                "routing": {"experts": ["e", "e2"], "domains": {"d": {}}, "mixed": None},
                "speed": {"prompt": None}}}}},
]  # fmt: skip


def test_a_run_that_went_wrong_is_told_too() -> None:
    html = html_of("Odd", ODD)
    text = text_of(parsed(html))
    assert "sunk: no number at loss, curve[1]." in text
    assert "broken failed: the loss is no number" in text
    assert "stage 2 gave no figures" in text
    assert "$a$ <b> | c could not be measured: no tokenizer" in text
    assert "q: size and KLD not measured" in text
    assert "1.000, no number" in text
    assert not re.search(r"\b(nan|inf)\b", text.lower())
    markdown = markdown_of("Odd", ODD)
    assert r"$a$ &lt;b&gt; \| c" in markdown
    for lines in ([], [{}], [{"name": None, "figures": {"a": [1] * 99}}]):
        parsed(html_of("Little", lines))


def test_what_is_no_report_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    with pytest.raises(RecipeError, match=r"report\.json: does not exist"):
        form.read(path)
    for text, match in (("{", "cannot be read"), ("{}", "no list of stages"), ("[1]", "no list")):
        path.write_text(text)
        with pytest.raises(RecipeError, match=match):
            form.read(path)
    path.write_text(json.dumps(ODD))  # with NaN, as json writes it
    assert len(form.read(path)) == len(ODD)


def test_plots_have_no_ground_and_no_ink_of_their_own() -> None:
    svg = plots.size_quality(form.builds(form.stages(LINES)))
    assert svg is not None and plots.INK not in svg and "currentColor" in svg
    assert "quantised only" in svg and "prune + distill + quantised" in svg
    assert plots.size_quality([]) is None
    assert svg == plots.size_quality(form.builds(form.stages(LINES)))  # the same each time


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Figure(0.0047, 0.0001234), "0.00470 ± 0.00012"),
        (Figure(1.0070, 0.0012), "1.0070 ± 0.0012"),
        (Figure(1234.5), "1,234"),
        (Figure(0.00024), "0.000240"),
        (Figure(0.0), "0"),
        (Figure(5.0, 0.0), "5.00"),
        (Figure(math.nan), "–"),  # noqa: RUF001
        (Figure(1e-30), "0.000000000"),
        (Figure(12.3, 45.6), "12 ± 46"),
    ],
)
def test_numbers(value: Figure, text: str) -> None:
    assert number(value) == text


def places(raw: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in the figures, by the keys that lead to it."""
    keys = raw.items() if isinstance(raw, dict) else enumerate(raw) if isinstance(raw, list) else ()
    found = [path] if path else []
    for key, value in keys:
        found += places(value, (*path, key))
    return found


def test_no_figure_of_another_form_stops_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time another place of the report holds something that nobody expects there."""
    monkeypatch.setattr(plots, "_svg", lambda *_: "<svg></svg>")
    monkeypatch.setattr(plots, "_axes", lambda *_: (MagicMock(), MagicMock()))  # to draw is slow
    r = random.Random(3)
    anything = [None, "x", "", [], [1, "a", None], {}, {"value": "x"}, {"a": {"b": math.nan}}, -1,
                0, math.nan, math.inf, True, 1e300]  # fmt: skip
    for path in r.sample(places(LINES), 80):
        lines = copy.deepcopy(LINES)
        inside: Any = lines
        for key in path[:-1]:
            inside = inside[key]
        inside[path[-1]] = r.choice(anything)
        if not all(isinstance(line, dict) for line in lines):
            continue
        parsed(html_of("Odd", lines))
        markdown_of("Odd", lines)
