"""plait.gunicorn where what it builds on is missing, or too old: told by name."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import ClassVar

import pytest

import plait.gunicorn


class Base:
    CONFIG_KWARGS: ClassVar = {"loop": "auto", "http": "auto"}


def install(monkeypatch: pytest.MonkeyPatch, **of_config: object) -> None:
    """Pretend that there is a uvicorn whose settings have these methods."""
    package, config, worker = map(ModuleType, ("uvicorn", "uvicorn.config", "uvicorn_worker"))
    vars(config)["Config"] = type("Config", (), of_config)
    vars(worker)["UvicornWorker"] = Base
    for module in (package, config, worker):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    made = vars(plait.gunicorn)
    monkeypatch.setitem(made, "UvicornWorker", None)  # as it was, afterwards
    del made["UvicornWorker"]


def test_uvicorn_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, setup_event_loop=None)
    with pytest.raises(ImportError, match=r"from version 0\.36 on"):
        _ = plait.gunicorn.UvicornWorker


def test_uvicorn_of_today(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, get_loop_factory=None)
    found = plait.gunicorn.UvicornWorker
    assert issubclass(found, Base)
    assert found.CONFIG_KWARGS == {"loop": "plait:new_event_loop", "http": "auto"}


def test_unknown_worker() -> None:
    with pytest.raises(AttributeError, match="no attribute 'TornadoWorker'"):
        _ = plait.gunicorn.TornadoWorker  # type: ignore[attr-defined]


def without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that nothing is installed that the workers build on."""
    for name in ("uvicorn", "uvicorn_worker", "uvicorn.workers", "aiohttp.worker",
                 "gunicorn.workers.gasgi"):  # fmt: skip
        monkeypatch.setitem(sys.modules, name, None)
    for name in plait.gunicorn._MAKERS:
        monkeypatch.delitem(vars(plait.gunicorn), name, raising=False)


def test_all_names_are_those_that_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch)
    names: dict[str, object] = {}
    exec("from plait.gunicorn import *", names)
    assert set(names) == {"__builtins__"}
    install(monkeypatch, get_loop_factory=None)
    exec("from plait.gunicorn import *", names)
    assert set(names) == {"__builtins__", "UvicornWorker"}


def test_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch)
    for name in ("UvicornWorker", "AiohttpWorker", "AsgiWorker"):
        with pytest.raises(ImportError, match=rf"plait\.gunicorn\.{name} needs a package") as told:
            getattr(plait.gunicorn, name)
        assert isinstance(told.value.__cause__, ModuleNotFoundError)
