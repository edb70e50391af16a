"""The measures of the stored conversations together: as figures, in words, and as plots of text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING, Any

from selm_edge.errors import SelmError
from selm_edge.feedback.dialogues import (
    Likeness,
    Nearness,
    Opinions,
    coherence,
    corrections,
    satisfaction,
)
from selm_edge.feedback.fluency import Perplexity
from selm_edge.feedback.log import FeedbackLog
from selm_edge.feedback.periods import F, OverTime
from selm_edge.plots import columns

if TYPE_CHECKING:
    from selm_edge.memory.embedder import Embedder
    from selm_edge.store.database import Database


@dataclass(frozen=True)
class Report:
    """``coherence`` is None where there is no embedder (``problem`` says why), ``fluency`` where
    nobody asked for it; ``judge`` is the name of the model that it was measured with."""

    satisfaction: OverTime[Opinions]
    corrections: OverTime[Nearness]
    coherence: OverTime[Likeness] | None
    problem: str = ""
    fluency: OverTime[Perplexity] | None = None
    judge: str = ""

    def as_json(self) -> dict[str, Any]:
        fluent = self.fluency
        return {
            "satisfaction": self.satisfaction.as_json(),
            "corrections": self.corrections.as_json(),
            "coherence": None if self.coherence is None else self.coherence.as_json(),
            "fluency": None if fluent is None else {"judge": self.judge, **fluent.as_json()},
        }

    @property
    def sections(self) -> list[Section]:
        """As they are shown, one for each measure that there is."""
        found = [_satisfied(self.satisfaction), _corrected(self.corrections)]
        if self.coherence is None:
            found.append(Section("Coherence", [f"It is not known: {self.problem}"]))
        else:
            found.append(_coherent(self.coherence))
        if self.fluency is not None:
            found.append(_fluent(self.fluency, self.judge))
        return found


def report(
    database: Database,
    embedder: Embedder | None,
    *,
    since: int = 0,
    no_embedder: str = "there is no embedder",
    cancelled: Callable[[], bool] = lambda: False,
) -> Report:
    """All but fluency, of what was said ``since`` (ms). ``no_embedder`` is why there is none."""
    rows = FeedbackLog(database).rows(since=since)
    coherent: OverTime[Likeness] | None = None
    problem = no_embedder
    if embedder is not None:
        try:
            coherent = coherence(database, embedder, since=since, cancelled=cancelled)
        except SelmError as error:
            problem = str(error)
    return Report(satisfaction(rows), corrections(rows), coherent, problem)


@dataclass(frozen=True)
class Plot:
    """A figure by period; its lines, and its values for who hears instead of looks."""

    caption: str
    values: Sequence[float | None]
    labels: Sequence[str]
    top: float
    written: Callable[[float], str]

    def lines(self, width: int, height: int = 4) -> list[str]:
        return columns(
            self.values, self.labels, top=self.top, top_label=self.written(self.top),
            bottom_label=self.written(0), width=width, height=height,
        )  # fmt: skip

    @property
    def spoken(self) -> str:
        """Periods with nothing in them are passed over."""
        known = zip(self.labels, self.values, strict=True)
        return ", ".join(f"{at} {self.written(value)}" for at, value in known if value is not None)


@dataclass(frozen=True)
class Section:
    """One measure. ``words`` are sentences, ``models`` a line for each where there are several."""

    title: str
    words: list[str]
    models: list[str] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)


def _satisfied(found: OverTime[Opinions]) -> Section:
    def share(of: Opinions) -> float | None:
        return of.share

    def line(of: Opinions) -> str:
        return "not judged" if of.share is None else f"{_percent(of.share)} of {of.judged}"

    whole, words = found.whole, list[str]()
    if whole.share is not None and whole.interval is not None:
        low, high = whole.interval
        words.append(
            f"{_percent(whole.share)} of {_count(whole.judged, 'judged reply was')} good (with 95 %"
            f" confidence {100 * low:.0f} to {_percent(high)}): {whole.up} good, {whole.down} bad,"
            f" {whole.corrected} corrected."
        )
    else:
        words.append("No reply has been judged yet. In the chat: ↑ selects one, then + or - or x.")
    if whole.regenerated:
        words.append(f"Another reply was asked for {_times(whole.regenerated)}.")
    plots = [_plot("good replies", found, share, 1.0, _percent)] if whole.judged else []
    return Section("Satisfaction", words, _models(found, line), plots)


def _corrected(found: OverTime[Nearness]) -> Section:
    def line(of: Nearness) -> str:
        return f"F1 {_number(of.f1)}, BLEU {_number(of.bleu, 1)} of {of.corrections}"

    whole = found.whole
    if not whole.corrections:
        return Section("Corrections", ["No reply has been corrected yet."])
    words = [
        f"{_count(whole.corrections, 'reply was')} corrected. Against your text:"
        f" F1 {_number(whole.f1)} (precision {_number(whole.precision)},"
        f" recall {_number(whole.recall)}), BLEU {_number(whole.bleu, 1)}."
        " F1 1 and BLEU 100 would need no correction."
    ]
    plots = [_plot("F1", found, lambda of: of.f1, 1.0, "{:.2f}".format)]
    if whole.bleu is not None:
        plots.append(_plot("BLEU", found, lambda of: of.bleu, 100.0, "{:.0f}".format))
    return Section("Corrections", words, _models(found, line), plots)


def _coherent(found: OverTime[Likeness]) -> Section:
    def line(of: Likeness) -> str:
        return f"{_number(of.answers)} of {of.dialogues}"

    whole = found.whole
    if whole.answers is None:
        return Section("Coherence", ["There is no conversation with a whole reply yet."])
    words = [
        f"Likeness in meaning (cosine) of a question and its reply: {_number(whole.answers)} in"
        f" {_count(whole.dialogues, 'dialogue')}."
    ]
    if whole.follows is not None:
        words.append(f"Of a reply and what is asked next: {_number(whole.follows)}.")
    if whole.chance is not None:
        words.append(f"Of a question and the reply of another dialogue: {_number(whole.chance)}.")
    plots = [_plot("question and reply", found, lambda of: of.answers, 1.0, "{:.2f}".format)]
    return Section("Coherence", words, _models(found, line), plots)


def _fluent(found: OverTime[Perplexity], judge: str) -> Section:
    def line(of: Perplexity) -> str:
        return f"{_number(of.perplexity, 1)} of {of.replies}"

    whole = found.whole
    if whole.perplexity is None:
        return Section("Fluency", ["No reply was measured."])
    words = [
        f"Perplexity {_number(whole.perplexity, 1)} under {judge} without adapters;"
        f" {_count(whole.replies, 'reply')}, {_count(whole.tokens, 'token')}. Lower is"
        " more expected."
    ]
    if whole.left_out:
        words.append(f"{whole.left_out} left out: their questions do not fit into the context.")
    top = max(of.perplexity or 0.0 for _, of in found.periods)
    plots = [_plot("perplexity", found, lambda of: of.perplexity, top, "{:.1f}".format)]
    return Section("Fluency", words, _models(found, line), plots)


def _plot(
    what: str,
    found: OverTime[F],
    value: Callable[[F], float | None],
    top: float,
    written: Callable[[float], str],
) -> Plot:
    labels = [_label(day, found.unit) for day, _ in found.periods]
    values = [value(of) for _, of in found.periods]
    return Plot(f"{what}, by {found.unit}", values, labels, top, written)


def _models(found: OverTime[F], line: Callable[[F], str]) -> list[str]:
    if len(found.models) < 2:
        return []
    return [f"{model}: {line(of)}" for model, of in found.models.items()]


def _label(day: date, unit: str) -> str:
    return {"year": f"{day.year}", "month": f"{day:%b} {day.year}"}.get(unit, f"{day.day} {day:%b}")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _number(value: float | None, digits: int = 2) -> str:
    return "not known" if value is None else f"{value:.{digits}f}"


_MANY = {
    "judged reply was": "judged replies were", "reply was": "replies were", "reply": "replies",
}  # fmt: skip


def _count(count: int, one: str) -> str:
    return f"{count:,} {one if count == 1 else _MANY.get(one, one + 's')}"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
