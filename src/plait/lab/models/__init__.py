"""One server, written in twelve ways: a file for each, to be read side by side.

Every file has a function ``serve(listener, limit, workers)`` that answers clients until it
is interrupted. The model "c" is an executable without any Python.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MODELS", "Model"]


@dataclass(frozen=True)
class Model:
    """A way to write the server.

    Attributes:
        name: What the command line calls it.
        module: The file in this package; empty for the executable.
        summary: What it is, in a few words.
        clients: Who serves the clients: "one" (one client at a time), "threads" (a thread
            each), "loop" (all in one thread).
        computing: Where numbers are computed: "inline" (by whoever serves),
            "processes", or "auto" (either, as each call's cost asks for).
    """

    name: str
    module: str
    summary: str
    clients: str
    computing: str


MODELS: dict[str, Model] = {
    model.name: model
    for model in (
        Model("sequential", "sequential", "one client after the other", "one", "inline"),
        Model("threads", "threads", "a thread for each client", "threads", "inline"),
        Model(
            "threads+processes",
            "threads_processes",
            "a thread for each client, a process pool that computes",
            "threads",
            "processes",
        ),
        Model("generators", "generators", "generators and a scheduler by hand", "loop", "inline"),
        Model("asyncio", "asyncio_inline", "coroutines on asyncio's loop", "loop", "inline"),
        Model(
            "asyncio+processes",
            "asyncio_processes",
            "coroutines, and a process pool that computes",
            "loop",
            "processes",
        ),
        Model("plait", "plait_inline", "the same coroutines on plait's loop", "loop", "inline"),
        Model(
            "plait+processes",
            "plait_processes",
            "coroutines on plait's loop, and plait's process pool",
            "loop",
            "processes",
        ),
        Model(
            "plait+generators",
            "plait_generators",
            "generators on plait's scheduler, and plait's process pool",
            "loop",
            "processes",
        ),
        Model(
            "plait+auto",
            "plait_auto",
            "the same coroutines, and a decorator that places each call",
            "loop",
            "auto",
        ),
        Model(
            "plait+scope",
            "plait_scope",
            "one scope: clients on the loop, numbers in processes",
            "loop",
            "processes",
        ),
        Model("c", "", "the limit: loop and workers in C, no Python", "loop", "processes"),
    )
}
