"""Watching a job on a terminal: a bar per layer, the time left, failures as they come."""

import time
from collections.abc import Callable

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from producer.status import JobStatus

#: Where standard error is no terminal, a line this often is enough.
_LINE_EVERY_S = 10.0

#: The rate is that of the last minute: layers differ a hundredfold in cost.
_RATE_WINDOW_S = 60.0

#: More bars than this do not fit on a terminal; the layers at work are shown.
_MOST_BARS = 12


def watch(look: Callable[[], JobStatus], console: Console, *, every_s: float = 1.0) -> JobStatus:
    """Show the job until it has ended; returns its last status."""
    return _live(look, console, every_s) if console.is_terminal else _lines(look, console, every_s)


def _lines(look: Callable[[], JobStatus], console: Console, every_s: float) -> JobStatus:
    rate = _Rate()
    told_at, told = 0.0, ""
    while True:
        status = look()
        text = summary(status, rate.left_s(status))
        now = time.monotonic()
        if status.state != "running" or (text != told and now - told_at >= _LINE_EVERY_S):
            console.print(text, highlight=False, soft_wrap=True)
            told_at, told = now, text
        if status.state != "running":
            return status
        time.sleep(every_s)


def _live(look: Callable[[], JobStatus], console: Console, every_s: float) -> JobStatus:
    rate = _Rate()
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            status = look()
            live.update(_picture(status, rate.left_s(status)), refresh=True)
            if status.state != "running":
                break
            time.sleep(every_s)
    console.print(summary(status, None), highlight=False, soft_wrap=True)
    return status


def summary(status: JobStatus, left_s: float | None) -> str:
    """One line: how far, how many failed, how long still, what it waits for."""
    parts = [f"{status.job}: {status.state}, {status.stored} of {status.planned} tiles"]
    if status.failed:
        parts.append(f"{status.failed} failed")
    if status.requeued:
        parts.append(f"{status.requeued} enqueued again")
    if status.state == "running":
        if status.waiting_for:
            parts.append(f"waiting for {status.waiting_for}")
        elif status.stored + status.failed == status.planned:
            parts.append("assembling")
        elif left_s is not None:
            parts.append(f"{_duration(left_s)} left")
    return ", ".join(parts)


def _picture(status: JobStatus, left_s: float | None) -> Group:
    bars = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    unfinished = [layer for layer in status.layers if layer.stored + layer.failed < layer.planned]
    finished = [layer for layer in status.layers if layer.stored + layer.failed >= layer.planned]
    shown = (finished[-3:] + unfinished)[:_MOST_BARS]
    for layer in shown:
        mark = " [red]failed: " + str(layer.failed) if layer.failed else ""
        bars.add_task(layer.layer + mark, total=layer.planned, completed=layer.stored + layer.failed)
    failures = [Text(f"failed {tile}: {reason}", style="red") for tile, reason in list(status.reasons.items())[-5:]]
    return Group(Text(summary(status, left_s)), bars, *failures)


class _Rate:
    """Tiles per second over the last minute, and from it the time left."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, int]] = []

    def left_s(self, status: JobStatus) -> float | None:
        ended = status.stored + status.failed
        now = time.monotonic()
        self._seen.append((now, ended))
        while self._seen[0][0] < now - _RATE_WINDOW_S:
            self._seen.pop(0)
        began, first = self._seen[0]
        if ended <= first:
            return None
        return (status.planned - ended) * (now - began) / (ended - first)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
