"""The event loop: the C core's hot methods joined to asyncio's own rare ones.

``Loop`` inherits from two classes. ``_core.Loop`` (C) comes first: scheduling, timers,
descriptors, transports, listeners and the run. What it does not define comes from the
interpreter's selector loop, which is written against exactly these methods: name
resolution, happy eyeballs, datagrams, pipes, subprocesses, signals. So a program finds
every method with the arguments and errors that its version of Python documents.
"""

from __future__ import annotations

import asyncio
import functools
import os
import selectors
import signal
import socket
import sys
import threading
import warnings
import weakref
from asyncio import base_events, constants, events
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple

from . import _busy, _core
from ._threads import ThreadPool
from ._tls import TLSMethods

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Coroutine
    from concurrent.futures import Executor
    from contextvars import Context

__all__ = ["EventLoopPolicy", "Loop", "install", "new_event_loop", "run"]

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

_private: Any = base_events  # what its stubs leave out
_SENDFILE_BLOCK = 16384  # bytes read and written at a time
_BACKENDS = ("auto", "epoll", "uring")


class _SelectorView:
    """Stands where asyncio's loop keeps its selector; the C core polls instead.

    Args:
        loop: the loop whose watched descriptors it shows.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop = weakref.ref(loop)

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        """Tell what add_reader and add_writer watch of a descriptor.

        Raises:
            KeyError: the descriptor is not watched.
        """
        loop = self._loop()
        handles = None if loop is None else loop._watched(fileobj)
        if handles is None:
            raise KeyError(f"{fileobj!r} is not registered")
        reader, writer = handles
        events = (selectors.EVENT_READ if reader else 0) | (selectors.EVENT_WRITE if writer else 0)
        fd = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        return selectors.SelectorKey(fileobj, fd, events, handles)

    def close(self) -> None:
        """Nothing is open."""


class _Sendfile(asyncio.Protocol):
    """Takes a protocol's place while the loop copies a file into its transport."""

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._transport = transport
        self._protocol = transport.get_protocol()
        self._was_reading = transport.is_reading()
        self._was_paused = bool(transport._protocol_paused)
        self._room: asyncio.Future[None] | None = None
        if self._was_paused:
            self._room = loop.create_future()
        transport.pause_reading()
        transport.set_protocol(self)

    async def drain(self) -> None:
        """Wait until the transport has room, or raise ConnectionError when it has ended."""
        if self._transport.is_closing():
            raise ConnectionError("Connection closed by peer")
        if self._room is not None:
            await self._room

    def give_back(self) -> None:
        """Put the protocol into its place again."""
        self._transport.set_protocol(self._protocol)
        if self._was_reading:
            self._transport.resume_reading()
        paused, self._room = self._room is not None, None
        if self._was_paused and not paused:
            self._protocol.resume_writing()
        elif paused and not self._was_paused:
            self._protocol.pause_writing()

    def pause_writing(self) -> None:
        if self._room is None:
            self._room = self._loop.create_future()

    def resume_writing(self) -> None:
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_exception(exc or ConnectionError("Connection is closed by peer"))
        self._protocol.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        raise RuntimeError("data arrived while reading was paused for sendfile")

    def eof_received(self) -> bool | None:
        raise RuntimeError("end of stream arrived while reading was paused for sendfile")


def _choose_backend(backend: str | None) -> str:
    source = "backend"
    if backend is None:
        source = "PLAIT_BACKEND"
        backend = os.environ.get("PLAIT_BACKEND", "") or "auto"
    if backend not in _BACKENDS:
        raise ValueError(f"{source} must be one of {', '.join(_BACKENDS)}, not {backend!r}")
    # The rule of "auto": epoll, which is no slower for sockets; docs/architecture.md has the
    # figures.
    return "epoll" if backend == "auto" else backend


def _noting_given(method: Any) -> Any:
    """Make a method with a keyword ``sock`` note the sockets that it is given."""

    @functools.wraps(method)
    async def noting(self: Loop, *args: Any, **options: Any) -> Any:
        sock = options.get("sock")
        if isinstance(sock, socket.socket):
            self._given.add(sock)
        return await method(self, *args, **options)

    return noting


