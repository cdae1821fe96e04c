"""The lab from end to end, its failures, and the words that it finds for figures."""

from __future__ import annotations

import contextlib
import dataclasses
import html.parser
import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from until import until

pytest.importorskip("rich")
pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from plait.lab import measure, plots, report, session
from plait.lab.explain import Context, conclusions, explain
from plait.lab.load import LoadFailed
from plait.lab.measure import Latency, Measured, Plan, Summary, machine_facts, summarise
from plait.lab.models import MODELS
from plait.lab.server import ServerFailed


class Resources(html.parser.HTMLParser):
    """Collects what a browser would load or run, and which elements were left open."""

    VOID = frozenset({"meta", "br", "img", "link", "input", "hr"})

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[tuple[str, str]] = []
        self.ids: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "link", "iframe", "object", "embed", "base"):
            self.loads.append((tag, str(attrs)))
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset", "data", "poster") and not (
                value or ""
            ).startswith("#"):
                self.loads.append((name, value or ""))
            if name == "style" and re.search(r"url\((?!#)", value or ""):
                self.loads.append((name, value or ""))
            if name == "id":
                self.ids.append(value or "")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check_page(page: str) -> None:
    resources = Resources()
    resources.feed(page)
    assert resources.loads == []
    assert resources.open == []
    assert len(set(resources.ids)) == len(resources.ids), "two plots share an id"
    styles = "".join(re.findall(r"<style[^>]*>(.*?)</style>", page, flags=re.DOTALL))
    assert "url(" not in styles
    assert "@import" not in styles
    # Every colour comes from the style sheet, so that both grounds are readable.
    assert "#0102" not in page


