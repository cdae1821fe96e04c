"""What plait.serve can serve: protocols, streams callbacks and ASGI applications."""

from __future__ import annotations

import asyncio
import importlib
import inspect
from dataclasses import dataclass
from typing import Any

__all__ = ["KINDS", "Target", "check_name", "resolve"]

KINDS = ("protocol", "streams", "asgi")


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


def resolve(target: Any, kind: str | None, factory: bool) -> Target:
    """Find out what is to be served; imports it when it is given by name.

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
    return Target(kind or _kind(found, name), _checked(found, name), name)


def _name(target: Any) -> str:
    return getattr(target, "__qualname__", None) or repr(target)


def _checked(found: Any, name: str) -> Any:
    if not callable(found):
        raise TypeError(
            f"target must be a protocol factory, a streams callback or an ASGI application; "
            f"{name} is {found!r}, which cannot be called"
        )
    return found


def _kind(found: Any, name: str) -> str:
    """Tell what a callable is by how it can be called."""
    _checked(found, name)
    if isinstance(found, type):
        if issubclass(found, asyncio.BaseProtocol):
            return "protocol"
        raise _unclear(name, "is a class, but no asyncio protocol; with factory=True it is called")
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):
        raise _unclear(name, "does not tell what arguments it takes") from None
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
    raise _unclear(name, f"takes the arguments {signature}")


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


def _unclear(name: str, why: str) -> TypeError:
    return TypeError(
        f"cannot tell what {name} is: it {why}. A protocol factory takes no arguments, a streams "
        f"callback is async and takes (reader, writer), an ASGI application takes (scope, "
        f"receive, send); kind= says which it is"
    )
