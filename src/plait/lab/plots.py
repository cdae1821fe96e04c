"""The plots of the report, as SVG that takes its colours from the page.

matplotlib draws with placeholder colours, and each placeholder becomes a variable of the
page's style sheet: the same plot is readable on light and dark ground.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from .load import Histogram
from .measure import Measured, Summary, typical_round

__all__ = ["latency", "overview", "timeline"]

# Placeholder and the variable that takes its place; none may occur in a plot otherwise.
_INK, _GRID, _ALONE, _BESIDE, _LONG = "#010203", "#010204", "#010205", "#010206", "#010207"
_VARIABLES = {
    _INK: "--ink-soft",
    _GRID: "--line",
    _ALONE: "--alone",
    _BESIDE: "--beside",
    _LONG: "--long",
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 9.5,
    "text.color": _INK,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


def timeline(model: Measured) -> str:
    """perf2's rate over time, with the time of each long request marked."""
    report = typical_round(model)["both"]
    short = report["short"]
    width = short["bucket_ms"] / 1000
    rates = [count / width for count in short["bucket_counts"]]
    end = float(report["duration_s"])
    with _style(f"timeline-{model.name}"):
        figure, axes = _figure(5.4, 2.5)
        spans = report["long"]["spans_s"]
        for number, (start, stop) in enumerate(_joined(spans)):
            axes.axvspan(
                start,
                min(stop, end),
                color=_LONG,
                alpha=0.28,
                linewidth=0,
                label="long requests under way" if number == 0 else None,
            )
        if len(spans) <= 60:
            for _, stop, _ in spans:  # where one ends and the next begins
                axes.axvline(min(stop, end), color=_LONG, linewidth=0.8, alpha=0.7)
        edges = [index * width for index in range(len(rates) + 1)]
        axes.stairs(rates, edges, color=_BESIDE, linewidth=1.5, label="short answers per second")
        axes.set_xlim(0, end)
        axes.set_ylim(0, max([*rates, 1.0]) * 1.15)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _short_number(value)))
        axes.set_xlabel("seconds")
        axes.grid(axis="x", visible=False)
        _legend(axes)
        return _svg(figure, f"{model.name}: short answers per second over time")


def latency(model: Measured) -> str:
    """What share of short requests took longer than so many microseconds."""
    alone, beside = Histogram(), Histogram()
    for each in model.rounds:
        alone.merge(Histogram.from_json(each["perf2"]["short"]["latency"]))
        beside.merge(Histogram.from_json(each["both"]["short"]["latency_during_long"]))
    with _style(f"latency-{model.name}"):
        figure, axes = _figure(5.4, 2.5)
        for histogram, colour, label in (
            (alone, _ALONE, "perf2 alone"),
            (beside, _BESIDE, "beside perf1"),
        ):
            if histogram.total:
                xs, ys = _slower_than(histogram)
                axes.step(xs, ys, where="post", color=colour, linewidth=1.6, label=label)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_ylim(5e-5, 1.6)
        axes.set_yticks([1, 0.1, 0.01, 0.001, 0.0001], ["100 %", "10 %", "1 %", "0.1 %", "0.01 %"])
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _duration(value)))
        axes.set_xlabel("took longer than")
        axes.minorticks_off()
        _legend(axes)
        return _svg(figure, f"{model.name}: latency of short requests")


def overview(summaries: Sequence[Summary]) -> str:
    """Short requests per second, alone and beside perf1, of all models."""
    with _style("overview"):
        figure, axes = _figure(10.4, 0.42 * len(summaries) + 1.0)
        # A logarithmic axis, for the figures span decades; and dots, for a bar on such an
        # axis has no honest length. A rate of zero is drawn at the edge.
        alone = [max(s.short_alone, 1.0) for s in summaries]
        beside = [max(s.short_beside, 1.0) for s in summaries]
        places = list(range(len(summaries)))
        axes.hlines(places, alone, beside, color=_ALONE, linewidth=2.2, alpha=0.5)
        axes.plot(alone, places, "o", color=_ALONE, markersize=8, label="perf2 alone")
        axes.plot(beside, places, "o", color=_BESIDE, markersize=8, label="beside perf1")
        for place, summary in enumerate(summaries):
            pair = sorted(
                [(alone[place], summary.short_alone), (beside[place], summary.short_beside)]
            )
            for (at, value), (shift, side) in zip(pair, ((-9, "right"), (9, "left")), strict=True):
                axes.annotate(
                    f"{value:,.0f}",
                    (at, place),
                    xytext=(shift, 0),
                    textcoords="offset points",
                    ha=side,
                    va="center",
                )
        axes.set_xscale("log")
        axes.set_xlim(min(alone + beside) / 2.2, max(alone + beside) * 2.2)
        axes.set_ylim(len(summaries) - 0.5, -0.5)
        axes.set_yticks(places, [s.name for s in summaries])
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short_number(value)))
        axes.minorticks_off()
        axes.set_xlabel("short answers per second")
        axes.grid(axis="y", visible=False)
        _legend(axes)
        return _svg(figure, "short answers per second, alone and beside a long request")


def _style(name: str) -> AbstractContextManager[None]:
    # Ids inside of a plot are made from the salt: two plots on one page must not share them.
    return mpl.rc_context({**_STYLE, "svg.hashsalt": name})


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    # Not pyplot: it keeps figures in a global table.
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_visible(False)
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    return figure, axes


def _legend(axes: Axes) -> None:
    if not axes.get_legend_handles_labels()[0]:
        return  # Nothing was answered, so nothing was drawn.
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2, borderaxespad=0.1)


def _joined(spans: list[list[float]], gap: float = 0.001) -> list[tuple[float, float]]:
    """Spans without those gaps that are too small to be seen, of any connection."""
    joined: list[tuple[float, float]] = []
    count = len(spans)
    for start, stop, _ in sorted(spans):
        if joined and (start < joined[-1][1] or (count > 60 and start < joined[-1][1] + gap)):
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return joined


def _slower_than(histogram: Histogram) -> tuple[list[float], list[float]]:
    total = histogram.total
    left = total
    xs: list[float] = []
    ys: list[float] = []
    for upper in sorted(histogram.counts):
        if not xs:
            xs.append(upper * 0.98)
            ys.append(1.0)
        left -= histogram.counts[upper]
        xs.append(min(upper, histogram.maximum))
        # The last step falls to the bottom of the plot.
        ys.append(left / total if left else 1e-6)
    return xs, ys


def _short_number(value: float) -> str:
    return f"{value / 1000:g}k" if abs(value) >= 1000 else f"{value:g}"


def _duration(us: float) -> str:
    if us >= 1e6:
        return f"{us / 1e6:g} s"
    return f"{us / 1e3:g} ms" if us >= 1e3 else f"{us:g} µs"


def _svg(figure: Figure, title: str) -> str:
    out = io.StringIO()
    metadata: dict[str, Any] = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(out, format="svg", metadata=metadata)
    text = out.getvalue()
    # Inlined in a page: no XML prologue, no size of its own, the page's fonts and colours.
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    # The names of groups repeat from plot to plot, and nothing refers to them.
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = text.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text)
    for placeholder, variable in _VARIABLES.items():
        text = text.replace(placeholder, f"var({variable})")
    return text
