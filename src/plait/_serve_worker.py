"""A worker process of plait.serve: one loop, one target, and an end in good order."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import faulthandler
import gc
import logging
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

from . import _core
from ._loop import Loop
from ._serve_setup import Setup, counted
from ._serve_target import Target, Unservable, resolve, why
from ._serving import begin, serving

__all__ = ["reopen_logs", "run"]

BEAT = 0.1  # seconds between two beats: how long a connection can be overlooked at most
LINGER = 1.0  # seconds for which idle HTTP connections may still ask, when their worker leaves
POLL = 0.02
QUICK = 1.0  # seconds for a quick end

# What the supervisor handles and a worker must not die of, or stop.
_IGNORED = (signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU)
_OURS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1)


class WorkerLoop(Loop):
    """The loop of a worker: it counts as serving from its first listener on."""

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self._board = setup.rota
        self._rotas.update({sock.fileno(): setup.rota for sock in setup.sockets})

    def _start_serving(self, protocol_factory: Any, sock: Any, *args: Any, **kwargs: Any) -> None:
        if sock.fileno() in self._rotas:
            self._board.join()
        super()._start_serving(protocol_factory, sock, *args, **kwargs)

    def _stop_serving(self, sock: Any) -> None:
        self._rotas.pop(sock.fileno(), None)
        super()._stop_serving(sock)


def reopen_logs() -> None:
    """Open every file that logging writes to again, for whoever has moved it away."""
    for reference in list(logging._handlerList):  # type: ignore[attr-defined]
        handler = reference()
        if isinstance(handler, logging.FileHandler) and handler.stream is not None:
            with handler.lock or contextlib.nullcontext():
                handler.stream.close()
                handler.stream = handler._open()


def run(setup: Setup, seat: int, control: socket.socket, parent: int) -> int:
    """Be a worker until told to end, in a process forked for it.

    Args:
        setup: what to serve.
        seat: which place on the board.
        control: where to say "ready" or what went wrong; it ends when the supervisor does.
        parent: the supervisor's process.

    Returns:
        The exit code: 0 after an end in good order.
    """
    _core.die_with_parent(parent)
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    # What is ignored stays so in programs that the worker starts, and a handler does not.
    signal.signal(signal.SIGUSR2, _not_meant)
    signal.signal(signal.SIGWINCH, signal.SIG_DFL)  # which is to ignore it
    for number in _OURS:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    atexit._clear()  # those were the parent's
    gc.freeze()  # what is shared with the parent stays unwritten
    with contextlib.suppress(Exception):  # where stderr is no file
        faulthandler.enable()
    setup.rota.sit(seat)
    try:
        with asyncio.Runner(loop_factory=lambda: WorkerLoop(setup)) as runner:
            runner.run(_Worker(setup, seat, control).main())
    except (Exception, SystemExit) as error:
        _tell(control, error)
        return 1
    return 0


def _not_meant(number: int, frame: Any) -> None:
    """Handle what was meant for the supervisor, and sent to its whole group."""


def leave(code: int) -> None:
    """End the process: what it registered itself, its output, and nothing of the parent's."""
    try:
        atexit._run_exitfuncs()
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    finally:
        os._exit(code)


def _tell(control: socket.socket, error: BaseException) -> None:
    word = b"failed "
    if isinstance(error, Unservable):
        word, text = b"unservable ", str(error)
    elif isinstance(error, SystemExit):
        text = f"it ended by SystemExit({error.code!r})"
    else:
        text = "".join(traceback.format_exception(error)).rstrip()
    with contextlib.suppress(OSError):
        control.setblocking(False)
        control.send(word + text.encode(errors="replace")[-60_000:])


