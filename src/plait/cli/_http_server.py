"""The server of ``plait bench http``: uvicorn with a plain text answer, on a loop by name."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import socket
from typing import Any

__all__ = ["LOOPS", "app", "factory"]

#: Name to module, factory, and the arguments that it is called with.
LOOPS: dict[str, tuple[str, str, dict[str, str]]] = {
    "asyncio": ("asyncio", "SelectorEventLoop", {}),
    "uvloop": ("uvloop", "new_event_loop", {}),
    "zuvloop": ("zuvloop", "new_event_loop", {}),
    "rloop": ("rloop", "new_event_loop", {}),
    "rsloop": ("rsloop", "new_event_loop", {}),
    "plait": ("plait", "Loop", {}),
    "plait-epoll": ("plait", "Loop", {"backend": "epoll"}),
    "plait-uring": ("plait", "Loop", {"backend": "uring"}),
}

_START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/plain"), (b"content-length", b"13")],
}
_BODY = {"type": "http.response.body", "body": b"Hello, world!"}


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answer every request with the same few words."""
    await send(_START)
    await send(_BODY)


def factory(name: str) -> Any:
    """Return what makes a loop of this name.

    Raises:
        ImportError: it is not installed.
        ValueError, OSError: it cannot be made here, as a backend that the kernel refuses.
    """
    module, attribute, arguments = LOOPS[name]
    make = getattr(importlib.import_module(module), attribute)
    make(**arguments).close()
    return lambda: make(**arguments)


def main() -> None:
    """Serve until killed; prints the port first."""
    import uvicorn

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("loop", choices=LOOPS)
    args = parser.parse_args()
    loop = factory(args.loop)()
    asyncio.set_event_loop(loop)
    # asyncio switches Nagle's algorithm off where the socket says that it is TCP, as those of
    # uvicorn by host and port do; with protocol 0 every answer would wait for 40 ms.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(4096)
        config = uvicorn.Config(
            app, loop="none", http="httptools", lifespan="off", log_config=None, access_log=False
        )
        print(sock.getsockname()[1], flush=True)
        loop.run_until_complete(uvicorn.Server(config).serve(sockets=[sock]))


if __name__ == "__main__":
    main()
