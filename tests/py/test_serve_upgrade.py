"""A successor takes the supervisor's place on the same sockets, as with gunicorn's SIGUSR2."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from serve_support import Client, Server, ask, children, gone, load
from until import until

pytestmark = pytest.mark.isolated


@contextlib.contextmanager
def successor(server: Server, count: int = 1) -> Iterator[int]:
    """Start one; its number. It is gone afterwards."""
    server.send(signal.SIGUSR2)
    pid = int(server.wait_for(r"successor (\d+) starts", count).group(1))
    try:
        yield pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)  # its workers end with it
        until(lambda: gone(pid))


def workers(server: Server) -> list[int]:
    """Those of the old supervisor alone."""
    return [pid for pid in server.workers() if f"successor {pid} starts" not in server.log]


def test_upgrade_under_load_refuses_nobody(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with Server("commands", "--workers", "2", "--bind", f"unix:{path}") as server:
        host, port = server.wait_for(r"serving on ([0-9.]+):(\d+), unix").groups()
        address = (host, int(port))
        old = set(workers(server))
        with load(address, "pid", clients=4) as outcomes, Client(address) as held:
            first = held.ask("pid")
            with successor(server) as pid:
                server.wait_for(rf"\[{pid}\].* serving on {host}:{port}, unix:")
                new = set(children(pid))
                assert set(workers(server)) == old  # both serve
                server.send(signal.SIGUSR2)
                server.wait_for(f"the successor {pid} is there already")
                os.kill(pid, signal.SIGUSR2)
                server.wait_for("the process that this one follows must end first")
                server.send(signal.SIGWINCH)
                server.wait_for("has left", 1)
                assert held.ask("pid") == first  # it has its time to end
                held.__exit__()
                until(lambda: not workers(server))
                assert server.process.poll() is None
                server.send(signal.SIGTERM)
                assert server.process.wait(100) == 0
                seen = len(outcomes)
                until(lambda: len(outcomes) > seen + 50)
                assert int(ask(address, "pid")) in new
                assert path.exists()
                # The successor is on its own now, and can be followed in its turn.
                os.kill(pid, signal.SIGUSR2)
                last = int(server.wait_for(r"successor (\d+) starts", 2).group(1))
                try:
                    server.wait_for(rf"\[{last}\].* serving on {host}:{port}, unix:")
                    os.kill(pid, signal.SIGTERM)
                    until(lambda: gone(pid))
                    seen = len(outcomes)
                    until(lambda: len(outcomes) > seen + 50)
                    assert path.exists()
                finally:
                    os.kill(last, signal.SIGTERM)
                    load_ended = outcomes[:]
                    until(lambda: gone(last))
        assert set(load_ended) == {"ok"}, [o for o in load_ended if o != "ok"][:5]
        assert not path.exists()


def test_successor_that_fails_leaves_all_as_it_was(tmp_path: Path) -> None:
    module, path = tmp_path / "sometimes.py", tmp_path / "socket"
    module.write_text("from serve_targets import commands\n")
    options = ("--workers", "2", "--bind", f"unix:{path}")
    with Server("sometimes:commands", *options, path=tmp_path) as server:
        host, port = server.wait_for(r"serving on ([0-9.]+):(\d+), unix").groups()
        address = (host, int(port))
        old = set(workers(server))
        module.write_text("raise ValueError('this version is broken')\n")
        with load(address, "pid", clients=2) as outcomes:
            with successor(server) as pid:
                server.wait_for(rf"successor {pid} ended \(exit code 1\); this process goes on")
                server.wait_for("this version is broken")
            seen = len(outcomes)
            until(lambda: len(outcomes) > seen + 50)
        assert set(outcomes) == {"ok"}
        assert set(workers(server)) == old
        assert path.exists()
        # Its workers had left already: they come back.
        module.write_text("from serve_targets import commands as commands  # mended\n")
        with successor(server, 2) as pid:
            server.wait_for(rf"\[{pid}\].* serving on {host}:{port}")
            server.send(signal.SIGWINCH)
            until(lambda: not workers(server))
            os.kill(pid, signal.SIGKILL)
            server.wait_for(rf"successor {pid} ended \(SIGKILL\); this process goes on")
            assert int(ask(address, "pid")) in server.workers()
        assert server.end() == 0
        assert not path.exists()


def test_file_names_the_supervisor_that_serves(tmp_path: Path) -> None:
    module, file = tmp_path / "sometimes.py", tmp_path / "server.pid"
    module.write_text("from serve_targets import commands\n")
    file.write_text("a server that was killed\n")
    options = ("--workers", "1", "--pid", str(file))
    with Server("sometimes:commands", *options, path=tmp_path) as server:
        server.address()
        mine = f"{server.process.pid}\n"
        assert file.read_text() == mine
        with Server("sometimes:commands", *options, path=tmp_path) as second:
            assert second.process.wait(100) == 1
            second.wait_for(
                f"plait: '{file}': another server has this file: process {server.process.pid} lives"
            )
        assert file.read_text() == mine
        module.write_text("raise ValueError('this version is broken')\n")
        with successor(server) as pid:
            server.wait_for(rf"successor {pid} ended \(exit code 1\)")
        assert file.read_text() == mine
        module.write_text("from serve_targets import commands as commands  # mended\n")
        with successor(server, 2) as pid:
            server.wait_for(rf"\[{pid}\].* serving on")
            until(lambda: file.read_text() == f"{pid}\n")
            os.kill(pid, signal.SIGKILL)  # it cannot take its name out
            server.wait_for(rf"successor {pid} ended \(SIGKILL\)")
            until(lambda: file.read_text() == mine)
        with successor(server, 3) as pid:
            server.wait_for(rf"\[{pid}\].* serving on")
            until(lambda: file.read_text() == f"{pid}\n")
            server.send(signal.SIGHUP)  # the old one has workers anew; both serve
            server.wait_for(rf"\[{server.process.pid}\].* serving on", 2)
            server.send(signal.SIGTERM)
            assert server.process.wait(100) == 0
            assert file.read_text() == f"{pid}\n"
            os.kill(pid, signal.SIGTERM)
            until(lambda: gone(pid))
    assert not file.exists()
    assert not [name for name in os.listdir(tmp_path) if name.startswith("server.pid")]


def test_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    file = tmp_path / "nowhere" / "server.pid"
    with Server("commands", "--workers", "1", "--pid", str(file)) as server:
        assert server.process.wait(100) == 1
        server.wait_for(f"plait: '{file}': No such file or directory")


def test_want_of_descriptors_leaves_all_as_it_was() -> None:
    with Server("commands", "--workers", "1") as server:
        address = server.address()
        boss = server.process.pid
        before = resource.prlimit(boss, resource.RLIMIT_NOFILE)
        used = max(int(name) for name in os.listdir(f"/proc/{boss}/fd")) + 1
        resource.prlimit(boss, resource.RLIMIT_NOFILE, (used, before[1]))
        server.send(signal.SIGUSR2)
        server.wait_for("cannot start a successor: .*Too many open files; this process goes on")
        resource.prlimit(boss, resource.RLIMIT_NOFILE, before)
        assert int(ask(address, "pid")) in server.workers()
        with successor(server) as pid:
            server.wait_for(rf"\[{pid}\].* serving on")


def test_all_workers_rest_until_they_are_wanted() -> None:
    with Server("commands", "--workers", "2") as server:
        address = server.address()
        before = set(server.workers())
        server.send(signal.SIGWINCH)
        until(lambda: not server.workers())
        server.send(signal.SIGUSR1)
        server.wait_for("workers: none")
        with Client(address) as client:  # the kernel keeps it
            client.send("pid")
            server.send(signal.SIGHUP)
            assert int(client.line()) not in before
        server.wait_for("serving on", 2)
        assert server.end() == 0
    assert ", 0 restarts, 1 reload" in server.log


def test_terminal_that_is_resized_stops_nobody() -> None:
    with Server("commands", "--workers", "1", terminal=True) as server:
        address = server.address()
        (worker,) = server.workers()
        server.send(signal.SIGWINCH)
        server.send(signal.SIGUSR1)
        server.wait_for("workers: .*serving")  # so it has seen both
        assert server.workers() == [worker]
        assert ask(address, "pid") == str(worker)
        assert "SIGWINCH" not in server.log


PROGRAM = """
import sys
import plait
from serve_targets import commands

