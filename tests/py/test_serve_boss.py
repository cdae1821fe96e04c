"""The supervisor of plait.serve at moments that no client can choose."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from plait import _core, _serve_sockets
from plait._serve_boss import Supervisor, _noted, _Worker
from plait._serve_pid import PidFile
from plait._serve_sockets import ENVIRONMENT, Listeners
from plait._serve_upgrade import Successor, birth_of, process_ended


def supervisor(listeners: Listeners, pid: str | None = None) -> Supervisor:
    setup: Any = SimpleNamespace(
        workers=1, seats=2, rota=_core.Rota(2), max_restarts=10, sockets=()
    )
    return Supervisor(setup, listeners, pid)


def wait_for_end(pidfd: int) -> None:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    assert poll.poll(100_000)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_last_words_of_a_worker_are_heard(caplog: pytest.LogCaptureFixture) -> None:
    """All that it has said before its end, though it is looked at only then."""
    caplog.set_level(logging.DEBUG, "plait.serve")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        pid = os.fork()
        if pid == 0:
            theirs.send(b"ready")
            theirs.send(b"failed the roof came down")
            os._exit(3)
    with Listeners(1) as listeners:
        boss = supervisor(listeners)
        ours.setblocking(False)
        worker = _Worker(pid, os.pidfd_open(pid), ours, 0, 0, time.monotonic())
        for fd in (worker.pidfd, ours.fileno()):
            boss._poll.register(fd, select.POLLIN)
            worker.fds.append(fd)
        boss._workers[pid] = worker
        wait_for_end(worker.pidfd)
        boss._bury(worker)
    assert worker.ready
    assert "the roof came down" in caplog.text


def test_number_that_is_another_process_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """The predecessor has ended, and its number was given to somebody else."""
    parent = os.getppid()
    born = birth_of(parent)
    assert born is not None

    def lives(told: int | None) -> bool:
        found = {"pid": parent, "born": told, "sockets": []}
        monkeypatch.setenv(ENVIRONMENT, json.dumps(found))
        with Listeners(1) as listeners:
            assert listeners.predecessor() == (parent if listeners.predecessor_lives() else None)
            return listeners.predecessor_lives()

    assert lives(born)
    assert not lives(born - 1)
    assert lives(None)
    # /proc does not show the processes of others (hidepid).
    monkeypatch.setattr(_serve_sockets, "birth_of", lambda pid: None)
    assert lives(born)


def test_birth_of_nobody() -> None:
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", ""], os.environ)
    os.waitpid(pid, 0)
    assert birth_of(pid) is None


@pytest.mark.parametrize("ends", [True, False], ids=["is gone", "lives"])
def test_successor_at_the_very_end(
    ends: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that has ended in the last turn listens on nothing: the path is removed here."""
    path = tmp_path / "socket"
    code = "pass" if ends else "input()"
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, "-c", code])
    reader, writer = os.pipe()
    stdin = os.dup(0)
    os.dup2(reader, 0)
    follower = None

    def turn(boss: Supervisor, wake: socket.socket) -> None:
        nonlocal follower
        follower = boss._successor = Successor(None, {}, [])
        boss._poll.register(follower.pidfd, select.POLLIN)
        if ends:
            wait_for_end(follower.pidfd)

    monkeypatch.setattr(Supervisor, "_turn", turn)
    try:
        with Listeners(1) as listeners:
            listeners.add_unix(str(path))
            supervisor(listeners).run()
            assert listeners.handed_over is not ends
        assert path.exists() is not ends
    finally:
        os.dup2(stdin, 0)
        for fd in (stdin, reader, writer):
            os.close(fd)
        assert follower is not None
        if not ends:
            os.waitpid(follower.pid, 0)


def test_process_that_ends() -> None:
    pid = os.posix_spawn(
        sys.executable, [sys.executable, "-c", "import signal; signal.pause()"], os.environ
    )
    pidfd = os.pidfd_open(pid)
    try:
        assert not process_ended(pidfd)
        os.kill(pid, 9)
        wait_for_end(pidfd)
        assert process_ended(pidfd)
    finally:
        os.waitpid(pid, 0)
        os.close(pidfd)


# ---- the file for the process id


