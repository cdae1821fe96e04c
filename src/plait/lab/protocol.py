"""The rules of the Fibonacci protocol, the same for every model.

A request is a decimal number on a line, the answer is a decimal number on a line. A bad
line is answered with a line that begins with ``error:`` and the connection goes on; a line
of more than MAX_LINE bytes is answered so too, and the connection is closed. What stands
after the last line end when the client stops sending is no request.
"""

from __future__ import annotations

__all__ = ["MAX_LINE", "TOO_LONG", "BadLine", "parse"]

MAX_LINE = 1024
"""Bytes in a line at most, its end not counted."""

TOO_LONG = b"error: a line has %d bytes at most\n" % MAX_LINE
"""The answer to a longer one."""


class BadLine(ValueError):
    """A request that cannot be answered with a number.

    Attributes:
        answer: The line to send instead, its end included.
    """

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.answer = f"error: {problem}\n".encode()


def parse(line: bytes, limit: int) -> int:
    """Read a request.

    Args:
        line: The line, with or without its end.
        limit: The largest number that is allowed.

    Returns:
        The number, from 1 to limit.

    Raises:
        BadLine: It is no decimal number, or not within 1 to limit.
    """
    text = line.strip()
    if text.isdigit():  # of bytes: the ten ASCII digits only
        n = int(text)
        if 1 <= n <= limit:
            return n
        bound = f"{limit} or less" if n > limit else "1 or more"
        raise BadLine(f"n must be {bound}, not {_shown(text)}")
    if text[:1] == b"-" and text[1:].isdigit():
        raise BadLine(f"n must be 1 or more, not {_shown(text)}")
    raise BadLine(f"not a decimal number: '{_shown(text)}'")


def _shown(text: bytes) -> str:
    """What may be repeated to a person: printable and short."""
    printable = "".join(chr(c) if 0x20 <= c <= 0x7E else "?" for c in text[:40])
    return printable + "..." if len(text) > 40 else printable
