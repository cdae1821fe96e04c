"""The exceptions of plait.

BaseException
 ├── TaskStopped           raised inside of a task that is to stop
 └── Exception
     └── PlaitError
          ├── TaskTimeout      a task ran for longer than it was given
          ├── WorkerDied       a worker process ended while it ran a task
          ├── PoolBroken       a pool cannot start workers any more
          ├── PoolFull         a pool has as many tasks as it may have
          ├── RemoteError      a task raised what cannot be sent between processes
          ├── DeadlineExceeded a scope was not over by its deadline
          ├── Unstopped        a scope ended while something that it had cancelled went on
          ├── ServeFailed      the workers of a server could not be kept running
          ├── ScopeClosed      something was to be started in a scope that is not open
          └── ChannelClosed    a channel has ended
"""

from __future__ import annotations

from concurrent.futures import BrokenExecutor

from ._stopped import TaskStopped as TaskStopped

__all__ = [
    "ChannelClosed",
    "DeadlineExceeded",
    "PlaitError",
    "PoolBroken",
    "PoolFull",
    "RemoteError",
    "RemoteTraceback",
    "ScopeClosed",
    "ServeFailed",
    "TaskStopped",
    "TaskTimeout",
    "Unstopped",
    "WorkerDied",
]


class PlaitError(Exception):
    """Base class of the errors that plait itself raises."""


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
        text = f"{self.task or 'the task'} ran for longer than its timeout of {self.timeout:g} s"
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
            import signal

            try:
                name = signal.Signals(self.signal).name
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


class DeadlineExceeded(PlaitError, TimeoutError):
    """A scope was not over by its deadline: what was left of it has been cancelled.

    Attributes:
        scope: the scope's name.
        seconds: its deadline, from entry.
        unfinished: names of what still ran or waited then.
    """

    def __init__(self, scope: str, seconds: float, unfinished: tuple[str, ...]) -> None:
        super().__init__(scope, seconds, unfinished)
        self.scope = scope
        self.seconds = seconds
        self.unfinished = unfinished

    def __str__(self) -> str:
        text = f"{self.scope} was not over after {self.seconds:g} s"
        if self.unfinished:
            text += f"; unfinished: {_some(self.unfinished)}"
        return text


class Unstopped(PlaitError):
    """A scope ended while something that it had cancelled went on.

    Attributes:
        scope: the scope's name.
        grace: seconds that it had waited after the cancellation.
        tasks: names of what goes on, with where.
    """

    def __init__(self, scope: str, grace: float, tasks: tuple[str, ...]) -> None:
        super().__init__(scope, grace, tasks)
        self.scope = scope
        self.grace = grace
        self.tasks = tasks

    def __str__(self) -> str:
        return (
            f"{self.scope} could not stop {_some(self.tasks)} within {self.grace:g} s "
            "of grace; what is named goes on"
        )


class ScopeClosed(PlaitError, RuntimeError):
    """Something was to be started in a scope that has ended or was not entered."""


class ServeFailed(PlaitError):
    """The workers of a server could not be started, or ended again and again."""


class ChannelClosed(PlaitError):
    """A channel has ended: nothing can be sent, or nothing more will come."""


def _some(names: tuple[str, ...]) -> str:
    text = ", ".join(names[:10])
    return text if len(names) <= 10 else f"{text} and {len(names) - 10} more"
