"""What the figures show and why, in words that follow the figures.

Every sentence is chosen by what was measured. Where a figure is not what the model leads
one to expect, the text says that, and does not tell the expected story all the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .measure import Summary
from .models import MODELS

__all__ = ["Context", "conclusions", "explain", "share"]

_NOTICEABLE = 0.9  # a share below this is called a loss, its inverse a gain


@dataclass(frozen=True)
class Context:
    """What an explanation may compare with.

    Attributes:
        summaries: The figures of the models that did not fail, by name.
        long: What perf1 asked for.
        gil: Whether the interpreter has its global lock.
        switch_interval_ms: After how long a thread that computes must give the lock away.
        processors: How many may be used.
        load_before: How many processes ran or wanted to before the first was measured.
        rounds: How often each model was measured.
    """

    summaries: Mapping[str, Summary]
    long: int
    gil: bool
    switch_interval_ms: float
    processors: int
    load_before: float = 0.0
    rounds: int = 3


def explain(s: Summary, context: Context) -> str:
    """Write the paragraph of one model.

    Args:
        s: Its figures.
        context: Those of the others, and of the machine.
    """
    model = MODELS[s.name]
    sentences = [_opening(s, context)]
    if s.name == "c":
        sentences += _limit(s, context)
    elif model.clients == "one":
        sentences += _one_at_a_time(s, context)
    elif model.computing == "processes":
        sentences += _processes(s, context)
    elif model.computing == "auto":
        sentences += _auto(s, context)
    elif model.clients == "threads":
        sentences += _threads(s, context)
    else:
        sentences += _one_thread(s, context)
    if s.name.startswith("plait"):
        sentences += _plait(s, context)
    sentences.append(_tail(s))
    return " ".join(sentences)


def _opening(s: Summary, context: Context) -> str:
    if s.short_alone <= 0:
        return "perf2 got no answer at all while it was alone, so there is nothing to compare."
    where = "in the middle round that is" if context.rounds > 1 else "that is"
    return (
        f"Alone, perf2 gets {_rate(s.short_alone)} answers a second; beside perf1 it gets "
        f"{_rate(s.short_beside)}; {where} {share(s.kept)}: {_verdict(s.kept)}."
    )


def _verdict(kept: float) -> str:
    if kept < 0.05:
        return "nearly all is lost"
    if kept < 0.5:
        return "most is lost"
    if kept < _NOTICEABLE:
        return "a part is lost"
    if kept <= 1 / _NOTICEABLE:
        return "next to nothing is lost"
    return "it even gains"


def _one_at_a_time(s: Summary, context: Context) -> list[str]:
    told = ["One client is served at a time, and the next waits until it has left."]
    waited = s.long_beside_max_ms
    if waited > 3 * s.long_alone_ms and s.kept >= 0.5:
        told.append(
            "Here perf2 had come first and kept the server to itself, so its rate says nothing "
            f"good: perf1 lay in the system's queue, and its answer took {_ms(waited)} instead "
            f"of {_ms(s.long_alone_ms)}."
        )
    elif waited > 3 * s.long_alone_ms:
        told.append(
            "Here they had the only place in turn, each for as long as its client stayed: an "
            f"answer for perf1 took up to {_ms(waited)} instead of {_ms(s.long_alone_ms)}."
        )
    elif s.kept < 0.5:
        told.append("Here perf1 had the only place, and perf2 lay in the system's queue.")
    else:
        told.append("In this run neither of the two had to wait long for the other.")
    if s.long_twice_max_ms > 3 * s.long_alone_ms:
        told.append(
            f"Of two perf1 the second had to wait as well: {_ms(s.long_twice_max_ms)} for an "
            "answer."
        )
    told.append(
        "As long as one client is all there is, it is all that is needed: there is nothing to "
        "switch, to lock or to send."
    )
    others = [o for name, o in context.summaries.items() if name not in ("c", s.name)]
    best = max(others, key=lambda other: other.short_alone, default=s)
    if best.short_alone > s.short_alone / _NOTICEABLE:
        told.append(
            f"That {best.name} answers even a single client faster has nothing to do with turns: "
            "its code for the network is faster, or its processors were awake already."
        )
    return told


def _threads(s: Summary, context: Context) -> list[str]:
    told: list[str] = []
    if not context.gil:
        told.append(
            "This interpreter has no global lock: threads that compute run at the same time, as "
            "far as there are processors."
        )
        if s.kept < _NOTICEABLE:
            told.append(
                f"The loss has another cause, then: {context.processors} processor(s) are shared "
                "by load, server and computation."
            )
        return told + _second_long(s, context)
    expected = 1000 / context.switch_interval_ms
    if s.kept < _NOTICEABLE:
        told.append(
            "The interpreter's lock (GIL) lets one thread at a time run Python, and a thread that "
            "computes gives it away only after another has asked for it for a whole switch "
            f"interval, {context.switch_interval_ms:g} ms. A short request gives the lock away "
            "whenever it waits for the network, and has to ask again: if it does so each time, "
            f"{_rate(expected)} answers a second remain."
        )
        if 0.5 * expected <= s.short_beside <= 1.6 * expected:
            told.append(f"{_rate(s.short_beside)} were measured: the lock explains the loss.")
        elif s.short_beside > expected:
            told.append(
                f"{_rate(s.short_beside)} were measured, more than that: when the next request "
                "has come before the thread had to wait, it goes on without losing the lock."
            )
        else:
            told.append(
                f"{_rate(s.short_beside)} were measured, less than that: the lock does not "
                "explain all of the loss."
            )
    else:
        told.append(
            "With the interpreter's lock (GIL) one would expect a loss here, as a thread that "
            f"computes keeps it for {context.switch_interval_ms:g} ms at a time; this run does "
            "not show it."
        )
    return told + _second_long(s, context)


def _one_thread(s: Summary, context: Context) -> list[str]:
    where = "yield" if s.name == "generators" else "await"
    told = [
        f"All clients share one thread, and others get a turn only where a client's code says "
        f"{where}. The computation never does."
    ]
    turns = 1000 / s.long_beside_ms if s.long_beside_ms > 0 else 0.0
    if s.kept < 0.5 and turns:
        told.append(
            f"So between two long answers there is room for about one short one: with "
            f"{_ms(s.long_beside_ms)} for fib({context.long}) that makes {_rate(turns)} a second."
        )
        if s.short_beside > 3 * turns:
            told.append(
                f"{_rate(s.short_beside)} were measured, so there must have been gaps in which "
                "the loop had nothing long to do."
            )
    elif s.kept < _NOTICEABLE:
        told.append("What is lost is the time in which the loop computed.")
    else:
        told.append(
            "That this run shows no loss means that little was computed while it lasted: "
            f"a long request took {_ms(s.long_beside_ms)}."
        )
    return told + _second_long(s, context)


def _processes(s: Summary, context: Context) -> list[str]:
    told: list[str] = []
    if s.kept > 1 / _NOTICEABLE:
        told.append(
            "Other processes compute, each with an interpreter and a lock of its own, so the "
            "server always has a turn. That it gets faster is a figure of the machine: "
            "processors that are kept busy need not be woken from their sleep for each message."
        )
    elif s.kept >= _NOTICEABLE:
        told.append(
            "Other processes compute, each with an interpreter and a lock of its own, so the "
            "server always has a turn."
        )
    else:
        told.append(
            "Other processes compute, so no lock is in the way; but load, server and workers "
            f"share {context.processors} processor(s), and a short request may have to wait for "
            "one of them, or in the pool's queue behind a long one."
        )
    inline = context.summaries.get(_without_processes(s.name))
    if inline is not None and s.short_alone > 0 and inline.short_alone > 0:
        hop = 1e6 / s.short_alone - 1e6 / inline.short_alone
        if s.short_alone < _NOTICEABLE * inline.short_alone:
            told.append(
                f"The price is the trip: every request, the smallest too, goes to another process "
                f"and back. {_rate(s.short_alone)} answers a second alone, against "
                f"{_rate(inline.short_alone)} of {inline.name}, make that about {_us(hop)} each."
            )
        else:
            told.append(
                f"The trip to another process should cost something; against {inline.name} with "
                f"{_rate(inline.short_alone)} answers a second alone, this run does not show it."
            )
            if s.name.startswith("plait"):
                told.append(
                    "A worker of plait's looks for more work for a moment before it sleeps, and "
                    "a processor that is kept awake answers sooner."
                )
        if inline.short_beside > s.short_beside:
            told.append(f"Beside perf1, too, {inline.name} answers more.")
    return told + _second_long(s, context)


def _auto(s: Summary, context: Context) -> list[str]:
    told = [
        "Each number is begun in the loop's own thread. One that is not done within a "
        "millisecond is interrupted and begun again in a process, and the next of its size goes "
        "there at once."
    ]
    if s.kept >= _NOTICEABLE:
        told.append(
            "So short requests pay no trip to another process, and do not wait for long ones."
        )
    else:
        told.append(
            f"The loop is never held up for longer than that, so what is lost here goes to the "
            f"processors: load, server and worker share {context.processors} of them."
        )
    threads = context.summaries.get("threads")
    if threads is not None and threads.short_alone > 0:
        told.append(
            "Against a thread for each client, which has no loop, no budget and no choice to "
            f"make, it answers {_times(s.short_alone / threads.short_alone)} alone."
        )
    processes = context.summaries.get("plait+processes")
    if processes is not None and processes.short_alone > 0:
        ratio = s.short_alone / processes.short_alone
        told.append(
            f"Against sending every number to a process it answers {_times(ratio)} alone"
            + (
                f" and {_times(s.short_beside / processes.short_beside)} beside perf1."
                if processes.short_beside > 0
                else "."
            )
        )
        if ratio < 0.95:
            told.append(
                "That it does less, though it makes no trip, is the sleep of idle "
                "processors: workers that look out for work keep theirs awake."
            )
    if s.long_alone_ms > 0 and s.long_beside_ms > 0:
        ratio = s.long_beside_ms / s.long_alone_ms
        told.append(
            f"Beside perf2 a long request takes {_ms(s.long_beside_ms)}, {ratio:.2f} times as long as "
            "alone."
        )
    return told + _second_long(s, context)


def _without_processes(name: str) -> str:
    """The model that computes in place and is like this one otherwise."""
    names = {"plait+generators": "generators", "plait+scope": "plait"}
    return names.get(name) or name.removesuffix("+processes")


def _second_long(s: Summary, context: Context) -> list[str]:
    if s.long_alone_ms <= 0 or s.long_twice_ms <= 0:
        return []
    ratio = s.long_twice_ms / s.long_alone_ms
    each = f"{_ms(s.long_alone_ms)} alone, {_ms(s.long_twice_ms)} each with a second perf1"
    parallel = MODELS[s.name].computing != "inline" or (
        not context.gil and MODELS[s.name].clients == "threads"
    )
    if ratio >= 1.6:
        because = "they take turns"
        if parallel:
            because += f", though on {context.processors} processor(s) more was to be hoped for"
    elif ratio > 1.3:
        because = "they hinder each other, and less than if they took turns"
    elif parallel:
        because = "they run at the same time"
    else:
        because = (
            "as if they ran at the same time, which one lock or one thread does not allow; the "
            "run was too short, or the machine too busy, to tell"
        )
    return [f"A long request takes {each}: {because}."]


def _plait(s: Summary, context: Context) -> list[str]:
    told: list[str] = []
    rival = context.summaries.get(s.name.replace("plait", "asyncio"))
    if rival is not None and rival.short_alone > 0:
        alone = s.short_alone / rival.short_alone
        told.append(f"Against {rival.name}, plait answers {_times(alone)} alone")
        if rival.short_beside > 0 and s.name != "plait":
            beside = s.short_beside / rival.short_beside
            told[-1] += f" and {_times(beside)} beside perf1"
        told[-1] += "."
        if alone < 0.95:
            told.append("Here plait loses.")
    if s.kept < _NOTICEABLE and MODELS[s.name].computing == "inline":
        told.append(
            "A faster loop is no cure for a computation in the loop's thread: the number belongs "
            "in a process."
        )
    return told


def _limit(s: Summary, context: Context) -> list[str]:
    told = [
        "No Python runs here: small numbers are computed by the loop at once, larger ones by "
        "worker processes. This is what the machine and its network stack give."
    ]
    if s.kept > 1 / _NOTICEABLE:
        told.append("The gain is that of processors which are kept from sleeping.")
    elif s.kept < _NOTICEABLE:
        told.append(
            f"The loop never computes for long, so what is lost goes to its workers: on "
            f"{context.processors} processor(s) they take their share from server and load."
        )
    python = [
        other.long_alone_ms
        for name, other in context.summaries.items()
        if name != "c" and other.long_alone_ms > 0
    ]
    if python and s.long_alone_ms > 0:
        told.append(
            f"fib({context.long}) takes {_ms(s.long_alone_ms)} in C and {_ms(min(python))} at best "
            "in Python, so perf1 is a lighter load here than for the others: compare the short "
            "requests, not the long ones."
        )
    others = [
        other
        for name, other in context.summaries.items()
        if name != "c" and MODELS[name].clients != "one"
    ]
    if others and s.short_beside > 0:
        best = max(others, key=lambda other: other.short_beside)
        ratio = best.short_beside / s.short_beside
        if ratio <= 1:
            told.append(
                f"Of the models in Python, {best.name} comes nearest beside perf1, with "
                f"{share(ratio)} of the limit."
            )
        else:
            told.append(
                f"A limit it is not beside perf1 in this run: {best.name} answers "
                f"{_rate(best.short_beside)}. The workers in C are done with a long request so "
                "soon that they ask for the processor far more often; or the machine was busy."
            )
    return told


def _tail(s: Summary) -> str:
    if not s.beside.count:
        return "Beside perf1 no short request was answered at all."
    return (
        f"Beside perf1, half of the short requests took at most {_us(s.beside.p50)}, "
        f"99 % at most {_us(s.beside.p99)} and the slowest {_us(s.beside.max)}."
    )


def conclusions(context: Context) -> list[str]:
    """What the whole experiment shows, as far as it was measured.

    Args:
        context: The figures of all models.
    """
    told: list[str] = []
    if context.load_before > 0.5 * context.processors and context.summaries:
        told.append(
            f"The machine was busy with something else: a load of {context.load_before:.1f} on "
            f"{context.processors} processor(s) before the start. Expect other figures when it "
            "is not, above all where several processes compute."
        )
    served = {
        name: s
        for name, s in context.summaries.items()
        if name != "c" and MODELS[name].clients != "one" and s.short_alone > 0
    }
    if context.rounds == 1 and context.summaries:
        told.append("One round was run: enough for a look, too little to rank what is close.")
    if not served:
        return told
    lost = [s.name for s in served.values() if s.kept < 0.5]
    held = [s.name for s in served.values() if s.kept >= _NOTICEABLE]
    between = [s.name for s in served.values() if 0.5 <= s.kept < _NOTICEABLE]
    if lost:
        told.append(
            f"Beside a long request, more than half of the short ones are lost by {_and(lost)}."
        )
    if between:
        told.append(f"A part is lost by {_and(between)}.")
    if held:
        told.append(f"At least 90 % is kept by {_and(held)}.")
    fastest = max(served.values(), key=lambda s: s.short_alone)
    told.append(
        f"Alone, {fastest.name} is the fastest in Python, with {_rate(fastest.short_alone)} "
        "answers a second."
    )
    best = max(served.values(), key=lambda s: s.short_beside)
    told.append(
        f"Beside a long request it is {best.name}, with {_rate(best.short_beside)}"
        + ("." if best.name.startswith("plait") or not _has_plait(served) else ", and not plait.")
    )
    if fastest.name != best.name:
        told.append(
            "Measuring alone would have chosen another model than measuring under mixed load."
        )
    return told


def _has_plait(served: Mapping[str, Summary]) -> bool:
    return any(name.startswith("plait") for name in served)


def _and(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def share(value: float) -> str:
    """A share in percent, with as many digits as a small one needs."""
    return f"{value:.0%}" if value >= 0.1 else f"{value:.1%}" if value >= 0.01 else f"{value:.2%}"


def _times(ratio: float) -> str:
    if 0.95 <= ratio <= 1.05:
        return "as many short requests"
    if ratio < 1:
        return f"fewer short requests ({ratio:.2f} times as many)"
    return f"{ratio:.1f} times as many short requests"


def _ms(value: float) -> str:
    if value >= 1000:
        return f"{value / 1000:.1f}\u00a0s"
    return f"{value:.0f}\u00a0ms" if value >= 10 else f"{value:.1f}\u00a0ms"


def _us(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:.1f}\u00a0s"
    if value >= 1e3:
        return f"{value / 1e3:.1f}\u00a0ms"
    return f"{value:.0f}\u00a0µs"
