"""Plots as SVG that stands inside a page: no fonts, no files, no colours of its own for text and
lines, so that it can be read on light and dark ground."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selm_export.report.form import Build

INK = "#010203"  # stands for the page's own text colour, and is replaced by it
# Paul Tol's "bright" colours: apart for colour-blind eyes, and on either ground.
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")
SETTINGS: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "selm", "font.family": "sans-serif", "font.size": 10,
    "text.color": INK, "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK,
    "ytick.color": INK, "axes.facecolor": "none", "figure.facecolor": "none",
    "savefig.facecolor": "none", "legend.frameon": False, "axes.spines.top": False,
    "axes.spines.right": False,
}  # fmt: skip


def _plain(name: str) -> str:
    """A name that matplotlib does not read as a formula."""
    return name.replace("$", r"\$")


def _axes(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    return figure, figure.add_subplot()


def _svg(figure: Any, name: str, title: str) -> str:
    """Its markup, to be put into a page; ``name`` keeps its ids apart from another plot's."""
    out = io.StringIO()
    figure.tight_layout()
    figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r'\s(?:xmlns(?::\w+)?|version)="[^"]*"', "", text)
    text = text.replace("xlink:href", "href").replace(INK, "currentColor")
    text = re.sub(r"\bid=\"", f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    text = re.sub(r"<svg [^>]*?viewBox=\"([^\"]*)\"[^>]*>",
                  rf'<svg viewBox="\1" role="img" aria-label="{title}">', text,
                  count=1)  # fmt: skip
    return text.strip()


def size_quality(builds: Sequence[Build]) -> str | None:
    """Mean KLD over file size, one curve for each way of getting there; None if no file has
    both."""
    import matplotlib
    from matplotlib.ticker import LogFormatterSciNotation, NullFormatter, ScalarFormatter

    ways: dict[str, list[Build]] = {}
    for build in builds:
        if build.size.known and build.kld.known and min(build.size.value, build.kld.value) > 0:
            ways.setdefault(build.path, []).append(build)
    if not ways:
        return None
    with matplotlib.rc_context(SETTINGS):
        figure, axes = _axes(7.2, 4.2)
        ordered = sorted(ways, key=lambda way: (way != "quantised only", way))
        for way, colour in zip(ordered, COLOURS * len(ordered), strict=False):
            some = sorted(ways[way], key=lambda b: b.size.value)
            sizes, klds = [b.size.value / 1e6 for b in some], [b.kld.value for b in some]
            errors = [b.kld.error if b.kld.error == b.kld.error else 0.0 for b in some]
            plain = way == "quantised only"
            dash, below = ("-", 4) if plain else ("--", -10)  # labels apart where curves meet
            axes.errorbar(sizes, klds, yerr=errors, fmt=f"o{dash}", color=colour, label=way,
                          markersize=4, capsize=2, linewidth=1.2)  # fmt: skip
            for x, y, build in zip(sizes, klds, some, strict=True):
                axes.annotate(_plain(build.name), (x, y), xytext=(5, below),
                              textcoords="offset points", fontsize=8)  # fmt: skip
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(ScalarFormatter())
        axes.yaxis.set_major_formatter(LogFormatterSciNotation())
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("file size, MB")
        axes.set_ylabel("mean KLD from the teacher, nats")
        axes.margins(x=0.12, y=0.12)
        axes.grid(True, alpha=0.2)
        axes.legend(fontsize=9)
        return _svg(figure, "quality", "Mean KLD over file size")


def routing(domains: Mapping[str, Mapping[str, float]], experts: Sequence[str], name: str) -> str:
    """Shares of reply tokens by expert, a bar for each domain."""
    import matplotlib

    with matplotlib.rc_context(SETTINGS):
        figure, axes = _axes(7.2, 0.8 + 0.4 * len(domains))
        left = [0.0] * len(domains)
        for expert, colour in zip(experts, COLOURS * len(experts), strict=False):
            shares = [100 * route.get(expert, 0.0) for route in domains.values()]
            axes.barh(
                [*map(_plain, domains)],
                shares,
                left=left,
                color=colour,
                label=_plain(expert),
                height=0.6,
            )
            left = [a + b for a, b in zip(left, shares, strict=True)]
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.set_xlabel("% of reply tokens")
        axes.legend(fontsize=9, ncols=max(1, len(experts)), loc="lower left",
                    bbox_to_anchor=(0, 1.0))  # fmt: skip
        return _svg(figure, name, "Share of tokens by expert")


def times(seconds: Mapping[str, float]) -> str:
    """A bar for each stage."""
    import matplotlib

    with matplotlib.rc_context(SETTINGS):
        figure, axes = _axes(7.2, 0.7 + 0.28 * len(seconds))
        axes.barh([*map(_plain, seconds)], list(seconds.values()), color=COLOURS[0], height=0.6)
        axes.invert_yaxis()
        axes.set_xlabel("seconds")
        return _svg(figure, "times", "Seconds by stage")
