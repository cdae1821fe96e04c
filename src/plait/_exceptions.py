"""The exceptions of plait.

    Exception
     └── PlaitError
          └── WorkerDied       a worker process ended while it ran a task
"""

from __future__ import annotations

__all__ = ["PlaitError"]


class PlaitError(Exception):
    """Base class of the errors that plait itself raises."""
