"""ASGI applications that workers of plait.serve serve; named on the command line."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Any

import plait


async def _lifespan(receive: Any, send: Any) -> None:
    while True:
        message = await receive()
        print(f"{message['type']} in {os.getpid()}", file=sys.stderr, flush=True)
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def _end_is_near() -> None:
    """Wait until plait.serve says that the worker is to end; elsewhere for SIGUSR1."""
    serving = plait.serving()
    told = asyncio.Event()
    if serving is None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, told.set)
    print(f"slow request in {os.getpid()}", file=sys.stderr, flush=True)
    await (serving.wait_draining() if serving is not None else told.wait())


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answer with the process's number; /slow waits for the end; /loop names the loop."""
    if scope["type"] == "lifespan":
        await _lifespan(receive, send)
        return
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (await receive())["type"] != "websocket.disconnect":
            await send({"type": "websocket.send", "text": str(os.getpid())})
        return
    body = b"%d" % os.getpid()
    if scope["path"] == "/slow":
        await _end_is_near()
    elif scope["path"] == "/loop":
        loop = type(asyncio.get_running_loop())
        body = " ".join(f"{base.__module__}.{base.__qualname__}" for base in loop.__mro__).encode()
    elif scope["path"] == "/scheme":
        body = scope["scheme"].encode()
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def make() -> Any:
    """A factory of the application."""
    return app


async def broken(scope: Any, receive: Any, send: Any) -> None:
    """One whose start fails."""
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})
