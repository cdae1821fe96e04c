"""Tables on a terminal: plain text, columns aligned."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from .measure import TLS_LIMITS, Series, rows_of


def render(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Align a table: the first column to the left, the others to the right."""
    widths = [max(len(line[i]) for line in [header, *rows]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        return "  ".join([first, *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))])

    return "\n".join([line(header), "  ".join("-" * w for w in widths), *map(line, rows)])


def number(value: float | None) -> str:
    """Write a figure with three significant digits and thousands separated."""
    if value is None:
        return "-"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def table(
    series: Sequence[Series], peers: Sequence[str], cell: Callable[[Series], str], missing: str
) -> str:
    """Lay series out with rows down and peers across."""
    by_key = {(s.row, s.peer): s for s in series}
    rows = []
    for row in rows_of(series):
        cells = [row]
        for peer in peers:
            s = by_key.get((row, peer))
            cells.append(missing if s is None else "failed" if s.error else cell(s))
        rows.append(cells)
    return render(["", *peers], rows)


def limits(series: Sequence[Series]) -> dict[str, float]:
    """Find the bare C server's median for each row."""
    return {s.row: s.median for s in series if s.peer == "C" and s.median}


def shares(series: Series, limit: Series | None) -> list[float]:
    """Divide each round's figure by the limit's of the same round, which ran beside it."""
    if limit is None or limit.error or series.error:
        return []
    return [value / of for value, of in zip(series.values, limit.values, strict=False) if of]


def echo_tables(series: Sequence[Series], peers: Sequence[str]) -> str:
    """Write the echo rows: share of the C limit, CPU time per request, rate, latency."""
    limit = {s.row: s for s in series if s.peer == "C"}

    def share(s: Series) -> str:
        ratios = shares(s, limit.get(s.row))
        if not ratios:
            return "-"
        middle = statistics.median(ratios)
        return f"{middle:.2f} ±{(max(ratios) - min(ratios)) / middle * 50:.0f}%"

    def cpu(s: Series) -> str:
        user, system = s.extra_median("user_us"), s.extra_median("system_us")
        return f"{number(user)} + {number(system)}"

    def latency(s: Series) -> str:
        return f"{number(s.extra_median('p50_us'))} / {number(s.extra_median('p99_us'))}"

    absent = "not installed"
    everyone = ["C", *peers]
    secure = [s for s in series if s.row in {t.row for t in series if t.peer in TLS_LIMITS}]
    bare = ["C", *TLS_LIMITS]
    limited = [
        "OpenSSL in bare C, the limit of TLS: share of the plain server's rate, and CPU time\n"
        + table(secure, bare, share, absent)
        + "\n\n"
        + table(secure, bare, cpu, absent)
    ]
    return "\n\n".join(
        [
            *(limited if secure else []),
            "Echo servers, share of the bare C server's rate (median, half the spread)\n"
            + table(series, peers, share, absent),
            "Requests per second\n" + table(series, everyone, lambda s: number(s.median), absent),
            "Server's CPU time per request, us (user + system)\n"
            + table(series, everyone, cpu, absent),
            "Latency, us (p50 / p99)\n" + table(series, everyone, latency, absent),
        ]
    )


def plain_table(title: str, series: Sequence[Series], peers: Sequence[str]) -> str:
    """Write medians under a title."""
    return f"{title}\n" + table(series, peers, lambda s: number(s.median), "not installed")


def markdown(series: Sequence[Series], peers: Sequence[str]) -> str:
    """Write all rows as one table in Markdown, the best of each in bold.

    Echo rows are shares of the limit (more is better), all others say what they count (less is
    better).
    """
    by_key = {(s.row, s.peer): s for s in series}
    lines = ["| | " + " | ".join(peers) + " |", "|---|" + "---:|" * len(peers)]
    for row in rows_of(series):
        of_row = [by_key.get((row, peer)) for peer in peers]
        unit = next(s.unit for s in series if s.row == row)
        limit = by_key.get((row, "C"))
        values: list[float | None] = []
        for s in of_row:
            if s is None or s.error:
                values.append(None)
            elif limit is not None:
                ratios = shares(s, limit)
                values.append(statistics.median(ratios) if ratios else None)
            else:
                values.append(s.median)
        known = [v for v in values if v is not None]
        best = (max if limit is not None else min)(known) if known else None
        cells = []
        for s, v in zip(of_row, values, strict=True):
            text = "" if s is None else "fails" if v is None else number(v)
            if v is not None and limit is not None:
                text = f"{v:.2f}"
            cells.append(f"**{text}**" if v is not None and v == best and len(known) > 1 else text)
        label = row if limit is not None else f"{row}, {unit}"
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