class _Worker:
    """The work of a worker's loop."""

    def __init__(self, setup: Setup, seat: int, control: socket.socket) -> None:
        self._setup = setup
        self._seat = seat
        self._control = control
        self._servers: list[asyncio.Server] = []
        self._leave = asyncio.Event()
        self._quick = asyncio.Event()

    async def main(self) -> None:
        loop = asyncio.get_running_loop()
        setup = self._setup
        begin(setup, self._seat)
        target = self._target()
        context = None if setup.ssl is None else setup.ssl()
        loop.add_signal_handler(signal.SIGTERM, self._leave.set)
        for number in (signal.SIGINT, signal.SIGQUIT):
            loop.add_signal_handler(number, self._quick.set)
        loop.add_signal_handler(signal.SIGUSR1, reopen_logs)
        self._control.setblocking(False)
        loop.add_reader(self._control, self._on_control)
        self._beat()
        if target.kind == "asgi":
            await self._serve_asgi(target, context)
        else:
            await self._serve_sockets(target, context)

    def _target(self) -> Target:
        """Find out what to serve.

        Raises:
            Unservable: it cannot be served.
        """
        setup = self._setup
        try:
            target = resolve(setup.target, setup.kind, setup.factory, setup.words)
            if setup.options and target.kind != "asgi":
                raise ValueError(
                    f"{setup.words.options} is for ASGI applications, and this is of kind "
                    f"{target.kind!r}"
                )
        except (Exception, SystemExit) as error:
            raise Unservable(why(setup.target, error)) from None
        return target

    def _on_control(self) -> None:
        # The supervisor says nothing: this is its end.
        if not self._control.recv(1):
            os._exit(1)

    def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Loop)
        self._setup.rota.beat(loop)
        for listener in loop._listeners.values():
            listener.look()
        loop.call_later(BEAT, self._beat)

    def ready(self) -> None:
        """Tell the supervisor that connections are served."""
        self._control.send(b"ready")

    async def told(self) -> bool:
        """Wait until this worker is to end. Whether in good order."""
        waits = [asyncio.ensure_future(e.wait()) for e in (self._leave, self._quick)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        self.withdraw()
        return not self._quick.is_set()

    def withdraw(self) -> None:
        """Leave new connections to the others."""
        self._setup.rota.leave()

    def drain(self) -> None:
        """Tell the program that what it has now is the last, once all is ready for that."""
        this = serving()
        assert this is not None
        this._draining.set()

    async def until(self, done: Callable[[], bool], seconds: float) -> bool:
        """Wait for a condition that nobody tells of. False when time or patience ends."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while not done():
            if loop.time() >= end or self._quick.is_set():
                return False
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._quick.wait(), POLL)
        return True

    # ---- protocols and streams ----

    async def _serve_sockets(self, target: Target, context: Any) -> None:
        loop = asyncio.get_running_loop()
        for sock in self._setup.sockets:
            start: Callable[..., Awaitable[asyncio.Server]] = (
                asyncio.start_server if target.kind == "streams" else loop.create_server
            )
            self._servers.append(
                await start(target.call, sock=sock, ssl=context, backlog=self._setup.backlog)
            )
        self.ready()
        patient = await self.told()
        for server in self._servers:
            server.close()
        self.drain()
        grace = self._setup.grace if patient else 0.0
        if not await self.until(lambda: self._connections() == 0, grace) and patient:
            _log.warning(
                "worker %d cuts %s that did not end within %g s of grace",
                os.getpid(), counted(self._connections(), "connection"), grace,
            )  # fmt: skip

    def _connections(self) -> int:
        count = 0
        for server in self._servers:
            clients = getattr(server, "_clients", None)  # from Python 3.13 on
            count += server._active_count if clients is None else len(clients)  # type: ignore[attr-defined]
        return count

    # ---- ASGI ----

    async def _serve_asgi(self, target: Target, context: Any) -> None:
        from ._serve_asgi import serve_asgi

        await serve_asgi(self, self._setup, target.call, context)


_log = logging.getLogger("plait.serve")


def main_thread_only() -> bool:
    """Whether this is the main thread, which alone may handle signals."""
    return threading.current_thread() is threading.main_thread()
