"""What a report of a run tells: sections of paragraphs, tables and plots, from its stages' figures.

A figure that is missing or no number is shown as a dash, and named in a section of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from selm_export.report import plots, verdict
from selm_export.report.document import Block, Items, Picture, Section, Table
from selm_export.report.form import (
    KNOWN,
    Build,
    Figure,
    Stage,
    at,
    builds,
    figure,
    quality_of,
    size_of,
    table,
)

NONE = "–"  # noqa: RUF001 (a dash is what stands for nothing in a table)

# ---- Figures as text -----------------------------------------------------------------------------


def number(value: Figure, scale: float = 1.0, *, digits: int = 3, unit: str = "") -> str:
    """With its ± to two digits where it has one; else ``digits`` significant ones."""
    if not value.known:
        return NONE
    scaled, error = value.value * scale, value.error * scale
    if math.isfinite(error) and error > 0:
        places = min(9, max(0, 1 - math.floor(math.log10(error))))
        return f"{scaled:.{places}f} ± {error:.{places}f}{unit}"
    if scaled == 0:
        return f"0{unit}"
    places = min(9, max(0, digits - 1 - math.floor(math.log10(abs(scaled)))))
    return f"{scaled:,.{places}f}{unit}"


def percent(value: Figure) -> str:
    return number(value, 100.0, unit=" %")


def count(raw: Any) -> str:
    value = figure(raw)
    return f"{value.value:,.0f}" if value.known else NONE


def megabytes(size: Figure) -> str:
    return f"{size.value / 1e6:.2f}" if size.known else NONE


def duration(seconds: Figure) -> str:
    if not seconds.known:
        return NONE
    total = seconds.value
    if total < 120:
        return f"{total:.3g} s"
    return f"{total / 60:.3g} min" if total < 7200 else f"{total / 3600:.3g} h"


def _quality_cells(figures: Mapping[str, Any]) -> list[str]:
    found = quality_of(figures)
    return [
        number(figure(found.get("perplexity_ratio")), digits=4),
        number(figure(found.get("mean_kld"))),
        number(figure(found.get("kld_99"))),
        percent(figure(found.get("rms_delta_p"))),
        percent(figure(found.get("same_top_token"))),
    ]


QUALITY = ("perplexity ratio", "mean KLD", "99 % KLD", "RMS Δp", "same top token")


# ---- Sections ------------------------------------------------------------------------------------


def _stages(lines: Sequence[Stage]) -> Section:
    rows = []
    for line in lines:
        f = line.figures
        rows.append(
            [line.name, line.kind, megabytes(size_of(f)),
             number(figure(f.get("parameters")), 1e-6), *_quality_cells(f), _bits(f),
             duration(line.seconds), number(line.peak_mb)]
        )  # fmt: skip
    head = ["stage", "kind", "MB", "M parameters", *QUALITY, "bits per byte", "time", "peak MB"]
    section = Section("Stages", [Table(head, rows)])
    seconds = {line.name: line.seconds.value for line in lines if line.seconds.known}
    if seconds:
        total = duration(Figure(sum(seconds.values())))
        section.blocks.append(f"All stages together: {total}.")
        section.blocks.append(Picture(plots.times(seconds), "Seconds by stage"))
    section.blocks.append(
        "Quality is that of the stage's model against its reference, at the replies of held-out"
        " conversations; ± is one standard error over conversations. A ratio of 1.01 means that the"
        " model finds the right token 1 % less likely (in the geometric mean); KLD is in nats."
    )
    references = {line.name: str(line.figures["reference"]) for line in lines
                  if line.figures.get("reference")}  # fmt: skip
    if references:
        told = ", ".join(f"{name} with {other}" for name, other in references.items())
        section.blocks.append(f"Compared: {told}.")
    return section


def _bits(figures: Mapping[str, Any]) -> str:
    """Of held-out talk where that was measured by itself."""
    talk = at(figures, "held_out", "bits_per_byte")
    return number(figure(figures.get("bits_per_byte") if talk is None else talk), digits=4)


def _builds(found: Sequence[Build]) -> Section:
    rows = []
    for build in found:
        f = build.figures
        rows.append(
            [build.name, build.path, megabytes(build.size),
             number(figure(f.get("parameters")), 1e-6), *_quality_cells(f), _bits(f),
             number(figure(at(f, "speed", "prompt"))), number(figure(at(f, "speed", "decode"))),
             number(figure(at(f, "speed", "peak_mb")))]
        )  # fmt: skip
    head = ["file", "way", "MB", "M parameters", *QUALITY, "bits per byte", "prompt tokens/s",
            "decoded tokens/s", "peak MB"]  # fmt: skip
    section = Section("Files", [Table(head, rows)])
    threads = {count(at(b.figures, "speed", "threads")) for b in found} - {NONE}
    if threads:
        counts = ", ".join(sorted(threads))
        section.blocks.append(
            f"Tokens per second and peak memory are those of the inference core with {counts}"
            " threads, in a process of its own, as selm bench measures them."
        )
    references = sorted({str(b.figures["reference"]) for b in found if b.figures.get("reference")})
    if references:
        section.blocks.append(f"Quality is that against the model of {', '.join(references)}.")
    return section


def _size_quality(found: Sequence[Build]) -> Section:
    section = Section("What pays")
    picture = plots.size_quality(found)
    if picture is not None:
        section.blocks.append(Picture(picture, "Mean KLD from the teacher over file size"))
    section.blocks.append(
        "A build pays if no plainly quantised file of at most its size is nearer to the teacher"
        " (has a lower mean KLD)."
    )
    section.blocks.append(Items(verdict.conclusions(found)))
    return section


def _score_cell(raw: Any) -> str:
    """The first figure; marked where chance does as well."""
    figures = table(at(raw, "figures"))
    if not figures:
        return NONE
    name, value = next(iter(figures.items()))
    text = number(figure(value), digits=3) if name == "bleu" else percent(figure(value))
    if figure(at(raw, "chance")).value > 0 and at(raw, "above_chance") is not True:
        text += " (chance)"
    return text


def _too_long(scored: Sequence[Build], tasks: Sequence[str]) -> Iterator[str]:
    """By task: how many, and of which files where they differ."""
    for task in tasks:
        files: dict[str, list[str]] = {}
        for build in scored:
            files.setdefault(count(at(build.figures, "scores", task, "too_long")), []).append(
                build.name
            )
        told = [n if len(files) == 1 else f"{n} ({', '.join(names)})"
                for n, names in files.items() if n not in ("0", NONE)]  # fmt: skip
        if told:
            yield f"{task} {', '.join(told)}"


def _scores(found: Sequence[Build]) -> Section | None:
    scored = [b for b in found if table(b.figures.get("scores"))]
    tasks = list(dict.fromkeys(t for b in scored for t in table(b.figures["scores"])))
    if not tasks:
        return None
    rows, finer = [], []
    for task in tasks:
        each = [at(b.figures, "scores", task) for b in scored]
        first: Mapping[str, Any] = next((table(raw) for raw in each if table(raw)), {})
        measure = next(iter(table(first.get("figures"))), NONE).replace("_", " ")
        chance = figure(first.get("chance"))
        level = percent(chance) if chance.known and chance.value > 0 else NONE
        rows.append([task, measure, count(first.get("count")), level, *map(_score_cell, each)])
        for build, raw in zip(scored, each, strict=True):
            for name, value in [*table(at(raw, "figures")).items()][1:]:
                shown = number(figure(value)) if name == "bleu" else percent(figure(value))
                finer.append([task, build.name, name.replace("_", " "), shown])
    names = [b.name for b in scored]
    section = Section(
        "Task scores", [Table(["task", "measure", "questions", "chance", *names], rows)]
    )
    section.blocks.append(
        "Chance is what the best rule reaches that does not read the question; (chance) marks a"
        " score that is not above it by two standard errors: it shows no knowledge of the"
        " task. BLEU goes from 0 to 100."
    )
    cut = [*_too_long(scored, tasks)]
    if cut:
        section.blocks.append(
            "Questions too long for the context, counted as not answered: " + "; ".join(cut) + "."
        )
    if finer:
        section.blocks.append(Table(["task", "file", "measure", "score"], finer, "Finer scores"))
    return section


def _routing_rows(name: str, part: Any, experts: Sequence[str]) -> list[str]:
    return [
        name, count(at(part, "tokens")),
        number(figure(at(part, "nll")), digits=4),
        *(number(figure(at(part, "by_expert", e)), digits=4) for e in experts),
        *(percent(figure(at(part, "route", e))) for e in experts),
        percent(figure(at(part, "own"))),
    ]  # fmt: skip


def _share(raw: Any) -> float:
    found = figure(raw)
    return found.value if found.known else 0.0


def _routing_sentences(raw: Mapping[str, Any]) -> Iterator[str]:
    mixed = at(raw, "mixed")
    behind, best = figure(at(mixed, "behind_best")), at(mixed, "best")
    if behind.known:
        side = "less" if behind.value < 0 else "more"
        yield (
            f"On all domains together the ensemble needs {number(_absolute(behind))} nats a token"
            f" {side} than {best}, the best single expert."
        )
    for domain, part in table(raw.get("domains")).items():
        behind, own = figure(at(part, "behind_own")), figure(at(part, "own"))
        if behind.known:
            side = "less" if behind.value < 0 else "more"
            yield (
                f"{domain}: the ensemble needs {number(_absolute(behind))} nats a token {side} than"
                f" the domain's own expert, which leads in {percent(own)} of the"
                f" {at(part, 'replies')} replies."
            )
        else:
            yield f"{domain}: no expert is its own."


def _absolute(value: Figure) -> Figure:
    return Figure(abs(value.value), value.error)


def _routing(lines: Sequence[Stage], found: Sequence[Build]) -> list[Section]:
    sections = []
    named = {line.name: line.figures for line in lines}
    named.update({build.name: build.figures for build in found})
    for place, (name, figures) in enumerate(named.items()):
        raw = table(figures.get("routing"))
        domains = table(raw.get("domains"))
        listed = raw.get("experts")
        experts = [str(e) for e in listed] if isinstance(listed, list) else []
        if not domains or not experts:
            continue
        rows = [_routing_rows(d, part, experts) for d, part in domains.items()]
        rows.append(_routing_rows("all", raw.get("mixed"), experts))
        head = ["domain", "reply tokens", "NLL by route", *(f"{e} alone" for e in experts),
                *(f"{e} speaks" for e in experts), "own expert leads"]  # fmt: skip
        route = f" ({raw['route']} route)" if raw.get("route") else ""
        shares = {
            str(d): {e: _share(at(part, "route", e)) for e in experts}
            for d, part in domains.items()
        }
        sections.append(
            Section(
                f"Routing: {name}{route}",
                [
                    Table(head, rows),
                    Picture(
                        plots.routing(shares, experts, f"routing-{place}"),
                        "Who speaks in which domain",
                    ),
                    Items([*_routing_sentences(raw)]),
                    "NLL in nats a reply token, of replies as they stand in the data; an expert"
                    " leads in a reply when it speaks more than half of its tokens.",
                ],
            )
        )
    for line in lines:
        routes = table(line.figures.get("routes"))
        if routes:
            sections.append(_routes(routes))
    return sections


def _routes(routes: Mapping[str, Any]) -> Section:
    ratio = figure(at(routes, "replies", "perplexity_ratio"))
    if not ratio.known or ratio.value <= 0:
        return Section("Early against full route", ["Not measured."])
    apart = Figure(math.log(ratio.value), ratio.error / ratio.value)
    side = "more" if apart.value > 0 else "less"
    same = percent(figure(at(routes, "replies", "same_top_token")))
    told = (
        f"{routes.get('early')} needs {number(_absolute(apart))} nats a reply token {side} than"
        f" {routes.get('full')}; both find the same token likeliest at {same} of places."
    )
    return Section("Early against full route", [told])


def _odd(raw: Any, path: str = "") -> Iterator[str]:
    """Where a number is none (NaN, infinite)."""
    if isinstance(raw, float) and not math.isfinite(raw):
        yield path
    elif isinstance(raw, Mapping):
        for key, value in raw.items():
            yield from _odd(value, f"{path}.{key}" if path else str(key))
    elif isinstance(raw, list):
        for i, value in enumerate(raw):
            yield from _odd(value, f"{path}[{i}]")


def _troubles(lines: Sequence[Stage], found: Sequence[Build]) -> Section | None:
    items = []
    for line in lines:
        if line.figures.get("error"):
            items.append(f"{line.name} failed: {line.figures['error']}")
        elif not line.figures:
            items.append(f"{line.name} gave no figures.")
        odd = [*_odd(line.figures)]
        if odd:
            more = f" and {len(odd) - 5} more" if len(odd) > 5 else ""
            items.append(f"{line.name}: no number at {', '.join(odd[:5])}{more}.")
    for build in found:
        if build.figures.get("error"):
            items.append(f"{build.name} could not be measured: {build.figures['error']}")
            continue
        missing = [
            name for name, value in (("size", build.size), ("KLD", build.kld)) if not value.known
        ]
        if missing:
            missed = " and ".join(missing)
            items.append(f"{build.name}: {missed} not measured, so it is not judged.")
        elif build.way is None:
            items.append(f"{build.name}: its way from the teacher is not known; it is not judged.")
    return Section("What went wrong or is missing", [Items(items)]) if items else None


def _shown(raw: Any) -> str:
    if isinstance(raw, float):
        return number(Figure(raw), digits=4) if math.isfinite(raw) else "no number"
    return NONE if raw is None else str(raw)


def _flat(raw: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Each figure with the keys that lead to it; a long list, or one of tables, by its length."""
    if isinstance(raw, Mapping) and "value" in raw and set(raw) <= {"value", "error"}:
        yield path, number(figure(raw), digits=4)
    elif isinstance(raw, Mapping):
        for key, value in raw.items():
            yield from _flat(value, f"{path}.{key}" if path else str(key))
    elif isinstance(raw, list):
        short = len(raw) <= 12 and not any(isinstance(v, Mapping | list) for v in raw)
        yield path, ", ".join(map(_shown, raw)) if short else f"{len(raw)} values"
    else:
        yield path, _shown(raw)


def _further(lines: Sequence[Stage]) -> Section | None:
    blocks: list[Block] = []
    for line in lines:
        rest = {k: v for k, v in line.figures.items() if k not in KNOWN}
        rows = [*_flat(rest)]
        if rows:
            blocks.append(Table(["figure", "value"], rows, f"{line.name} ({line.kind})"))
    return Section("Further figures", blocks) if blocks else None


def sections(lines: Sequence[Stage]) -> list[Section]:
    found = builds(lines)
    parts: list[Section | None] = [_stages(lines), _troubles(lines, found)]
    if found:
        parts += [_builds(found), _size_quality(found), _scores(found)]
    parts += [*_routing(lines, found), _further(lines)]
    return [part for part in parts if part is not None]
