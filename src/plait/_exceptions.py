"""The exceptions of plait.

BaseException
 ├── TaskStopped           raised inside of a task that is to stop
 └── Exception
     └── PlaitError
          ├── TaskTimeout      a task ran for longer than it was given
          ├── WorkerDied       a worker process ended while it ran a task
          ├── PoolBroken       a pool cannot start workers any more
          ├── PoolFull         a pool has as many tasks as it may have
          └── RemoteError      a task raised what cannot be sent between processes
"""

from __future__ import annotations

import signal as _signal
from concurrent.futures import BrokenExecutor

__all__ = [
    "PlaitError",
    "PoolBroken",
    "PoolFull",
    "RemoteError",
    "RemoteTraceback",
    "TaskStopped",
    "TaskTimeout",
    "WorkerDied",
]


class PlaitError(Exception):
    """Base class of the errors that plait itself raises."""


class TaskStopped(BaseException):
    """Raised inside of a task that was cancelled or ran out of time.

    It is no Exception, so that ``except Exception`` does not keep the task going. A task may
    catch it to clean up, and should then let it go on: what ignores it is killed.
    """


class TaskTimeout(PlaitError, TimeoutError):
    """A task ran for longer than it was given, and was stopped.

    Its ``__cause__`` tells where the task was when the exception reached it.

    Attributes:
        task: name of the task, or None.
        timeout: seconds that it was given.
        stack: the Python stack of the worker when the task had to be killed, or None.
    """

    def __init__(
        self, task: str | None = None, timeout: float | None = None, stack: str | None = None
    ) -> None:
        super().__init__(task, timeout, stack)
        self.task = task
        self.timeout = timeout
        self.stack = stack

    def __str__(self) -> str:
        text = f"{self.task or 'the task'} ran for longer than its timeout of {self.timeout} s"
        if self.stack:
            text += f"; its Python stack:\n{self.stack}"
        return text


class WorkerDied(PlaitError):
    """A worker process ended while it ran a task.

    Attributes:
        pid: process id of the worker.
        exitcode: its exit code, or None when a signal ended it or nothing is known.
        signal: number of the signal that ended it, or None.
        peak_memory: largest resident size of the worker in bytes, or None if unknown.
        task: name of the task that it ran, or None.
        stack: its Python stack when a fault ended it, or None.
    """

    def __init__(
        self,
        pid: int,
        exitcode: int | None = None,
        signal: int | None = None,
        peak_memory: int | None = None,
        task: str | None = None,
        stack: str | None = None,
    ) -> None:
        super().__init__(pid, exitcode, signal, peak_memory, task, stack)
        self.pid = pid
        self.exitcode = exitcode
        self.signal = signal
        self.peak_memory = peak_memory
        self.task = task
        self.stack = stack

    def __str__(self) -> str:
        if self.signal is not None:
            try:
                name = _signal.Signals(self.signal).name
            except ValueError:
                name = f"signal {self.signal}"
            how = f"was ended by {name}"
        elif self.exitcode is not None:
            how = f"ended with exit code {self.exitcode}"
        else:
            how = "ended"
        text = f"worker process {self.pid} {how}"
        if self.task is not None:
            text += f" while it ran {self.task}"
        if self.peak_memory is not None:
            text += f" (peak memory {self.peak_memory / 1048576:.1f} MiB)"
        if self.stack:
            text += f"; its Python stack:\n{self.stack}"
        return text


class PoolBroken(PlaitError, BrokenExecutor):
    """A pool cannot start workers any more; all that it had to do has failed with this."""


class PoolFull(PlaitError):
    """A pool has as many unfinished tasks as it may have, and was told to refuse more."""


class RemoteError(PlaitError):
    """A task raised an exception that cannot be sent between processes.

    Attributes:
        type_name: qualified name of the exception's type.
        message: what str() gave for it in the worker.
    """

    def __init__(self, type_name: str, message: str) -> None:
        super().__init__(type_name, message)
        self.type_name = type_name
        self.message = message

    def __str__(self) -> str:
        return f"{self.type_name}: {self.message}"


class RemoteTraceback(Exception):
    """The traceback of a task's exception as text; its ``__cause__`` in the parent."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'
