"""One concurrency runtime for threads, processes and coroutines, with its core in C."""

from __future__ import annotations

from ._core import __version__ as __version__
from ._exceptions import PlaitError as PlaitError
from ._exceptions import PoolBroken as PoolBroken
from ._exceptions import PoolFull as PoolFull
from ._exceptions import RemoteError as RemoteError
from ._exceptions import TaskStopped as TaskStopped
from ._exceptions import TaskTimeout as TaskTimeout
from ._exceptions import WorkerDied as WorkerDied
from ._loop import EventLoopPolicy as EventLoopPolicy
from ._loop import Loop as Loop
from ._loop import install as install
from ._loop import new_event_loop as new_event_loop
from ._loop import run as run
from ._pool import ProcessPool as ProcessPool

__all__ = [
    "EventLoopPolicy",
    "Loop",
    "PlaitError",
    "PoolBroken",
    "PoolFull",
    "ProcessPool",
    "RemoteError",
    "TaskStopped",
    "TaskTimeout",
    "WorkerDied",
    "__version__",
    "install",
    "new_event_loop",
    "run",
]

for _name in __all__:
    _object = globals()[_name]
    if hasattr(_object, "__module__"):
        _object.__module__ = __name__
del _name, _object
