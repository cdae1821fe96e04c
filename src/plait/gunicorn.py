"""Worker classes for gunicorn, with plait's loop in each worker.

``gunicorn -k plait.gunicorn.UvicornWorker package:app`` takes uvicorn's worker (of the package
uvicorn-worker, or of uvicorn, which must be 0.36 or newer), ``AiohttpWorker`` aiohttp's, and
``AsgiWorker`` the one that gunicorn has of its own since version 25. Whichever is named must be
installed; the others need not be.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

from ._loop import new_event_loop

if TYPE_CHECKING:
    AiohttpWorker: Any
    AsgiWorker: Any
    UvicornWorker: Any

    # At run time it names those that can be had; see __getattr__.
    __all__ = ["AiohttpWorker", "AsgiWorker", "UvicornWorker"]


def _take_loop(worker: Any) -> None:
    worker.loop = new_event_loop()
    asyncio.set_event_loop(worker.loop)


def _uvicorn() -> type:
    try:
        module = import_module("uvicorn_worker")
    except ModuleNotFoundError as error:
        if error.name != "uvicorn_worker":
            raise
        module = import_module("uvicorn.workers")
    base: Any = module.UvicornWorker
    if not hasattr(import_module("uvicorn.config").Config, "get_loop_factory"):
        raise ImportError("uvicorn takes loops of others from version 0.36 on; this one is older")

    class UvicornWorker(base):  # type: ignore[misc]
        """uvicorn's worker on plait's loop."""

        CONFIG_KWARGS: ClassVar[dict[str, Any]] = {
            **base.CONFIG_KWARGS,
            "loop": "plait:new_event_loop",
        }

    return UvicornWorker


def _aiohttp() -> type:
    base: Any = import_module("aiohttp.worker").GunicornWebWorker

    class AiohttpWorker(base):  # type: ignore[misc]
        """aiohttp's worker on plait's loop."""

        def init_process(self) -> None:
            """Make the loop; aiohttp's own step, which is left out, makes asyncio's."""
            _take_loop(self)
            super(base, self).init_process()

    return AiohttpWorker


def _asgi() -> type:
    base: Any = import_module("gunicorn.workers.gasgi").ASGIWorker
    if not hasattr(base, "_setup_event_loop"):
        raise ImportError("this version of gunicorn does not let its ASGI worker have other loops")

    class AsgiWorker(base):  # type: ignore[misc]
        """gunicorn's own ASGI worker on plait's loop."""

        def _setup_event_loop(self) -> None:
            _take_loop(self)

    return AsgiWorker


_MAKERS: dict[str, Callable[[], type]] = {
    "AiohttpWorker": _aiohttp,
    "AsgiWorker": _asgi,
    "UvicornWorker": _uvicorn,
}


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return [known for known in _MAKERS if _can_be_had(known)]
    if name not in _MAKERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        found = _MAKERS[name]()
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{__name__}.{name} needs a package that is not installed: {error}", name=error.name
        ) from error
    found.__qualname__ = name
    globals()[name] = found
    return found


def _can_be_had(name: str) -> bool:
    try:
        getattr(sys.modules[__name__], name)
    except ImportError:
        return False
    return True


def __dir__() -> list[str]:
    return sorted({*globals(), *_MAKERS})
