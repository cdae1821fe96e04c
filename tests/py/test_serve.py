"""plait.serve: real processes, signals, crashes and reloads under load."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from serve_support import (
    Client,
    Server,
    ask,
    environment,
    gone,
    load,
    short_connections,
)
from until import until

pytestmark = pytest.mark.isolated

CONNECTIONS = 10_000
WORKERS = 4
BOUND = 1.2


def busiest(counts: dict[int, int]) -> float:
    """The busiest of the workers, against the mean of all."""
    return max(counts.values()) * WORKERS / sum(counts.values())


# ---- fairness ----


@pytest.mark.slow
@pytest.mark.parametrize(("at_a_time", "backend"), [(1, "auto"), (32, "epoll"), (8, "uring")])
def test_short_connections_are_shared_out(
    at_a_time: int, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where the kernel has no io_uring, the loop says so and takes the other.
    monkeypatch.setenv("PLAIT_BACKEND", backend)
    with Server("Short", "--workers", str(WORKERS)) as server:
        counts = short_connections(server.address(), CONNECTIONS // 2, at_a_time)
        assert sum(counts.values()) == CONNECTIONS // 2
        assert busiest(counts) <= BOUND, counts
        assert server.end() == 0
    assert "5000 connections, 0 restarts" in server.log


@pytest.mark.stress
@pytest.mark.parametrize("at_a_time", [1, 4, 16, 64, 256])
def test_ten_thousand_connections_are_shared_out(at_a_time: int) -> None:
    with Server("Short", "--workers", str(WORKERS)) as server:
        counts = short_connections(server.address(), CONNECTIONS, at_a_time)
        assert busiest(counts) <= BOUND, counts


def test_few_long_connections_are_shared_out() -> None:
    with Server("commands", "--workers", str(WORKERS)) as server:
        address = server.address()
        clients = [Client(address) for _ in range(64)]
        counts: dict[int, int] = {}
        for client in clients:
            pid = int(client.ask("pid"))
            counts[pid] = counts.get(pid, 0) + 1
            # All stay open, so what is counted is what each worker holds.
        for client in clients:
            client.__exit__()
        # A slack of four each is what stepping aside starts with.
        assert max(counts.values()) <= 16 * 1.5, counts
        assert len(counts) == WORKERS


REUSE_PORT = """
    import asyncio, os, sys
    import plait
    from serve_targets import Short

    async def main(port):
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Short, "127.0.0.1", port, reuse_port=True, backlog=4096)
        print(server.sockets[0].getsockname()[1], flush=True)
        await loop.connect_read_pipe(Until, sys.stdin)
        await ended.wait()

    class Until(asyncio.Protocol):
        def eof_received(self):
            ended.set()

    ended = asyncio.Event()
    plait.run(main(int(sys.argv[1])))
