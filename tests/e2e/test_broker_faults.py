"""A Redis that crashes, a network that drops packets, a clock that is wrong."""

import os
import re
import signal
import threading
import time
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest
import redis

from tests import servers
from tests.e2e.fleet import Fleet, descendants, kill_group, wait_for
from tests.e2e.whole import check_everything, has_ended, stored
from tests.injection import into_renderer
from tests.proxies import Proxy, proxy
from workers.contract.errors import ExitCode

RECIPE = ("squeezenet1_1", "--weights", "none", "--method", "notebook", "--size", "32", "--steps", "2")

#: A job of 80 tiles, and one of 8.
MANY = (*RECIPE, "--layers", "features.0,features.3.squeeze")
FEW = (*RECIPE, "--layers", "features.0", "--filters", "0-7")


def readers(farm: Fleet) -> int:
    """Number of workers that wait for messages."""
    try:
        return sum(client["cmd"] == "brpop" for client in farm.redis.client_list())
    except redis.RedisError:
        return 0


def wait_for_more(farm: Fleet, job_id: str, timeout_s: float) -> None:
    """Return once more tiles are stored than now."""
    before = stored(farm, job_id)
    wait_for("more tiles", lambda: stored(farm, job_id) > before, timeout_s)


def crash_and_restart(farm: Fleet, crashes: int) -> None:
    # Given a job in progress on two workers
    farm.start("collector")
    workers = [farm.start_slow_worker() for _ in range(2)]
    job_id = farm.submit(*MANY)["job"]
    broker_url = farm.environ["FILTERFARM_BROKER_URL"]
    with ExitStack() as stack:
        for _ in range(crashes):
            wait_for_more(farm, job_id, 90)

            # When Redis is killed and restarted
            os.kill(int(farm.redis.info("server")["process_id"]), signal.SIGKILL)
            time.sleep(1.0)
            stack.enter_context(servers.valkey(farm.folder / "queue", broker_url=broker_url))
            farm.redis.close()
            assert stored(farm, job_id) < 80, "the job was over before the crash; make it longer"

            # Then both workers reconnect, and the job continues
            wait_for("both workers to reconnect", lambda: readers(farm) == 2, 20)
            wait_for_more(farm, job_id, 30)

        # And the job completes, of which the collector re-enqueued at most two messages for each crash
        wait_for("the job to end", lambda: has_ended(farm, job_id), 200)
        check_everything(farm, job_id)
        status = farm.status(job_id)
        assert (status["state"], status["failed"]) == ("finished", 0)
        assert status["requeued"] <= 2 * crashes
        assert all(worker.poll() is None for worker in workers)


def test_a_broker_that_crashes_and_comes_back_stops_no_job(farm: Fleet) -> None:
    crash_and_restart(farm, crashes=1)


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_a_broker_that_crashes_five_times_under_load_stops_no_job(farm: Fleet) -> None:
    crash_and_restart(farm, crashes=5)


def behind(net: Proxy, url: str) -> str:
    """The same URL, through the proxy."""
    return url.replace(f":{urlsplit(url).port}", f":{net.port}")


@pytest.mark.parametrize(
    ("variable", "code"),
    [
        ("FILTERFARM_BROKER_URL", ExitCode.BROKER_UNREACHABLE),
        ("AWS_ENDPOINT_URL_S3", ExitCode.STORAGE_UNREACHABLE),
    ],
)
def test_a_submission_into_a_network_that_drops_packets_reports_it_and_can_be_repeated(
    farm: Fleet, variable: str, code: ExitCode
) -> None:
    url = farm.environ[variable]
    with proxy(urlsplit(url).port or 0) as net:
        # Given a network that drops every packet
        net.set("swallow")
        # When a job is submitted
        began = time.monotonic()
        done = farm.run("submit", *FEW, **{variable: behind(net, url)})
        # Then one line reports it, in time
        assert time.monotonic() - began <= 15
        assert done.returncode == code
        assert len(done.stderr.strip().splitlines()) == 1
        assert variable in done.stderr

    # And the same submission over a network that works enqueues everything
    assert farm.submit(*FEW)["enqueued"] == 8


def test_a_submission_whose_network_fails_halfway_reports_it_and_can_be_repeated(farm: Fleet) -> None:
    url = farm.environ["FILTERFARM_BROKER_URL"]
    lost_at: list[float] = []
    with proxy(urlsplit(url).port or 0) as net:
        # Given a network that drops every packet once a submission has begun to enqueue
        def lose() -> None:
            deadline = time.monotonic() + 60
            with redis.Redis.from_url(url) as client:
                # Its mark, or what it leaves. No pause: a submission takes a tenth of a second.
                while not any(client.scan_iter("filterfarm:*:submi*")):
                    assert time.monotonic() < deadline
            net.set("swallow")
            lost_at.append(time.monotonic())

        thread = threading.Thread(target=lose)
        thread.start()
        # When a job is submitted
        done = farm.run("submit", *MANY, FILTERFARM_BROKER_URL=behind(net, url))
        thread.join(60)
        # Then one line reports it in time, unless the submission had ended before
        assert time.monotonic() - lost_at[0] <= 15
        if done.returncode:
            assert done.returncode == ExitCode.BROKER_UNREACHABLE
            assert len(done.stderr.strip().splitlines()) == 1

    # And submitting it again leaves one or two messages for each tile
    farm.submit(*MANY)
    assert 80 <= farm.outstanding() <= 160


