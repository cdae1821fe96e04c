"""Coroutines on the standard library's event loop.

The idea of the hand-written scheduler, grown up: ``await`` marks where others may run, and
an error in one task ends that task alone. Thousands of clients cost little. The number is
still computed in the loop's only thread, so a long one stops everybody.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from functools import partial

from ..fib import fib
from ..protocol import MAX_LINE, BadLine, parse
from ..serving import on_sigterm_cancel, refuse_async


def serve(listener: socket.socket, limit: int, workers: int) -> None:
    """Run the loop."""
    with suppress(asyncio.CancelledError):
        asyncio.run(main(listener, limit))


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
            except BadLine as bad:
                writer.write(bad.answer)
            else:
                writer.write(b"%d\n" % fib(n))
            await writer.drain()
    except asyncio.LimitOverrunError:
        await refuse_async(reader, writer)
    except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
        pass  # The client has left, or the server stops.
    finally:
        writer.close()
