"""Coroutines on the standard library's loop, and its process pool to compute.

The loop hands each number to a process and awaits the answer: it never computes, so it
never stops. But a request now passes the loop, a queue, a pipe, a worker, another pipe, a
thread that collects results, and the loop's wake-up.
"""

from __future__ import annotations

import asyncio
import socket
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import suppress
from functools import partial

from ..fib import fib
from ..protocol import MAX_LINE, BadLine, parse
from ..serving import end_pool, on_sigterm_cancel, refuse_async, start_pool


def serve(listener: socket.socket, limit: int, workers: int) -> None:
    """Start the pool, then run the loop."""
    pool = start_pool(workers)
    try:
        with suppress(asyncio.CancelledError):
            asyncio.run(main(listener, limit, pool))
    finally:
        end_pool(pool)


async def main(listener: socket.socket, limit: int, pool: ProcessPoolExecutor) -> None:
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
    pool: ProcessPoolExecutor,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> None:
    """Answer one client until it leaves."""
    loop = asyncio.get_running_loop()
    try:
        while True:
            line = await reader.readuntil(b"\n")
            try:
                n = parse(line, limit)
                writer.write(b"%d\n" % await loop.run_in_executor(pool, fib, n))
            except BadLine as bad:
                writer.write(bad.answer)
            except BrokenExecutor:
                # One dead worker breaks a pool of the standard library for good.
                writer.write(b"error: the process pool is broken\n")
            await writer.drain()
    except asyncio.LimitOverrunError:
        await refuse_async(reader, writer)
    except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
        pass  # The client has left, or the server stops.
    finally:
        writer.close()
