"""ASGI applications in a worker of plait.serve, by uvicorn's protocols."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._serve_setup import Setup
    from ._serve_worker import _Worker

__all__ = ["need_uvicorn", "serve_asgi"]

_CLOSE = (b"connection", b"close")

# What plait.serve decides itself; its own arguments say so.
RESERVED = frozenset(
    [
        "app",
        "host",
        "port",
        "uds",
        "fd",
        "loop",
        "workers",
        "reload",
        "factory",
        "backlog",
        "ssl_keyfile",
        "ssl_certfile",
    ]
)


def need_uvicorn() -> Any:
    """Import uvicorn.

    Raises:
        RuntimeError: it is not installed.
    """
    try:
        import uvicorn
    except ModuleNotFoundError as error:
        if error.name != "uvicorn":
            raise
        raise RuntimeError(
            "an ASGI application is served by uvicorn, which is not installed: pip install uvicorn"
        ) from None
    return uvicorn


class _Last:
    """An application that asks the client to come back on another connection."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_last(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = [h for h in message.get("headers", ()) if h[0].lower() != b"connection"]
                message = {**message, "headers": [*headers, _CLOSE]}
            await send(message)

        await self._app(scope, receive, send_last if scope["type"] == "http" else send)


def _last_answer(connection: Any, app: _Last) -> None:
    """Let a connection of uvicorn's close with its next answer, and say so in it."""
    if hasattr(connection, "app"):
        connection.app = app  # of requests to come
    # Of the request under way: only uvicorn's httptools then says so in its answer. Where it is
    # not said the connection must stay, for the next request.
    cycle: Any = getattr(connection, "cycle", None)
    if type(cycle).__module__.endswith(".httptools_impl") and not cycle.response_started:
        cycle.keep_alive = False


async def serve_asgi(worker: _Worker, setup: Setup, app: Any, context: Any) -> None:
    """Serve an application until the worker is told to end.

    A worker that leaves answers for a moment longer on connections that it has, and closes
    each with its answer: so a client that had just sent a request on an idle connection is
    not met by its end.
    """
    from ._serve_worker import LINGER

    uvicorn = need_uvicorn()

    class Server(uvicorn.Server):  # type: ignore[misc,name-defined]
        """uvicorn's server, with its signals left to the worker."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

        def install_signal_handlers(self) -> None:
            """Of versions before 0.29."""

        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets=sockets)
            if self.started:
                worker.ready()

    options = {"log_config": None, "access_log": False, **setup.options}
    config = uvicorn.Config(app, loop="none", backlog=setup.backlog, **options)
    config.load()
    if context is not None:
        config.ssl = context
    server = Server(config)
    # uvicorn closes what it is given when it ends.
    run = asyncio.ensure_future(server.serve(sockets=list(setup.sockets)))
    told = asyncio.ensure_future(worker.told())
    await asyncio.wait((run, told), return_when=asyncio.FIRST_COMPLETED)
    if run.done():  # its own end: it could not start, or has had its limit of requests
        told.cancel()
        worker.withdraw()
        worker.drain()
        run.result()
        if not server.started:
            raise RuntimeError("the application's lifespan ended before it was started")
        return
    patient = told.result()
    for listening in server.servers:
        listening.close()
    if patient:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        await asyncio.sleep(0)  # what was accepted last is among the connections in the next turn
        config.loaded_app = _Last(config.loaded_app)
        for connection in list(server.server_state.connections):
            _last_answer(connection, config.loaded_app)
        worker.drain()
        await worker.until(
            lambda: not server.server_state.connections, min(LINGER, setup.grace / 2)
        )
        config.timeout_graceful_shutdown = max(0.0, setup.grace - (loop.time() - begun))
    else:
        worker.drain()
        config.timeout_graceful_shutdown = 0
        server.force_exit = True
    server.should_exit = True
    quick = asyncio.ensure_future(worker._quick.wait())
    await asyncio.wait((run, quick), return_when=asyncio.FIRST_COMPLETED)
    quick.cancel()
    if not run.done():
        server.force_exit = True
        await asyncio.wait((run,), timeout=1.0)
    if run.done():
        run.result()
