"""What the tests of plait.serve share: the command in a child process, and clients."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent


class Log:
    """What a child process writes to stderr, read as it comes."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.lines: list[str] = []
        self._told = threading.Condition()
        self._over = False
        assert process.stderr is not None
        self._stream = process.stderr
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        for line in self._stream:
            with self._told:
                self.lines.append(line)
                self._told.notify_all()
        with self._told:
            self._over = True
            self._told.notify_all()

    @property
    def text(self) -> str:
        return "".join(self.lines)

    def wait_for(self, pattern: str, count: int = 1) -> re.Match[str]:
        """Wait until a pattern was written so often; the last match."""

        def found() -> list[re.Match[str]]:
            return list(re.finditer(pattern, self.text))

        with self._told:
            over = self._told.wait_for(lambda: len(found()) >= count or self._over, 100)
            matches = found()
        assert over, f"{pattern!r} was not written in time:\n{self.text}"
        assert len(matches) >= count, f"{pattern!r} was not written:\n{self.text}"
        return matches[-1]

    def close(self) -> None:
        """Wait for the end; the process, and all that have its stderr, have ended or will."""
        self._reader.join(100)
        if not self._reader.is_alive():
            self._stream.close()


_AS_SYSTEMD = 'exec 3<&0 </dev/null; export LISTEN_PID=$$ LISTEN_FDS=1; exec "$@"'


class Server:
    """``plait serve`` in a child process; what it logs is read as it comes.

    Args:
        target: what is served, of serve_targets unless it names a module.
        *options: for the command.
        bind: where; an address of its own by default.
        path: a directory with more modules.
        program: a file to run instead of the command.
        place: where to start.
        terminal: whether a terminal of its own controls it.
        activated: what it gets as from systemd, instead of `bind`.
        **variables: for its environment.
    """

    def __init__(
        self,
        target: str,
        *options: str,
        bind: str = "127.0.0.1:0",
        path: Path = HERE,
        program: str | None = None,
        place: Path | None = None,
        terminal: bool = False,
        activated: socket.socket | None = None,
        **variables: str,
    ) -> None:
        module = target if ":" in target else f"serve_targets:{target}"
        command = ["-m", "plait", "serve", module, "--app-dir", str(path)]
        start = ["sh", "-c", _AS_SYSTEMD, "sh"]
        if activated is None:
            start = []
            command += ["--bind", bind]
        if place is not None:
            variables["PWD"] = str(place)  # as a shell says it
        command += ["--log-level", "debug", *options]
        self._terminal = os.openpty() if terminal else ()
        self.process = subprocess.Popen(
            [*start, sys.executable, *([program] if program else command)],
            stdin=activated or subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=place,
            env={**environment(), **variables},
            start_new_session=True,  # away from the terminal, if there is one
            preexec_fn=self._take_terminal if terminal else None,
        )
        self._log = Log(self.process)

    def _take_terminal(self) -> None:
        # Who leads a session without one gets the first that it opens.
        os.close(os.open(os.ttyname(self._terminal[1]), os.O_RDWR))

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            self.process.kill()  # its workers end with it
        self.process.wait()
        self._log.close()
        for fd in self._terminal:
            os.close(fd)

    @property
    def lines(self) -> list[str]:
        return self._log.lines

    @property
    def log(self) -> str:
        return self._log.text

    def wait_for(self, pattern: str, count: int = 1) -> re.Match[str]:
        """Wait until a pattern was logged so often; the last match."""
        return self._log.wait_for(pattern, count)

    def address(self) -> tuple[str, int]:
        host, _, port = self.wait_for(r"serving on ([0-9.:]+) with").group(1).rpartition(":")
        return host, int(port)

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Let a signal end it; its exit code."""
        self.send(number)
        code = self.process.wait(100)
        self._log.close()
        return code

    def workers(self) -> list[int]:
        """The numbers of its worker processes."""
        return children(self.process.pid)


def children(pid: int) -> list[int]:
    """The numbers of a process's child processes."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


def gone(pid: int) -> bool:
    """Whether a process has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):  # or while it was read
        return True


class Client:
    """A connection to ``commands``."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.sock = socket.create_connection(address, timeout=100)
        self._file = self.sock.makefile("rb")

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()
        self.sock.close()

    def send(self, line: str) -> None:
        self.sock.sendall(line.encode() + b"\n")

    def line(self) -> str:
        """The next line; empty at the end."""
        return self._file.readline().decode().strip()

    def ask(self, line: str) -> str:
        self.send(line)
        return self.line()


def ask(address: tuple[str, int], line: str) -> str:
    """One question on a connection of its own."""
    with Client(address) as client:
        return client.ask(line)


def short_connections(address: tuple[str, int], total: int, at_a_time: int = 16) -> Counter[int]:
    """Make short connections, some at a time; how many each process has answered."""
    answers: Counter[int] = Counter()
    open_now: dict[int, socket.socket] = {}
    started = 0
    with contextlib.closing(select.epoll()) as poller:
        while started < total or open_now:
            while started < total and len(open_now) < at_a_time:
                sock = socket.create_connection(address)
                # So no port is left in TIME_WAIT.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                sock.send(b"?\n")
                open_now[sock.fileno()] = sock
                poller.register(sock, select.EPOLLIN)
                started += 1
            for fd, _ in poller.poll(30):
                sock = open_now.pop(fd)
                answers[int(sock.recv(64))] += 1
                sock.close()
    return answers


@contextlib.contextmanager
def load(address: tuple[str, int], line: str, clients: int) -> Iterator[list[str]]:
    """Ask again and again, on a connection each; yields what went wrong, and answers."""
    stop = threading.Event()
    outcomes: list[str] = []

    def run() -> None:
        while not stop.is_set():
            try:
                answer = ask(address, line)
                outcomes.append("ok" if answer.isdigit() else f"answered {answer!r}")
            except OSError as error:
                outcomes.append(repr(error))

    threads = [threading.Thread(target=run) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield outcomes
    finally:
        stop.set()
        for thread in threads:
            thread.join(100)


def environment() -> dict[str, str]:
    """The environment for scripts that import the targets."""
    return {**os.environ, "PYTHONPATH": str(HERE)}
