"""Measures what 64 short connections keep while 4 others ask for fib(30), again and again.

    python bench/crowd.py [--rounds N] [--seconds S] [--models A,B] [--json]

What they can keep depends on what the long requests leave of the machine, whoever serves. So
the limit is measured under the same load: the C server with the same short connections, while
a server of the model answers the long ones. In each round, one after the other:

    C, short                             the model, short
    C, short; the model, long            the model, short and long

``left`` is the part of its rate that the C server keeps, ``kept`` the part that the model
keeps, and ``share`` is kept divided by left: 1 when the model loses nothing but what the
machine has lost. Printed are the medians of the rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
from dataclasses import asdict, dataclass
from typing import Any

from plait.lab import load
from plait.lab.models import MODELS
from plait.lab.server import Server

LIMIT = "c"


@dataclass(frozen=True)
class Round:
    """Answers per second; "beside" is with the long connections at the model."""

    limit_alone: float
    limit_beside: float
    model_alone: float
    model_beside: float
    long_beside_limit: float
    long_beside_model: float

    @property
    def left(self) -> float:
        return self.limit_beside / self.limit_alone

    @property
    def kept(self) -> float:
        return self.model_beside / self.model_alone


@dataclass(frozen=True)
class Crowd:
    """How many connections ask, and for how long."""

    short: int
    long: int
    seconds: float

    def alone(self, server: Server) -> float:
        """Short answers per second with nothing beside."""
        report = load.run(port=server.port, perf2=self.short, duration=self.seconds)
        return float(checked(report)["short"]["rate_per_s"])

    def beside(self, server: Server, model: Server) -> tuple[float, float]:
        """Short answers per second of a server, and long ones of the model beside it."""
        long: list[load.Result] = []

        def ask() -> None:
            # It begins before the short ones and ends after them.
            seconds = self.seconds + 1.0
            long.append(load.run(port=model.port, perf1=self.long, perf2=0, duration=seconds))

        asking = threading.Thread(target=ask)
        asking.start()
        # What comes in the first half second is not counted: the long ones begin then.
        warm = load.run(port=server.port, perf2=self.short, duration=0.5)
        report = load.run(port=server.port, perf2=self.short, duration=self.seconds)
        asking.join()
        checked(warm)
        answered = checked(long[0])["long"]["answered"]
        rate = float(checked(report)["short"]["rate_per_s"])
        return rate, answered / (self.seconds + 1.0)

    def round(self, name: str) -> Round:
        """One round with servers of its own."""
        with Server(LIMIT) as limit, Server(name) as model:
            for server in (limit, model):
                checked(load.run(port=server.port, perf1=1, perf2=1, duration=0.3))
            limit_alone = self.alone(limit)
            model_alone = self.alone(model)
            limit_beside, long_beside_limit = self.beside(limit, model)
            model_beside, long_beside_model = self.beside(model, model)
        return Round(
            limit_alone,
            limit_beside,
            model_alone,
            model_beside,
            long_beside_limit,
            long_beside_model,
        )


def checked(report: load.Result) -> dict[str, Any]:
    if not report.ok:
        raise SystemExit(f"the load failed: {'; '.join(report.errors)}")
    return report.raw


def row(name: str, rounds: list[Round]) -> str:
    def median(values: list[float]) -> float:
        return statistics.median(values)

    cells = [
        f"{median([r.model_alone for r in rounds]):>10,.0f}",
        f"{median([r.model_beside for r in rounds]):>10,.0f}",
        f"{median([r.long_beside_model for r in rounds]):>7.1f}",
        f"{median([r.limit_alone for r in rounds]):>10,.0f}",
        f"{median([r.limit_beside for r in rounds]):>10,.0f}",
        f"{median([r.long_beside_limit for r in rounds]):>7.1f}",
        f"{median([r.kept for r in rounds]):>6.2f}",
        f"{median([r.left for r in rounds]):>6.2f}",
        f"{median([r.kept / r.left for r in rounds]):>6.2f}",
    ]
    return f"{name:<18}" + " ".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--short", type=int, default=64, metavar="CONNECTIONS")
    parser.add_argument("--long", type=int, default=4, metavar="CONNECTIONS")
    parser.add_argument("--models", default="plait+auto,plait+processes,asyncio+processes")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    names = args.models.split(",")
    if unknown := [name for name in names if name not in MODELS or name == LIMIT]:
        parser.error(f"no model {unknown[0]!r}; there are {', '.join(MODELS)}")
    crowd = Crowd(args.short, args.long, args.seconds)
    measured: dict[str, list[Round]] = {name: [] for name in names}
    for _ in range(args.rounds):
        for name in names:
            measured[name].append(crowd.round(name))
    if args.json:
        print(json.dumps({name: [asdict(r) for r in rounds] for name, rounds in measured.items()}))
        return
    print(f"{args.short} short and {args.long} long connections; answers per second")
    print(
        f"{'':<18}{'short':>10} {'beside':>10} {'long':>7} {'C short':>10} {'beside':>10}"
        f" {'long':>7} {'kept':>6} {'left':>6} {'share':>6}"
    )
    for name, rounds in measured.items():
        print(row(name, rounds))


if __name__ == "__main__":
    main()
