"""How connections are shared out between processes: a table in Markdown, of six ways.

Usage: accept.py PROGRAM [--rounds N]. PROGRAM is bench/limits/accept_share; the ways take turns
in each round, and what is printed are medians, with the least and the most of the rounds.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys

WAYS = {
    "level": "shared",
    "exclusive": "exclusive",
    "rotate": "and in turn",
    "balanced": "**plait**",
    "reuseport": "`SO_REUSEPORT`",
    "passed": "passed on",
}
LOADS = {
    "1 client": "--clients 1",
    "16 clients": "--clients 16",
    "64 clients, 50 us each": "--clients 64 --work-us 50",
    "64 connections held open": "--hold --connections 64",
    "one worker stalls for 20 ms": "--clients 16 --work-us 100 --stall-ms 20",
}
_LINE = re.compile(r"busiest/mean ([\d.]+) +([\d.]+)/s .*server cpu ([\d.]+) us")


def measure(program: str, way: str, options: str) -> tuple[float, float, float]:
    """Run once: the busiest against the mean, connections per second, and us of the servers'."""
    command = [program, way, *options.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = _LINE.search(done.stdout)
    if done.returncode != 0 or found is None:
        raise SystemExit(f"accept: {' '.join(command)} failed: {done.stdout}{done.stderr}")
    busiest, rate, cpu = map(float, found.groups())
    return busiest, rate, cpu


def cell(figures: list[float], digits: int) -> str:
    """Write a median, and the range where there is one."""
    least, middle, most = (
        f"{f:,.{digits}f}" for f in (min(figures), statistics.median(figures), max(figures))
    )
    return middle if least == most else f"{middle} ({least}-{most})"


def main() -> int:
    """Measure all and print."""
    parser = argparse.ArgumentParser(description="Share out connections in six ways.")
    parser.add_argument("program", help="the compiled accept_share")
    parser.add_argument("--rounds", type=int, default=5, help="alternating (%(default)s)")
    args = parser.parse_args()
    found: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for number in range(args.rounds):
        for load, options in LOADS.items():
            for way in WAYS:
                if sys.stderr.isatty():
                    print(f"\r\033[Kround {number + 1}, {way}, {load}", end="", file=sys.stderr)
                found.setdefault((load, way), []).append(measure(args.program, way, options))
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    titles = (
        ("the busiest worker against the mean", 2),
        ("connections per second", 0),
        ("processor time of the servers per connection, us", 1),
    )
    print(f"4 workers, 10,000 short connections, medians of {args.rounds} alternating rounds")
    for which, (title, digits) in enumerate(titles):
        print(f"\n| {title} | {' | '.join(WAYS.values())} |")
        print("|---" * (len(WAYS) + 1) + "|")
        for load in LOADS:
            cells = [cell([run[which] for run in found[load, way]], digits) for way in WAYS]
            print(f"| {load} | {' | '.join(cells)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