class Loop(_core.Loop, TLSMethods, asyncio.SelectorEventLoop):  # type: ignore[misc]
    """An asyncio event loop with its core in C.

    Args:
        backend: how to wait for descriptors: "epoll", "uring" (io_uring), or "auto" for
            the one that is faster for sockets. None reads the environment variable
            PLAIT_BACKEND, and means "auto" without it. Where the kernel refuses io_uring
            (too old, a seccomp filter, a sysctl, a limit) the loop takes epoll and logs a
            warning; the property ``backend`` tells which it is, ``plait doctor`` why.
        busy_poll: for how many seconds, at most, the loop looks for events before it sleeps,
            which takes a processor but no wake-up; from 0, never, to 0.01. It does so only
            while measurements show that events come sooner than a sleep would cost, and nobody
            else wants the processor. None reads the environment variable PLAIT_BUSY_POLL,
            in seconds too, and means 50 us without it, or 0 under a CPU quota or with one
            processor. ``statistics()`` counts the spins.

    Raises:
        ValueError: backend is unknown, or busy_poll out of range.
        TypeError: busy_poll is no number.
        OSError: the system refuses descriptors or memory.

    A loop belongs to the thread that runs it; only call_soon_threadsafe and
    run_in_executor's results may come from others. After a fork the child makes its own.

    Example:
        >>> import asyncio, plait
        >>> async def main() -> str:
        ...     await asyncio.sleep(0)
        ...     return "done"
        >>> with asyncio.Runner(loop_factory=plait.new_event_loop) as runner:
        ...     runner.run(main())
        'done'
    """

    if TYPE_CHECKING:
        # What the interpreter's loop has and its stubs leave out.
        _csock: socket.socket
        _signal_handlers: dict[int, Any]

        def _check_callback(self, callback: Any, method: str) -> None: ...

        _default_executor: Executor | None

        def _check_closed(self) -> None: ...
        def _check_default_executor(self) -> None: ...
        def _check_running(self) -> None: ...
        def _set_coroutine_origin_tracking(self, enabled: bool) -> None: ...
        def _asyncgen_firstiter_hook(self, agen: Any) -> None: ...
        def _asyncgen_finalizer_hook(self, agen: Any) -> None: ...

    def __init__(self, *, backend: str | None = None, busy_poll: float | None = None) -> None:
        self._listeners: dict[int, _core.Listener] = {}
        self._rotas: dict[int, _core.Rota] = {}  # of sockets that other processes share
        # Those that the program made, so that other processes may have them.
        self._given: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        try:
            if _choose_backend(backend) == "uring" and (code := self._use_uring()):
                _private.logger.warning(
                    "io_uring is refused (%s): the loop waits with epoll", os.strerror(code)
                )
            self._set_busy_poll(round(_busy.limit(busy_poll)[0] * 1e9))
            super().__init__(_SelectorView(self))  # type: ignore[arg-type]
        except BaseException:
            self._closed = True  # half made: nothing to warn of when it is dropped
            raise
        _loops.add(self)

    def __del__(self) -> None:
        if hasattr(self, "_listeners"):  # otherwise __init__ was called wrongly: it is empty
            super().__del__()

    # ---- running ----

    def run_forever(self) -> None:
        """Run until stop() is called.

        Raises:
            RuntimeError: the loop is closed, runs already, another loop runs in this
                thread, or the loop was made before a fork.
        """
        self._check_closed()
        self._check_running()
        self._set_coroutine_origin_tracking(self._debug)
        hooks = sys.get_asyncgen_hooks()
        wakeup_fd = self._borrow_wakeup_fd()
        try:
            self._thread_id = threading.get_ident()
            sys.set_asyncgen_hooks(
                firstiter=self._asyncgen_firstiter_hook,
                finalizer=self._asyncgen_finalizer_hook,
            )
            events._set_running_loop(self)
            self._run()
        finally:
            self._stopping = False
            self._thread_id = None
            events._set_running_loop(None)
            self._set_coroutine_origin_tracking(False)
            sys.set_asyncgen_hooks(*hooks)
            self._return_wakeup_fd(wakeup_fd)

    def set_debug(self, enabled: bool) -> None:
        """Turn debug mode on or off; anything with a truth value will do."""
        super().set_debug(bool(enabled))

    def _borrow_wakeup_fd(self) -> int | None:
        """Let signals wake this loop, whichever thread the kernel delivers them to.

        Only the main thread may ask for it, and only when nobody else has: a program's own
        wake-up descriptor stays.
        """
        if threading.current_thread() is not threading.main_thread():
            return None
        try:
            mine = self._csock.fileno()
            old = signal.set_wakeup_fd(mine, warn_on_full_buffer=False)
        except ValueError:  # a sub-interpreter's main thread
            return None
        if old not in (-1, mine):
            try:
                signal.set_wakeup_fd(old)
            except (OSError, ValueError):  # whoever set it has closed it since
                return -1
            return None
        return old

    def _return_wakeup_fd(self, old: int | None) -> None:
        if old is not None and not self._signal_handlers:
            signal.set_wakeup_fd(old)

    def close(self) -> None:
        """Close the loop; what is scheduled does not run. Does nothing when closed already.

        Raises:
            RuntimeError: the loop is running.
        """
        if self._closed and not self.is_running():
            return
        super().close()
        self._listeners.clear()
        self._close_core()

    # ---- callbacks of asyncio's own parts ----

    def _add_callback(self, handle: Any) -> None:
        """Schedule a handle of asyncio's making (signals)."""
        if not handle._cancelled:
            self.call_soon(handle._run)

    _add_callback_signalsafe = _add_callback

    def _timer_handle_cancelled(self, handle: Any) -> None:
        """The C timers need no count of cancelled ones."""

    def _write_to_self(self) -> None:
        """Wake the loop, from any thread."""
        if not self._closed:
            self.call_soon_threadsafe(_nothing)

    def _report_slow(self, what: Any, seconds: float) -> None:
        """In debug mode, after each callback: tell when it took too long."""
        if seconds < self.slow_callback_duration:
            return
        text = _private._format_handle(what) if hasattr(what, "_callback") else repr(what)
        _private.logger.warning("Executing %s took %.3f seconds", text, seconds)

    # Where the C methods go with what is not ordinary.
    _create_task_slow = asyncio.SelectorEventLoop.create_task
    _slow_sock_recv = asyncio.SelectorEventLoop.sock_recv
    _slow_sock_recv_into = asyncio.SelectorEventLoop.sock_recv_into
    _slow_sock_sendall = asyncio.SelectorEventLoop.sock_sendall
    _slow_sock_accept = asyncio.SelectorEventLoop.sock_accept
    _slow_sock_recvfrom = asyncio.SelectorEventLoop.sock_recvfrom
    _slow_sock_recvfrom_into = asyncio.SelectorEventLoop.sock_recvfrom_into
    _slow_sock_sendto = asyncio.SelectorEventLoop.sock_sendto

    def sock_connect(self, sock: socket.socket, address: Any) -> Coroutine[Any, Any, None]:
        """Connect a socket; await the result.

        Args:
            sock: a non-blocking socket.
            address: as its connect takes it; names are looked up.

        Raises:
            OSError: it could not be connected.
        """
        if self.backend == "uring":
            return self._connect_by_ring(sock, address)
        return super().sock_connect(sock, address)

    async def _connect_by_ring(self, sock: socket.socket, address: Any) -> None:
        connecting = _core.Connecting(self, sock, address)
        if connecting.future is not None:
            try:
                if await connecting.future:
                    return
            finally:
                # When it is cancelled, the caller closes the socket next.
                connecting.cancel()
        await super().sock_connect(sock, address)

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[*_Ts], _T], *args: *_Ts
    ) -> asyncio.Future[_T]:
        """Run func(*args) in an executor; await the result.

        Args:
            executor (concurrent.futures.Executor | None): None for the default executor, a
                plait.ThreadPool unless set_default_executor gave another one; cancelling
                leaves its running tasks alone, as asyncio has it, but for
                plait.stop_requested(). The result of one of plait's pools comes straight to
                this loop, without a thread in between.
            func: what to call.
            *args: its arguments.

        Returns:
            asyncio.Future: of this loop.

        Raises:
            RuntimeError: the loop is closed, or the executor is shut down.
        """
        if executor is None:
            self._check_closed()
            self._check_default_executor()
            executor = self._default_executor
            if executor is None:
                executor = ThreadPool(thread_name_prefix="asyncio", _gentle=True)
                self._default_executor = executor
        submit = getattr(executor, "_submit_to_loop", None)
        if self._thread_id != threading.get_ident():
            return super().run_in_executor(executor, func, *args)
        self._check_closed()
        if self._debug:
            self._check_callback(func, "run_in_executor")
        future: Any
        if submit is not None:
            future = submit(self, func, *args)
        else:
            source: Any = executor.submit(func, *args)
            if type(source) is Future:
                future = _core.Following(self, source).future
            else:
                future = asyncio.wrap_future(source, loop=self)
        result: asyncio.Future[_T] = future
        return result

    # ---- children ----

    def _child_watcher_callback(self, pid: int, returncode: int, transp: Any) -> None:
        # Popen.send_signal may have reaped the child while it made sure that it still runs;
        # the watcher then finds nobody, and says 255.
        process = transp._proc
        if process is not None and process.returncode is not None:
            returncode = process.returncode
        super()._child_watcher_callback(pid, returncode, transp)  # type: ignore[misc]

    # ---- transports ----

    def _ensure_fd_no_transport(self, fd: Any) -> None:
        owner = self._owner_of_fd(fd)
        if owner is not None and not (hasattr(owner, "is_closing") and owner.is_closing()):
            raise RuntimeError(f"File descriptor {fd!r} is used by transport {owner!r}")
        super()._ensure_fd_no_transport(fd)  # type: ignore[misc]

    def _make_socket_transport(
        self,
        sock: socket.socket,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None = None,
        *,
        extra: dict[str, Any] | None = None,
        server: Any = None,
        context: Context | None = None,
    ) -> asyncio.Transport:
        return self._new_transport(sock, protocol, waiter, extra, server, context)

    create_server = _noting_given(asyncio.SelectorEventLoop.create_server)
    create_unix_server = _noting_given(asyncio.SelectorEventLoop.create_unix_server)

    def _start_serving(
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        sock: socket.socket,
        sslcontext: ssl.SSLContext | None = None,
        server: Any = None,
        backlog: int = 100,
        ssl_handshake_timeout: float | None = constants.SSL_HANDSHAKE_TIMEOUT,
        ssl_shutdown_timeout: float | None = constants.SSL_SHUTDOWN_TIMEOUT,
        context: Context | None = None,
    ) -> None:
        adopt = None
        if sslcontext is not None:

            def adopt(conn: socket.socket) -> None:
                try:
                    self._make_ssl_transport(
                        conn,
                        protocol_factory(),
                        sslcontext,
                        server_side=True,
                        server=server,
                        ssl_handshake_timeout=ssl_handshake_timeout,
                        ssl_shutdown_timeout=ssl_shutdown_timeout,
                    )
                except BaseException:
                    conn.close()
                    raise

        self._listeners[sock.fileno()] = _core.Listener(
            self,
            sock,
            protocol_factory,
            server,
            max(backlog, 1),
            adopt,
            context,
            self._rotas.get(sock.fileno()),
            sock in self._given,
        )

    def _stop_serving(self, sock: socket.socket) -> None:
        listener = self._listeners.pop(sock.fileno(), None)
        if listener is not None:
            listener.close()
        super()._stop_serving(sock)  # type: ignore[misc]

    async def _sendfile_native(self, transp: Any, file: Any, offset: int, count: int | None) -> int:
        empty = transp._make_empty_waiter()
        reading = transp.is_reading()
        transp.pause_reading()
        try:
            await empty
            # The transport's descriptor has its place in the poller; a duplicate gets its own.
            with socket.socket(fileno=os.dup(transp._sock.fileno())) as sock:
                sock.setblocking(False)
                return await self.sock_sendfile(sock, file, offset, count, fallback=False)
        finally:
            transp._reset_empty_waiter()
            if reading:
                transp.resume_reading()

    async def _sendfile_fallback(
        self, transp: Any, file: Any, offset: int, count: int | None
    ) -> int:
        if offset:
            file.seek(offset)
        buffer = memoryview(bytearray(_SENDFILE_BLOCK))
        sent = 0
        relay = _Sendfile(transp, self)
        try:
            while count is None or sent < count:
                room = buffer if count is None else buffer[: count - sent]
                n = await self.run_in_executor(None, file.readinto, room)
                if not n:
                    break
                await relay.drain()
                transp.write(buffer[:n])
                sent += n
            return sent
        finally:
            if sent > 0 and hasattr(file, "seek"):
                file.seek(offset + sent)
            relay.give_back()