"""


@pytest.mark.slow
def test_sockets_with_reuse_port_are_shared_out() -> None:
    children = []
    port = "0"
    try:
        for _ in range(WORKERS):
            child = subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(REUSE_PORT), port],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment(),
            )
            children.append(child)
            assert child.stdout is not None
            port = child.stdout.readline().strip()
        counts = short_connections(("127.0.0.1", int(port)), CONNECTIONS)
        assert len(counts) == WORKERS
        assert busiest(counts) <= BOUND, counts
    finally:
        for child in children:
            child.communicate()


# ---- crashes ----


def test_crash_loses_only_its_own_connections() -> None:
    with Server("commands", "--workers", "2") as server:
        address = server.address()
        of: dict[Client, int] = {}
        while len(of) < 12 or len(set(of.values())) < 2:  # one may have had no turn so far
            client = Client(address)
            of[client] = int(client.ask("pid"))
        first, victim = next(iter(of.items()))
        first.send("die")
        for client, pid in of.items():
            if pid == victim:
                with pytest.raises(ConnectionError):  # noqa: PT012
                    assert client.line() == ""
                    raise ConnectionResetError
            else:
                assert client.ask("pid") == str(pid)
            client.__exit__()
        server.wait_for(rf"worker {victim} ended \(SIGKILL\); it is replaced")
        until(lambda: len(server.workers()) == 2 and victim not in server.workers())
        assert {ask(address, "pid") for _ in range(4)} <= {str(pid) for pid in server.workers()}
        assert server.end() == 0
    assert ", 1 restart, " in server.log


@pytest.mark.parametrize("spare", [0, 2])
def test_want_of_descriptors_is_waited_out(spare: int) -> None:
    """Before the fork with no descriptor to spare, after it with those for the control socket."""
    with Server("commands", "--workers", "1", "--max-restarts", "1") as server:
        address = server.address()
        (worker,) = server.workers()
        boss = server.process.pid
        before = resource.prlimit(boss, resource.RLIMIT_NOFILE)
        numbers = sorted(int(name) for name in os.listdir(f"/proc/{boss}/fd"))
        # Last come the worker's: a control socket, whose other end has been closed, and a pidfd.
        assert numbers[-1] == numbers[-2] + 2
        assert "pidfd" in os.readlink(f"/proc/{boss}/fd/{numbers[-1]}")
        resource.prlimit(boss, resource.RLIMIT_NOFILE, (numbers[-2] + spare, before[1]))
        os.kill(worker, signal.SIGKILL)
        server.wait_for("cannot start a worker: .*Too many open files", 3)
        resource.prlimit(boss, resource.RLIMIT_NOFILE, before)
        until(lambda: bool(server.workers()) and worker not in server.workers())
        assert ask(address, "pid") == str(server.workers()[0])
        # What could not be started is not a worker that ended.
        (worker,) = server.workers()
        assert server.end() == 0
    assert ", 1 restart, " in server.log
    assert gone(worker)


def test_connections_in_the_queue_survive_a_crash() -> None:
    with Server("commands", "--workers", "1") as server:
        address = server.address()
        with Client(address) as first:
            pid = int(first.ask("pid"))
            first.send("hang")
            waiting = [Client(address) for _ in range(20)]
            for client in waiting:
                client.send("pid")
            (worker,) = server.workers()
            assert worker == pid
            os.kill(worker, signal.SIGKILL)
            answers = {client.line() for client in waiting}
            assert len(answers) == 1
            assert answers != {str(pid)}
            for client in waiting:
                client.__exit__()


def test_hung_worker_is_killed_and_says_where_it_was() -> None:
    with Server("commands", "--workers", "2", "--timeout", "1") as server:
        address = server.address()
        with Client(address) as client:
            pid = int(client.ask("pid"))
            client.send("hang")
            server.wait_for(rf"worker {pid} hangs: its loop has not turned for 1 s")
            server.wait_for("in this_is_where_it_hangs")
            server.wait_for(rf"worker {pid} hung and was killed \(SIGABRT\)")
        until(lambda: len(server.workers()) == 2)
        assert ask(address, "pid") != str(pid)


def test_workers_end_with_their_supervisor() -> None:
    with Server("commands", "--workers", "3") as server:
        server.address()
        workers = server.workers()
        assert len(workers) == 3
        server.process.kill()
        until(lambda: all(gone(pid) for pid in workers))


# ---- signals ----


@pytest.mark.slow
def test_reload_under_load_fails_nobody() -> None:
    with Server("commands", "--workers", "2") as server:
        address = server.address()
        before = set(server.workers())
        with load(address, "pid", clients=4) as outcomes:
            for count in (1, 2, 3):
                server.send(signal.SIGHUP)
                server.wait_for("serving on", count + 1)
                until(lambda: len(server.workers()) == 2)
            seen = len(outcomes)
            until(lambda: len(outcomes) > seen + 50)
        assert set(outcomes) == {"ok"}, [o for o in outcomes if o != "ok"][:5]
        assert before.isdisjoint(server.workers())
        assert server.end() == 0
    assert f"{len(outcomes)} connections, 0 restarts, 3 reloads" in server.log


def test_reload_lets_connections_end() -> None:
    with Server("commands", "--workers", "1") as server:
        address = server.address()
        with Client(address) as slow, Client(address) as idle:
            old = slow.ask("pid")
            assert idle.ask("drain") == "waiting"
            slow.send("slow")
            server.send(signal.SIGHUP)
            assert idle.line() == "draining"
            assert slow.line() == old
            assert slow.ask("pid") == old  # it goes on for as long as it is asked
            assert ask(address, "pid") != old
        server.wait_for(f"worker {old} has left")


def test_grace_has_an_end() -> None:
    with Server("commands", "--workers", "1", "--grace", "0.2") as server:
        with Client(server.address()) as client:
            client.ask("pid")
            assert server.end() == 0
            assert client.line() == ""
    assert "cuts 1 connection " in server.log


def test_terminated_server_finishes_what_it_began() -> None:
    with Server("commands", "--workers", "2") as server:
        address = server.address()
        with Client(address) as client:
            assert client.ask("pid").isdigit()
            client.send("slow")
            server.send(signal.SIGTERM)
            server.wait_for("graceful end")
            assert client.line().isdigit()
        assert server.process.wait(100) == 0
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_quick_end_waits_for_nobody(number: signal.Signals) -> None:
    with Server("commands", "--workers", "2", "--grace", "600") as server:
        with Client(server.address()) as client:
            client.ask("pid")
            assert server.end(number) == 0
            assert client.line() == ""
    assert "quick end" in server.log
    if sys.version_info >= (3, 12, 2):  # before, asyncio's own streams log a cancelled handler
        assert "Traceback" not in server.log


def test_interrupt_hurries_a_graceful_end() -> None:
    with Server("commands", "--workers", "1", "--grace", "600") as server:
        with Client(server.address()) as client:
            client.ask("pid")
            server.send(signal.SIGTERM)
            server.wait_for("graceful end")
            assert server.end(signal.SIGINT) == 0


def test_one_worker_more_and_one_less() -> None:
    with Server("commands", "--workers", "1") as server:
        address = server.address()
        server.send(signal.SIGTTIN)
        server.wait_for("is ready", 2)
        pids = server.workers()
        assert len(pids) == 2
        server.send(signal.SIGUSR1)
        server.wait_for("0 restarts, 0 reloads; workers: .*serving")
        server.send(signal.SIGTTOU)
        server.wait_for("has left")
        assert server.workers() == [max(pids)] or len(server.workers()) == 1
        server.send(signal.SIGTTOU)
        server.wait_for("there can be from 1 to")
        assert ask(address, "pid") in map(str, server.workers())
        assert server.end() == 0


def test_worker_that_leaves_by_itself_is_replaced() -> None:
    with Server("commands", "--workers", "1") as server:
        address = server.address()
        (pid,) = server.workers()
        os.kill(pid, signal.SIGTERM)
        server.wait_for(rf"worker {pid} ended \(exit code 0\); it is replaced")
        assert ask(address, "pid") != str(pid)


LOGS = """
import logging
from serve_targets import commands

