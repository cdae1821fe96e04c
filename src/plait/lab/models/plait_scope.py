"""One scope that everything is started in: clients on the loop, numbers in processes.

The accepting coroutine and each client are children of the scope, and each number is a child
that runs in a worker process. So there is one place where the program ends: SIGTERM cancels
the scope, which stops clients at their next await and numbers wherever they are, and waits
until they have stopped. A client's error is its own: what is not caught here would end the
server.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

import plait

from ..fib import fib
from ..protocol import MAX_LINE, BadLine, parse
from ..serving import STARVED, on_sigterm_cancel, refuse_async


def serve(listener: socket.socket, limit: int, workers: int) -> None:
    """Run the loop; the scope's process pool has as many workers as there are processors."""
    # A number that has not stopped in time is named in Unstopped; its process ends with ours.
    with suppress(asyncio.CancelledError, plait.Unstopped):
        plait.run(main(listener, limit))


async def main(listener: socket.socket, limit: int) -> None:
    """Serve until this task is cancelled."""
    on_sigterm_cancel()
    loop = asyncio.get_running_loop()
    listener.setblocking(False)
    async with plait.scope(name="server") as s:
        await s.start(fib, 1, where="process")  # Starts the workers.
        while True:
            try:
                conn, _ = await loop.sock_accept(listener)
            except ConnectionError:
                continue  # It was gone before we took it.
            except OSError as error:
                if error.errno not in STARVED:
                    raise
                # The client stays in the queue of the system until a descriptor is free.
                await asyncio.sleep(0.1)
                continue
            s.start(client, s, conn, limit)


async def client(s: plait.Scope, conn: socket.socket, limit: int) -> None:
    """Answer one client until it leaves."""
    with suppress(asyncio.IncompleteReadError, ConnectionError):
        reader, writer = await asyncio.open_connection(sock=conn, limit=MAX_LINE)
        try:
            while True:
                line = await reader.readuntil(b"\n")
                writer.write(await answer(s, line, limit))
                await writer.drain()
        except asyncio.LimitOverrunError:
            await refuse_async(reader, writer)
        finally:
            writer.close()


async def answer(s: plait.Scope, line: bytes, limit: int) -> bytes:
    """The answer to one line."""
    try:
        n = parse(line, limit)
    except BadLine as bad:
        return bad.answer
    return b"%d\n" % await s.start(fib, n, where="process")
