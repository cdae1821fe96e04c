"""What plait.serve can serve: protocols, streams callbacks and ASGI applications."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import os
import traceback
from dataclasses import dataclass
from typing import Any

from ._serve_setup import PROGRAM, Words

__all__ = ["KINDS", "Target", "Unservable", "check_name", "resolve", "why"]

KINDS = ("protocol", "streams", "asgi")


class Unservable(Exception):
    """A worker's target is not what can be served; the text says all that there is to say."""


@dataclass(frozen=True)
class Target:
    """What a worker serves.

    Attributes:
        kind: "protocol", "streams" or "asgi".
        call: the protocol factory, the streams callback or the application.
        name: what messages call it.
    """

    kind: str
    call: Any
    name: str


def check_name(text: str) -> tuple[str, str]:
    """Split "module:attribute".

    Raises:
        ValueError: it is not of that form.
    """
    module, colon, attribute = text.partition(":")
    names = [*module.split("."), *attribute.split(".")]
    if not colon or not all(name.isidentifier() for name in names):
        raise ValueError(f"target must be of the form 'module:attribute', not {text!r}")
    return module, attribute


def resolve(target: Any, kind: str | None, factory: bool, words: Words = PROGRAM) -> Target:
    """Find out what is to be served; imports it when it is given by name.

    Args:
        target: what, or its name.
        kind: the kind, where it is not to be guessed.
        factory: whether the target is called for what is to be served.
        words: what messages call these settings.

    Raises:
        TypeError: it is nothing that can be served, or could be more than one kind.
        ValueError, ImportError, AttributeError: there is nothing of that name.
    """
    name = target if isinstance(target, str) else _name(target)
    if isinstance(target, str):
        module, attribute = check_name(target)
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            try:
                found = getattr(found, part)
            except AttributeError:
                raise AttributeError(f"module {module!r} has no attribute {attribute!r}") from None
    else:
        found = target
    if factory:
        if not callable(found):
            raise TypeError(f"{name} is no factory: {found!r} cannot be called")
        found = found()
        if inspect.iscoroutine(found):
            found.close()
            raise TypeError(f"{name} is an async function: a factory returns what is to be served")
    return Target(kind or _kind(found, name, words), _checked(found, name), name)


def why(target: Any, error: BaseException) -> str:
    """Write why something cannot be served: a line, and the traceback of the program's own."""
    start = f"cannot serve {target if isinstance(target, str) else _name(target)!r}"
    if isinstance(target, str) and isinstance(error, ModuleNotFoundError):
        module, _ = check_name(target)
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            return f"{start}: there is no module {error.name!r}"
    own = error.__traceback__
    while own is not None and _is_machinery(own.tb_frame.f_code.co_filename):
        own = own.tb_next
    if own is None and not isinstance(error, SyntaxError):
        return f"{start}: {error}"
    text = "".join(traceback.format_exception(error.with_traceback(own))).rstrip()
    return f"{start}: {type(error).__name__}\n{text}"


def _is_machinery(filename: str) -> bool:
    """Whether a file is ours, or of the interpreter's import."""
    return (
        filename.startswith("<frozen importlib")
        or os.path.dirname(filename) in (os.path.dirname(__file__), os.path.dirname(importlib.__file__))
    )  # fmt: skip


def _name(target: Any) -> str:
    return getattr(target, "__qualname__", None) or repr(target)


def _checked(found: Any, name: str) -> Any:
    if not callable(found):
        raise TypeError(
            f"target must be a protocol factory, a streams callback or an ASGI application; "
            f"{name} is {found!r}, which cannot be called"
        )
    return found


def _kind(found: Any, name: str, words: Words) -> str:
    """Tell what a callable is by how it can be called."""
    _checked(found, name)
    if isinstance(found, type):
        if issubclass(found, asyncio.BaseProtocol):
            return "protocol"
        how = f"is a class, but no asyncio protocol; with {words.factory} it is called"
        raise _unclear(name, how, words)
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):
        raise _unclear(name, "does not tell what arguments it takes", words) from None
    parameters = signature.parameters.values()
    anything = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    awaited = _is_async(found)
    if not anything:
        if _takes(signature, 3):
            return "asgi"
        if _takes(signature, 2) and awaited:
            return "streams"
        if _takes(signature, 0) and not awaited:
            return "protocol"
    elif awaited and not isinstance(found, type(_name)):
        return "asgi"  # a decorated or wrapped application
    raise _unclear(name, f"takes the arguments {signature}", words)


def _is_async(found: Any) -> bool:
    plain = getattr(found, "func", found)  # a functools.partial
    return inspect.iscoroutinefunction(plain) or inspect.iscoroutinefunction(
        getattr(plain, "__call__", None)  # noqa: B004
    )


def _takes(signature: inspect.Signature, count: int) -> bool:
    try:
        signature.bind(*[None] * count)
    except TypeError:
        return False
    return True


def _unclear(name: str, how: str, words: Words) -> TypeError:
    return TypeError(
        f"cannot tell what {name} is: it {how}. A protocol factory takes no arguments, a streams "
        f"callback is async and takes (reader, writer), an ASGI application takes (scope, "
        f"receive, send); {words.kind} says which it is"
    )