def interrupt_for(farm: Fleet, seconds: float) -> None:
    url = farm.environ["FILTERFARM_BROKER_URL"]
    with proxy(urlsplit(url).port or 0) as net:
        # Given a worker and a job in progress, behind a network of its own
        farm.start("collector")
        worker = farm.start_slow_worker(FILTERFARM_BROKER_URL=behind(net, url))
        job_id = farm.submit(*MANY)["job"]
        wait_for("the first tiles", lambda: stored(farm, job_id) >= 5, 90)

        # When the network drops everything for a while, and the packets of existing connections for ever
        net.set("swallow")
        time.sleep(seconds)
        net.set("pass")
        assert stored(farm, job_id) < 80, "the job was over before; make it longer"

        # Then the same process reconnects, in time
        wait_for_more(farm, job_id, 30)
        assert "restart_in_s=" not in farm.log(worker)
        wait_for("the job to end", lambda: has_ended(farm, job_id), 120)
        check_everything(farm, job_id)
        assert farm.status(job_id)["failed"] == 0
        assert worker.poll() is None


def test_a_worker_whose_connections_die_without_a_reset_reconnects(farm: Fleet) -> None:
    interrupt_for(farm, 0.5)


@pytest.mark.faults
def test_a_worker_whose_network_fails_for_half_a_minute_reconnects(farm: Fleet) -> None:
    interrupt_for(farm, 30.0)


def test_an_idle_worker_whose_connections_die_without_a_reset_renders_the_next_job(farm: Fleet) -> None:
    url = farm.environ["FILTERFARM_BROKER_URL"]
    with proxy(urlsplit(url).port or 0) as net:
        # Given an idle worker, behind a network of its own
        farm.start("collector")
        worker = farm.start("worker", "--batch", "4", FILTERFARM_BROKER_URL=behind(net, url))
        wait_for("the worker", lambda: readers(farm) == 1, 60)

        # When all its connections stay silent for ever, and a job is submitted
        net.set("swallow")
        time.sleep(0.5)
        net.set("pass")
        job_id = farm.submit(*FEW)["job"]

        # Then it reconnects, in time
        wait_for("it to start the job", lambda: farm.redis.hlen(farm.names.unacked) or stored(farm, job_id), 30)
        wait_for("the job to end", lambda: has_ended(farm, job_id), 60)
        check_everything(farm, job_id)
        assert worker.poll() is None


def test_a_worker_whose_network_never_comes_back_logs_the_reason_and_obeys_sigterm(farm: Fleet) -> None:
    url = farm.environ["FILTERFARM_BROKER_URL"]
    with proxy(urlsplit(url).port or 0) as net:
        # Given a worker and a job in progress, behind a network of its own
        worker = farm.start_slow_worker(FILTERFARM_BROKER_URL=behind(net, url))
        job_id = farm.submit(*MANY)["job"]
        wait_for("the first tiles", lambda: stored(farm, job_id) >= 5, 90)

        # When the network drops everything from now on
        net.set("swallow")

        # Then it drops its connections, and once its messages are delivered to others anyway, its Celery process logs
        # the reason and ends, another is started, and SIGTERM ends the worker
        wait_for("it to drop its connections", lambda: "dropping connections reason=Redis" in farm.log(worker), 60)
        assert "restart_in_s=" not in farm.log(worker)
        wait_for("it to end", lambda: "code=30 restart_in_s=" in farm.log(worker), 120)
        assert re.search(r"stopping reason=Redis .*\d+ s", farm.log(worker))
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(25) == 0, farm.log(worker)

    # And nothing is lost: another worker, whose network works, finishes the job
    farm.start("collector")
    farm.start("worker", "--batch", "4")
    wait_for("the job to end", lambda: has_ended(farm, job_id), 120)
    check_everything(farm, job_id)


#: Shifts time.time(), which Kombu and Celery use, by the number of seconds in a file.
_SHIFTED = """\
import time

right = time.time

def shifted():
    with open({path!r}) as file:
        return right() + float(file.read() or 0)

time.time = shifted
"""


def test_a_worker_whose_clock_is_wrong_does_not_start_or_stops(farm: Fleet) -> None:
    # Given a machine whose clock can be set
    clock = farm.folder / "clock"
    clock.write_text("300")
    shifted = _SHIFTED.format(path=str(clock))
    machine = into_renderer(farm.folder / "machine", "time.sleep(1)", everywhere=shifted)

    # When a worker is started there with a clock that is five minutes ahead
    refused = farm.run("worker", "--batch", "4", **machine)

    # Then it refuses in one line, with an exit code of its own
    assert refused.returncode == ExitCode.CLOCK_WRONG, refused.stderr
    assert re.fullmatch(r"filterfarm: .*clock is 300 s ahead of .*NTP.*\n", refused.stderr)

    # And when the clock becomes wrong while a job is in progress
    clock.write_text("0")
    farm.start("collector")
    worker = farm.start("worker", "--batch", "4", **machine)
    job_id = farm.submit(*MANY)["job"]
    wait_for("the first tiles", lambda: stored(farm, job_id) >= 5, 90)
    celery = descendants(worker.pid)[0]
    clock.write_text("-300")

    # Then it stops, logs the reason, and does not start again
    wait_for("the worker to stop", lambda: re.search(r"stopping reason=.*clock is 300 s", farm.log(worker)), 60)
    wait_for("the next not to start", lambda: re.search(r"not starting reason=.*clock", farm.log(worker)), 60)
    assert "code=33 restart_in_s=" in farm.log(worker) or celery not in descendants(worker.pid)
    assert stored(farm, job_id) < 80, "the job was over before; make it longer"

    # And nothing is lost: another machine finishes the job
    kill_group(worker)
    farm.start("worker", "--batch", "4")
    wait_for("the job to end", lambda: has_ended(farm, job_id), 150)
    check_everything(farm, job_id)
    assert farm.status(job_id)["failed"] == 0
