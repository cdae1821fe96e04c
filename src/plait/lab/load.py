"""The load generator, called from Python, and the arithmetic on what it reports."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .executables import executable

__all__ = ["Histogram", "LoadFailed", "Result", "run"]


class LoadFailed(Exception):
    """The load generator could not run, or said nothing that can be read."""


class Histogram:
    """Latencies in buckets, as the load generator counts them.

    Attributes:
        counts: How many answers took at most so many microseconds, by the upper end of
            the bucket (and more than the bucket before).
        maximum: The longest one exactly, in microseconds; 0 when there is none.
    """

    def __init__(self, counts: Iterable[tuple[float, int]] = (), maximum: float = 0.0) -> None:
        self.counts: Counter[float] = Counter()
        for upper, count in counts:
            self.counts[upper] += count
        self.maximum = maximum

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Histogram:
        """Read a histogram of the report."""
        pairs = [(float(upper), int(count)) for upper, count in data["buckets_us"]]
        return cls(pairs, float(data.get("max_us", 0.0)))

    @property
    def total(self) -> int:
        """How many values there are."""
        return sum(self.counts.values())

    def merge(self, other: Histogram) -> None:
        """Add the values of another one."""
        self.counts.update(other.counts)
        self.maximum = max(self.maximum, other.maximum)

    def percentile(self, percent: float) -> float:
        """The smallest value that at least so many percent of all values do not exceed.

        Args:
            percent: From 0 to 100.

        Returns:
            Microseconds, to the precision of a bucket (1.6 %); 0 when there are no values.
        """
        if not 0.0 <= percent <= 100.0:
            raise ValueError(f"percent must lie between 0 and 100, not {percent}")
        # In thousandths of a percent, as integers: 99.9 % of 1000 must be 999.
        rank = max(1, -(-self.total * round(percent * 1000) // 100_000))
        seen = 0
        for upper in sorted(self.counts):
            seen += self.counts[upper]
            if seen >= rank:
                return min(upper, self.maximum)
        return self.maximum


@dataclass(frozen=True)
class Result:
    """The report of one run.

    Attributes:
        raw: All of it, as the load generator printed it.
    """

    raw: dict[str, Any]

    @property
    def ok(self) -> bool:
        """Whether every request was answered rightly."""
        return bool(self.raw["ok"])

    @property
    def errors(self) -> list[str]:
        """What went wrong: the first few problems in words, and how many there were."""
        told = [str(text) for text in self.raw["errors"]]
        more = int(self.raw["error_count"]) - len(told)
        return [*told, f"and {more} more errors"] if more > 0 else told

    def table(self) -> str:
        """A small table for a person."""
        raw = self.raw
        lines: list[str] = []
        for kind, name, n in (("short", "perf2", "short_n"), ("long", "perf1", "long_n")):
            if raw[name] == 0:
                continue
            part = raw[kind]
            latency = part["latency"]
            lines.append(f"{name}: {raw[name]} connection(s), fib({raw[n]})")
            if kind == "short":
                lines.append(f"  answers/s      {part['rate_per_s']:>12,.0f}")
                if raw["perf1"] and "rate_apart_per_s" in part:
                    lines.append(f"    without perf1{part['rate_apart_per_s']:>12,.0f}")
                    lines.append(f"    beside perf1 {part['rate_during_long_per_s']:>12,.0f}")
                each = ", ".join(f"{count:,}" for count in part["per_second"])
                lines.append(f"  each second: {each}")
            else:
                lines.append(f"  answers        {part['answered']:>12,}")
            for figure in ("p50", "p90", "p99", "p99.9", "max"):
                if latency["count"]:
                    lines.append(f"  {figure:<6}        {latency[f'{figure}_us']:>12,.1f} us")
        lines.append("every answer was right" if self.ok else f"{raw['error_count']} error(s)")
        return "\n".join(lines)


def run(
    *,
    port: int,
    host: str = "127.0.0.1",
    perf1: int = 0,
    perf2: int = 0,
    long: int = 30,
    short: int = 1,
    duration: float = 5.0,
    long_start: float = 0.0,
    long_stop: float | None = None,
    bucket_ms: int = 100,
    timeout: float = 30.0,
    cpu: int | None = None,
) -> Result:
    """Put a server under load.

    Args:
        port: The server's.
        host: The server's.
        perf1: Connections that ask for the long number.
        perf2: Connections that ask for the short number.
        long: The long number.
        short: The short number.
        duration: Seconds.
        long_start: When perf1 starts, in seconds from the beginning.
        long_stop: When perf1 stops; at the end by default.
        bucket_ms: Width of the slices in which answers are counted, in milliseconds.
        timeout: Seconds to wait for what is unanswered at the end.
        cpu: The processor to pin the load to; none by default.

    Raises:
        LoadFailed: The load generator did not run, with its own words.
    """
    options: dict[str, object] = {
        "host": host,
        "port": port,
        "perf1": perf1,
        "perf2": perf2,
        "long": long,
        "short": short,
        "duration": duration,
        "long-start": long_start,
        "bucket-ms": bucket_ms,
        "timeout": timeout,
    }
    if long_stop is not None:
        options["long-stop"] = long_stop
    if cpu is not None:
        options["cpu"] = cpu
    command = [executable("fib_load")]
    command += [word for key, value in options.items() for word in (f"--{key}", str(value))]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            # It ends by itself; the limit is for the day when it does not.
            output, problems = process.communicate(timeout=duration + timeout + 30.0)
        except subprocess.TimeoutExpired:
            process.kill()
            raise LoadFailed("the load generator did not end and was killed") from None
        except BaseException:
            process.kill()
            raise
    if process.returncode not in (0, 1):
        raise LoadFailed(problems.strip() or f"fib_load ended with {process.returncode}")
    try:
        return Result(json.loads(output))
    except ValueError as error:
        raise LoadFailed(f"cannot read what fib_load printed: {error}") from error