def test_who_is_named_handles_signals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script may send one as soon as it finds the file."""
    file = tmp_path / "server.pid"
    write, handlers = PidFile.write, []

    def writing(self: PidFile) -> None:
        handlers.append(signal.getsignal(signal.SIGHUP))
        write(self)

    def turn(boss: Supervisor, wake: socket.socket) -> None:
        assert file.read_text() == f"{os.getpid()}\n"

    monkeypatch.setattr(PidFile, "write", writing)
    monkeypatch.setattr(Supervisor, "_turn", turn)
    with Listeners(1) as listeners:
        supervisor(listeners, str(file)).run()
    assert handlers == [_noted]
    assert not file.exists()


def test_file_is_made_anew_whatever_lies_there(tmp_path: Path) -> None:
    """What a killed one has left, or a link that somebody has laid in a directory of everybody's."""
    file, other = tmp_path / "server.pid", tmp_path / "other"
    other.write_text("precious\n")
    (tmp_path / f"server.pid.{os.getpid()}").symlink_to(other)
    mine = PidFile(str(file))
    mine.write()
    assert other.read_text() == "precious\n"
    assert not file.is_symlink()
    assert file.read_text() == f"{os.getpid()}\n"
    assert sorted(os.listdir(tmp_path)) == ["other", "server.pid"]
    mine.remove()


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_file_is_left_alone(make: Any, tmp_path: Path) -> None:
    path = tmp_path / "server.pid"
    make(path)
    before = os.lstat(path)
    mine = PidFile(str(path))
    with pytest.raises(FileExistsError, match="no file: "):
        mine.write()
    mine.remove()
    assert os.path.samestat(before, os.lstat(path))
    assert os.listdir(tmp_path) == ["server.pid"]


def test_file_of_the_follower_is_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes the file over just when this one, which was named so far, takes its name out."""
    file = tmp_path / "server.pid"
    mine = PidFile(str(file))
    mine.write()
    follower = tmp_path / "follower"
    follower.write_text("1\n")

    def late(real: Any, *args: Any) -> None:
        if follower.exists():
            os.replace(follower, file)
        real(*args)

    monkeypatch.setattr(os, "unlink", partial(late, os.unlink))
    monkeypatch.setattr(os, "rename", partial(late, os.rename))
    mine.remove()
    assert file.read_text() == "1\n"
    assert os.listdir(tmp_path) == ["server.pid"]


HOLDER = """
import os, sys
from plait._serve_pid import PidFile

file = PidFile(sys.argv[1])
file.write()
if os.fork() == 0:
    file.let_go()
    print(flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def holder(file: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process, which has the file; and a child of its own that lives as long as this."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        yield process
        process.kill()


def test_file_of_one_that_lives_is_not_replaced(tmp_path: Path) -> None:
    file = tmp_path / "server.pid"
    file.write_text(f"{os.getppid()}\n")  # left behind, and the number is another program's now
    with holder(file) as process:
        named = f"{process.pid}\n"
        with (
            Listeners(1) as listeners,
            pytest.raises(FileExistsError, match=rf"process {process.pid} lives: '{file}'"),
        ):
            supervisor(listeners, str(file)).run()
        assert file.read_text() == named
        mine = PidFile(str(file))
        with pytest.raises(FileExistsError):
            mine.write(instead_of=os.getppid())
        mine.remove()
        assert file.read_text() == named
        assert os.listdir(tmp_path) == ["server.pid"]
        # The one that follows it takes it over, and has it then.
        mine.write(instead_of=process.pid)
        assert file.read_text() == f"{os.getpid()}\n"
    with pytest.raises(FileExistsError, match=f"process {os.getpid()} lives"):
        PidFile(str(file)).write()
    mine.write()
    mine.remove()
    assert not os.listdir(tmp_path)


def test_file_of_one_that_was_killed_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "server.pid"
    mine = PidFile(str(file))
    with holder(file) as process:
        process.kill()
        process.wait()
        assert file.read_text() == f"{process.pid}\n"
        mine.write()  # while its child lives
    assert file.read_text() == f"{os.getpid()}\n"
    os.unlink(file)
    mine.write()  # as after a reload
    assert file.read_text() == f"{os.getpid()}\n"
    mine.remove()
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("refused", ["link", "flock"])
def test_file_where_the_file_system_can_do_little(
    refused: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr({"link": os, "flock": fcntl}[refused], refused, refuse)
    file = tmp_path / "server.pid"
    for _ in range(2):
        mine = PidFile(str(file))
        mine.write()
        mine.let_go()
        assert file.read_text() == f"{os.getpid()}\n"
        assert os.listdir(tmp_path) == ["server.pid"]
    assert ("cannot be locked" in caplog.text) is (refused == "flock")
