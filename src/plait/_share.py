"""Plain buffers on their way to another process: out of band, as arrays are."""

from __future__ import annotations

from pickle import PickleBuffer
from typing import Any

from . import _core


class Large:
    """Stands for large bytes, a bytearray or a memoryview in a message.

    pickle copies them into its output; this leaves the bytes to the pool, which copies them
    once. bytes and bytearrays own their memory, as CPython has it: there is no way to make one
    on memory that exists. So the other side copies them once more; a memoryview is mapped.
    """

    __slots__ = ("value",)

    def __init__(self, value: bytes | bytearray | memoryview) -> None:
        self.value = value

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        value = self.value
        if isinstance(value, memoryview):
            if not value.c_contiguous:
                raise BufferError("a memoryview must be contiguous to be sent to a task")
            return (view, (PickleBuffer(value), value.format, value.shape, value.readonly))
        own = _core.own_bytes if isinstance(value, bytes) else _core.own_bytearray
        return (own, (PickleBuffer(value),))


def view(buffer: Any, format: str, shape: tuple[int, ...], readonly: bool) -> memoryview:
    """Make a memoryview of what arrived."""
    plain = memoryview(buffer).cast("B")
    if format != "B" or len(shape) != 1:
        plain = plain.cast(format, shape)  # type: ignore[call-overload]
    return plain.toreadonly() if readonly else plain
