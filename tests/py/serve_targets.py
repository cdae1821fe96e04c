"""What the tests of plait.serve let workers serve; imported by name in the workers."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from typing import Any

import plait


class Short(asyncio.Protocol):
    """Answers the first bytes with the process's number, and closes."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(b"%d\n" % os.getpid())
        self.transport.close()


async def commands(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Do what each line says."""
    while line := (await reader.readline()).decode().strip():
        if line == "pid":
            writer.write(b"%d\n" % os.getpid())
        elif line == "slow":
            # In the time that a worker has to end what it has begun.
            serving = plait.serving()
            assert serving is not None
            await serving.wait_draining()
            writer.write(b"%d\n" % os.getpid())
        elif line == "child":
            # A signal that a shell has been started with as ignored, it cannot handle.
            script = 'trap "echo heard" USR2; kill -USR2 $$; echo over'
            said = subprocess.check_output(["sh", "-c", script])
            writer.write(b"-".join(said.split()) + b"\n")
        elif line == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif line == "hang":
            this_is_where_it_hangs()
        elif line == "statistics":
            serving = plait.serving()
            assert serving is not None
            figures = serving.statistics()
            text = " ".join(f"{f.seat}:{f.state}:{f.connections}" for f in figures)
            writer.write(f"{serving.seat} {text}\n".encode())
        elif line == "drain":
            serving = plait.serving()
            assert serving is not None
            writer.write(b"waiting\n")
            await serving.wait_draining()
            assert serving.draining
            writer.write(b"draining\n")
            break
        await writer.drain()
    writer.close()


def this_is_where_it_hangs() -> None:
    while True:  # a loop that does not turn is what is tested
        signal.pause()


def make() -> Any:
    """A factory of what is to be served."""
    return commands


async def no_factory() -> None:
    """Async, as factories are not."""


def fail_in_factory() -> Any:
    raise RuntimeError("the factory has failed")


def die_at_start() -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def die_soon() -> Any:
    from plait import _serve_worker

    ready = _serve_worker._Worker.ready

    def ready_and_over(self: Any) -> None:
        ready(self)
        os._exit(7)

    _serve_worker._Worker.ready = ready_and_over  # type: ignore[method-assign]
    return commands


async def application(scope: Any, receive: Any, send: Any) -> None:
    """An ASGI application, for what needs no server to be looked at."""


class Application:
    """One with a method for it, as frameworks have."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Do nothing."""
