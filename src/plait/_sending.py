"""What goes to workers and comes back: functions, arguments and errors as pickles."""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
from collections.abc import Callable
from typing import Any

from ._exceptions import RemoteError, RemoteTraceback


def main_module() -> tuple[str, str | None]:
    """How a worker can import this process's main module: (kind, name or path)."""
    main = sys.modules.get("__main__")
    how = getattr(main, "__dict__", {}).get("_plait_how")
    if how is not None:  # a worker that has not imported it yet makes a pool of its own
        return (how[0], how[1])
    spec = getattr(main, "__spec__", None)
    path = getattr(main, "__file__", None)
    if spec is not None and spec.name == "__main__" and path is not None:
        # A folder or an archive was run; its __main__ has no other name to be found by.
        return ("path", os.path.abspath(os.path.dirname(path)))
    if spec is not None and spec.name is not None:
        return ("module", spec.name)
    if path is not None and os.path.isfile(path):
        return ("path", os.path.abspath(path))
    return ("none", None)


def decode_exception(
    value: tuple[bytes | None, str, str, str, str | None], task: str | None
) -> BaseException:
    """Make a task's exception from what its worker sent; its traceback is the cause.

    Args:
        value: the exception as a pickle or None, its type, its text, its traceback; and what the
            task called, if it was the result that could not be sent.
        task: the name that the task was given, or None.
    """
    data, type_name, message, text, function = value
    error: Any = None
    if data is not None:
        with contextlib.suppress(Exception):
            error = pickle.loads(data)
    if not isinstance(error, BaseException):
        error = RemoteError(type_name, message)
    error.__cause__ = RemoteTraceback(text)
    if function is not None:
        from ._hints import about_result

        about_result(error, function, task)
    return error  # type: ignore[no-any-return]


def log_callback_error(future: Any, error: BaseException) -> None:
    """Log what a done-callback raised, as concurrent.futures does."""
    if not isinstance(error, Exception):
        raise error
    import logging

    logging.getLogger("concurrent.futures").error(
        "exception calling callback for %r", future, exc_info=error
    )


def advise(error: Exception) -> Exception:
    error.add_note(
        "plait: functions and arguments travel as pickles; lambdas, closures and what is defined "
        "in an interactive session can be sent when cloudpickle is installed."
    )
    return error


def find_cloudpickle() -> Any:
    try:
        import cloudpickle  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        return None
    return cloudpickle


class Sender:
    """Pickles what a pool sends, by value where that is called for.

    Attributes:
        _main: how a worker can import this process's main module.
        _own_main: workers are born with it: nothing needs to be imported.
    """

    _main: tuple[str, str | None]
    _own_main: bool

    def _pickle(self, value: Any) -> bytes:
        try:
            return pickle.dumps(value, 5)
        except Exception as error:
            cloudpickle = find_cloudpickle()
            if cloudpickle is None:
                raise advise(error) from None
            return bytes(cloudpickle.dumps(value, 5))

    def _dump_function(self, fn: Callable[..., Any]) -> tuple[bytes, bool]:
        """A function as a pickle, and whether that is only its name."""
        cloudpickle = None
        if self._main[0] == "none" and getattr(fn, "__module__", None) == "__main__":
            cloudpickle = find_cloudpickle()
            if cloudpickle is not None:
                return cloudpickle.dumps(fn, 5), False
            if not self._own_main:
                raise advise(
                    pickle.PicklingError(
                        f"{fn!r} is defined in a main module that workers cannot import"
                    )
                )
        try:
            return pickle.dumps(fn, 5), True
        except Exception as error:
            cloudpickle = find_cloudpickle()
            if cloudpickle is None:
                raise advise(error) from None
        return cloudpickle.dumps(fn, 5), False

    def _dump_again(self, call: Any, error: Exception | None) -> tuple[bytes, list[Any]]:
        """Pickle a task's arguments by value, after pickle refused them with `error`."""
        cloudpickle = find_cloudpickle()
        if cloudpickle is None:
            assert error is not None
            raise advise(error) from None
        buffers: list[Any] = []
        try:
            data = cloudpickle.dumps(call, 5, buffer_callback=buffers.append)
        except Exception:
            if error is not None:
                raise error from None
            raise
        return data, buffers
