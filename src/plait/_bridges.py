"""Single steps from one strand to another: to_thread, to_process, from_thread."""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
from asyncio import CancelledError, events
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import Context, copy_context
from functools import partial
from typing import Any, TypeVar, overload

from ._ending import GRACE
from ._locks import Limiter
from ._scope import Scope, current_scope, home
from ._waiters import ThreadWaiter

__all__ = ["from_thread", "to_process", "to_thread"]

_LOOK_AGAIN = 0.5  # seconds: a loop that is closed meanwhile tells nobody

_T = TypeVar("_T")


async def _away(
    where: str,
    fn: Callable[..., _T],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    limiter: Limiter | None,
    timeout: float | None,
    grace: float,
) -> _T:
    name = getattr(fn, "__qualname__", None) or repr(fn)
    if limiter is not None:
        await limiter.acquire()
    try:
        async with Scope(name=f"to_{where}({name})", grace=grace) as scope:
            handle = scope._launch(fn, args, kwargs, where, timeout, name, 0, False)
        result: _T = handle.result()
        return result
    finally:
        if limiter is not None:
            limiter.release()


async def to_thread(
    fn: Callable[..., _T],
    /,
    *args: Any,
    limiter: Limiter | None = None,
    timeout: float | None = None,
    grace: float = GRACE,
    **kwargs: Any,
) -> _T:
    """Call fn in a thread of plait's, and wait for the result.

    The function sees a copy of the caller's context variables, and can come back by
    `from_thread`. When the wait is cancelled, or the time is over, the function is asked to
    stop (stop_requested, TaskStopped), and the wait ends with it.

    Args:
        fn: the function.
        args: its arguments.
        limiter: one of its places is held meanwhile.
        timeout: seconds that the function may take.
        grace: seconds to wait for it to stop.
        kwargs: its named arguments.

    Raises:
        TaskTimeout: it took longer than its timeout.
        Unstopped: it did not stop within its grace, and goes on.
    """
    return await _away("thread", fn, args, kwargs, limiter, timeout, grace)


async def to_process(
    fn: Callable[..., _T],
    /,
    *args: Any,
    limiter: Limiter | None = None,
    timeout: float | None = None,
    grace: float = GRACE,
    **kwargs: Any,
) -> _T:
    """Call fn in a worker process of plait's, and wait for the result.

    As `to_thread`, and with its options, in the default process pool: function, arguments and
    result are pickled.

    Raises:
        WorkerDied: the process ended.
        TaskTimeout, Unstopped: as `to_thread`.
    """
    return await _away("process", fn, args, kwargs, limiter, timeout, grace)


@overload
def from_thread(fn: Callable[..., Coroutine[Any, Any, _T]], /, *args: Any, **kwargs: Any) -> _T: ...
@overload
def from_thread(fn: Callable[..., _T], /, *args: Any, **kwargs: Any) -> _T: ...
def from_thread(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call fn on the loop that this thread's work was sent from, and wait for the result.

    For functions that run in a thread of a scope or of `to_thread`. A coroutine function is
    awaited there, in a task of its own; an ordinary one is called between two callbacks. When
    the scope is cancelled, so is the call, and this raises CancelledError. When this thread is
    stopped (TaskStopped), the call is cancelled and not waited for.

    Args:
        fn: the function.
        args: its arguments.
        kwargs: its named arguments.

    Raises:
        RuntimeError: the thread's work came from no loop, or the loop has ended, or it runs in
            this very thread.
        asyncio.CancelledError: the call was cancelled.
    """
    loop = home.get()
    if loop is None:
        raise RuntimeError("from_thread() needs a thread that was started from a loop by plait")
    if events._get_running_loop() is not None:
        raise RuntimeError("from_thread() would block the loop that runs in this thread")
    scope = current_scope()
    while scope is not None and scope._loop is not loop:
        scope = scope._parent
    answer: concurrent.futures.Future[Any] = concurrent.futures.Future()
    call = _Call(loop, scope, answer, copy_context())
    waiter = ThreadWaiter()  # unlike the future, it lets TaskStopped through
    answer.add_done_callback(lambda _: waiter.wake())
    try:  # a stop may come between any two lines
        try:
            posted = partial(fn, *args, **kwargs)
            loop.call_soon_threadsafe(call.begin, posted, context=call.context)
        except RuntimeError:
            raise RuntimeError("the loop that this thread's work was sent from is closed") from None
        while not waiter.wait(_LOOK_AGAIN):
            if loop.is_closed() and not answer.done():
                raise RuntimeError("the loop was closed before the call had ended")
        return answer.result()
    except concurrent.futures.CancelledError:
        raise CancelledError(f"the call of {fn!r} on the loop was cancelled") from None
    except BaseException:
        if not answer.done():  # the wait itself was ended from outside
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(call.cancel)
        raise


class _Call:
    """A call on the loop that a thread waits for."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        scope: Scope | None,
        answer: concurrent.futures.Future[Any],
        context: Context,
    ) -> None:
        self.loop = loop
        self.scope = scope
        self.answer = answer
        self.context = context
        self.task: asyncio.Task[Any] | None = None
        self.abandoned = False  # nobody waits for it any more

    def begin(self, call: Callable[[], Any]) -> None:
        if self.scope is not None and self.scope._cancelled:
            self.answer.cancel()
            return
        try:
            result = call()
            if not inspect.isawaitable(result):
                self.answer.set_result(result)
                return
            coro = result if inspect.iscoroutine(result) else _await(result)
            self.task = self.loop.create_task(coro)
        except (KeyboardInterrupt, SystemExit) as error:
            self.answer.set_exception(error)
            raise
        except BaseException as error:
            self.answer.set_exception(error)
            return
        if self.scope is not None:
            self.scope._calls.add(self.task)
        self.task.add_done_callback(self.end)

    def end(self, task: asyncio.Task[Any]) -> None:
        if self.scope is not None:
            self.scope._calls.discard(task)
        if task.cancelled():
            self.answer.cancel()
            return
        error = task.exception()
        if error is not None:
            self.answer.set_exception(error)
            if self.abandoned:
                text = "a call of from_thread(), for which nobody waits any more, has failed"
                self.loop.call_exception_handler({"message": text, "exception": error})
        else:
            self.answer.set_result(task.result())

    def cancel(self) -> None:
        self.abandoned = True
        if self.task is not None:
            self.task.cancel()


async def _await(awaitable: Any) -> Any:
    return await awaitable
