"""What fixtures and tests of this directory share: a server process, and its address."""

from __future__ import annotations

import asyncio
import http.client
import os
import shutil
import signal
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable
from typing import Any, NamedTuple


def open_kernel_objects() -> set[str]:
    """Describe the sockets, pipes and pollers that this process has open."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:  # the listing's own
            continue
        if target.startswith(("socket:", "pipe:", "anon_inode:")):
            found.add(f"{fd} -> {target}")
    return found


def child_environment(loop_name: str) -> dict[str, str]:
    """What a child has to be told to take this loop's backend."""
    return {**os.environ, "PLAIT_BACKEND": "uring" if loop_name == "plait-uring" else "auto"}


class Pki(NamedTuple):
    """Contexts and files of one self-made authority, for "localhost" and 127.0.0.1."""

    server: ssl.SSLContext
    mutual: ssl.SSLContext  # a server that demands a client certificate
    client: ssl.SSLContext
    known_client: ssl.SSLContext  # a client that has a certificate
    ca_file: str
    cert_file: str
    key_file: str
    client_cert_file: str
    client_key_file: str


async def until_stalled(count: Callable[[], int]) -> None:
    """Wait until something has moved and then stands still.

    That nobody gets any further is told by no event: flow control has stopped all of them.
    """
    before = -1
    while count() != before or before == 0:
        before = count()
        await asyncio.sleep(0.05)


def free_port() -> int:
    """A TCP port of loopback that nobody listened on a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


class Daemon:
    """A server process that says in its log when it is ready.

    Args:
        argv: program and arguments.
        ready: the text that it logs when it accepts connections.
        user: whom it runs as when we are root; None keeps our own.
        timeout: seconds until it must be ready.

    It dies with us, however we end, where setpriv is installed.
    """

    def __init__(
        self, argv: list[str], ready: str, *, user: str | None = None, timeout: float = 60.0
    ) -> None:
        self.lines: list[str] = []
        self._ready = threading.Event()
        setpriv = shutil.which("setpriv")
        as_user: dict[str, Any] = {}
        if setpriv is not None:
            change = []
            if user is not None:
                change = [f"--reuid={user}", f"--regid={user}", "--clear-groups"]
            argv = [setpriv, *change, "--pdeathsig=INT", "--", *argv]
        elif user is not None:
            as_user = {"user": user, "group": user, "extra_groups": []}
        self.process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd="/",
            env={**os.environ, "LC_ALL": "C"},
            text=True,
            **as_user,
        )
        self._reader = threading.Thread(target=self._read, args=(ready,), daemon=True)
        self._reader.start()
        if not self._ready.wait(timeout) or self.process.poll() is not None:
            self.stop()
            raise RuntimeError(f"{argv} is not ready:\n{''.join(self.lines)}")

    def _read(self, ready: str) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if ready in line:
                self._ready.set()
        self._ready.set()  # it ended

    def stop(self) -> None:
        """End it: in order, or by force after 20 seconds."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join(10)
        assert self.process.stdout is not None
        self.process.stdout.close()


class Postgres(NamedTuple):
    """Where PostgreSQL listens; everyone may log in, over TLS or not."""

    host: str
    port: int
    user: str
    directory: str


class Redis(NamedTuple):
    """Where Redis listens."""

    port: int
    tls_port: int | None  # None: it was built without TLS
    unix_socket: str


def get(address: tuple[str, int], path: str = "/") -> str:
    """Ask for a path on a connection of its own; the text of the answer, which is a 200."""
    connection = http.client.HTTPConnection(*address, timeout=30)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        assert answer.status == 200
        return answer.read().decode()
    finally:
        connection.close()