def test_quick_run_from_end_to_end(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    done = subprocess.run(
        [sys.executable, "-m", "plait", "lab", "--quick", "--models", "threads,c", "--out", out],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    assert str(out / "lab.html") in done.stdout
    figures = json.loads((out / "lab.json").read_text())
    assert list(figures["models"]) == ["threads", "c"]
    assert not figures["interrupted"]
    assert figures["machine"]["usable_processors"] == len(os.sched_getaffinity(0))
    for name, model in figures["models"].items():
        assert model["error"] is None
        assert len(model["rounds"]) == 1
        assert list(model["rounds"][0]) == list(measure.PHASES)
        assert model["summary"]["short_alone"] > 0
        assert model["summary"]["long_alone_ms"] > 0
        assert name in done.stdout
    page = (out / "lab.html").read_text()
    check_page(page)
    assert page.count("<svg") == 1 + 2 * 2
    assert "failed" not in page


def fake_histogram(*micros: float) -> dict[str, Any]:
    values = sorted(micros)
    return {
        "count": len(values),
        "buckets_us": [[value, 1] for value in values],
        "p50_us": values[len(values) // 2] if values else 0.0,
        "max_us": values[-1] if values else 0.0,
    }


def fake_round(alone: float = 10000, beside: float = 200, long_ms: float = 50) -> dict[str, Any]:
    def run(perf1: int) -> dict[str, Any]:
        return {
            "ok": True,
            "duration_s": 1.0,
            "wall_s": 1.0,
            "short": {
                "rate_per_s": alone,
                "rate_during_long_per_s": beside,
                "bucket_ms": 250,
                "bucket_counts": [100, 2, 2, 100],
                "latency": fake_histogram(90, 100, 110),
                "latency_during_long": fake_histogram(5000, 5100),
            },
            "long": {
                "answered": 4 * perf1,
                "spans_s": [[0.25, 0.5, 0], [0.5, 0.75, 0]],
                "latency": fake_histogram(*[long_ms * 1000 * max(perf1, 1)] * 3),
            },
        }

    return {"perf1": run(1), "perf1_twice": run(2), "perf2": run(0), "both": run(1)}


def test_a_model_that_fails_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    turns: list[str] = []

    def turn(name: str, plan: Plan, tell: object) -> dict[str, dict[str, Any]]:
        turns.append(name)
        if name == "asyncio":
            raise ServerFailed("the server ended: <b>exit code 3</b>")
        if name == "c" and turns.count("c") == 2:
            raise LoadFailed("perf2: wrong answer to 1: '2'")
        return fake_round()

    monkeypatch.setattr(measure, "_turn", turn)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        code = session.main(
            out=str(tmp_path),
            names=["threads", "asyncio", "c"],
            quick=True,
            rounds=2,
            long=30,
            pin=False,
        )
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert code == 1
    # A failed model has no more turns; the others have theirs, in turn.
    assert turns == ["threads", "asyncio", "c", "threads", "c"]
    shown = capsys.readouterr().out
    assert "asyncio failed: the server ended: <b>exit code 3</b>" in shown
    assert "c failed: perf2: wrong answer" in shown
    page = (tmp_path / "lab.html").read_text()
    check_page(page)
    assert "&lt;b&gt;exit code 3&lt;/b&gt;" in page
    figures = json.loads((tmp_path / "lab.json").read_text())["models"]
    assert figures["asyncio"]["error"]
    assert figures["asyncio"]["summary"] is None
    assert len(figures["c"]["rounds"]) == 1
    assert figures["threads"]["error"] is None
    assert len(figures["threads"]["rounds"]) == 2


def test_nothing_but_failures_still_makes_a_page() -> None:
    plan = Plan.quick()
    page = report.render(
        [Measured("threads", error="no"), Measured("c")], {}, plan, machine_facts(plan)
    )
    check_page(page)
    assert "No model could be measured" in page
    assert "Not measured in this run" in page


def descendants(pid: int) -> set[int]:
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        parent = waiting.pop()
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{parent}/task").iterdir():
                for word in (task / "children").read_text().split():
                    found.add(int(word))
                    waiting.append(int(word))
    return found


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_no_process_behind(
    tmp_path: Path, number: signal.Signals
) -> None:
    command = [sys.executable, "-m", "plait", "lab", "--models", "threads+processes"]
    lab = subprocess.Popen(
        [*command, "--out", str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        # The server, its two workers or more, and the load.
        until(lambda: lab.poll() is not None or len(descendants(lab.pid)) >= 3)
        assert lab.poll() is None
        seen = descendants(lab.pid)
        lab.send_signal(number)
        seen |= descendants(lab.pid)
        output, problems = lab.communicate(timeout=100)
    finally:
        lab.kill()
        lab.wait()
    assert lab.returncode == 130, problems.decode()
    assert b"Traceback" not in problems
    assert b"interrupted" in output
    until(lambda: not any(map(running, seen)))  # killed, and on their way out
    check_page((tmp_path / "lab.html").read_text())
    assert json.loads((tmp_path / "lab.json").read_text())["interrupted"]


def test_an_output_folder_that_cannot_be_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    out = str(tmp_path / "file" / "out")
    code = session.main(out=out, names=["c"], quick=True, rounds=None, long=30, pin=False)
    assert code == 1
    assert f"cannot write to --out {out}" in capsys.readouterr().err


def test_medians_are_taken_over_rounds() -> None:
    model = Measured("threads", [fake_round(10000, 100), fake_round(9000, 900), fake_round(20, 1)])
    summary = summarise(model)
    assert summary.short_alone == 9000
    assert summary.short_beside == 100
    assert summary.kept == 0.05  # of 1 %, 10 % and 5 %: round by round, not of the medians
    assert summary.long_alone_ms == 50
    assert summary.long_twice_ms == 100
    assert summary.alone.count == 9
    assert summary.beside.max == 5100
    assert measure.typical_round(model)["both"]["short"]["rate_during_long_per_s"] == 100


def test_a_round_without_answers_is_summed_up_too() -> None:
    nothing = fake_round(0, 0)
    for phase in nothing.values():
        phase["short"] |= {
            "latency": fake_histogram(),
            "latency_during_long": fake_histogram(),
            "bucket_counts": [0, 0, 0, 0],
        }
        phase["long"] |= {"answered": 0, "spans_s": [], "latency": fake_histogram()}
    model = Measured("threads", [nothing])
    summary = summarise(model)
    assert summary.kept == 0
    assert summary.beside.count == 0
    plan = Plan.quick()
    check_page(report.render([model], {"threads": summary}, plan, machine_facts(plan)))


def test_spans_are_joined_for_drawing_only_where_gaps_cannot_be_seen() -> None:
    few = [[0.0, 0.1, 0], [0.1005, 0.2, 0]]
    assert len(plots._joined(few)) == 2
    many = [[i / 1000, (i + 0.9) / 1000, 0] for i in range(100)]
    assert plots._joined(many) == [(0.0, 0.0999)]


# ---- words ---------------------------------------------------------------------------------


def summary(name: str, **figures: float) -> Summary:
    alone = figures.get("short_alone", 10000.0)
    beside = figures.get("short_beside", 9500.0)
    latency = Latency(1000, 100.0, 120.0, 200.0, 400.0, 900.0)
    made = Summary(
        name=name,
        short_alone=alone,
        short_beside=beside,
        kept=beside / alone if alone else 0.0,
        long_alone_ms=50.0,
        long_twice_ms=100.0,
        long_twice_max_ms=105.0,
        long_beside_ms=50.0,
        long_beside_max_ms=60.0,
        long_rate=20.0,
        long_twice_rate=20.0,
        alone=latency,
        beside=latency,
    )
    return dataclasses.replace(made, **figures)


def context(*summaries: Summary, gil: bool = True, processors: int = 2) -> Context:
    return Context(
        summaries={each.name: each for each in summaries},
        long=30,
        gil=gil,
        switch_interval_ms=5.0,
        processors=processors,
    )


def words(s: Summary, *others: Summary, **machine: Any) -> str:
    return explain(s, context(s, *others, **machine)).replace("\u00a0", " ")


def test_threads_with_the_lock() -> None:
    text = words(summary("threads", short_beside=206))
    assert "10,000 answers a second; beside perf1 it gets 206; in the middle round" in text
    assert "that is 2.1%" in text
    assert "nearly all is lost" in text
    assert "5 ms" in text
    assert "200 answers a second remain" in text
    assert "206 were measured: the lock explains the loss" in text
    assert "50 ms alone, 100 ms each with a second perf1: they take turns" in text


def test_threads_that_do_better_or_worse_than_the_lock_lets_expect() -> None:
    assert "measured, more than that" in words(summary("threads", short_beside=4000))
    assert "measured, less than that" in words(summary("threads", short_beside=40))
    assert "this run does not show it" in words(summary("threads", short_beside=9900))


def test_threads_without_the_lock() -> None:
    text = words(summary("threads", short_beside=9900, long_twice_ms=52.0), gil=False)
    assert "no global lock" in text
    assert "at the same time" in text
    assert "switch interval" not in text
    assert "another cause" in words(summary("threads", short_beside=100), gil=False)


@pytest.mark.parametrize("name", ["generators", "asyncio", "plait"])
def test_one_thread_that_computes(name: str) -> None:
    text = words(summary(name, short_beside=19))
    assert "nearly all is lost" in text
    assert "one short one: with 50 ms for fib(30) that makes 20 a second" in text
    assert ("yield" if name == "generators" else "await") in text
    assert "no loss" in words(summary(name))


def test_a_process_pool_and_its_price() -> None:
    inline = summary("threads", short_alone=12500.0)
    text = words(summary("threads+processes", short_alone=4000.0, short_beside=4000.0), inline)
    assert "always has a turn" in text
    assert "4,000 answers a second alone, against 12,500 of threads" in text
    assert "about 170 µs each" in text
    text = words(summary("threads+processes", short_alone=20000.0, short_beside=20000.0), inline)
    assert "should cost something" in text
    assert "does not show it" in text
    text = words(summary("threads+processes", short_alone=2000.0, short_beside=4000.0))
    assert "it even gains" in text
    assert "figure of the machine" in text
    text = words(summary("threads+processes", short_alone=4000.0, short_beside=1000.0))
    assert "share 2 processor(s)" in text
    assert "always has a turn" not in text
    assert "more was to be hoped for" in text


def test_generators_are_compared_with_those_by_hand() -> None:
    by_hand = summary("generators", short_alone=12500.0, short_beside=19.0)
    text = words(summary("plait+generators", short_alone=9000.0, short_beside=9000.0), by_hand)
    assert "always has a turn" in text
    assert "9,000 answers a second alone, against 12,500 of generators" in text
    text = words(summary("plait+scope", short_alone=5000.0), summary("plait", short_alone=9000.0))
    assert "5,000 answers a second alone, against 9,000 of plait" in text
    nearly = words(summary("plait+generators", short_alone=12400.0), by_hand)
    assert "against generators with 12,500 answers a second alone, this run does not show" in nearly


def test_it_is_said_where_plait_loses() -> None:
    rival = summary("asyncio+processes", short_alone=4000.0, short_beside=4000.0)
    behind = summary("plait+processes", short_alone=3000.0, short_beside=2000.0)
    text = words(behind, rival)
    assert "fewer short requests (0.75 times as many) alone" in text
    assert "fewer short requests (0.50 times as many) beside perf1" in text
    assert "Here plait loses." in text
    ahead = summary("plait+processes", short_alone=9000.0, short_beside=9000.0)
    text = words(ahead, rival)
    assert "2.2 times as many short requests" in text
    assert "loses" not in text
    assert "and not plait" in " ".join(conclusions(context(behind, rival)))
    assert "and not plait" not in " ".join(conclusions(context(ahead, rival)))
    text = words(summary("plait", short_beside=20), summary("asyncio", short_beside=20))
    assert "A faster loop is no cure" in text


def test_sequential_tells_who_waited() -> None:
    text = words(summary("sequential", long_beside_max_ms=1850.0, long_twice_max_ms=800.0))
    assert "perf2 had come first" in text
    assert "1.9 s instead of 50 ms" in text
    assert "the second had to wait as well: 800 ms" in text
    assert "perf1 had the only place" in words(summary("sequential", short_beside=3))
    both = words(summary("sequential", short_beside=4000, long_beside_max_ms=900.0))
    assert "had the only place in turn" in both
    assert "faster" not in both
    faster = words(summary("sequential"), summary("plait", short_alone=30000.0))
    assert "plait answers even a single client faster" in faster


def test_the_limit_is_compared() -> None:
    limit = summary("c", short_alone=20000.0, short_beside=20000.0, long_alone_ms=2.0)
    text = words(limit, summary("threads+processes", short_beside=5000.0))
    assert "fib(30) takes 2.0 ms in C and 50 ms at best in Python" in text
    assert "threads+processes comes nearest beside perf1, with 25% of the limit" in text
    text = words(limit, summary("threads", short_beside=25000.0))
    assert "A limit it is not beside perf1 in this run: threads answers 25,000." in text
    assert "nearest" not in text


def test_one_round_is_no_measure() -> None:
    one = dataclasses.replace(context(summary("threads", short_beside=206)), rounds=1)
    assert "One round was run" in " ".join(conclusions(one))
    text = explain(one.summaries["threads"], one)
    assert "it gets 206; that is 2.1%" in text


def test_conclusions_sort_the_models() -> None:
    told = " ".join(
        conclusions(
            context(
                summary("sequential"),
                summary("threads", short_alone=12000.0, short_beside=200.0),
                summary("asyncio", short_beside=20.0),
                summary("threads+processes", short_alone=4000.0, short_beside=3000.0),
                summary("asyncio+processes", short_alone=3000.0, short_beside=3100.0),
                summary("c", short_alone=1e5, short_beside=1e5),
            )
        )
    )
    assert "more than half of the short ones are lost by threads and asyncio." in told
    assert "A part is lost by threads+processes." in told
    assert "kept by asyncio+processes." in told
    assert "Alone, threads is the fastest in Python, with 12,000" in told
    assert "Beside a long request it is asyncio+processes, with 3,100." in told
    assert "another model than measuring under mixed load" in told
    assert conclusions(context()) == []


def test_a_busy_machine_is_mentioned() -> None:
    calm = context(summary("threads"))
    assert "busy" not in " ".join(conclusions(calm))
    busy = dataclasses.replace(calm, load_before=1.8)
    assert "a load of 1.8 on 2 processor(s) before the start" in conclusions(busy)[0]


def test_words_are_found_for_all_figures() -> None:
    values = (0.0, 0.4, 19.0, 9000.0, 2e5)
    for name, alone, beside, long, gil in itertools.product(
        MODELS, values, values, (0.0, 2.0, 5000.0), (True, False)
    ):
        s = summary(
            name,
            short_alone=alone,
            short_beside=beside,
            long_alone_ms=long,
            long_beside_ms=long,
            long_twice_ms=long * 2,
        )
        others = [summary(other) for other in MODELS if other != name]
        text = words(s, *others, gil=gil)
        assert text
        assert not re.search(r"\b(nan|inf|None)\b", text)
        assert math.isfinite(s.kept)
