"""An ASGI application that a server under test serves; also the child's in test_eco_uvicorn."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket, WebSocketDisconnect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request
    from starlette.responses import Response

CHUNK = b"0123456789abcdef" * 4096  # 64 KiB


class Log:
    """What the application saw, for the test to look at."""

    def __init__(self) -> None:
        self.chunks_made = 0
        self.bytes_taken = 0
        self.may_take = asyncio.Event()
        self.ended: asyncio.Queue[str] = asyncio.Queue()
        self.started: asyncio.Queue[str] = asyncio.Queue()
        self.go_on = asyncio.Event()


def make_app(log: Log, directory: str | None = None) -> Starlette:
    """Build the application.

    Args:
        log: where it writes what it sees.
        directory: what it serves under /static; nothing when None.
    """

    async def plain(request: Request) -> Response:
        return PlainTextResponse("Hello, world")

    async def who(request: Request) -> Response:
        assert request.client is not None
        return PlainTextResponse(f"{request.client.port} {request.url.scheme}")

    async def echo(request: Request) -> Response:
        return PlainTextResponse(await request.body())

    async def stream(request: Request) -> Response:
        count = int(request.query_params["chunks"])
        watch = "watch" in request.query_params

        async def body() -> AsyncIterator[bytes]:
            try:
                for _ in range(count):
                    if watch and await request.is_disconnected():
                        log.ended.put_nowait("disconnected")
                        return
                    log.chunks_made += 1
                    yield CHUNK
                log.ended.put_nowait("complete")
            except asyncio.CancelledError:
                log.ended.put_nowait("cancelled")
                raise

        return StreamingResponse(body())

    async def take(request: Request) -> Response:
        await log.may_take.wait()
        async for part in request.stream():
            log.bytes_taken += len(part)
        return PlainTextResponse(str(log.bytes_taken))

    async def wait(request: Request) -> Response:
        log.started.put_nowait("wait")
        await log.go_on.wait()
        return PlainTextResponse("waited")

    async def fail(request: Request) -> Response:
        raise RuntimeError("this handler fails")

    async def socket(ws: WebSocket) -> None:
        await ws.accept()
        try:
            while True:
                await ws.send_bytes(await ws.receive_bytes())
        except WebSocketDisconnect as exc:
            log.ended.put_nowait(f"websocket {exc.code}")

    routes: list[Any] = [
        Route("/", plain),
        Route("/who", who),
        Route("/echo", echo, methods=["POST"]),
        Route("/stream", stream),
        Route("/take", take, methods=["POST"]),
        Route("/wait", wait),
        Route("/fail", fail),
        WebSocketRoute("/ws", socket),
    ]
    if directory is not None:
        routes.append(Mount("/static", StaticFiles(directory=directory)))
    return Starlette(routes=routes)


def child_app() -> Any:
    """The application of the child process: /wait answers after SIGTERM has come.

    /loop names the loop's class; /pid the process.
    """
    log = Log()
    app = make_app(log)

    async def loop_name(request: Request) -> Response:
        cls = type(asyncio.get_running_loop())
        return PlainTextResponse(f"{cls.__module__}.{cls.__qualname__} {os.getpid()}")

    async def announce(request: Request) -> Response:
        """Answers in two parts: the second when /release was asked for."""

        async def body() -> AsyncIterator[bytes]:
            yield b"begun\n"
            await log.go_on.wait()
            yield b"ended\n"

        return StreamingResponse(body())

    async def release(ws: WebSocket) -> None:
        """Ends what /announce waits for, when the other side says so or leaves."""
        await ws.accept()
        try:
            await ws.receive_text()
            await ws.receive_text()
        except WebSocketDisconnect:
            log.go_on.set()

    app.router.routes += [
        Route("/loop", loop_name),
        Route("/announce", announce),
        WebSocketRoute("/release", release),
    ]
    return app
