"""CPython's own tests of concurrent.futures, run on plait's pools by subclassing.

``adopt`` makes, of every test case of the test package that is run for the interpreter's
thread pool, a subclass whose ``executor_type`` is plait's thread pool; and likewise for its
process pool, of the cases for the start method "spawn". While a test runs,
``concurrent.futures`` has plait's pool under the name of its own, for tests that make some
themselves; and scripts that a test runs import it from here. Nothing of the tests is
edited. What is left out stands in futures_exclusions.py, with the reason.
"""

from __future__ import annotations

import concurrent.futures
import fnmatch
import importlib
import os
import pickle
import pkgutil
import re
import unittest
from typing import Any
from unittest import mock

from futures_exclusions import EXCLUSIONS

import plait

HERE = os.path.dirname(os.path.abspath(__file__))


def _workers(max_workers: int | None) -> int | None:
    """The pools call it `workers`, and say so in their errors."""
    if max_workers is not None and max_workers <= 0:
        raise ValueError("max_workers must be greater than 0")
    return max_workers


class ThreadPoolExecutor(plait.ThreadPool):
    """plait's thread pool, made as the interpreter's is."""

    def __init__(
        self,
        max_workers: int | None = None,
        thread_name_prefix: str = "",
        initializer: Any = None,
        initargs: Any = (),
        **rest: Any,
    ) -> None:
        super().__init__(
            _workers(max_workers),
            thread_name_prefix=thread_name_prefix,
            initializer=initializer,
            initargs=initargs,
            **rest,
        )


class ProcessPoolExecutor(plait.ProcessPool):
    """plait's process pool, made as the interpreter's is."""

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: Any = None,
        initializer: Any = None,
        initargs: Any = (),
        *,
        max_tasks_per_child: int | None = None,
    ) -> None:
        self._max_workers = max_workers
        super().__init__(
            _workers(max_workers),
            mp_context=mp_context,
            initializer=initializer,
            initargs=initargs,
            max_tasks_per_worker=max_tasks_per_child,
        )


# What a task ends with whose worker died, or whose arguments or result cannot be unpickled.
_FAILURES = (plait.WorkerDied, pickle.UnpicklingError, SystemExit)


class OnPlait(unittest.TestCase):
    """Mixed in before a test case of CPython: its pools are plait's."""

    module: Any
    executor_type: Any

    def setUp(self) -> None:
        patch = mock.patch.object(
            concurrent.futures, self.executor_type.__name__, self.executor_type
        )
        patch.start()
        self.addCleanup(patch.stop)
        if hasattr(self.module, "BrokenProcessPool"):
            # One death fails one task, and the pool goes on.
            patch = mock.patch.object(self.module, "BrokenProcessPool", _FAILURES)
            patch.start()
            self.addCleanup(patch.stop)
        run = getattr(self.module, "assert_python_ok", None)
        if run is not None:

            def run_on_plait(*args: str) -> Any:
                return run(*map(_translate, args))

            patch = mock.patch.object(self.module, "assert_python_ok", run_on_plait)
            patch.start()
            self.addCleanup(patch.stop)
        super().setUp()


def _translate(script: str) -> str:
    """Have a script import the pools from here."""
    return re.sub(
        r"from concurrent\.futures import (ThreadPoolExecutor|ProcessPoolExecutor)",
        rf"import sys; sys.path.insert(0, {HERE!r}); from futures_suite import \1",
        script,
    )


def excluded(name: str) -> str | None:
    """Return the reason why "module.Class" or "module.Class.test" is left out, or None."""
    for pattern, reason in EXCLUSIONS.items():
        if fnmatch.fnmatchcase(name, pattern):
            return reason
    return None


def _adopt_module(module: Any, title: str, namespace: dict[str, Any]) -> None:
    for name, case in list(vars(module).items()):
        if not isinstance(case, type) or not issubclass(case, unittest.TestCase):
            continue
        bases = {base.__name__ for base in case.__mro__}
        if "ThreadPoolMixin" in bases:
            pool: type = ThreadPoolExecutor
        elif "ProcessPoolSpawnMixin" in bases:
            pool = ProcessPoolExecutor
        else:
            continue
        if case.__module__ != module.__name__ or excluded(f"{title}.{name}"):
            continue
        body: dict[str, Any] = {
            "__module__": namespace["__name__"],
            "executor_type": pool,
            "module": module,
        }
        for test in dir(case):
            if test.startswith("test") and excluded(f"{title}.{name}.{test}"):
                body[test] = None  # unittest's way to remove an inherited test
        made = type(f"{title.removeprefix('test_')}_{name}", (OnPlait, case), body)
        made.__test__ = True
        namespace[made.__name__] = made


def adopt(namespace: dict[str, Any]) -> None:
    """Put the test cases of test.test_concurrent_futures, on plait, into a namespace.

    Until Python 3.11 that is one module, and a package from 3.12 on.
    """
    top = importlib.import_module("test.test_concurrent_futures")
    if not hasattr(top, "__path__"):
        _adopt_module(top, "test_concurrent_futures", namespace)
        return
    for info in pkgutil.iter_modules(top.__path__):
        if info.name.startswith("test_"):
            module = importlib.import_module(f"{top.__name__}.{info.name}")
            _adopt_module(module, info.name, namespace)
