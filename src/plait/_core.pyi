"""Types of the C extension. Private: the public names are those of plait."""

import asyncio
import socket
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, TypeVar, TypeVarTuple, final

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

__version__: str

def build_config() -> dict[str, str | bool]: ...

# ---- the loop ----

class Handle:
    @property
    def _callback(self) -> Callable[..., object] | None: ...
    @property
    def _args(self) -> tuple[Any, ...] | None: ...
    @property
    def _cancelled(self) -> bool: ...
    @property
    def _loop(self) -> Loop | None: ...
    @property
    def _source_traceback(self) -> Any: ...
    def cancel(self) -> None: ...
    def cancelled(self) -> bool: ...
    def get_context(self) -> Context: ...
    def _run(self) -> None: ...

@final
class TimerHandle(Handle):
    @property
    def _scheduled(self) -> bool: ...
    def when(self) -> float: ...
    def __lt__(self, other: TimerHandle, /) -> bool: ...
    def __le__(self, other: TimerHandle, /) -> bool: ...
    def __gt__(self, other: TimerHandle, /) -> bool: ...
    def __ge__(self, other: TimerHandle, /) -> bool: ...

class Loop:
    _closed: bool
    _debug: bool
    _stopping: bool
    _task_factory: Any
    _thread_id: int | None
    def call_soon(
        self,
        callback: Callable[[*_Ts], object],
        /,
        *args: *_Ts,
        context: Context | None = None,
    ) -> Any: ...
    def call_soon_threadsafe(
        self,
        callback: Callable[[*_Ts], object],
        /,
        *args: *_Ts,
        context: Context | None = None,
    ) -> Any: ...
    def call_later(
        self,
        delay: float,
        callback: Callable[[*_Ts], object],
        /,
        *args: *_Ts,
        context: Context | None = None,
    ) -> Any: ...
    def call_at(
        self,
        when: float,
        callback: Callable[[*_Ts], object],
        /,
        *args: *_Ts,
        context: Context | None = None,
    ) -> Any: ...
    def time(self) -> float: ...
    def create_future(self) -> asyncio.Future[Any]: ...
    def create_task(self, coro: Coroutine[Any, Any, _T], /, **kwargs: Any) -> asyncio.Task[_T]: ...
    def statistics(self) -> dict[str, int | str]: ...
    def _add_reader(
        self, fd: Any, callback: Callable[..., object], /, *args: Any, context: Context | None = None
    ) -> Handle: ...
    def _add_writer(
        self, fd: Any, callback: Callable[..., object], /, *args: Any, context: Context | None = None
    ) -> Handle: ...
    def _remove_reader(self, fd: Any, /) -> bool: ...
    def _remove_writer(self, fd: Any, /) -> bool: ...
    def _owner_of_fd(self, fd: Any, /) -> SocketTransport | Listener | None: ...
    def _new_transport(
        self,
        sock: socket.socket,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None,
        extra: dict[str, Any] | None,
        server: Any,
        context: Context | None,
        /,
    ) -> SocketTransport: ...
    def _after_fork(self) -> None: ...
    def _run(self) -> None: ...
    def _close_core(self) -> None: ...

@final
class SocketTransport(asyncio.Transport):
    _loop: Loop
    _sock: socket.socket | None
    def _force_close(self, exc: BaseException | None, /) -> None: ...
    def _make_empty_waiter(self) -> asyncio.Future[None]: ...
    def _reset_empty_waiter(self) -> None: ...

@final
class Listener:
    def __new__(
        cls,
        loop: Loop,
        sock: socket.socket,
        factory: Callable[[], asyncio.BaseProtocol],
        server: Any,
        batch: int,
        adopt: Callable[[socket.socket], None] | None,
        context: Context | None,
    ) -> Listener: ...
    def close(self) -> None: ...
