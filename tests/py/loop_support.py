"""What the loop's tests share."""

from __future__ import annotations

import asyncio
import socket


async def polled() -> None:
    """Return when the poller has been asked, and what it said before has been handled.

    For tests that show that something does not happen: all that was ready when this was
    called has had its callbacks.
    """
    loop = asyncio.get_running_loop()
    asked: asyncio.Future[None] = loop.create_future()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.send(b"x")
        # After what is registered already; and the next time all of it is reported again.
        for _ in range(2):
            asked = loop.create_future()
            loop.add_reader(ours, asked.set_result, None)
            await asked
            loop.remove_reader(ours)
