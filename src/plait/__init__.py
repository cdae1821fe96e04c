"""One concurrency runtime for threads, processes and coroutines, with its core in C."""

from __future__ import annotations

from . import auto as auto
from ._auto import Call as Call
from ._auto import OverBudget as OverBudget
from ._auto import Task as Task
from ._auto import call as call
from ._auto import task as task
from ._bridges import from_thread as from_thread
from ._bridges import to_process as to_process
from ._bridges import to_thread as to_thread
from ._channel import Channel as Channel
from ._channel import SharedChannel as SharedChannel
from ._channel import channel as channel
from ._core import __version__ as __version__
from ._exceptions import ChannelClosed as ChannelClosed
from ._exceptions import DeadlineExceeded as DeadlineExceeded
from ._exceptions import PlaitError as PlaitError
from ._exceptions import PoolBroken as PoolBroken
from ._exceptions import PoolFull as PoolFull
from ._exceptions import RemoteError as RemoteError
from ._exceptions import ScopeClosed as ScopeClosed
from ._exceptions import ServeFailed as ServeFailed
from ._exceptions import TaskStopped as TaskStopped
from ._exceptions import TaskTimeout as TaskTimeout
from ._exceptions import Unstopped as Unstopped
from ._exceptions import WorkerDied as WorkerDied
from ._figures import explain as explain
from ._files import BinaryFile as BinaryFile
from ._files import TextFile as TextFile
from ._files import open_file as open_file
from ._handle import Handle as Handle
from ._locks import Event as Event
from ._locks import Limiter as Limiter
from ._locks import Lock as Lock
from ._loop import EventLoopPolicy as EventLoopPolicy
from ._loop import Loop as Loop
from ._loop import install as install
from ._loop import new_event_loop as new_event_loop
from ._loop import run as run
from ._pool import ProcessPool as ProcessPool
from ._report import ScopeReport as ScopeReport
from ._scope import Scope as Scope
from ._scope import current_scope as current_scope
from ._scope import scope as scope
from ._serve import serve as serve
from ._serving import ServeReport as ServeReport
from ._serving import Serving as Serving
from ._serving import WorkerFigures as WorkerFigures
from ._serving import serving as serving
from ._start import freeze_support as freeze_support
from ._threads import ThreadPool as ThreadPool
from ._threads import stop_requested as stop_requested

__all__ = [
    "BinaryFile",
    "Call",
    "Channel",
    "ChannelClosed",
    "DeadlineExceeded",
    "Event",
    "EventLoopPolicy",
    "Handle",
    "Limiter",
    "Lock",
    "Loop",
    "OverBudget",
    "PlaitError",
    "PoolBroken",
    "PoolFull",
    "ProcessPool",
    "RemoteError",
    "Scope",
    "ScopeClosed",
    "ScopeReport",
    "ServeFailed",
    "ServeReport",
    "Serving",
    "SharedChannel",
    "Task",
    "TaskStopped",
    "TaskTimeout",
    "TextFile",
    "ThreadPool",
    "Unstopped",
    "WorkerDied",
    "WorkerFigures",
    "__version__",
    "auto",
    "call",
    "channel",
    "current_scope",
    "explain",
    "freeze_support",
    "from_thread",
    "install",
    "new_event_loop",
    "open_file",
    "run",
    "scope",
    "serve",
    "serving",
    "stop_requested",
    "task",
    "to_process",
    "to_thread",
]

for _name in __all__:
    _object = globals().get(_name)
    if hasattr(_object, "__module__") and _object.__module__ != __name__:
        _object.__module__ = __name__
del _name, _object
