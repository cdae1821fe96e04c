"""The experiment: what is measured for each model, and what the figures come to."""

from __future__ import annotations

import datetime
import os
import platform
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from . import load
from .executables import ExecutableMissing
from .load import Histogram, LoadFailed
from .models import MODELS
from .server import Server, ServerFailed
from .serving import cpu_count

__all__ = ["Latency", "Measured", "Plan", "Summary", "machine_facts", "measure", "summarise"]

PHASES = ("perf1", "perf1_twice", "perf2", "both")
"""What is run in each round, in this order, against a server started for the round."""


@dataclass(frozen=True)
class Plan:
    """How long what is measured. Times are seconds.

    Attributes:
        rounds: How often each model has its turn; the models alternate.
        long: What perf1 asks for.
        warm_up: perf2 and perf1 before anything counts.
        perf1: One connection that asks for the long number.
        perf1_twice: Two of them.
        perf2: One connection that asks for the smallest number.
        lead: perf2 before perf1 joins it.
        both: Both at once.
        tail: perf2 after perf1 has left.
        bucket_ms: Width of the slices in which perf2's answers are counted.
        pin: Whether server and load are pinned to processors.
    """

    rounds: int = 3
    long: int = 30
    warm_up: float = 0.15
    perf1: float = 0.8
    perf1_twice: float = 0.8
    perf2: float = 1.0
    lead: float = 0.4
    both: float = 1.2
    tail: float = 0.4
    bucket_ms: int = 25
    pin: bool = False

    @classmethod
    def quick(cls, *, long: int = 30, pin: bool = False) -> Plan:
        """One short round."""
        return cls(
            rounds=1,
            long=long,
            warm_up=0.1,
            perf1=0.4,
            perf1_twice=0.4,
            perf2=0.4,
            lead=0.25,
            both=0.6,
            tail=0.25,
            pin=pin,
        )

    @property
    def seconds_per_turn(self) -> float:
        """About how long a model's turn in one round takes."""
        start_and_stop = 0.8
        phases = self.perf1 + self.perf1_twice + self.perf2 + self.lead + self.both + self.tail
        return start_and_stop + 2 * self.warm_up + phases


@dataclass
class Measured:
    """What was measured of one model.

    Attributes:
        name: The model.
        rounds: The reports of the load generator, by phase.
        error: Why it failed; None when it did not.
    """

    name: str
    rounds: list[dict[str, dict[str, Any]]] = field(default_factory=list)
    error: str | None = None


@dataclass(frozen=True)
class Latency:
    """Percentiles of short requests in microseconds, over all rounds."""

    count: int
    p50: float
    p90: float
    p99: float
    p999: float
    max: float

    @classmethod
    def of(cls, histogram: Histogram) -> Latency:
        """Read them from a histogram."""
        p50, p90, p99, p999 = (histogram.percentile(q) for q in (50.0, 90.0, 99.0, 99.9))
        return cls(histogram.total, p50, p90, p99, p999, histogram.maximum)


@dataclass(frozen=True)
class Summary:
    """The figures of one model: medians over the rounds where there is one per round.

    Attributes:
        name: The model.
        short_alone: perf2's answers per second with nobody else.
        short_beside: The same while perf1 takes part.
        kept: The second as a share of the first, round by round.
        long_alone_ms: Time of a long request with nobody else.
        long_twice_ms: The same with a second perf1.
        long_twice_max_ms: The longest of these.
        long_beside_ms: The same beside perf2.
        long_beside_max_ms: The longest of these.
        long_twice_rate: Long answers per second with two perf1.
        long_rate: Long answers per second with one.
        alone: Latency of short requests with nobody else.
        beside: Latency of short requests while perf1 takes part.
    """

    name: str
    short_alone: float
    short_beside: float
    kept: float
    long_alone_ms: float
    long_twice_ms: float
    long_twice_max_ms: float
    long_beside_ms: float
    long_beside_max_ms: float
    long_rate: float
    long_twice_rate: float
    alone: Latency
    beside: Latency

    def as_json(self) -> dict[str, Any]:
        """The figures as plain data."""
        return asdict(self)


def measure(
    names: list[str], plan: Plan, tell: Callable[[str, str], None]
) -> Iterator[list[Measured]]:
    """Run the experiment.

    Args:
        names: The models.
        plan: How long what is measured.
        tell: Called with a model's name and what is done with it now.

    Yields:
        The same list after each model's turn, as far as it has come; its elements grow.
    """
    measured = [Measured(name) for name in names]
    for _ in range(plan.rounds):
        for model in measured:
            if model.error is None:
                try:
                    model.rounds.append(_turn(model.name, plan, tell))
                except (ServerFailed, LoadFailed, ExecutableMissing, OSError) as error:
                    model.error = str(error)
            yield measured