handler = logging.FileHandler("{path}")
logging.getLogger("mine").addHandler(handler)

async def serve(reader, writer):
    logging.getLogger("mine").warning("asked")
    await commands(reader, writer)
"""


def test_log_files_are_opened_anew(tmp_path: Path) -> None:
    path = tmp_path / "log"
    (tmp_path / "logs.py").write_text(LOGS.format(path=path))
    with Server("logs:serve", "--workers", "1", path=tmp_path) as server:
        address = server.address()
        ask(address, "pid")
        path.rename(tmp_path / "old")
        server.send(signal.SIGUSR1)
        until(path.exists)
        ask(address, "pid")
        assert path.read_text() == "asked\n"
        assert (tmp_path / "old").read_text() == "asked\n"


# ---- starting ----


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("nowhere_at_all:x", (), "there is no module 'nowhere_at_all'\n"),
        ("serve_targets:missing", (), "module 'serve_targets' has no attribute 'missing'"),
        ("serve_targets:BOUND.x", (), "has no attribute 'BOUND.x'"),
        ("serve_targets:fail_in_factory", ("--factory",), "the factory has failed"),
        ("serve_targets:no_factory", ("--factory",), "a factory returns what is to be served"),
        ("serve_targets:die_at_start", ("--factory",), r"a worker could not start \(SIGKILL\)"),
        ("serve_targets:this_is_where_it_hangs.__name__", (), "cannot be called"),
        ("serve_targets:Application", (), "with --factory it is called.* --kind says which"),
        ("serve_targets:commands", ("--option", "log_level=info"), "--option is for ASGI"),
    ],
)
def test_what_cannot_start_ends_it(target: str, options: tuple[str, ...], message: str) -> None:
    with Server(target, "--workers", "2", *options) as server:
        assert server.process.wait(100) == 1
        server.wait_for(message)
        server.wait_for(rf"plait: (cannot serve '{target}'|a worker could not start)")
    # What is no fault of the program's code takes one line; what is, its own traceback.
    told = [line for line in server.lines if " DEBUG " not in line]
    assert len(told) == (5 if target == "serve_targets:fail_in_factory" else 1), server.log
    assert "plait/_serve" not in server.log


def test_failure_in_the_module_is_told_by_its_own_lines(tmp_path: Path) -> None:
    (tmp_path / "inner.py").write_text("def x(:\n")
    (tmp_path / "outer.py").write_text("import inner\n")
    (tmp_path / "lacking.py").write_text("import something_else_that_is_not_there\n")
    for name, message in (
        ("inner", "SyntaxError: invalid syntax"),
        ("outer", "SyntaxError: invalid syntax"),
        ("lacking", "No module named 'something_else_that_is_not_there'"),
    ):
        with Server(f"{name}:x", "--workers", "1", path=tmp_path) as server:
            assert server.process.wait(100) == 1
            server.wait_for(f"plait: cannot serve '{name}:x'")
            server.wait_for(message)
            server.wait_for(f'{name}.py", line 1')
        assert "importlib" not in server.log
        assert "plait/_serve" not in server.log


def test_workers_that_end_again_and_again_end_it() -> None:
    with Server("die_soon", "--factory", "--workers", "1", "--max-restarts", "2") as server:
        assert server.process.wait(100) == 1
        server.wait_for("3 workers in a row ended within 10 s, the last one .* with exit code 7")
    assert server.log.count("it is replaced") == 3


def test_failed_reload_keeps_the_old_workers(tmp_path: Path) -> None:
    module = tmp_path / "sometimes.py"
    module.write_text("from serve_targets import commands\n")
    with Server("sometimes:commands", "--workers", "2", path=tmp_path) as server:
        address = server.address()
        before = sorted(server.workers())
        module.write_text("raise ValueError('this version is broken')\n")
        server.send(signal.SIGHUP)
        server.wait_for("a new worker could not start .* the old ones stay")
        server.wait_for("this version is broken")
        until(lambda: sorted(server.workers()) == before)
        assert int(ask(address, "pid")) in before
        # The next one is tried like the first.
        module.write_text("from serve_targets import commands as commands  # mended\n")
        server.send(signal.SIGHUP)
        server.wait_for("serving on", 2)
        until(lambda: not set(before) & set(server.workers()))
        assert int(ask(address, "pid")) in server.workers()
        assert server.end() == 0


# ---- where it listens ----


def test_statistics_in_a_worker() -> None:
    with Server("make", "--factory", "--workers", "2") as server:
        address = server.address()
        answers = [ask(address, "statistics") for _ in range(8)]
        seat, first, second = answers[-1].split()
        assert seat in ("0", "1")
        figures = [part.split(":") for part in (first, second)]
        assert [f[:2] for f in figures] == [["0", "serving"], ["1", "serving"]]
        assert sum(int(f[2]) for f in figures) == 8


PROGRAM = """
import dataclasses, json, sys
import plait
from serve_targets import commands

