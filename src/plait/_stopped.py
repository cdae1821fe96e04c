"""The exception that stops a task: alone here, since each worker needs it at its start."""

from __future__ import annotations


class TaskStopped(BaseException):
    """Raised inside of a task that was cancelled or ran out of time.

    It is no Exception, so that ``except Exception`` does not keep the task going. A task may
    catch it to clean up, and should then let it go on: what ignores it is killed.
    """


TaskStopped.__module__ = "plait._exceptions"  # where the others are, and pickles look for it
