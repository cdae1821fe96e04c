"""The pools, each with the few things that are measured of it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import importlib.metadata
import multiprocessing
import threading
from collections.abc import Callable
from typing import Any

from .tasks import noop, plus_one

WORKERS = 2


class Peer:
    """One pool."""

    name = ""
    package = ""
    """What must be installed for it; "" for nothing."""
    processes = True
    from_any_thread = True
    awaits = False
    """Whether a loop's run_in_executor takes it."""
    eight = True
    """Whether eight workers on two cores are a fair question."""

    def __init__(self, workers: int = WORKERS) -> None:
        self.workers = workers
        self.pool = self.make()

    @classmethod
    def version(cls) -> str:
        """The version that is installed.

        Raises:
            ImportError: it is not.
        """
        return importlib.metadata.version(cls.package) if cls.package else "stdlib"

    def make(self) -> Any:
        """Start the pool."""
        raise NotImplementedError

    def call(self, fn: Callable[..., Any], *args: Any) -> Any:
        """One task, and its result."""
        return self.pool.submit(fn, *args).result()

    def gather(self, n: int) -> None:
        """N no-ops, submitted and then gathered."""
        for future in [self.pool.submit(noop) for _ in range(n)]:
            future.result()

    def map(self, n: int, chunk: int) -> None:
        """All results of a map over n items."""
        for _ in self.pool.map(plus_one, range(n), chunksize=chunk):
            pass

    def from_threads(self, threads: int, n: int) -> None:
        """Each of the threads makes n calls, one after the other."""
        each = [
            threading.Thread(target=lambda: [self.call(noop) for _ in range(n)])
            for _ in range(threads)
        ]
        for thread in each:
            thread.start()
        for thread in each:
            thread.join()

    def run(self, main: Any) -> Any:
        """Run a coroutine on the loop that goes with the pool."""
        return asyncio.run(main)

    def stop(self) -> None:
        """End the pool and its workers."""
        self.pool.shutdown()


class Plait(Peer):
    name = "plait"
    awaits = True

    @classmethod
    def version(cls) -> str:
        import plait

        return str(plait.__version__)

    def make(self) -> Any:
        import plait

        return plait.ProcessPool(self.workers)

    def run(self, main: Any) -> Any:
        import plait

        return plait.run(main)


class PlaitThreads(Plait):
    name = "plait threads"
    processes = False

    def make(self) -> Any:
        import plait

        return plait.ThreadPool(self.workers)


class StdlibThreads(Peer):
    name = "ThreadPoolExecutor"
    processes = False
    awaits = True

    def make(self) -> Any:
        return concurrent.futures.ThreadPoolExecutor(self.workers)


class Interpreters(Peer):
    name = "InterpreterPoolExecutor"
    processes = False
    awaits = True

    @classmethod
    def version(cls) -> str:
        if not hasattr(concurrent.futures, "InterpreterPoolExecutor"):
            raise ImportError("it comes with Python 3.14")
        return "stdlib"

    def make(self) -> Any:
        return concurrent.futures.InterpreterPoolExecutor(  # type: ignore[attr-defined,unused-ignore]
            self.workers
        )


class Stdlib(Peer):
    name = "ProcessPoolExecutor"
    awaits = True

    def make(self) -> Any:
        context = multiprocessing.get_context("fork")
        return concurrent.futures.ProcessPoolExecutor(self.workers, mp_context=context)


class Loky(Peer):
    name = "loky"
    package = "loky"
    awaits = True

    def make(self) -> Any:
        import loky  # type: ignore[import-not-found,import-untyped,unused-ignore]

        return loky.ProcessPoolExecutor(self.workers)


class Joined(Peer):
    """A pool that is closed and then joined."""

    def stop(self) -> None:
        self.pool.close()
        self.pool.join()


