"""``plait bench http``: uvicorn on every loop that is installed, side by side."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ._extras import ExtraMissing, need
from ._http_server import LOOPS, factory

__all__ = ["LOOPS", "main"]

_TICKS = os.sysconf("SC_CLK_TCK")
_WARM_UP = 0.5  # seconds


class _Failed(Exception):
    """A server or the load did not do its part."""


@dataclass
class _Series:
    """What was measured of one loop: a figure for each round."""

    name: str
    rates: list[float] = field(default_factory=list)
    user_us: list[float] = field(default_factory=list)
    system_us: list[float] = field(default_factory=list)
    problem: str | None = None


def main(*, loops: Sequence[str] | None, rounds: int, seconds: float, connections: int,
         as_json: bool) -> int:  # fmt: skip
    """Measure and print a table.

    Args:
        loops: which; None for all that can be made here.
        rounds: alternating; the medians of them are printed.
        seconds: for each server and round.
        connections: of the load, each with one request at a time.
        as_json: every figure instead of a table.

    Returns:
        The exit code: 1 when a loop that was asked for, or plait's, failed.
    """
    try:
        need("uvicorn", "lab")
        need("httptools", "lab")
    except ExtraMissing as error:
        print(f"plait: {str(error).partition(':')[0]}: pip install uvicorn httptools",
              file=sys.stderr)  # fmt: skip
        return 1
    wrk = shutil.which("wrk")
    if wrk is None:
        print("plait: the load is made by wrk, which is not installed (apt install wrk)",
              file=sys.stderr)  # fmt: skip
        return 1
    series, missing = _find(loops)
    for number in range(rounds):
        for one in series:
            if one.problem is not None:
                continue
            if sys.stderr.isatty():
                print(f"\r\033[Kround {number + 1}, {one.name}", end="", file=sys.stderr)
            try:
                _measure(one, wrk, seconds, connections)
            except _Failed as error:
                one.problem = str(error)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    if as_json:
        print(json.dumps({"series": [asdict(s) for s in series], "missing": missing}, indent=1))
    else:
        print(_table(series, missing, rounds, seconds, connections))
    failed = [s for s in series if s.problem and (loops or s.name.startswith("plait"))]
    return 1 if failed or (loops and missing) else 0


def _find(loops: Sequence[str] | None) -> tuple[list[_Series], dict[str, str]]:
    """Tell which loops can be made here, and why the others cannot."""
    names = loops or [name for name in LOOPS if name != "plait"]
    series, missing = [], {}
    for name in names:
        try:
            factory(name)
        except ImportError:
            missing[name] = "not installed"
        except (ValueError, OSError) as error:
            missing[name] = str(error)
        else:
            series.append(_Series(name))
    return series, missing


def _measure(series: _Series, wrk: str, seconds: float, connections: int) -> None:
    cores = sorted(os.sched_getaffinity(0))
    server_core, load_core = (cores[0], cores[1]) if len(cores) > 1 else (None, None)
    with _server(series.name, server_core) as (pid, port):
        _first_answer(port)
        _load(wrk, port, _WARM_UP, connections, load_core)
        before = _times(pid)
        count, took = _load(wrk, port, seconds, connections, load_core)
        after = _times(pid)
    if count == 0:
        raise _Failed("no request was answered")
    series.rates.append(count / took)
    series.user_us.append((after[0] - before[0]) / count * 1e6)
    series.system_us.append((after[1] - before[1]) / count * 1e6)


@contextlib.contextmanager
def _server(name: str, core: int | None) -> Iterator[tuple[int, int]]:
    command = [sys.executable, "-m", "plait.cli._http_server", name]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        try:
            if core is not None:
                os.sched_setaffinity(child.pid, {core})
            assert child.stdout is not None
            line = child.stdout.readline()
            if not line.strip().isdigit():
                child.kill()
                problem = child.communicate()[1].strip().splitlines()
                raise _Failed(problem[-1] if problem else "it did not start")
            yield child.pid, int(line)
            if child.poll() is not None:
                raise _Failed(f"it ended with {child.returncode}")
        finally:
            child.kill()


def _first_answer(port: int) -> None:
    """Wait until the server serves: it listens before it has imported everything."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", "/")
        connection.getresponse().read()
    except (OSError, http.client.HTTPException) as error:
        raise _Failed(f"it does not answer: {error!r}") from None
    finally:
        connection.close()


def _times(pid: int) -> tuple[float, float]:
    """User and system time of a process, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) / _TICKS, int(fields[12]) / _TICKS


_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


def _load(
    wrk: str, port: int, seconds: float, connections: int, core: int | None
) -> tuple[int, float]:
    """Run wrk; requests answered, and seconds taken.

    Raises:
        _Failed: requests failed, or wrk did.
    """
    # wrk counts whole seconds; the end comes by the signal that it takes for Ctrl+C.
    command = [wrk, "-t1", f"-c{connections}", "-d3600s", f"http://127.0.0.1:{port}/"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as p:
        if core is not None:
            os.sched_setaffinity(p.pid, {core})
        with contextlib.suppress(subprocess.TimeoutExpired):
            p.wait(seconds)
        p.send_signal(2)
        try:
            text = p.communicate(timeout=30)[0]
        except subprocess.TimeoutExpired:
            p.kill()
            raise _Failed("wrk did not end") from None
    found = re.search(r"(\d+) requests in ([\d.]+)(us|ms|s|m)\b", text)
    if found is None:
        raise _Failed(f"wrk says: {' '.join(text.split())[:200]}")
    if "Socket errors" in text or "Non-2xx" in text:
        raise _Failed(" ".join(re.findall(r"(?:Socket errors|Non-2xx).*", text)))
    return int(found[1]), float(found[2]) * _UNITS[found[3]]


def _table(
    series: list[_Series], missing: dict[str, str], rounds: int, seconds: float, connections: int
) -> str:
    done = [s for s in series if s.rates and s.problem is None]
    base = next((s for s in done if s.name == "asyncio"), None)
    lines = [
        f"uvicorn with httptools, plain text, {connections} connections; medians of {rounds} "
        f"alternating rounds of {seconds:g} s; Python {sys.version.split()[0]}",
        "",
        f"{'loop':<14}{'requests/s':>12}{'to asyncio':>12}{'spread':>9}"
        f"{'user us':>10}{'system us':>11}",
    ]
    for one in done:
        rate = statistics.median(one.rates)
        ratio = "-"
        if base is not None:
            # Neighbours in time share the machine's mood.
            pairs = [a / b for a, b in zip(one.rates, base.rates, strict=False)]
            ratio = f"{statistics.median(pairs):.2f}"
        spread = (max(one.rates) - min(one.rates)) / rate * 50
        lines.append(
            f"{one.name:<14}{rate:>12,.0f}{ratio:>12}{f'±{spread:.0f}%':>9}"
            f"{statistics.median(one.user_us):>10.1f}{statistics.median(one.system_us):>11.1f}"
        )
    lines += [f"{one.name:<14}failed: {one.problem}" for one in series if one.problem]
    lines += [f"{name:<14}{why}" for name, why in missing.items()]
    return "\n".join(lines)
