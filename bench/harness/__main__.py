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


def parse() -> argparse.Namespace:
    """Read and check the command line."""
    parser = argparse.ArgumentParser(prog="harness", description=__doc__)
    parser.add_argument("what", choices=("all", "loop", "pools"))
    parser.add_argument("--quick", action="store_true", help="one short round, for a first look")
    parser.add_argument("--loops", type=names, default=list(LOOPS), metavar="A,B")
    parser.add_argument("--parts", type=names, default=list(PARTS), metavar="A,B")
    parser.add_argument("--styles", type=names, default=list(STYLES), metavar="A,B")
    parser.add_argument("--sizes", type=names, default=["1024", "102400"], metavar="BYTES,BYTES")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="per server and round")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--idle", type=int, default=0, help="idle connections beside the busy")
    parser.add_argument("--json", type=Path, default=Path("build/bench.json"), metavar="FILE")
    args = parser.parse_args()
    for option, given, known in (
        ("--loops", args.loops, LOOPS),
        ("--parts", args.parts, PARTS),
        ("--styles", args.styles, STYLES),
    ):
        for name in given:
            if name not in known:
                parser.error(f"{option}: {name!r} is none of {', '.join(known)}")
    for name in args.sizes:
        if not name.isdecimal() or not 1 <= int(name) <= 1 << 28:
            parser.error(f"--sizes: {name!r} is not a number of bytes from 1 to {1 << 28}")
    if args.rounds < 1 or not 0.05 <= args.seconds <= 3600 or args.connections < 1 or args.idle < 0:
        parser.error("--rounds, --seconds (from 0.05), --connections and --idle must be positive")
    return args


def bench_loops(args: argparse.Namespace) -> tuple[list[measure.Series], str]:
    """Measure the loops; the series and the tables."""
    versions = {name: version(name) for name in args.loops}
    plan = measure.Plan(
        loops=[name for name in args.loops if versions[name] is not None],
        rounds=1 if args.quick else args.rounds,
        seconds=0.4 if args.quick else args.seconds,
        connections=args.connections,
        idle=args.idle,
        sizes=tuple(int(size) for size in args.sizes),
        styles=tuple(args.styles),
        scale=0.1 if args.quick else 1.0,
        memory_connections=2000 if args.quick else 10_000,
    )
    series: list[measure.Series] = []
    texts = [
        "loops: "
        + ", ".join(
            f"{name} {'not installed' if found is None else found}".strip()
            for name, found in versions.items()
        )
    ]
    if "echo" in args.parts:
        echo = measure.measure_echo(plan)
        series += echo
        texts.append(
            f"{plan.connections} connections, {plan.idle} idle, {plan.rounds} rounds of "
            f"{plan.seconds:g} s"
        )
        texts.append(tables.echo_tables(echo, args.loops))
    if "primitives" in args.parts:
        primitives = measure.measure_primitives(plan)
        series += primitives
        texts.append(tables.plain_table("Primitives, ns per operation", primitives, args.loops))
    if "memory" in args.parts:
        memory = measure.measure_memory(plan)
        series += memory
        texts.append(tables.plain_table("Resident bytes", memory, args.loops))
    return series, "\n\n".join(texts)


def bench_pools(args: argparse.Namespace) -> tuple[list[measure.Series], str]:
    """Run the pools' own script, and show its rows.

    Raises:
        RuntimeError: the script failed or is not there.
    """
    script = Path(__file__).resolve().parents[1] / "pools.py"
    if not script.exists():
        raise RuntimeError(f"{script} is not there")
    command = [sys.executable, str(script), "--json", *(["--quick"] if args.quick else [])]
    measure.progress("pools")
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{script.name} ended with {done.returncode}")
    series: dict[tuple[str, str], measure.Series] = {}
    for item in json.loads(done.stdout):
        row = f"{item['row']}, {item['unit']}"
        key = row, item["peer"]
        found = series.setdefault(key, measure.Series(row, item["peer"], item["unit"]))
        if isinstance(item["value"], int | float):
            found.values.append(item["value"])
        else:
            found.error = str(item["value"])
    peers = list(dict.fromkeys(s.peer for s in series.values()))
    return list(series.values()), tables.plain_table("Pools", list(series.values()), peers)


def main() -> int:
    """Run what the command line asks for; 1 when something failed."""
    args = parse()
    facts = machine.facts()
    start = time.monotonic()
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
