"""Progress of a job: on a terminal and in a notebook one bar per layer, the time left and the last failures; otherwise
plain lines.

rich's TimeRemainingColumn is not used: it averages the updates of a fixed period, so it shows nothing while one batch
takes longer than that, and plain lines need the time left as text anyway.
"""

import os
import time
from collections.abc import Callable

import redis
from rich.align import Align
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from producer.jobs.status import JobStatus
from workers.contract.errors import BrokerUnreachable, StorageUnreachable, one_line

#: Pause between two lines if standard error is no terminal.
_LINE_EVERY_S = 10.0

#: Period over which the rate is measured. Layers differ a hundredfold in cost.
_RATE_WINDOW_S = 60.0

#: Number of bars that fit on a terminal.
_MOST_BARS = 12


#: Seconds for which a watch goes on although object store or Redis cannot be reached.
_PATIENCE_S = 600.0


def watch(look: Callable[[], JobStatus], console: Console, *, every_s: float = 1.0) -> JobStatus:
    """Show the status every ``every_s`` seconds until the job is no longer running; returns the last status.

    While the object store or Redis cannot be reached, that is shown, and the error is raised after _PATIENCE_S.
    """
    patient = _Patience(look, console)
    if console.is_jupyter:
        return _cell(patient, every_s)
    return _live(patient, console, every_s) if can_redraw(console) else _lines(patient, console, every_s)


class _Patience:
    """Calls ``look`` until it raises no error of the connection any more."""

    def __init__(self, look: Callable[[], JobStatus], console: Console) -> None:
        self._look = look
        self._console = console

    def __call__(self) -> JobStatus:
        failed_at, pause_s = None, 1.0
        while True:
            try:
                return self._look()
            except (StorageUnreachable, BrokerUnreachable, redis.ConnectionError, redis.TimeoutError) as error:
                now = time.monotonic()
                if isinstance(error, redis.AuthenticationError):
                    raise
                if failed_at is None:
                    failed_at = now
                    text = f"unreachable, retrying: {one_line(error, 160)}"
                    self._console.print(text, highlight=False, soft_wrap=True, markup=False)
                elif now - failed_at > _PATIENCE_S:
                    raise
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, 10.0)


def can_redraw(console: Console) -> bool:
    """True if lines can be drawn over. A notebook's cell is a terminal that cannot: Jupyter sets JPY_PARENT_PID."""
    return console.is_terminal and not console.is_dumb_terminal and "JPY_PARENT_PID" not in os.environ


def _lines(look: Callable[[], JobStatus], console: Console, every_s: float) -> JobStatus:
    rate = Rate()
    printed_at, printed = 0.0, ""
    while True:
        status = look()
        now = time.monotonic()
        text = summary(status, rate.left_s(status.stored + status.failed, status.planned, now))
        if status.state != "running" or (text != printed and now - printed_at >= _LINE_EVERY_S):
            console.print(text, highlight=False, soft_wrap=True)
            printed_at, printed = now, text
        if status.state != "running":
            return status
        time.sleep(every_s)


def _live(look: Callable[[], JobStatus], console: Console, every_s: float) -> JobStatus:
    with Live(console=console, auto_refresh=False, transient=True) as live:
        status = _redraw(look, lambda shown: live.update(shown, refresh=True), every_s)
    console.print(summary(status, None), highlight=False, soft_wrap=True)
    return status


def _cell(look: Callable[[], JobStatus], every_s: float) -> JobStatus:
    """In a notebook's cell. rich's Live needs ipywidgets there; a display of IPython that is replaced does not."""
    from IPython.display import display

    handle = display(Text(), display_id=True)  # type: ignore[no-untyped-call]
    status = _redraw(look, lambda shown: handle.update(Align.left(shown)), every_s)
    handle.update(Text(summary(status, None)))
    return status


def _redraw(look: Callable[[], JobStatus], show: Callable[[Group], None], every_s: float) -> JobStatus:
    rate, began_s = Rate(), time.monotonic()
    while True:
        status = look()
        now_s = time.monotonic()
        left_s = rate.left_s(status.stored + status.failed, status.planned, now_s)
        show(_render(f"{summary(status, left_s)} ({_duration(now_s - began_s)} so far)", status))
        if status.state != "running":
            return status
        time.sleep(every_s)


def summary(status: JobStatus, left_s: float | None) -> str:
    """One line: state, tiles, failures, and the time left or what the job waits for."""
    state = f"failed: {status.waiting_for}" if status.state == "failed" else status.state
    parts = [f"{status.job}: {state}, {status.stored} of {status.planned} tiles"]
    if status.failed:
        parts.append(f"{status.failed} failed")
    if status.requeued:
        parts.append(f"{status.requeued} re-enqueued")
    if status.state == "running":
        if status.waiting_for:
            parts.append(f"waiting for {status.waiting_for}")
        elif status.stored + status.failed == status.planned:
            parts.append("assembling")
        elif left_s is not None:
            parts.append(f"{_duration(left_s)} left")
    return ", ".join(parts)


def _render(heading: str, status: JobStatus) -> Group:
    bars = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    unfinished = [layer for layer in status.layers if layer.stored + layer.failed < layer.planned]
    finished = [layer for layer in status.layers if layer.stored + layer.failed >= layer.planned]
    shown = (finished[-3:] + unfinished)[:_MOST_BARS]
    for layer in shown:
        mark = " [red]failed: " + str(layer.failed) if layer.failed else ""
        bars.add_task(layer.layer + mark, total=layer.planned, completed=layer.stored + layer.failed)
    more = len(status.layers) - len(shown)
    rest = [Text(f"and {more} layer{'' if more == 1 else 's'} more")] if more else []
    failures = [Text(f"failed {tile}: {reason}", style="red") for tile, reason in list(status.reasons.items())[-5:]]
    return Group(Text(heading), bars, *rest, *failures)


class Rate:
    """Estimates the time left from the tiles that ended during the last minute, or the last two updates.

    The time until the first tile ends is not counted: processes start and networks load.
    """

    def __init__(self) -> None:
        self._before: int | None = None
        #: (time, number of ended tiles) of the updates of the last minute, and at least the last two
        self._updates: list[tuple[float, int]] = []

    def left_s(self, ended: int, planned: int, now_s: float) -> float | None:
        """Seconds left if ``ended`` of ``planned`` tiles have ended at ``now_s``; None until two updates are known."""
        if ended != self._before:
            if self._before is not None and ended < self._before:  # stored tiles were found missing
                self._updates = []
            elif self._before is not None:
                self._updates.append((now_s, ended))
            self._before = ended
        while len(self._updates) > 2 and self._updates[1][0] <= now_s - _RATE_WINDOW_S:
            self._updates.pop(0)
        if len(self._updates) < 2:
            return None
        (first_s, first), (last_s, last) = self._updates[0], self._updates[-1]
        return (planned - ended) * (last_s - first_s) / (last - first)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