def _nothing() -> None:
    """A callback that only wakes the loop."""


_loops: weakref.WeakSet[Loop] = weakref.WeakSet()


def _forget_parents_loops() -> None:
    """In a forked child: the parent's loops keep their descriptors to themselves."""
    for loop in list(_loops):
        loop._after_fork()
        if threading.current_thread() is threading.main_thread() and not loop._closed:
            try:
                old = signal.set_wakeup_fd(-1)
                if old != loop._csock.fileno() and old != -1:
                    signal.set_wakeup_fd(old)
            except (ValueError, AttributeError):  # no main thread, or half made
                pass


os.register_at_fork(after_in_child=_forget_parents_loops)


def new_event_loop(*, backend: str | None = None, busy_poll: float | None = None) -> Loop:
    """Return a new Loop; a loop_factory for asyncio.run and asyncio.Runner.

    Args:
        backend: as Loop takes it.
        busy_poll: as Loop takes it, in seconds.

    Raises:
        ValueError: backend is unknown, or busy_poll out of range.
        TypeError: busy_poll is no number.
    """
    return Loop(backend=backend, busy_poll=busy_poll)


def run(
    main: Coroutine[Any, Any, _T],
    *,
    debug: bool | None = None,
    backend: str | None = None,
    busy_poll: float | None = None,
) -> _T:
    """Run a coroutine on a new plait loop, as asyncio.run does, and close the loop.

    Args:
        main: the coroutine.
        debug: asyncio's debug mode; None leaves it to PYTHONASYNCIODEBUG.
        backend: how the loop waits for descriptors, as Loop takes it.
        busy_poll: for how many seconds it looks for events before it sleeps, as Loop takes it.

    Returns:
        What the coroutine returns.

    Raises:
        RuntimeError: a loop runs in this thread already.
        ValueError: main is not a coroutine (TypeError from Python 3.14 on), backend is
            unknown, or busy_poll out of range.
        TypeError: busy_poll is no number.

    Example:
        >>> import plait
        >>> async def main() -> int:
        ...     return 42
        >>> plait.run(main())
        42
    """
    if events._get_running_loop() is not None:
        raise RuntimeError("plait.run() cannot be called from a running event loop")
    with asyncio.Runner(
        debug=debug, loop_factory=lambda: Loop(backend=backend, busy_poll=busy_poll)
    ) as runner:
        return runner.run(main)


with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)

    class EventLoopPolicy(asyncio.DefaultEventLoopPolicy):
        """asyncio's event loop policy, with plait's loops."""

        def _loop_factory(self) -> Loop:
            return Loop()


def install() -> None:
    """Make plait's loop the one that asyncio.run and new_event_loop make from now on.

    For programs that cannot name a loop factory. It sets the event loop policy, which
    Python deprecates from 3.14 on: prefer plait.run, or asyncio.run(loop_factory=...).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        asyncio.set_event_loop_policy(EventLoopPolicy())


def coverage() -> dict[str, str]:
    """Tell which parts of the loop are C, and which the interpreter's on plait's poller."""
    ours = "C"
    theirs = "asyncio's own code on plait's poller"
    return {
        "callbacks and timers": ours,
        "stream sockets (TCP, Unix)": ours,
        "servers": ours,
        "add_reader, add_writer": ours,
        "tasks and futures": "the interpreter's C types",
        "TLS": "C between the ssl module's memory BIOs",
        "datagrams": theirs,
        "sock_* calls": "C, but for sock_sendfile, and sock_connect without io_uring",
        "pipes and subprocesses": theirs,
        "signals": theirs,
        "name resolution": "a thread pool, as in asyncio",
    }
