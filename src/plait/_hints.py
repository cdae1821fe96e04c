"""Notes on errors that say what to do instead, for those who meet a pool for the first time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ._options import name_of

OPTIONS = ("timeout", "priority", "name", "retries")

_FRAMES = ("coroutine", "generator", "async_generator")


def about_options(error: BaseException, fn: Any, given: Iterable[str]) -> None:
    """Add a note to `error`, by which `fn` refused its keyword arguments, if options are `given`.

    A pool's ``submit`` passes keyword arguments on to the function, as every Executor's does.
    """
    text = str(error)
    for option in OPTIONS:
        if option in given and (f"'{option}'" in text or "no keyword arguments" in text):
            error.add_note(
                f"plait: submit passes {option}= on to {name_of(fn)}, as every Executor's does; an "
                f"option of the task is given by pool.options({option}=...).submit(...)"
            )


def about_result(error: BaseException, function: str, task: str | None) -> None:
    """Add a note to `error`, with which a result could not be sent back.

    Args:
        error: what the worker met.
        function: name of what the worker called, or "" if that was the pool's own.
        task: name of the task, if it was given one.
    """
    if not function:
        function = task or "a part of map"
    elif task is not None and task != function:
        function = f"{function} (task {task!r})"
    text = f"plait: what {function} returned could not be sent back from its worker process"
    if any(f"'{kind}' object" in str(error) for kind in _FRAMES):
        text += "; submit a function that runs it there, and returns what came of it"
    error.add_note(text)
