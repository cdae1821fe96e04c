"""Coroutines on plait's loop, and a decorator that decides where to compute.

The program of plait, where the number is awaited instead of computed in place. ``compute``
starts at once, in the loop's own thread; most numbers are there before a millisecond is
over, and such a request costs no trip. One that takes longer is interrupted and starts again
in a worker process, and the next of its size goes there at once. Nobody had to say which
numbers are long.
"""

from __future__ import annotations

import asyncio
import socket
from concurrent.futures import BrokenExecutor
from contextlib import suppress
from functools import partial

import plait

from ..fib import fib
from ..protocol import MAX_LINE, BadLine, parse
from ..serving import on_sigterm_cancel, refuse_async


@plait.task(pure=True, budget=0.001)
def compute(n: int) -> int:
    """Compute a Fibonacci number, wherever that is best."""
    return fib(n)


def serve(listener: socket.socket, limit: int, workers: int) -> None:
    """Start the pool, then run the loop."""
    pool = plait.ProcessPool(workers)
    plait.auto.use_pool(pool)
    try:
        list(pool.map(fib, [1] * workers))  # Starts the workers.
        with suppress(asyncio.CancelledError):
            plait.run(main(listener, limit))
    finally:
        pool._terminate()  # At once: shutdown would let running numbers be finished.


async def main(listener: socket.socket, limit: int) -> None:
    """Serve until this task is cancelled."""
    on_sigterm_cancel()
    server = await asyncio.start_server(partial(client, limit), sock=listener, limit=MAX_LINE)
    try:
        await asyncio.Event().wait()
    finally:
        server.close()


async def client(limit: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one client until it leaves."""
    try:
        while True:
            line = await reader.readuntil(b"\n")
            try:
                n = parse(line, limit)
                writer.write(b"%d\n" % await compute(n))
            except BadLine as bad:
                writer.write(bad.answer)
            except plait.WorkerDied as died:
                # It failed this request; the pool has a new worker for the next.
                writer.write(b"error: the worker died (pid %d)\n" % died.pid)
            except BrokenExecutor:
                # Only when workers cannot be started any more.
                writer.write(b"error: the process pool is broken\n")
            await writer.drain()
    except asyncio.LimitOverrunError:
        await refuse_async(reader, writer)
    except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
        pass  # The client has left, or the server stops.
    finally:
        writer.close()
