"""The load generator: its report, its verdicts, its arithmetic."""

from __future__ import annotations

import itertools
import json
import math
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from plait.lab import load
from plait.lab.executables import ExecutableMissing, executable
from plait.lab.load import Histogram, LoadFailed, Result
from plait.lab.server import Server


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with Server("threads") as server:
        yield server.port


def both_loads(port: int) -> tuple[Any, float]:
    """A report, and the unit of its times: longer where a busy machine answers too few."""
    for unit in (0.2, 0.8, 3.2):
        raw = load.run(
            port=port,
            perf1=2,
            perf2=3,
            long=18,
            duration=4 * unit,
            long_start=unit,
            long_stop=3 * unit,
            bucket_ms=30,
        ).raw
        if raw["short"]["answered"] and {owner for *_, owner in raw["long"]["spans_s"]} == {0, 1}:
            break
    return raw, unit


def test_report_of_both_loads_at_once(port: int) -> None:
    raw, unit = both_loads(port)
    assert raw["ok"]
    assert raw["errors"] == []
    assert raw["error_count"] == 0
    short, long = raw["short"], raw["long"]

    assert short["answered"] > 0
    assert len(short["bucket_counts"]) == math.ceil(4 * unit / 0.03)  # slices of 30 ms
    assert sum(short["bucket_counts"]) == short["answered"]
    assert sum(short["per_second"]) == short["answered"]
    assert short["latency"]["count"] == short["answered"] + short["late"]
    assert short["answered_during_long"] + short["answered_apart"] == short["answered"]
    assert short["rate_per_s"] == pytest.approx(short["answered"] / (4 * unit), rel=1e-3)
    assert short["rate_during_long_per_s"] == pytest.approx(
        short["answered_during_long"] / (2 * unit), rel=1e-3
    )
    assert (
        short["latency_during_long"]["count"] + short["latency_apart"]["count"]
        == short["latency"]["count"]
    )

    assert long["answered"] == len(long["spans_s"]) == long["latency"]["count"] > 0
    assert {connection for _, _, connection in long["spans_s"]} == {0, 1}
    for connection in (0, 1):
        mine = [(start, end) for start, end, owner in long["spans_s"] if owner == connection]
        assert mine[0][0] >= unit
        assert all(start < 3 * unit for start, _ in mine)
        # A closed loop: each begins after the one before has ended.
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(mine))


def test_percentiles_agree_with_the_buckets(port: int) -> None:
    latency = load.run(port=port, perf2=2, duration=0.4).raw["short"]["latency"]
    histogram = Histogram.from_json(latency)
    assert histogram.total == latency["count"]
    figures = [latency["min_us"]]
    for name, percent in (("p50", 50), ("p90", 90), ("p99", 99), ("p99.9", 99.9)):
        assert histogram.percentile(percent) == pytest.approx(latency[f"{name}_us"], abs=0.002)
        figures.append(latency[f"{name}_us"])
    figures.append(latency["max_us"])
    # The smallest is exact and a percentile is the end of its bucket, so >= holds all along.
    assert figures == sorted(figures)
    assert latency["min_us"] <= latency["mean_us"] <= latency["max_us"]


def test_seconds_are_summed_from_slices(port: int) -> None:
    raw = load.run(port=port, perf2=1, duration=2.2, bucket_ms=100).raw["short"]
    counts = raw["bucket_counts"]
    assert raw["per_second"] == [sum(counts[:10]), sum(counts[10:20]), sum(counts[20:])]


