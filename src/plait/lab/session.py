"""``plait lab``: the experiment with its progress, its table and its files."""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..cli._extras import LAB, need

for _module in LAB:
    need(_module, "lab")

from rich import box  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: E402
from rich.table import Table  # noqa: E402

from . import races, report, vectorise  # noqa: E402
from .explain import conclusions, share  # noqa: E402
from .measure import Measured, Plan, Summary, machine_facts, measure, summarise  # noqa: E402
from .report import Aside  # noqa: E402

__all__ = ["main"]


def main(
    *, out: str, names: list[str], quick: bool, rounds: int | None, long: int, pin: bool
) -> int:
    """Measure, and tell.

    Args:
        out: The folder for lab.json and lab.html; it is made if it is not there.
        names: The models.
        quick: One short round.
        rounds: How many rounds; the plan's number by default.
        long: What perf1 asks for.
        pin: Whether to pin server and load to processors.

    Returns:
        0, 1 when a model failed or a file could not be written, 130 when interrupted.
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # A log has no width of its own, and 80 cut the table.
    # Before a minute of measuring, not after it.
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "lab.html").touch()
        (folder / "lab.json").touch()
    except OSError as error:
        print(f"plait: cannot write to --out {out}: {error}", file=sys.stderr)
        return 1
    plan = Plan.quick(long=long, pin=pin) if quick else Plan(long=long, pin=pin)
    if rounds is not None:
        plan = Plan(**{**asdict(plan), "rounds": rounds})
    facts = machine_facts(plan)
    for stop in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(stop, _interrupt)

    measured: list[Measured] = [Measured(name) for name in names]
    interrupted = False
    turns = plan.rounds * len(names)
    console.print(
        f"{len(names)} model(s), {plan.rounds} round(s), about "
        f"{turns * plan.seconds_per_turn:.0f} s; {facts['placement']}"
    )
    try:
        with Progress(
            BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn(), console=console
        ) as progress:
            task = progress.add_task("starting", total=turns)

            def tell(name: str, what: str) -> None:
                progress.update(task, description=f"{name}: {what}")

            for so_far in measure(names, plan, tell):
                measured = so_far
                progress.advance(task)
            progress.update(task, description="done")
    except KeyboardInterrupt:
        interrupted = True
        console.print("interrupted: the report holds what was measured so far")

    aside: Aside | None = None
    if not interrupted:
        try:
            aside = _measure_aside(quick)
        except KeyboardInterrupt:
            interrupted = True
    summaries = {
        model.name: summarise(model) for model in measured if model.error is None and model.rounds
    }
    console.print(_table(measured, summaries, plan))
    for model in measured:
        if model.error:
            console.print(f"{model.name} failed: {model.error}", style="red", markup=False)
    for sentence in conclusions(report.context_of(summaries, plan, facts)):
        console.print(f"- {sentence}", highlight=False)
    for sentence in aside.sentences(facts) if aside else []:
        console.print(f"- {sentence}", highlight=False)
    try:
        _write(folder, measured, summaries, plan, facts, interrupted, aside)
    except OSError as error:
        print(f"plait: cannot write the report: {error}", file=sys.stderr)
        return 1
    # Plain, and not wrapped: for people and scripts to copy.
    print(f"figures: {(folder / 'lab.json').resolve()}")
    print(f"report:  {(folder / 'lab.html').resolve()}")
    if interrupted:
        return 130
    return 1 if any(model.error for model in measured) else 0


def _measure_aside(quick: bool) -> Aside:
    if quick:
        return Aside(races.measure(steps=5000), vectorise.measure(numbers=50_000, rounds=1))
    return Aside(races.measure(), vectorise.measure())


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def _write(
    folder: Path,
    measured: list[Measured],
    summaries: dict[str, Summary],
    plan: Plan,
    facts: dict[str, Any],
    interrupted: bool,
    aside: Aside | None,
) -> None:
    page = report.render(measured, summaries, plan, facts, interrupted=interrupted, aside=aside)
    (folder / "lab.html").write_text(page, encoding="utf-8")
    figures = {
        "version": 1,
        "interrupted": interrupted,
        "machine": facts,
        "plan": asdict(plan),
        "races": [asdict(race) for race in aside.races] if aside else None,
        "vectorising": [asdict(way) for way in aside.ways] if aside else None,
        "models": {
            model.name: {
                "error": model.error,
                "summary": summaries[model.name].as_json() if model.name in summaries else None,
                "rounds": model.rounds,
            }
            for model in measured
        },
    }
    (folder / "lab.json").write_text(json.dumps(figures) + "\n", encoding="utf-8")


def _table(measured: list[Measured], summaries: dict[str, Summary], plan: Plan) -> Table:
    table = Table(
        title=f"the Fibonacci server: short (perf2) asks for fib(1), long (perf1) for fib({plan.long})",
        caption="medians of the rounds; latency of all rounds together",
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
    )
    table.add_column("model", no_wrap=True)
    for heading in (
        "short/s\nalone",
        "short/s\nbeside",
        "kept",
        "p99 us\nbeside",
        "long ms\nalone",
        "long ms\ntwice",
        "long ms\nbeside",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for model in measured:
        s = summaries.get(model.name)
        if s is None:
            state = "failed" if model.error else "not measured"
            table.add_row(model.name, state, *[""] * 6, style="red" if model.error else "dim")
            continue
        style = "red" if s.kept < 0.5 else "yellow" if s.kept < 0.9 else "green"
        table.add_row(
            model.name,
            f"{s.short_alone:,.0f}",
            f"{s.short_beside:,.0f}",
            f"[{style}]{share(s.kept)}[/]",
            f"{s.beside.p99:,.0f}",
            f"{s.long_alone_ms:,.1f}",
            f"{s.long_twice_ms:,.1f}",
            f"{s.long_beside_ms:,.1f}",
        )
    return table
