"""Workers that are killed, stopped, or join and leave during a job."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.e2e.fleet import VISIBILITY_TIMEOUT_S, Fleet, descendants, kill_group, wait_for
from tests.e2e.whole import check_everything, has_ended, stored
from tests.injection import into_renderer

RECIPE = ("squeezenet1_1", "--weights", "none", "--method", "notebook", "--size", "32", "--steps", "2")

#: Batch size of a slow worker, in tiles.
BATCH = 4

#: A job of 80 tiles.
MANY = (*RECIPE, "--layers", "features.0,features.3.squeeze")


def rendered(farm: Fleet, workers: Iterable["subprocess.Popen[bytes]"]) -> int:
    """Number of tiles that these workers have rendered, stored or not."""
    return sum(int(count) for worker in workers for count in re.findall(r"rendered .* filters=(\d+)", farm.log(worker)))


def wait_for_batch(farm: Fleet, worker: "subprocess.Popen[bytes]") -> None:
    """Return when a worker has rendered one more batch than now."""
    before = rendered(farm, [worker])
    wait_for("another batch to end", lambda: rendered(farm, [worker]) > before, 60)


def oldest_s(farm: Fleet) -> float:
    """Seconds since the oldest visibility timestamp of an unacknowledged message was renewed; 0 if there is none."""
    oldest = farm.redis.zrange(farm.names.unacked_index, 0, 0, withscores=True)
    return max(0.0, time.time() - float(oldest[0][1])) if oldest else 0.0


def kill_and_restart(farm: Fleet, kills: int, layers: str) -> None:
    """Run a job on two workers. ``kills`` times, kill one that has rendered and start another."""
    # Given a job in progress on two workers
    farm.start("collector")
    everyone = [farm.start_slow_worker(), farm.start_slow_worker()]
    alive = list(everyone)
    submitted = farm.submit(*RECIPE, "--layers", layers)
    job_id, tiles = submitted["job"], submitted["planned"]
    silences = []

    # When one after the other is killed with all its processes, during a batch
    for _ in range(kills):
        wait_for("a batch to end", lambda: any(rendered(farm, [worker]) for worker in alive), 120)
        wait_for("both to be ready", lambda: all(map(farm.is_ready, alive)), 60)
        silences.append(oldest_s(farm))
        victim = next(worker for worker in alive if rendered(farm, [worker]))
        # It holds the messages of two batches when it has just rendered one.
        wait_for_batch(farm, victim)
        assert not has_ended(farm, job_id), "the job was over before the kill; make it longer"
        kill_group(victim)
        alive.remove(victim)
        everyone.append(farm.start_slow_worker())
        alive.append(everyone[-1])

    # Then the job ends, and no tile is missing or failed
    def ended() -> bool:
        silences.append(oldest_s(farm))
        return has_ended(farm, job_id)

    wait_for("the job to end", ended, 180)
    check_everything(farm, job_id)
    assert farm.status(job_id)["failed"] == 0

    # And each message that a killed worker held was redelivered in time
    assert max(silences) <= VISIBILITY_TIMEOUT_S + 10

    # And at most the tiles that the killed workers held were rendered twice
    assert rendered(farm, everyone) - tiles <= kills * 2 * BATCH


def test_workers_killed_during_a_job_lose_nothing_and_cost_no_more_than_they_held(farm: Fleet) -> None:
    kill_and_restart(farm, 2, "features.0,features.3.*")


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_eight_kills_lose_nothing_and_cost_no_more_than_the_victims_held(farm: Fleet) -> None:
    kill_and_restart(farm, 8, "features.0,features.3.*,features.4.*,features.6.*")


def test_a_worker_that_gets_sigterm_during_a_long_batch_requeues_its_messages_at_once(farm: Fleet) -> None:
    # Given a worker that holds all messages of a job, with a batch on the device that takes longer than the drain may.
    # The visibility timeout is far longer than the test, so that nothing is redelivered because of it
    long = {"FILTERFARM_VISIBILITY_TIMEOUT_S": "600"}
    farm.start("collector")
    worker = farm.start_slow_worker(batch_s=60.0, FILTERFARM_DRAIN_S="2", **long)
    job_id = farm.submit(*RECIPE, "--layers", "features.0", "--filters", "0-7")["job"]
    wait_for("the worker to hold all messages", lambda: farm.redis.hlen(farm.names.unacked) == 2 * BATCH, 60)
    # And another one, which is idle
    other = farm.start_slow_worker(batch_s=5.0, **long)
    wait_for("the other one", lambda: farm.is_ready(other), 60)

    # When the first gets SIGTERM
    worker.send_signal(signal.SIGTERM)

    # Then it exits with code 0
    assert worker.wait(25) == 0, farm.log(worker)
    # And the other one gets all messages, of which the first has rendered none
    wait_for(
        "the other to take over", lambda: farm.redis.hlen(farm.names.unacked) == farm.outstanding() == 2 * BATCH, 15
    )
    assert rendered(farm, [worker]) == 0
    wait_for("the job to end", lambda: has_ended(farm, job_id), 120)
    check_everything(farm, job_id)
    assert farm.status(job_id)["requeued"] == 0


def test_a_killed_renderer_and_a_killed_celery_process_are_replaced(farm: Fleet) -> None:
    # Given a worker and a job in progress
    farm.start("collector")
    worker = farm.start_slow_worker()
    job_id = farm.submit(*MANY)["job"]
    wait_for("the first tiles", lambda: stored(farm, job_id) >= 5, 90)
    celery = descendants(worker.pid)[0]

    # When its renderer is killed, as for too much memory
    os.kill(_renderer(celery), signal.SIGKILL)

    # Then the same Celery process continues the job
    before = stored(farm, job_id)
    wait_for("more tiles", lambda: stored(farm, job_id) >= before + 2 * BATCH, 90)
    assert descendants(worker.pid)[0] == celery

    # And when the Celery process is killed
    os.kill(celery, signal.SIGKILL)
    assert not has_ended(farm, job_id), "the job was over before the kill; make it longer"

    # Then the supervisor logs the exit code and starts another, which finishes the job
    wait_for("the job to end", lambda: has_ended(farm, job_id), 150)
    check_everything(farm, job_id)
    assert farm.status(job_id)["failed"] == 0
    assert "code=-9 restart_in_s=" in farm.log(worker)
    assert descendants(worker.pid)[0] != celery
    assert worker.poll() is None


def _renderer(celery: int) -> int:
    """Process id of the render process of a Celery process."""
    for pid in descendants(celery):
        if b"spawn_main" in (Path("/proc") / str(pid) / "cmdline").read_bytes():
            return pid
    raise AssertionError("no renderer")


def test_a_batch_longer_than_the_visibility_timeout_is_rendered_once(farm: Fleet) -> None:
    # Given two workers, of which one will be idle
    farm.start("collector")
    batch_s = 3 * VISIBILITY_TIMEOUT_S + 1
    workers = [farm.start_slow_worker(batch_s=batch_s), farm.start_slow_worker(batch_s=batch_s)]
    wait_for("both workers", lambda: all(map(farm.is_ready, workers)), 60)

    # When a job of one batch takes three times the visibility timeout
    job_id = farm.submit(*RECIPE, "--layers", "features.0", "--filters", "0-3")["job"]
    wait_for("the batch to begin", lambda: farm.redis.hlen(farm.names.unacked) == BATCH, 60)
    wait_for("the job to end", lambda: has_ended(farm, job_id), 120)

    # Then each tile has been rendered once
    check_everything(farm, job_id)
    assert rendered(farm, workers) == 4


@pytest.mark.faults
def test_a_worker_killed_while_it_redelivers_messages_delays_the_others_by_one_lock_expiry(farm: Fleet) -> None:
    # Given a job in progress on two workers
    farm.start("collector")
    victim, other = farm.start_slow_worker(), farm.start_slow_worker()
    job_id = farm.submit(*MANY)["job"]
    wait_for("both to render", lambda: all(rendered(farm, [worker]) for worker in (victim, other)), 120)

    # When one is killed while it holds Kombu's redelivery lock, which nobody releases then
    kill_group(victim)
    assert farm.redis.lock(farm.names.unacked_mutex, timeout=_mutex_expire_s(farm)).acquire(blocking_timeout=5)
    assert not has_ended(farm, job_id), "the job was over before the kill; make it longer"

    # Then its messages are redelivered to the other all the same, in time
    silences = []

    def ended() -> bool:
        silences.append(oldest_s(farm))
        return has_ended(farm, job_id)

    wait_for("the job to end", ended, 180)
    assert VISIBILITY_TIMEOUT_S < max(silences) <= VISIBILITY_TIMEOUT_S + 30
    check_everything(farm, job_id)
    assert farm.status(job_id)["requeued"] == 0


def _mutex_expire_s(farm: Fleet) -> float:
    """Expiry of Kombu's redelivery lock in seconds, as the application sets it."""
    from workers.clients.broker import make_app
    from workers.contract.settings import Settings

    app = make_app(Settings.from_environ(farm.environ), farm.names)
    return float(app.conf.broker_transport_options["unacked_mutex_expire"])


