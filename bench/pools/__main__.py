"""Measures pools side by side: round trip, throughput, map, arrays, start and stop.

    make bench-pools
    make bench-pools BENCH_ARGS="--quick"

Every pool is measured in a process of its own, one after the other, and then all again: a row
is the median of the rounds, and a change of the machine's mood meets all of them. A pool that
does not come to its end is ended, and what it had not measured is marked as hung.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import selectors
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import machine, tables

from . import limits
from .measure import LESS_IS_MORE, UNITS, applies, measure
from .peers import PEERS

CAP = 30.0
"""Seconds that one pool may take in one round."""
TOTAL = 420.0
"""Seconds after which no further round of anything begins."""

Figures = dict[tuple[str, str], list[float]]


def child(name: str, budget: float) -> int:
    """Measure one pool, and print each row when it is known."""
    rows = limits.measure(budget) if name == limits.NAME else measure(PEERS[name], budget)
    try:
        for row, value in rows:
            print(json.dumps([row, value]), flush=True)
    except ImportError as error:
        print(json.dumps({"missing": str(error)}), flush=True)
        return 0
    print(json.dumps({"end": True}), flush=True)
    # Some pools leave threads behind that never end.
    sys.stdout.flush()
    os._exit(0)


def lines_until(process: subprocess.Popen[bytes], end: float) -> list[bytes]:
    """What a process prints, until it ends or time is up."""
    assert process.stdout is not None
    data = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while (left := end - time.monotonic()) > 0:
            if not selector.select(left):
                break
            got = os.read(process.stdout.fileno(), 65536)
            if not got:
                break
            data += got
    return data.splitlines()


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a child and all that it has started in its session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def measure_apart(name: str, budget: float, cap: float) -> tuple[dict[str, float], str]:
    """One round of one pool in a process of its own: its rows, and what went wrong or ""."""
    start = time.monotonic()
    with tempfile.TemporaryFile() as errors, contextlib.ExitStack() as stack:
        process = subprocess.Popen(
            [sys.executable, "-m", "pools", "--one", name, "--budget", str(budget)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
        stack.callback(end_group, process)
        lines = lines_until(process, start + cap)
        errors.seek(0)
        said = errors.read().decode(errors="replace").strip().splitlines()
    rows: dict[str, float] = {}
    for line in lines:
        with contextlib.suppress(ValueError):
            found = json.loads(line)
            if isinstance(found, list):
                rows[found[0]] = found[1]
            elif "missing" in found:
                return rows, f"not installed: {found['missing']}"
            else:
                return rows, ""
    if time.monotonic() - start >= cap:
        return rows, "hung"
    return rows, f"failed: {said[-1][:200] if said else 'it said nothing'}"


def table(figures: Figures, names: list[str], troubles: dict[str, str]) -> list[list[str]]:
    """Rows of cells; the first is the head."""
    grid = [["", *names]]
    for row, unit in UNITS.items():
        if not any((row, name) in figures for name in names):
            continue
        cells = [f"{row}, {unit}"]
        for name in names:
            values = figures.get((row, name))
            if values:
                cells.append(tables.number(statistics.median(values)))
            else:
                hung = troubles.get(name) == "hung" and applies(PEERS[name], row)
                cells.append("hung" if hung else "-")
        grid.append(cells)
    return grid


def markdown(grid: list[list[str]], figures: Figures, names: list[str]) -> str:
    """The table for a README; the best pool of each row in bold."""
    lines = ["| " + " | ".join(grid[0]) + " |", "|---|" + "---:|" * len(names)]
    by_label = {f"{row}, {unit}": (row, unit) for row, unit in UNITS.items()}
    for cells in grid[1:]:
        row, unit = by_label[cells[0]]
        medians = {
            name: statistics.median(figures[row, name])
            for name in names
            if (row, name) in figures and name != limits.NAME
        }
        best = None
        if len(medians) > 1:
            best = tables.number((min if unit in LESS_IS_MORE else max)(medians.values()))
        shown = [
            f"**{cell}**" if cell == best and name != limits.NAME else cell
            for name, cell in zip(names, cells[1:], strict=True)
        ]
        lines.append("| " + " | ".join([cells[0], *shown]) + " |")
    return "\n".join(lines) + "\n"


def parse() -> argparse.Namespace:
    """Read and check the command line."""
    parser = argparse.ArgumentParser(
        prog="pools", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    everyone = [*PEERS, limits.NAME]
    parser.add_argument("--json", type=Path, default=Path("build/bench-pools.json"), metavar="FILE")
    parser.add_argument("--markdown", type=Path, default=None, metavar="FILE")
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--peers", default=",".join(everyone), metavar="A,B")
    parser.add_argument("--budget", type=float, default=0.5, metavar="SECONDS", help="for each row")
    parser.add_argument("--one", choices=everyone, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.peers = options.peers.split(",")
    for name in options.peers:
        if name not in everyone:
            parser.error(f"unknown pool {name!r}; known are {', '.join(everyone)}")
    if options.rounds < 1 or not options.budget > 0:
        parser.error("--rounds must be at least 1, and --budget more than 0")
    if options.markdown is None:
        options.markdown = options.json.with_suffix(".md")
    return options


def main() -> int:
    """Run what the command line asks for; 1 when plait or the limit could not be measured."""
    options = parse()
    if options.one is not None:
        return child(options.one, options.budget)
    facts = machine.facts()
    rounds = 1 if options.quick else options.rounds
    budget = 0.1 if options.quick else options.budget
    start = time.monotonic()
    figures: Figures = {}
    troubles: dict[str, str] = {}
    done_rounds = 0
    for number_of_round in range(rounds):
        for name in options.peers:
            left = TOTAL - (time.monotonic() - start)
            if name in troubles or left <= 0:
                continue
            if sys.stderr.isatty():
                print(f"\r\033[Kround {number_of_round + 1}: {name}", end="", file=sys.stderr)
            rows, trouble = measure_apart(name, budget, min(CAP, left + CAP / 2))
            for row, value in rows.items():
                figures.setdefault((row, name), []).append(value)
            if trouble:
                troubles[name] = trouble
        if time.monotonic() - start < TOTAL:
            done_rounds += 1
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    names = [n for n in options.peers if any(peer == n for _, peer in figures)]
    grid = table(figures, names, troubles)
    print(
        f"{facts['cpu']}, {len(os.sched_getaffinity(0))} cores, Linux {facts['kernel']}, "
        f"Python {facts['python']}; 2 workers unless said otherwise, medians of {done_rounds} "
        f"rounds, {time.monotonic() - start:.0f} s\n"
    )
    print(tables.render(grid[0], grid[1:]))
    for name, trouble in troubles.items():
        print(f"\n{name}: {trouble}")
    versions = {}
    for name in names:
        with contextlib.suppress(ImportError):
            versions[name] = PEERS[name].version() if name in PEERS else ""
    result = {
        "machine": facts,
        "rounds": done_rounds,
        "seconds": time.monotonic() - start,
        "versions": versions,
        "troubles": troubles,
        "figures": [
            {"row": row, "peer": name, "unit": UNITS[row], "values": values}
            for (row, name), values in figures.items()
        ],
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=1))
    options.markdown.parent.mkdir(parents=True, exist_ok=True)
    options.markdown.write_text(markdown(grid, figures, names))
    print(f"\n{options.json}: every figure of every round; {options.markdown}: the table")
    return int(any(name in troubles for name in ("plait", "plait threads", limits.NAME)))


if __name__ == "__main__":
    sys.exit(main())