report = plait.serve(commands, workers=2, path=sys.argv[1], host="127.0.0.1", port=0)
json.dump(dataclasses.asdict(report), sys.stdout)
"""


def test_program_with_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "socket"

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(path)],
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )

    def statistics() -> str:
        with socket.socket(socket.AF_UNIX) as sock:
            try:
                sock.connect(str(path))
                sock.sendall(b"statistics\n")
                return sock.recv(100).decode()
            except (FileNotFoundError, ConnectionError):
                return ""

    with start() as first:
        until(lambda: statistics().count("serving") == 2)
        first.kill()
    assert path.exists()  # it could not take it away
    with start() as second:
        until(lambda: statistics().count("serving") == 2)
        second.send_signal(signal.SIGTERM)
        report = json.loads(second.communicate(timeout=100)[0])
    assert not path.exists()
    assert report["connections"] >= 1
    assert (report["restarts"], report["reloads"]) == (0, 0)
    assert [w["exitcode"] for w in report["workers"]] == [0, 0]
    assert sum(w["connections"] for w in report["workers"]) == report["connections"]


def test_address_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        with Server("commands", bind=where) as server:
            assert server.process.wait(100) == 1
            server.wait_for("plait: .*cannot listen on 127.0.0.1 port")


def test_several_sockets() -> None:
    with Server("commands", "--workers", "2", "--bind", "127.0.0.1:0") as server:
        match = server.wait_for(r"serving on 127.0.0.1:(\d+), 127.0.0.1:(\d+) with 2")
        pids = set()
        for port in match.groups():
            pids |= {ask(("127.0.0.1", int(port)), "pid") for _ in range(4)}
        assert pids == set(map(str, server.workers()))


EARLY = """
import os
import signal
import plait
from serve_targets import commands

