"""The progress of a running job, on a terminal and in a log."""

import io
import time
from collections.abc import Iterator

import pytest
import redis
from rich.console import Console

from producer.jobs import progress
from producer.jobs.progress import Rate, summary, watch
from producer.jobs.status import JobStatus, LayerStatus
from workers.contract.errors import NoBucket, StorageUnreachable


def status(
    stored: int, planned: int = 100, *, state: str = "running", waiting_for: str = "", failed: int = 0, layers: int = 1
) -> JobStatus:
    """The status of a job of ``layers`` layers; the first has the stored tiles."""
    first = LayerStatus(layer="layer0", planned=planned, stored=stored, failed=failed)
    others = [LayerStatus(layer=f"layer{number}", planned=planned, stored=0, failed=0) for number in range(1, layers)]
    return JobStatus(
        job="a-job", state=state, planned=planned * layers, stored=stored, failed=failed, queued=0, in_flight=0,
        requeued=0, workers=1, troubles={}, waiting_for=waiting_for, layers=(first, *others),
        reasons={f"layer0/{number}": "out of luck" for number in range(failed)},
    )  # fmt: skip


def shown(*statuses: JobStatus, terminal: bool) -> str:
    """The whole output of watching these statuses."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=100, height=40, color_system=None)
    following: Iterator[JobStatus] = iter(statuses)
    assert watch(lambda: next(following), console, every_s=0.0) == statuses[-1]
    return out.getvalue()


def test_the_time_until_the_first_tile_does_not_count_in_the_rate() -> None:
    # Given a job whose processes take a minute to start, and then render four tiles in ten seconds
    rate = Rate()
    assert rate.left_s(0, 100, 0.0) is None
    assert rate.left_s(0, 100, 60.0) is None
    # When the first batch ends, the rate is unknown
    assert rate.left_s(4, 100, 70.0) is None
    # Then it is known from the second batch on
    assert rate.left_s(8, 100, 80.0) == 92 * 10 / 4


def test_tiles_that_were_stored_before_do_not_count_in_the_rate() -> None:
    # Given a job that is resumed with half of its tiles
    rate = Rate()
    for ended, now_s in ((50, 0.0), (51, 1.0), (52, 2.0)):
        left_s = rate.left_s(ended, 100, now_s)
    # Then the rate is that of the others, one a second
    assert left_s == 48.0


def test_the_rate_is_that_of_the_last_minute() -> None:
    # Given ten fast tiles, and then slow ones
    rate = Rate()
    for second in range(11):
        rate.left_s(second, 1000, float(second))
    for ended in range(11, 21):
        left_s = rate.left_s(ended, 1000, 10.0 + (ended - 10) * 20.0)
    # Then the fast ones no longer count
    assert left_s == 980 * 20.0


def test_batches_longer_than_the_window_give_a_rate_too() -> None:
    # Given batches of four that take five minutes each, with a status every second
    rate = Rate()
    left_s = [rate.left_s(4 * (second // 300), 40, float(second)) for second in range(1000)]
    # Then the remaining time is known from the second batch on, without gaps
    assert left_s[599] is None
    assert left_s[600:900] == [32 * 75.0] * 300
    assert left_s[999] == 28 * 75.0


def test_the_rate_is_measured_anew_after_tiles_are_lost() -> None:
    rate = Rate()
    for ended, now_s in ((0, 0.0), (10, 10.0), (20, 20.0), (5, 30.0)):
        left_s = rate.left_s(ended, 100, now_s)
    assert left_s is None


def test_one_line_gives_the_progress_and_the_reason_for_waiting() -> None:
    assert summary(status(7), None) == "a-job: running, 7 of 100 tiles"
    assert summary(status(7), 600.0) == "a-job: running, 7 of 100 tiles, 10 min left"
    assert summary(status(7, failed=2), 5.0) == "a-job: running, 7 of 100 tiles, 2 failed, 5 s left"
    assert summary(status(7, waiting_for="a worker"), 5.0) == "a-job: running, 7 of 100 tiles, waiting for a worker"
    assert summary(status(100), 0.0) == "a-job: running, 100 of 100 tiles, assembling"
    assert summary(status(100, state="finished"), None) == "a-job: finished, 100 of 100 tiles"


def test_a_terminal_shows_a_bar_for_each_layer_and_ends_with_one_line() -> None:
    # Given a job of three layers in progress, with a failed tile
    text = shown(status(40, failed=1, layers=3), status(100, state="finished", layers=3), terminal=True)
    # Then there is a bar for each, the failure with its reason, and the elapsed time
    for part in ("layer0 failed: 1", "41/100", "layer2", "0/100", "failed layer0/0: out of luck", "(0 s so far)"):
        assert part in text, part
    # And one line remains at the end
    assert text.rstrip().endswith("a-job: finished, 100 of 300 tiles")


def test_more_layers_than_fit_are_counted() -> None:
    # Given a job of fifty layers
    text = shown(status(3, layers=50), status(3, layers=50, state="cancelled"), terminal=True)
    # Then the first have bars, and one line gives the number of the others
    assert "layer11" in text
    assert "layer12" not in text
    assert "and 38 layers more" in text


def test_a_log_gets_plain_lines() -> None:
    # Given a standard error that is no terminal
    text = shown(status(3), status(100, state="finished"), terminal=False)
    # Then there is one line at the start and one at the end, without control characters
    assert text.splitlines() == ["a-job: running, 3 of 100 tiles", "a-job: finished, 100 of 100 tiles"]


@pytest.mark.parametrize("error", [StorageUnreachable("no answer from the store"), redis.ConnectionError("gone")])
@pytest.mark.parametrize("terminal", [True, False])
def test_a_watch_goes_on_while_store_or_redis_cannot_be_reached(
    error: Exception, terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a job whose status cannot be read twice
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    answers: Iterator[JobStatus | Exception] = iter([status(3), error, error, status(100, state="finished")])

    def look() -> JobStatus:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=100, color_system=None)
    # When it is watched, then that is said once, and the end is seen
    assert watch(look, console, every_s=0.0).state == "finished"
    assert out.getvalue().count("unreachable, retrying") == 1


@pytest.mark.parametrize("error", [StorageUnreachable("no answer"), redis.AuthenticationError("no"), NoBucket("no")])
def test_a_watch_ends_with_an_error_that_lasts_or_that_a_person_must_fix(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given ten minutes without an answer, or a refusal
    monkeypatch.setattr(progress, "_PATIENCE_S", 0.0)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)

    def look() -> JobStatus:
        raise error

    # When / Then
    with pytest.raises(type(error)):
        watch(look, Console(file=io.StringIO()), every_s=0.0)
