"""Coroutines on plait's loop, and plait's process pool to compute.

The program of asyncio+processes with both parts exchanged. The pool passes numbers through
rings in shared memory, and a future of the pool is awaited by the loop itself: no queue, no
pipe and no collecting thread lie between the two. Every request still takes the trip.
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


def serve(listener: socket.socket, limit: int, workers: int) -> None:
    """Start the pool, then run the loop."""
    pool = plait.ProcessPool(workers)
    try:
        list(pool.map(fib, [1] * workers))  # Starts the workers.
        with suppress(asyncio.CancelledError):
            plait.run(main(listener, limit, pool))
    finally:
        pool.shutdown(timeout=0)  # At once: nobody waits for the numbers any more.


async def main(listener: socket.socket, limit: int, pool: plait.ProcessPool) -> None:
    """Serve until this task is cancelled."""
    on_sigterm_cancel()
    handler = partial(client, limit, pool)
    server = await asyncio.start_server(handler, sock=listener, limit=MAX_LINE)
    try:
        await asyncio.Event().wait()
    finally:
        server.close()


async def client(
    limit: int,
    pool: plait.ProcessPool,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> None:
    """Answer one client until it leaves."""
    try:
        while True:
            line = await reader.readuntil(b"\n")
            try:
                n = parse(line, limit)
                writer.write(b"%d\n" % await pool.submit(fib, n))
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
