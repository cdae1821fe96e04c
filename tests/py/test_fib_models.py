"""Every model keeps to the protocol of the Fibonacci server, to the letter."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest
from until import until

from plait.lab.models import MODELS
from plait.lab.protocol import MAX_LINE, TOO_LONG
from plait.lab.server import Server

LIMIT = 30
PATIENCE = 100.0  # seconds until a test that hangs fails


@pytest.fixture(scope="module", params=list(MODELS))
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with Server(request.param, limit=LIMIT, workers=2) as running:
        yield running
        running.check()


@contextlib.contextmanager
def connect(server: Server) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as conn:
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield conn


def read_line(conn: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        byte = conn.recv(1)
        if not byte:
            break
        line += byte
    return line


def read_rest(conn: socket.socket) -> bytes:
    rest = b""
    while data := conn.recv(65536):
        rest += data
    return rest


LINES = {
    b"1": b"1",
    b"2": b"1",
    b"10": b"55",
    b"20": b"6765",
    b" 7 ": b"13",
    b"7\r": b"13",
    b"007": b"13",
    b"%0*d" % (MAX_LINE, 10): b"55",
    b"": b"error: not a decimal number: ''",
    b"abc": b"error: not a decimal number: 'abc'",
    b"1.5": b"error: not a decimal number: '1.5'",
    b"1_0": b"error: not a decimal number: '1_0'",
    b"+5": b"error: not a decimal number: '+5'",
    b"--5": b"error: not a decimal number: '--5'",
    b"-": b"error: not a decimal number: '-'",
    b"3 4": b"error: not a decimal number: '3 4'",
    "٣".encode(): b"error: not a decimal number: '??'",
    b"\0\x1b'": b"error: not a decimal number: '??''",
    b"x" * 41: b"error: not a decimal number: '" + b"x" * 40 + b"...'",
    b"0": b"error: n must be 1 or more, not 0",
    b"-1": b"error: n must be 1 or more, not -1",
    b"31": b"error: n must be 30 or less, not 31",
    b"9" * 500: b"error: n must be 30 or less, not " + b"9" * 40 + b"...",
}


def test_each_line_gets_its_answer(server: Server) -> None:
    with connect(server) as conn:
        for line, answer in LINES.items():
            conn.sendall(line + b"\n")
            assert read_line(conn) == answer + b"\n", line


def test_a_long_number(server: Server) -> None:
    with connect(server) as conn:
        conn.sendall(b"30\n")
        assert read_line(conn) == b"832040\n"


def test_pipelined_lines_are_answered_in_order(server: Server) -> None:
    # Slow and fast, good and bad mixed: an answer that overtakes another is seen.
    with connect(server) as conn:
        conn.sendall(b"".join(line + b"\n" for line in LINES) + b"22\n1\n21\nx\n3\n")
        for line, answer in LINES.items():
            assert read_line(conn) == answer + b"\n", line
        for answer in (b"17711", b"1", b"10946", b"error: not a decimal number: 'x'", b"2"):
            assert read_line(conn) == answer + b"\n"


def test_many_pipelined_lines_and_a_reader_that_comes_late(server: Server) -> None:
    # More answers than the buffers of both sockets hold: the server has to wait for us, and
    # go on when we read.
    count = 60_000
    with connect(server) as conn:
        expected = b"error: not a decimal number: '" + b"x" * 39 + b"'\n"
        sender = threading.Thread(
            target=conn.sendall, args=((b"x" * 39 + b"\n") * count,), daemon=True
        )
        sender.start()
        left = len(expected) * count
        seen = bytearray()
        while left > 0:
            data = conn.recv(1 << 20)
            assert data
            left -= len(data)
            seen += data
        sender.join(PATIENCE)
        assert bytes(seen) == expected * count


def test_split_packets(server: Server) -> None:
    with connect(server) as conn:
        for byte in b"12\n 9\r\nab\n":
            conn.sendall(bytes([byte]))
        assert read_line(conn) == b"144\n"
        assert read_line(conn) == b"34\n"
        assert read_line(conn) == b"error: not a decimal number: 'ab'\n"


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"1" * (MAX_LINE + 1), id="one byte too many, no end"),
        pytest.param(b"1" * (MAX_LINE + 1) + b"\n", id="one byte too many"),
        pytest.param(b"1" * 5000 + b"\n4\n", id="long, and a good line behind"),
        pytest.param(b"1" * 50000, id="very long"),
    ],
)
def test_an_over_long_line_is_answered_and_the_connection_closed(
    server: Server, sent: bytes
) -> None:
    with connect(server) as conn:
        conn.sendall(b"5\n" + sent)
        assert read_rest(conn) == b"5\n" + TOO_LONG


def test_end_of_stream_within_a_line_is_no_request(server: Server) -> None:
    with connect(server) as conn:
        conn.sendall(b"5\n6")
        conn.shutdown(socket.SHUT_WR)
        assert read_rest(conn) == b"5\n"


def test_end_of_stream_after_requests_still_gets_the_answers(server: Server) -> None:
    with connect(server) as conn:
        conn.sendall(b"21\n22\n")
        conn.shutdown(socket.SHUT_WR)
        assert read_rest(conn) == b"10946\n17711\n"


def test_clients_that_leave_early_harm_nobody(server: Server) -> None:
    for _ in range(5):
        with connect(server) as conn:
            conn.sendall(b"24\n24\n")
            # Closing with a zero linger resets the connection while the answer is computed.
            conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    with connect(server) as conn:
        conn.sendall(b"20\n")
        assert read_line(conn) == b"6765\n"


def test_who_waits_for_whom(server: Server) -> None:
    with connect(server) as first:
        first.sendall(b"3\n")
        assert read_line(first) == b"2\n"
        with connect(server) as second:
            second.sendall(b"4\n")
            if MODELS[server.model].clients == "one":
                # The first is served on, the second only when the first has left.
                first.sendall(b"5\n")
                assert read_line(first) == b"5\n"
                second.setblocking(False)
                with pytest.raises(BlockingIOError):
                    second.recv(1)
                second.settimeout(PATIENCE)
                first.close()
            assert read_line(second) == b"3\n"


def test_many_clients_at_once(server: Server) -> None:
    if MODELS[server.model].clients == "one":
        pytest.skip("it serves one at a time")
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(server)) for _ in range(50)]
        for number, conn in enumerate(clients):
            conn.sendall(b"%d\n" % (number % 20 + 1))
        fibs = [1, 1]
        while len(fibs) < 20:
            fibs.append(fibs[-1] + fibs[-2])
        for number, conn in enumerate(clients):
            assert read_line(conn) == b"%d\n" % fibs[number % 20]


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def session_members(session: int) -> list[int]:
    """Processes of a session that still run."""
    members = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == session and fields[0] != "Z":
                    members.append(int(entry.name))
    return members


def assert_session_ends(session: int) -> None:
    # The interpreter's own helpers (the fork server of 3.14, the resource tracker) end when
    # they see that their pipe is closed, a moment after the process that they served.
    until(lambda: not session_members(session), PATIENCE)


class ModelProcess:
    """A model's server, started by its command in a session of its own.

    Leaving the block kills what is left of the session and closes the pipes.
    """

    def __init__(self, model: str, *options: str) -> None:
        command = [sys.executable, "-m", "plait", "fib", "--model", model, "--port", "0"]
        self.process = subprocess.Popen(
            [*command, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env=os.environ | {"PYTHONFAULTHANDLER": "1"},
        )
        self.pid = self.process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        with self.process:  # waits, and closes the pipes
            pass

    def connect(self) -> socket.socket:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            _, problems = self.process.communicate(timeout=PATIENCE)
            pytest.fail(f"it did not start: {problems.decode()}")
        port = int(line.rpartition(b":")[2])
        return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)

    def assert_ends(self) -> None:
        """Wait until it has ended without a fault and left nothing behind."""
        try:
            _, problems = self.process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            # Who is left says where it hangs.
            left = session_members(self.pid)
            os.killpg(self.pid, signal.SIGABRT)
            _, problems = self.process.communicate(timeout=PATIENCE)
            pytest.fail(f"{left} of {self.pid} still run:\n{problems.decode()}")
        assert self.process.returncode == 0, problems.decode()
        assert b"Traceback" not in problems, problems.decode()
        assert_session_ends(self.pid)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_stop_it_with_clients_connected(model: str, number: signal.Signals) -> None:
    with ModelProcess(model, "--workers", "2") as server, server.connect() as conn:
        conn.sendall(b"20\n")
        assert read_line(conn) == b"6765\n"
        # To all of the group, as a terminal does.
        os.killpg(server.pid, number)
        server.assert_ends()


@pytest.mark.parametrize(
    "model",
    [
        name
        for name, model in MODELS.items()
        # A loop that computes itself hears of the signal when it is through: that is the
        # model's nature, and the interpreter's.
        if model.computing == "processes" or name in ("sequential", "threads", "generators")
    ],
)
def test_a_signal_ends_it_while_it_computes(model: str) -> None:
    with ModelProcess(model, "--limit", "60") as server, server.connect() as conn:
        conn.sendall(b"20\n")
        assert read_line(conn) == b"6765\n"
        before = used_ticks(os.getpid())
        conn.sendall(b"60\n")
        busy_process(os.getpid(), before)
        server.process.terminate()
        server.assert_ends()


@pytest.mark.parametrize("model", ["c", "plait+processes", "plait+generators"])
def test_a_worker_that_is_killed_fails_one_request(model: str) -> None:
    # fib(60) takes hours: the worker is at it when it is killed.
    with Server(model, limit=60, workers=1) as server:
        with connect(server) as first, connect(server) as second:
            before = used_ticks(server.pid)
            first.sendall(b"60\n")
            second.sendall(b"25\n")
            os.kill(busy_process(server.pid, before), signal.SIGKILL)
            assert read_line(first).startswith(b"error: the worker died (")
            assert read_line(second) == b"75025\n"
            first.sendall(b"25\n")
            assert read_line(first) == b"75025\n"
        server.check()


def used_ticks(ancestor: int) -> dict[int, int]:
    """Processor time of all processes below one, in clock ticks."""
    used: dict[int, int] = {}
    waiting = children(ancestor)
    while waiting:
        pid = waiting.pop()
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            used[pid] = int(fields[11]) + int(fields[12])
            waiting += children(pid)
    return used


def busy_process(ancestor: int, before: dict[int, int]) -> int:
    """Wait until a process below one computes, and return it."""

    def busy() -> int | None:
        used = used_ticks(ancestor).items()
        return next((pid for pid, ticks in used if ticks - before.get(pid, 0) >= 20), None)

    found: int = until(busy, PATIENCE)
    return found
