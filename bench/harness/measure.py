"""The measurements: alternating rounds, each figure from processes of its own."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

from . import machine
from .primitives import NAMES


@dataclass
class Series:
    """What the rounds brought for one row and one peer."""

    row: str
    peer: str
    unit: str
    values: list[float] = field(default_factory=list)
    extra: dict[str, list[float]] = field(default_factory=dict)
    error: str | None = None

    @property
    def median(self) -> float | None:
        return statistics.median(self.values) if self.values else None

    @property
    def spread(self) -> float | None:
        """How far the rounds lie apart, as a share of the median."""
        if not self.values or not self.median:
            return None
        return (max(self.values) - min(self.values)) / self.median

    def extra_median(self, name: str) -> float | None:
        values = self.extra.get(name)
        return statistics.median(values) if values else None

    def record(self) -> dict[str, object]:
        """Give everything as it goes into the JSON."""
        return {
            **asdict(self),
            "median": self.median,
            "spread": self.spread,
            "medians": {name: self.extra_median(name) for name in self.extra},
        }


#: How many processes each loop has in a round of the single operations.
PRIMITIVES_TURNS = 3

#: What one row of the echo table asks of a server.
STYLES = ("protocol", "streams", "sock", "generators", "tls")


@dataclass(frozen=True)
class Case:
    """One row of the echo table: how the server is written, and what it is asked."""

    style: str
    size: int
    connections: int = 64
    idle: int = 0

    @property
    def row(self) -> str:
        text = echo_row(self.style, self.size)
        if self.connections != 64:
            text += f", {self.connections:,} connection{'s' if self.connections > 1 else ''}"
        if self.idle:
            text += f", {self.idle:,} idle"
        return text


def cases_of(
    styles: Iterable[str], sizes: Iterable[int], connections: Iterable[int], idle: Iterable[int]
) -> list[Case]:
    """List the cases: all of these with all of those."""
    return [
        Case(style, size, many, beside)
        for many in connections
        for beside in idle
        for size in sizes
        for style in styles
    ]


def all_cases() -> list[Case]:
    """List what is measured when nothing is chosen: each style, then the odd numbers."""
    odd = ("protocol", "streams")
    return [
        *cases_of(STYLES, (1024, 102400), (64,), (0,)),
        *cases_of(odd, (1024,), (1, 1000), (0,)),
        *cases_of(odd, (1024,), (64,), (5000,)),
    ]


@dataclass
class Plan:
    """What to measure, and how long."""

    loops: list[str]
    cases: list[Case]
    rounds: int = 3
    seconds: float = 1.0
    scale: float = 1.0
    memory_connections: int = 10_000
    #: No round begins that would, by the one before, end later than this (time.monotonic()).
    until: float = float("inf")
    #: How many rounds there were time for, by part.
    ran: dict[str, int] = field(default_factory=dict)

    def each_round(self, part: str) -> Iterable[int]:
        """Count the rounds that there is time for: one at least."""
        took = 0.0
        for number in range(self.rounds):
            began = time.monotonic()
            if number and began + took > self.until:
                return
            yield number
            took = time.monotonic() - began
            self.ran[part] = number + 1


def progress(text: str) -> None:
    """Tell where the run is, on stderr."""
    print(f"\r\x1b[K{text}" if sys.stderr.isatty() else text, end="", file=sys.stderr, flush=True)
    if not sys.stderr.isatty():
        print(file=sys.stderr)


#: What OpenSSL alone costs: the bare C server with TLS, in two ways.
TLS_LIMITS = {"C, memory BIOs": "memory", "C, socket BIO": "socket"}


def echo_command(peer: str, style: str) -> list[str]:
    """Make the command line of a server."""
    if peer == "C" or peer in TLS_LIMITS:
        way = ["0", TLS_LIMITS[peer]] if peer in TLS_LIMITS else []
        return [str(machine.limits_dir() / "echo_server"), *way]
    return machine.python("harness.server", "--loop", peer, "--style", style)


def run_echo(peer: str, case: Case, seconds: float) -> dict[str, float]:
    """Run one server under load once.

    Returns:
        The load's figures, and user_us and system_us: the server's CPU time per request in
        microseconds.

    Raises:
        RuntimeError: the server or the load failed.
    """
    server_core, client_core = machine.cores()
    style = case.style
    command = [str(machine.limits_dir() / "echo_load"), "--size", str(case.size)]
    command += ["--connections", str(case.connections), "--idle", str(case.idle)]
    command += ["--seconds", str(seconds), "--warmup", str(min(0.5, seconds / 4))]
    if style == "tls" and peer != "C":  # the limit is the plain one
        command += ["--tls", "1"]
    with machine.server(echo_command(peer, style), server_core) as (pid, port):
        with machine.popen([*command, "--port", str(port)], client_core) as load:
            assert load.stdout is not None
            try:
                times = {}
                last = ""
                for line in load.stdout:
                    word = line.strip()
                    if word in ("start", "end"):
                        times[word] = machine.cpu_seconds(pid)
                    last = line
                if load.wait() != 0 or len(times) != 2:
                    raise RuntimeError(f"the load failed on {peer} ({case.row})")
            finally:
                load.kill()
    figures: dict[str, float] = json.loads(last)
    requests = max(1.0, figures["requests"])
    for index, name in enumerate(("user_us", "system_us")):
        figures[name] = (times["end"][index] - times["start"][index]) / requests * 1e6
    return figures


def echo_row(style: str, size: int) -> str:
    """Name a row of the echo table."""
    text = {
        "protocol": "Protocol",
        "streams": "streams",
        "sock": "sock_recv/sock_sendall",
        "generators": "plait.generators",
        "tls": "TLS, Protocol",
    }
    amount = f"{size // 1024} KiB" if size % 1024 == 0 else f"{size} B"
    return f"{text[style]}, {amount}"


def measure_echo(plan: Plan) -> list[Series]:
    """Measure the echo servers, the bare C server in every round beside the others."""
    found: dict[tuple[str, str], Series] = {}
    for number in plan.each_round("echo"):
        for case in plan.cases:
            # Each row has its own run of the limit, close in time to what it limits.
            # Generators as coroutines are plait's alone.
            peers = [p for p in plan.loops if case.style != "generators" or p == "plait"]
            for peer in ("C", *peers, *(TLS_LIMITS if case.style == "tls" else ())):
                series = found.setdefault((case.row, peer), Series(case.row, peer, "requests/s"))
                if series.error:
                    continue
                progress(f"echo round {number + 1}/{plan.rounds}: {case.row}, {peer}")
                try:
                    figures = run_echo(peer, case, plan.seconds)
                except RuntimeError as exc:
                    series.error = str(exc)
                    continue
                series.values.append(figures.pop("rate"))
                for name, value in figures.items():
                    if name.endswith("_us"):
                        series.extra.setdefault(name, []).append(value)
    return list(found.values())


def measure_primitives(plan: Plan) -> list[Series]:
    """Measure the table of single operations: in each round the fastest of a few processes.

    They are short and take turns, because a machine that others share has slow seconds.
    """
    found = {(n, p): Series(NAMES[n][0], p, "ns") for n in NAMES for p in plan.loops}
    for number in plan.each_round("primitives"):
        best: dict[tuple[str, str], float] = {}
        for turn in range(PRIMITIVES_TURNS):
            for peer in plan.loops:
                progress(f"primitives round {number + 1}/{plan.rounds}, {turn + 1}: {peer}")
                for name, value in run_primitives(peer, plan.scale).items():
                    if isinstance(value, str):
                        found[name, peer].error = value
                    else:
                        best[name, peer] = min(value, best.get((name, peer), value))
        for key, figure in best.items():
            found[key].values.append(figure)
    return list(found.values())


def run_primitives(peer: str, scale: float) -> dict[str, float | str]:
    """Measure every single operation in a process of its own; an error in place of a figure."""
    core, _ = machine.cores()
    command = machine.python("harness.primitives", "--loop", peer, "--scale", str(scale))
    with machine.popen(command, core) as child:
        output, _ = child.communicate(timeout=600)
    if child.returncode != 0:
        return dict.fromkeys(NAMES, f"ended with {child.returncode}")
    results: dict[str, float | str] = json.loads(output)
    return results


def measure_memory(plan: Plan) -> list[Series]:
    """Measure the resident bytes that an idle connection costs, after one message each."""
    found: list[Series] = []
    for style in ("protocol", "streams"):
        row = f"memory per idle connection, {echo_row(style, 1024).split(',')[0]}"
        for peer in plan.loops:
            series = Series(row, peer, "bytes")
            found.append(series)
            progress(f"{row}: {peer}")
            few, many = 100, plan.memory_connections
            try:
                sizes = [resident_with(peer, style, count) for count in (few, many)]
            except RuntimeError as exc:
                series.error = str(exc)
                continue
            series.values.append((sizes[1] - sizes[0]) / (many - few))
    return found


def resident_with(peer: str, style: str, idle: int) -> int:
    """Read a server's resident bytes while it holds `idle` connections."""
    command = [str(machine.limits_dir() / "echo_load"), "--size", "64", "--connections", "1"]
    command += ["--idle", str(idle), "--seconds", "0.2", "--warmup", "0.3"]
    with machine.server(echo_command(peer, style), None) as (pid, port):
        with machine.popen([*command, "--port", str(port)], None) as load:
            assert load.stdout is not None
            size = 0
            for line in load.stdout:
                if line.strip() == "start":
                    size = machine.resident_bytes(pid)
            if load.wait() != 0 or size == 0:
                raise RuntimeError(f"the load failed on {peer} with {idle} idle connections")
    return size


def rows_of(series: Iterable[Series]) -> list[str]:
    """List the rows in the order of their first appearance."""
    return list(dict.fromkeys(s.row for s in series))
