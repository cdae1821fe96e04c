"""CPython's own asyncio tests, run on plait's loop by subclassing.

``adopt`` makes, of every test case of a module of ``test.test_asyncio``, a subclass whose
loops are plait's. Three ways lead there, and each case takes the ones it knows: a method
that makes the loop (``create_event_loop``, ``new_loop``, ``loop_factory``), the event loop
policy, and the names ``asyncio.SelectorEventLoop`` (while ``setUp`` runs) and, for some
modules, ``asyncio.BaseEventLoop``. Nothing of the tests is edited. What is left out stands
in exclusions.py, with the reason; a test that makes no loop at all is skipped, so that it
does not count.
"""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
import heapq
import importlib
import pkgutil
import unittest
import warnings
from asyncio import base_events
from typing import TYPE_CHECKING, Any
from unittest import mock

from exclusions import EXCLUSIONS

import plait

if TYPE_CHECKING:
    from collections.abc import Callable, Generator


class OneStepLoop(plait.Loop):
    """What the tests expect of the class that they make a loop of."""

    def __init__(self, selector: Any = None) -> None:
        super().__init__()

    def stop(self) -> None:
        self._asked_to_stop = True
        super().stop()

    def _run_once(self) -> None:
        self._asked_to_stop = False
        self._stopping = True
        self._run()
        self._stopping = self._asked_to_stop


class VirtualTimeLoop(OneStepLoop):
    """The tests' loop with a clock of its own, as test_asyncio.utils.TestLoop.

    A generator is sent the time of each timer that is scheduled, and yields by how much the
    clock is to advance. The timers are kept here; all else runs on the C loop.
    """

    def __init__(self, gen: Callable[[], Generator[Any, Any, None]] | None = None) -> None:
        super().__init__()
        self._checks = gen is not None
        if gen is None:

            def gen() -> Generator[Any, Any, None]:
                yield

        self._gen = gen()
        next(self._gen)
        self._time: float = 0
        self._order = 0
        self._new: list[float] = []
        self._waiting: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._ticking = False

    def time(self) -> float:
        return self._time

    def advance_time(self, seconds: float) -> None:
        if seconds:
            self._time += seconds

    def call_later(self, delay: Any, callback: Any, *args: Any, context: Any = None) -> Any:
        return self.call_at(self._time + delay, callback, *args, context=context)

    def call_at(self, when: Any, callback: Any, *args: Any, context: Any = None) -> Any:
        self._check_closed()
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._order += 1
        heapq.heappush(self._waiting, (when, self._order, handle))
        self._new.append(when)
        return handle

    def _tick(self, again: bool = True) -> None:
        new, self._new = self._new, []
        for when in new:
            self.advance_time(self._gen.send(when))
        while self._waiting and self._waiting[0][0] <= self._time:
            handle = heapq.heappop(self._waiting)[2]
            if not handle.cancelled():
                super().call_soon(handle._run)
        if again:
            super().call_soon(self._tick)

    def run_forever(self) -> None:
        if not self._ticking:
            self._ticking = True
            super().call_soon(self._tick)
        super().run_forever()
        self._tick(again=False)

    @property
    def _ready(self) -> list[None]:
        """As long as what is ready to run, our own tick aside."""
        return [None] * (self.statistics()["ready"] - self._ticking)

    @_ready.setter
    def _ready(self, value: Any) -> None:
        """asyncio's constructor puts its own queue here."""

    def close(self) -> None:
        was_closed = self.is_closed()
        super().close()
        if self._checks and not was_closed:
            try:
                self._gen.send(0)
            except StopIteration:
                return
            raise AssertionError("the time generator is not finished")


# The modules whose tests make their loops of asyncio.BaseEventLoop.
_BASE_CLASS = ("test_base_events", "test_pep492", "test_runners")
_made = 0
_init = plait.Loop.__init__


def _counting_init(self: plait.Loop, **kwargs: Any) -> None:
    global _made
    _made += 1
    _init(self, **kwargs)


plait.Loop.__init__ = _counting_init  # type: ignore[method-assign]


def _skip_without_loop() -> None:
    """Let a test that made no loop of ours since the last one not count as passed."""
    global _made
    made, _made = _made, 0
    if made == 0:
        raise unittest.SkipTest("no loop takes part")


def _policy(policy: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        asyncio.set_event_loop_policy(policy)


class OnPlait:
    """Mixed in before a test case of CPython: every loop that it makes is plait's."""

    loop_factory = staticmethod(plait.new_event_loop)
    base_class = False  # whether the tests make their loops of asyncio.BaseEventLoop

    @classmethod
    def setUpClass(cls) -> None:
        _policy(plait.EventLoopPolicy())
        super().setUpClass()  # type: ignore[misc]

    @classmethod
    def tearDownClass(cls) -> None:
        super().tearDownClass()  # type: ignore[misc]
        _policy(None)

    def setUp(self) -> None:
        patches = contextlib.ExitStack()
        self.addCleanup(_skip_without_loop)  # type: ignore[attr-defined]
        self.addCleanup(patches.close)  # type: ignore[attr-defined]
        if self.base_class:
            for owner in (asyncio, base_events):
                patches.enter_context(mock.patch.object(owner, "BaseEventLoop", OneStepLoop))
        with mock.patch.object(asyncio, "SelectorEventLoop", OneStepLoop):
            super().setUp()  # type: ignore[misc]

    def create_event_loop(self) -> plait.Loop:
        return plait.new_event_loop()

    def new_test_loop(self, gen: Any = None) -> plait.Loop:
        loop = VirtualTimeLoop(gen)
        self.set_event_loop(loop)  # type: ignore[attr-defined]
        return loop


def excluded(name: str) -> str | None:
    """Return the reason why "module.Class" or "module.Class.test" is left out, or None."""
    for pattern, reason in EXCLUSIONS.items():
        if fnmatch.fnmatchcase(name, pattern):
            return reason
    return None


def modules() -> list[str]:
    """Name all modules with tests that this version of Python has."""
    package = importlib.import_module("test.test_asyncio")
    found = (module.name for module in pkgutil.iter_modules(package.__path__))
    return sorted(name for name in found if name.startswith("test_"))


def adopt(module_name: str, namespace: dict[str, Any]) -> None:
    """Put the test cases of test.test_asyncio.<module_name>, on plait, into a namespace."""
    try:
        module = importlib.import_module(f"test.test_asyncio.{module_name}")
    except unittest.SkipTest:  # by its own word: it is another system's
        return
    for name, case in vars(module).items():
        if (
            not isinstance(case, type)
            or not issubclass(case, unittest.TestCase)
            or case.__module__ != module.__name__
            or excluded(f"{module_name}.{name}")
        ):
            continue
        body: dict[str, Any] = {
            "__module__": namespace["__name__"],
            "base_class": module_name in _BASE_CLASS,
        }
        for test in dir(case):
            if test.startswith("test"):
                reason = excluded(f"{module_name}.{name}.{test}")
                if reason:
                    body[test] = None  # unittest's way to remove an inherited test
        title = f"{module_name.removeprefix('test_')}_{name}"
        made = type(title, (OnPlait, case), body)
        made.__test__ = True
        namespace[title] = made