class Pool(Joined):
    name = "mp.Pool"

    def make(self) -> Any:
        return multiprocessing.get_context("fork").Pool(self.workers)

    def call(self, fn: Callable[..., Any], *args: Any) -> Any:
        return self.pool.apply(fn, args)

    def gather(self, n: int) -> None:
        for result in [self.pool.apply_async(noop) for _ in range(n)]:
            result.get()

    def map(self, n: int, chunk: int) -> None:
        for _ in self.pool.map(plus_one, range(n), chunksize=chunk):
            pass


class Pebble(Joined):
    name = "pebble"
    package = "pebble"

    def make(self) -> Any:
        import pebble  # type: ignore[import-not-found,import-untyped,unused-ignore]

        context = multiprocessing.get_context("fork")
        return pebble.ProcessPool(self.workers, context=context)

    def call(self, fn: Callable[..., Any], *args: Any) -> Any:
        return self.pool.schedule(fn, args=args).result()

    def gather(self, n: int) -> None:
        for future in [self.pool.schedule(noop) for _ in range(n)]:
            future.result()

    def map(self, n: int, chunk: int) -> None:
        for _ in self.pool.map(plus_one, range(n), chunksize=chunk).result():
            pass


class Mpire(Pool):
    name = "mpire"
    package = "mpire"
    from_any_thread = False

    def make(self) -> Any:
        import mpire  # type: ignore[import-not-found,import-untyped,unused-ignore]

        return mpire.WorkerPool(self.workers, start_method="fork")

    def map(self, n: int, chunk: int) -> None:
        for _ in self.pool.imap(plus_one, range(n), chunk_size=chunk):
            pass

    def stop(self) -> None:
        self.pool.stop_and_join()


class Dask(Peer):
    name = "dask"
    package = "distributed"
    eight = False

    def make(self) -> Any:
        from distributed import (  # type: ignore[import-not-found,import-untyped,unused-ignore]
            Client,
            LocalCluster,
        )

        self.cluster = LocalCluster(
            n_workers=self.workers, threads_per_worker=1, dashboard_address=None
        )
        return Client(self.cluster)

    def call(self, fn: Callable[..., Any], *args: Any) -> Any:
        return self.pool.submit(fn, *args, pure=False).result()

    def gather(self, n: int) -> None:
        self.pool.gather([self.pool.submit(noop, pure=False) for _ in range(n)])

    def map(self, n: int, chunk: int) -> None:
        for _ in self.pool.gather(self.pool.map(plus_one, range(n), batch_size=chunk, pure=False)):
            pass

    def stop(self) -> None:
        self.pool.close()
        self.cluster.close()


class Ray(Peer):
    name = "ray"
    package = "ray"
    eight = False

    def make(self) -> Any:
        import ray  # type: ignore[import-not-found,import-untyped,unused-ignore]

        ray.init(num_cpus=self.workers, include_dashboard=False, log_to_driver=False)
        self.known: dict[Any, Any] = {}
        return ray

    def remote(self, fn: Callable[..., Any]) -> Any:
        """The function as Ray knows it."""
        if fn not in self.known:
            self.known[fn] = self.pool.remote(fn)
        return self.known[fn].remote

    def call(self, fn: Callable[..., Any], *args: Any) -> Any:
        return self.pool.get(self.remote(fn)(*args))

    def gather(self, n: int) -> None:
        remote = self.remote(noop)
        self.pool.get([remote() for _ in range(n)])

    def map(self, n: int, chunk: int) -> None:
        from ray.util.multiprocessing import (  # type: ignore[import-not-found,import-untyped,unused-ignore]
            Pool,
        )

        if "pool" not in self.known:
            self.known["pool"] = Pool(self.workers)
        for _ in self.known["pool"].map(plus_one, range(n), chunksize=chunk):
            pass

    def stop(self) -> None:
        self.pool.shutdown()


PEERS: dict[str, type[Peer]] = {
    kind.name: kind
    for kind in (
        Plait,
        Stdlib,
        Pool,
        Loky,
        Pebble,
        Mpire,
        Dask,
        Ray,
        PlaitThreads,
        StdlibThreads,
        Interpreters,
    )
}
