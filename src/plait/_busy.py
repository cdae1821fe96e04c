"""Busy polling: for how long a loop may look for events before it sleeps, and why so."""

from __future__ import annotations

import functools
import math
import os

from ._processors import cpu_quota

MOST = 0.01  # seconds; more is a loop that never sleeps
_DEFAULT = 50e-6  # seconds; what a sleep costs on a virtual machine, see pl_busy.c
_VARIABLE = "PLAIT_BUSY_POLL"


@functools.cache
def _default() -> tuple[float, str]:
    if (os.cpu_count() or 1) < 2:
        return 0.0, "there is one processor"
    quota = cpu_quota()
    if quota is not None:
        return 0.0, f"the control group's limit of {quota:g} processors counts that time"
    return _DEFAULT, "that is the default"


def limit(busy_poll: float | None = None) -> tuple[float, str]:
    """Return the seconds that a loop may look on for, and the reason.

    Args:
        busy_poll: what the program asked for, in seconds; None reads the environment variable
            PLAIT_BUSY_POLL, in seconds as well, and takes a default without it.

    Raises:
        ValueError: it is not a number from 0 to 0.01.
        TypeError: busy_poll is not a number.
    """
    if busy_poll is not None:
        if not isinstance(busy_poll, (int, float)):
            raise TypeError(f"busy_poll must be a number of seconds, not {busy_poll!r}")
        source, wanted, reason = "busy_poll", busy_poll, "the program asks for it"
    else:
        text = os.environ.get(_VARIABLE, "")
        if not text:
            return _default()
        source, reason = _VARIABLE, f"{_VARIABLE}={text}"
        try:
            wanted = float(text)
        except ValueError:
            wanted = math.nan
        if math.isnan(wanted):
            raise ValueError(f"{_VARIABLE} must be a number of seconds, not {text!r}")
    if not 0 <= wanted <= MOST:
        raise ValueError(f"{source} must be from 0 to {MOST:g} seconds, not {wanted!r}")
    return float(wanted), reason