import logging
logging.basicConfig(level="DEBUG", format="%(message)s")
handle = signal.signal
supervisor = os.getpid()

def told_at_once(number, handler):
    before = handle(number, handler)
    if number == signal.SIGTERM and callable(handler) and os.getpid() == supervisor:
        os.kill(os.getpid(), number)
    return before

signal.signal = told_at_once
plait.serve(commands, workers=1, port=0)
"""


def test_signal_that_comes_with_its_handler_is_not_lost(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(EARLY)
    with Server("", program=str(program)) as server:
        server.wait_for("SIGTERM: graceful end")
        assert server.process.wait(100) == 0


OWN = """
import signal
import plait
from serve_targets import commands

import logging
logging.basicConfig(level="DEBUG", format="%(message)s")
signal.signal(signal.SIGRTMIN + 3, lambda number, frame: logging.info("the program's own"))
plait.serve(commands, workers=1, port=0)
"""


def test_signal_that_the_program_handles_itself(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(OWN)
    with Server("", program=str(program)) as server:
        address = server.address()
        os.kill(server.process.pid, signal.SIGRTMIN + 3)
        server.wait_for("the program's own")
        assert int(ask(address, "pid")) in server.workers()
        assert server.end() == 0


def test_signals_of_the_supervisor_do_nothing_to_a_worker_and_its_children() -> None:
    with Server("commands", "--workers", "1") as server:
        address = server.address()
        (worker,) = server.workers()
        for number in (signal.SIGUSR2, signal.SIGWINCH, signal.SIGHUP, signal.SIGTTOU):
            os.kill(worker, number)
        assert ask(address, "child") == "heard-over"
        assert server.workers() == [worker]


def test_end_does_not_wait_longer_for_a_worker_that_hangs() -> None:
    with Server("commands", "--workers", "1", "--timeout", "1", "--grace", "600") as server:
        server.address()
        (worker,) = server.workers()
        os.kill(worker, signal.SIGSTOP)
        server.wait_for(f"worker {worker} hangs")
        assert server.end() == 0
