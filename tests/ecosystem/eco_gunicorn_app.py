"""An aiohttp application that gunicorn serves; named on the command line."""

from __future__ import annotations

import asyncio
import os

from aiohttp import web


async def _pid(request: web.Request) -> web.Response:
    return web.Response(text=str(os.getpid()))


async def _loop(request: web.Request) -> web.Response:
    loop = type(asyncio.get_running_loop())
    return web.Response(text=f"{loop.__module__}.{loop.__qualname__}")


app = web.Application()
app.add_routes([web.get("/", _pid), web.get("/loop", _loop)])
