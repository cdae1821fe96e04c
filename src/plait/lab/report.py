"""The report: one page that needs nothing but itself."""

from __future__ import annotations

import importlib.resources
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from . import plots, races, vectorise
from .explain import Context, conclusions, explain, share
from .measure import Measured, Plan, Summary
from .models import MODELS

__all__ = ["Aside", "context_of", "render"]


@dataclass(frozen=True)
class Aside:
    """What is measured beside the servers.

    Attributes:
        races: Counters that several strands count up.
        ways: One computation over many numbers.
    """

    races: list[races.Race]
    ways: list[vectorise.Way]

    def sentences(self, facts: dict[str, Any]) -> list[str]:
        """What both show, in short: the first sentences of each."""
        ways = self.about_ways(facts)
        return self.about_races(facts)[:1] + [text for text in ways if "NumPy" in text][:1]

    def about_races(self, facts: dict[str, Any]) -> list[str]:
        """What the counters show."""
        return races.explain(self.races, gil=facts["gil"])

    def about_ways(self, facts: dict[str, Any]) -> list[str]:
        """What the times show."""
        return vectorise.explain(self.ways, gil=facts["gil"], processors=facts["usable_processors"])


def context_of(summaries: dict[str, Summary], plan: Plan, facts: dict[str, Any]) -> Context:
    """What the explanations compare with."""
    return Context(
        summaries=summaries,
        long=plan.long,
        gil=facts["gil"],
        switch_interval_ms=facts["switch_interval_ms"],
        processors=facts["usable_processors"],
        load_before=facts["load_average"][0],
        rounds=plan.rounds,
    )


def render(
    measured: Sequence[Measured],
    summaries: dict[str, Summary],
    plan: Plan,
    facts: dict[str, Any],
    *,
    interrupted: bool = False,
    aside: Aside | None = None,
) -> str:
    """Write the page.

    Args:
        measured: All models, the failed ones too, in the order of the page.
        summaries: The figures of those that did not fail.
        plan: What was measured for how long.
        facts: What the figures depend on.
        interrupted: Whether the run was ended before its end.
        aside: What was measured beside the servers; None when it was not.

    Returns:
        HTML.
    """
    context = context_of(summaries, plan, facts)
    cards = []
    for model in measured:
        summary = summaries.get(model.name)
        card: dict[str, Any] = {
            "model": MODELS[model.name],
            "error": model.error,
            "summary": summary,
        }
        if summary is not None:
            card |= {
                "text": explain(summary, context),
                # Made by matplotlib from numbers: markup, not text.
                "timeline": plots.timeline(model),
                "latency": plots.latency(model),
            }
        cards.append(card)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["rate"] = lambda value: f"{value:,.0f}"
    environment.filters["share"] = share
    environment.filters["ms"] = lambda value: f"{value:,.1f}" if value < 100 else f"{value:,.0f}"
    environment.filters["us"] = _us
    source = importlib.resources.files(__package__).joinpath("report.html.jinja")
    page = environment.from_string(source.read_text(encoding="utf-8"))
    return page.render(
        cards=cards,
        conclusions=conclusions(context),
        facts=facts,
        interrupted=interrupted,
        overview=plots.overview(list(summaries.values())) if summaries else "",
        plan=plan,
        aside=aside,
        about_races=aside.about_races(facts) if aside else [],
        about_ways=aside.about_ways(facts) if aside else [],
    )


def _us(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:.2f} s"
    return f"{value / 1e3:.1f} ms" if value >= 1e3 else f"{value:.0f} µs"
