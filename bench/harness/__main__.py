"""Measure plait beside its peers: ``python -m harness {all,loop,pools}``."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from . import machine, measure, tables
from .loops import LOOPS, version
from .server import STYLES

PARTS = ("echo", "primitives", "memory")


def names(text: str) -> list[str]:
    """Split a comma-separated option."""
    return [name.strip() for name in text.split(",") if name.strip()]


def numbers(text: str) -> list[int]:
    """Split a comma-separated option of numbers."""
    return [int(name) for name in names(text)]


def parse() -> argparse.Namespace:
    """Read and check the command line."""
    parser = argparse.ArgumentParser(prog="harness", description=__doc__)
    parser.add_argument("what", choices=("all", "loop", "pools"))
    parser.add_argument("--quick", action="store_true", help="one short round, for a first look")
    parser.add_argument("--loops", type=names, default=list(LOOPS), metavar="A,B")
    parser.add_argument("--parts", type=names, default=list(PARTS), metavar="A,B")
    parser.add_argument("--styles", type=names, metavar="A,B")
    parser.add_argument("--sizes", type=numbers, metavar="BYTES,BYTES")
    parser.add_argument("--connections", type=numbers, metavar="N,N")
    parser.add_argument("--idle", type=numbers, metavar="N,N", help="beside the busy ones")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="per server and round")
    parser.add_argument(
        "--minutes", type=float, default=11.0, help="leave out rounds that would end later"
    )
    parser.add_argument("--json", type=Path, default=Path("build/bench.json"), metavar="FILE")
    args = parser.parse_args()
    for option, given, known in (
        ("--loops", args.loops, LOOPS),
        ("--parts", args.parts, PARTS),
        ("--styles", args.styles or (), STYLES),
    ):
        for name in given:
            if name not in known:
                parser.error(f"{option}: {name!r} is none of {', '.join(known)}")
    for option, given, least, most in (
        ("--sizes", args.sizes, 1, 1 << 28),
        ("--connections", args.connections, 1, 100_000),
        ("--idle", args.idle, 0, 100_000),
    ):
        for n in given or ():
            if not least <= n <= most:
                parser.error(f"{option}: {n} is not from {least} to {most}")
    if args.rounds < 1 or not 0.05 <= args.seconds <= 3600 or not args.minutes > 0:
        parser.error("--rounds, --seconds (from 0.05) and --minutes must be positive")
    return args


def chosen_cases(args: argparse.Namespace) -> list[measure.Case]:
    """List the rows of the echo table: all, or those that the options name."""
    if not any((args.sizes, args.connections, args.idle)):
        return [case for case in measure.all_cases() if case.style in (args.styles or STYLES)]
    return measure.cases_of(
        args.styles or measure.STYLES,
        args.sizes or (1024, 102400),
        args.connections or (64,),
        args.idle or (0,),
    )


def bench_loops(args: argparse.Namespace) -> tuple[list[measure.Series], str]:
    """Measure the loops; the series and the tables."""
    versions = {name: version(name) for name in args.loops}
    plan = measure.Plan(
        loops=[name for name in args.loops if versions[name] is not None],
        cases=chosen_cases(args),
        rounds=1 if args.quick else args.rounds,
        seconds=0.4 if args.quick else args.seconds,
        scale=0.1 if args.quick else 1.0,
        memory_connections=2000 if args.quick else 10_000,
        until=args.began + args.minutes * 60,
    )
    series: list[measure.Series] = []
    texts = [
        "loops: "
        + ", ".join(
            f"{name} {'not installed' if found is None else found}".strip()
            for name, found in versions.items()
        )
    ]
    # The short parts come first: the time that is left is the echo servers'.
    primitives = measure.measure_primitives(plan) if "primitives" in args.parts else []
    memory = measure.measure_memory(plan) if "memory" in args.parts else []
    if "echo" in args.parts:
        echo = measure.measure_echo(plan)
        series += echo
        texts.append(
            f"64 connections unless a row says otherwise, {plan.ran['echo']} rounds of "
            f"{plan.seconds:g} s"
        )
        texts.append(tables.echo_tables(echo, args.loops))
    if primitives:
        series += primitives
        texts.append(tables.plain_table("Primitives, ns per operation", primitives, args.loops))
    if memory:
        series += memory
        texts.append(tables.plain_table("Resident bytes", memory, args.loops))
    texts.append(tables.markdown(series, [n for n in args.loops if versions[n] is not None]))
    return series, "\n\n".join(texts)


def bench_pools(args: argparse.Namespace) -> tuple[list[measure.Series], str]:
    """Run the pools' own program, and take over its figures.

    Raises:
        RuntimeError: it failed.
    """
    path = args.json.with_name("bench-pools.json")
    command = [sys.executable, "-m", "pools", "--json", str(path)]
    if args.quick:
        command.append("--quick")
    measure.progress("pools")
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"the pools ended with {done.returncode}")
    series = []
    for item in json.loads(path.read_text())["figures"]:
        found = measure.Series(f"{item['row']}, {item['unit']}", item["peer"], item["unit"])
        found.values.extend(item["values"])
        series.append(found)
    return series, "Pools\n\n" + done.stdout


def main() -> int:
    """Run what the command line asks for; 1 when something failed."""
    args = parse()
    facts = machine.facts()
    start = args.began = time.monotonic()
    server_core, client_core = machine.cores()
    pinned = "one core: not pinned" if server_core is None else f"{server_core} and {client_core}"
    print(f"{facts['cpu']}, {len(os.sched_getaffinity(0))} cores, Linux {facts['kernel']}, "
          f"Python {facts['python']}; server and client on cores: {pinned}")  # fmt: skip
    series: list[measure.Series] = []
    status = 0
    for name, bench in (("loop", bench_loops), ("pools", bench_pools)):
        if args.what not in ("all", name):
            continue
        try:
            found, text = bench(args)
        except RuntimeError as exc:
            print(f"{name}: {exc}", file=sys.stderr)
            status = 1
            continue
        series += found
        measure.progress("")
        print(f"\n{text}")
    for s in series:
        if s.error:
            print(f"failed: {s.row}, {s.peer}: {s.error}", file=sys.stderr)
            # What a peer cannot do is a result; what plait or the limit cannot is an error.
            if s.peer in ("C", "plait"):
                status = 1
    args.json.parent.mkdir(parents=True, exist_ok=True)
    result = {
        "machine": facts,
        "cores": {"server": server_core, "client": client_core},
        "arguments": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
        "versions": {name: version(name) for name in args.loops},
        "seconds": time.monotonic() - start,
        "limits": tables.limits(series),
        "series": [s.record() for s in series],
    }
    args.json.write_text(json.dumps(result, indent=1))
    print(f"\n{args.json}: every figure of every round ({result['seconds']:.0f} s)")
    return status


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