@pytest.mark.faults
@pytest.mark.timeout(1200)
def test_workers_that_join_and_leave_twenty_times_lose_nothing(farm: Fleet) -> None:
    # Given a job in progress on one worker
    farm.start("collector")
    everyone = [farm.start_slow_worker()]
    alive = list(everyone)
    job_id = farm.submit(*RECIPE, "--layers", "features.0,features.3.*,features.4.*")["job"]

    # When workers join and leave, ten times each; those that leave get SIGTERM or SIGKILL
    for change in range(20):
        wait_for("a batch to end", lambda: any(rendered(farm, [worker]) for worker in alive), 120)
        time.sleep(1.0)
        assert not has_ended(farm, job_id), "the job was over before the last change; make it longer"
        if len(alive) < 3 and change % 2 == 0:
            everyone.append(farm.start_slow_worker())
            alive.append(everyone[-1])
        else:
            leaver = alive.pop(0)
            if change % 4 == 1:
                leaver.send_signal(signal.SIGTERM)
                assert leaver.wait(30) == 0, farm.log(leaver)
            else:
                kill_group(leaver)

    # Then the job completes
    wait_for("the job to end", lambda: has_ended(farm, job_id), 600)
    check_everything(farm, job_id)


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.faults)])
def test_all_workers_of_a_job_render_at_the_same_time(farm: Fleet, count: int) -> None:
    # Given workers whose batches do not start before each worker has one
    met = farm.folder / "met"
    met.mkdir()
    wait_for_the_others = f"""
        met = {str(met)!r}
        open(f"{{met}}/{{os.getpid()}}", "w").close()
        while len(os.listdir(met)) < {count}:
            time.sleep(0.05)
    """
    farm.start("collector")
    environ = into_renderer(farm.folder / "waiting", wait_for_the_others)
    workers = [farm.start("worker", "--batch", str(BATCH), **environ) for _ in range(count)]

    # When they share a job
    submitted = farm.submit(*MANY)
    wait_for("a batch on every device", lambda: len(list(met.iterdir())) >= count, 120)

    # Then the job ends, each worker has rendered a part of it, and no tile was rendered twice
    wait_for("the job to end", lambda: has_ended(farm, submitted["job"]), 120)
    check_everything(farm, submitted["job"])
    shares = [rendered(farm, [worker]) for worker in workers]
    assert all(shares)
    assert sum(shares) == submitted["planned"]