import logging
logging.basicConfig(level="DEBUG", format="[%(process)d] %(message)s")
plait.serve(commands, workers=1, host=("127.0.0.1", "127.0.0.2"), port=0)
"""


def test_program_is_started_again_from_the_directory_of_that_name(tmp_path: Path) -> None:
    """With a link to a release in its name, and a new release there by then."""
    for release in ("1", "2"):
        (tmp_path / release).mkdir()
        (tmp_path / release / "program.py").write_text(f"{PROGRAM}\n# {release}\n")
    (tmp_path / "current").symlink_to("1")
    (tmp_path / "2" / "program.py").write_text(PROGRAM.replace("DEBUG", "INFO"))
    with Server("", program="program.py", place=tmp_path / "current") as server:
        first, port, second = server.wait_for(
            r"serving on ([0-9.]+):(\d+), ([0-9.]+):\2 with 1 worker\n"
        ).groups()
        assert (first, second) == ("127.0.0.1", "127.0.0.2")
        (tmp_path / "next").symlink_to("2")
        os.replace(tmp_path / "next", tmp_path / "current")
        with successor(server) as pid:
            server.wait_for(rf"\[{pid}\] serving on 127.0.0.1:{port}, 127.0.0.2:{port} with")
            assert os.readlink(f"/proc/{pid}/cwd") == str(tmp_path / "2")
            server.send(signal.SIGTERM)
            assert server.process.wait(100) == 0
            for host in (first, second):
                assert int(ask((host, int(port)), "pid")) in children(pid)
    assert f"[{pid}] worker" not in server.log  # that would be of level debug


MOVED = """
import sys
import plait
from serve_targets import commands

