"""The report: one page that needs nothing but itself."""

from __future__ import annotations

import importlib.resources
from collections.abc import Sequence
from typing import Any

import jinja2

from . import plots
from .explain import Context, conclusions, explain, share
from .measure import Measured, Plan, Summary
from .models import MODELS

__all__ = ["context_of", "render"]


def context_of(summaries: dict[str, Summary], plan: Plan, facts: dict[str, Any]) -> Context:
    """What the explanations compare with."""
    return Context(
        summaries=summaries,
        long=plan.long,
        gil=facts["gil"],
        switch_interval_ms=facts["switch_interval_ms"],
        processors=facts["usable_processors"],
        load_before=facts["load_average"][0],
    )


def render(
    measured: Sequence[Measured],
    summaries: dict[str, Summary],
    plan: Plan,
    facts: dict[str, Any],
    *,
    interrupted: bool = False,
) -> str:
    """Write the page.

    Args:
        measured: All models, the failed ones too, in the order of the page.
        summaries: The figures of those that did not fail.
        plan: What was measured for how long.
        facts: What the figures depend on.
        interrupted: Whether the run was ended before its end.

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
    )


def _us(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:.2f} s"
    return f"{value / 1e3:.1f} ms" if value >= 1e3 else f"{value:.0f} µs"