def _turn(name: str, plan: Plan, tell: Callable[[str, str], None]) -> dict[str, dict[str, Any]]:
    server_cpus, load_cpu = _placement(name, plan)
    tell(name, "starts")
    with Server(name, limit=max(40, plan.long), cpus=server_cpus, start_timeout=20.0) as server:

        def phase(what: str, **options: Any) -> dict[str, Any]:
            tell(name, what)
            result = load.run(
                port=server.port,
                long=plan.long,
                bucket_ms=plan.bucket_ms,
                timeout=10.0,
                cpu=load_cpu,
                **options,
            )
            server.check(0.0 if result.ok else 1.0)
            if not result.ok:
                raise LoadFailed(f"{what}: {'; '.join(result.errors)}")
            return result.raw

        # Pools start their workers, caches fill, processors leave their sleep.
        phase("warms up", perf2=1, duration=plan.warm_up)
        phase("warms up", perf1=1, duration=plan.warm_up)
        return {
            "perf1": phase("perf1", perf1=1, duration=plan.perf1),
            "perf1_twice": phase("perf1, twice", perf1=2, duration=plan.perf1_twice),
            "perf2": phase("perf2", perf2=1, duration=plan.perf2),
            "both": phase(
                "perf1 beside perf2",
                perf1=1,
                perf2=1,
                duration=plan.lead + plan.both + plan.tail,
                long_start=plan.lead,
                long_stop=plan.lead + plan.both,
            ),
        }


def _placement(name: str, plan: Plan) -> tuple[set[int] | None, int | None]:
    """The processors of server and load; None leaves the choice to the kernel."""
    cpus = sorted(os.sched_getaffinity(0))
    if not plan.pin or len(cpus) < 2:
        return None, None
    # Worker processes are there to use the other processors: confining them would measure
    # the confinement.
    alone = MODELS[name].computing == "inline"
    return ({cpus[0]} if alone else None), cpus[-1]


def summarise(model: Measured) -> Summary:
    """Bring the rounds of a model to one figure each.

    Args:
        model: One that did not fail, with one round at least.
    """

    def median(read: Callable[[dict[str, dict[str, Any]]], float]) -> float:
        return statistics.median(read(each) for each in model.rounds)

    def long(phase: str, figure: str) -> float:
        return median(lambda each: float(each[phase]["long"]["latency"].get(figure, 0.0)) / 1000)

    def merged(phase: str, part: str) -> Latency:
        histogram = Histogram()
        for each in model.rounds:
            histogram.merge(Histogram.from_json(each[phase]["short"][part]))
        return Latency.of(histogram)

    def kept(each: dict[str, dict[str, Any]]) -> float:
        alone = float(each["perf2"]["short"]["rate_per_s"])
        return float(each["both"]["short"]["rate_during_long_per_s"]) / alone if alone else 0.0

    def long_rate(phase: str) -> float:
        return median(
            lambda each: float(each[phase]["long"]["answered"]) / float(each[phase]["wall_s"])
        )

    return Summary(
        name=model.name,
        short_alone=median(lambda each: float(each["perf2"]["short"]["rate_per_s"])),
        short_beside=median(lambda each: float(each["both"]["short"]["rate_during_long_per_s"])),
        kept=median(kept),
        long_alone_ms=long("perf1", "p50_us"),
        long_twice_ms=long("perf1_twice", "p50_us"),
        long_twice_max_ms=long("perf1_twice", "max_us"),
        long_beside_ms=long("both", "p50_us"),
        long_beside_max_ms=long("both", "max_us"),
        long_rate=long_rate("perf1"),
        long_twice_rate=long_rate("perf1_twice"),
        alone=merged("perf2", "latency"),
        beside=merged("both", "latency_during_long"),
    )


def typical_round(model: Measured) -> dict[str, dict[str, Any]]:
    """The round to draw: the one whose rate beside perf1 is the median."""
    ordered = sorted(
        model.rounds, key=lambda each: float(each["both"]["short"]["rate_during_long_per_s"])
    )
    return ordered[(len(ordered) - 1) // 2]


def machine_facts(plan: Plan) -> dict[str, Any]:
    """What the figures depend on."""
    from .. import _core

    processor = platform.processor() or platform.machine()
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                processor = line.partition(":")[2].strip()
                break
    pinned = plan.pin and cpu_count() >= 2
    return {
        "when": datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "plait": _core.__version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "gil": bool(getattr(sys, "_is_gil_enabled", lambda: True)()),
        "switch_interval_ms": sys.getswitchinterval() * 1000,
        "kernel": platform.release(),
        "processor": processor,
        "processors": os.cpu_count(),
        "usable_processors": cpu_count(),
        "load_average": list(os.getloadavg()),
        "placement": (
            "pinned: the load to the last processor, servers without worker processes to the first"
            if pinned
            else "not pinned: the kernel chose processors for servers and load"
        ),
    }