import logging
logging.basicConfig(level="INFO", format="[%(process)d] %(message)s")
plait.serve(commands, workers=1, **eval(open("where").read()))
"""


def test_what_the_successor_does_not_want_is_closed(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(MOVED)
    where, path = tmp_path / "where", tmp_path / "socket"
    where.write_text(f"{{'port': 0, 'host': '127.0.0.1', 'path': {str(path)!r}}}")
    with Server("", program="program.py", place=tmp_path) as server:
        port = int(server.wait_for(r"serving on 127.0.0.1:(\d+), unix").group(1))
        where.write_text("{'port': 0, 'host': '127.0.0.2'}")
        with successor(server) as pid:
            server.wait_for(rf"\[{pid}\] serving on 127.0.0.2:")
            assert int(ask(("127.0.0.1", port), "pid")) in workers(server)
            assert path.exists()
            server.send(signal.SIGTERM)
            assert server.process.wait(100) == 0
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), timeout=100)
            os.kill(pid, signal.SIGTERM)
            until(lambda: gone(pid))
            assert not path.exists()


def test_variable_of_a_successor_means_nothing_to_others() -> None:
    """As of what the successor's program has started before it serves."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        text = json.dumps({"pid": other.pid, "sockets": [["tcp:127.0.0.1:0", 999]]})
        with Server("commands", "--workers", "1", PLAIT_SERVE_INHERIT=text) as server:
            assert int(ask(server.address(), "pid")) in server.workers()


# ---- systemd ----


def test_socket_of_systemd() -> None:
    """As for a unit with a socket: descriptors from 3 on, for the process of that number."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        address = sock.getsockname()
        with Server("commands", "--workers", "1", activated=sock) as server:
            assert server.address() == address
            assert int(ask(address, "pid")) in server.workers()
            with successor(server) as pid:
                server.wait_for(rf"\[{pid}\].* serving on")
                server.send(signal.SIGTERM)
                assert server.process.wait(100) == 0
                assert int(ask(address, "pid")) in children(pid)


def test_variables_for_another_process_are_left_alone() -> None:
    with Server("commands", "--workers", "1", LISTEN_PID="1", LISTEN_FDS="1") as server:
        assert int(ask(server.address(), "pid")) in server.workers()


@pytest.mark.parametrize(
    "text",
    [
        "nonsense",
        '{"pid": -1}',
        '{"pid": 999999999}',
        json.dumps({"pid": os.getpid(), "sockets": [["tcp:127.0.0.1:0", 999]]}),
    ],
)
def test_inheritance_that_is_not_there(text: str) -> None:
    with Server("commands", PLAIT_SERVE_INHERIT=text) as server:
        assert server.process.wait(100) == 1
        server.wait_for("plait: PLAIT_SERVE_INHERIT is set by a supervisor for the one that")