@contextmanager
def fake_server(behave: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server that handles its only client as it is told, in a thread."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with suppress(OSError):
            conn, _ = listener.accept()
            with conn:
                behave(conn)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(100)
        assert not thread.is_alive()


def until_closed(conn: socket.socket) -> None:
    while conn.recv(100):
        pass


def answering(answer: bytes) -> Callable[[socket.socket], None]:
    def behave(conn: socket.socket) -> None:
        conn.recv(100)
        conn.sendall(answer)
        until_closed(conn)

    return behave


def hanging_up(conn: socket.socket) -> None:
    conn.recv(100)


@pytest.mark.parametrize(
    ("behave", "problem"),
    [
        (answering(b"2\n"), "perf2: wrong answer to 1: '2'"),
        (answering(b"error: \x1b no\n"), "perf2: wrong answer to 1: 'error: ? no'"),
        (answering(b"1\n1\n"), "perf2: wrong answer to 1: '1'"),
        (answering(b"7" * 500), "perf2: wrong answer to 1: '" + "7" * 100),
        (hanging_up, "perf2: the server closed the connection"),
        (until_closed, "perf2: no answer within"),
    ],
)
def test_what_goes_wrong_is_reported(behave: Callable[[socket.socket], None], problem: str) -> None:
    patience = 0.1 if behave is until_closed else 100
    with fake_server(behave) as port:
        result = load.run(port=port, perf2=1, duration=0.05, timeout=patience)
    assert not result.ok
    assert result.raw["error_count"] == 1
    assert result.errors[0].startswith(problem)


def test_nobody_listens() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        result = load.run(port=port, perf1=5, perf2=5, duration=0.05)
    assert not result.ok
    assert result.raw["error_count"] == 10
    assert len(result.raw["errors"]) == 8
    assert result.errors[-1] == "and 2 more errors"
    assert "Connection refused" in result.errors[0]
    assert str(port) in result.errors[0]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--perf2", "1"], "--port is missing"),
        (["--port", "0", "--perf2", "1"], "--port must be a whole number from 1 to 65535"),
        (["--port", "80"], "--perf1 or --perf2"),
        (["--port", "80", "--perf2", "1x"], "--perf2 must be a whole number"),
        (["--port", "80", "--perf2", "1", "--long", "94"], "--long must be a whole number from 1"),
        (["--port", "80", "--perf2", "1", "--duration", "nan"], "--duration must be a number"),
        (["--port", "80", "--perf1", "1", "--long-start", "9"], "--long-start must lie before"),
        (["--port", "80", "--perf2", "1", "--cpu", "1000"], "--cpu 1000"),
        (["--port", "80", "--perf2", "1", "--host", "no host"], "--host no host"),
        (["--port", "80", "--perf2", "1", "extra"], "unexpected argument 'extra'"),
        (["--port", "80", "--perf2", "1", "--what"], "usage: fib_load"),
    ],
)
def test_bad_arguments(words: list[str], problem: str) -> None:
    done = subprocess.run(
        [executable("fib_load"), *words], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert problem in done.stderr


def test_bad_arguments_are_passed_on_in_words() -> None:
    with pytest.raises(LoadFailed, match="--perf1 or --perf2"):
        load.run(port=80)


def test_table_for_people(port: int) -> None:
    result = load.run(port=port, perf1=1, perf2=1, long=10, duration=0.2, long_stop=0.1)
    text = result.table()
    assert "perf2: 1 connection(s), fib(1)" in text
    assert "perf1: 1 connection(s), fib(10)" in text
    assert text.endswith("every answer was right")


def test_the_report_is_plain_json(port: int) -> None:
    done = subprocess.run(
        [executable("fib_load"), "--port", str(port), "--perf2", "1", "--duration", "0.05"],
        capture_output=True,
        timeout=100,
        check=True,
    )
    assert Result(json.loads(done.stdout)).ok


def test_executable_that_is_not_there() -> None:
    with pytest.raises(ExecutableMissing, match="fib_nothing"):
        executable("fib_nothing")


def test_percentile_of_nothing() -> None:
    assert Histogram().percentile(50) == 0


def test_percentile_is_a_value_that_occurred() -> None:
    histogram = Histogram([(10.0, 999), (1000.0, 1)], maximum=990.5)
    assert histogram.percentile(0) == 10.0
    assert histogram.percentile(50) == 10.0
    assert histogram.percentile(99.9) == 10.0
    assert histogram.percentile(99.95) == 990.5  # the bucket's end, but never past the maximum
    assert histogram.percentile(100) == 990.5


def test_percentile_out_of_bounds() -> None:
    with pytest.raises(ValueError, match="not 101"):
        Histogram([(1.0, 1)], 1.0).percentile(101)


def test_merging_adds_up() -> None:
    histogram = Histogram([(1.0, 2), (3.0, 1)], 3.0)
    histogram.merge(Histogram([(1.0, 1), (9.0, 4)], 8.5))
    assert histogram.counts == {1.0: 3, 3.0: 1, 9.0: 4}
    assert histogram.maximum == 8.5
    assert histogram.percentile(50) == 3.0
