"""The queue on a real server: what a message is, what counts as outstanding, and what errors become."""

import base64
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
from celery import Celery

from tests.conftest import close_pools
from tests.jobs import NAMES
from tests.proxies import proxy
from tests.servers import free_port
from workers.clients.broker import (
    TASK_NAME,
    connect,
    enqueue,
    job_queue,
    make_app,
    outstanding,
    refresh_visibility,
)
from workers.clients.broker_access import broker_errors
from workers.contract.errors import BrokerDenied, BrokerUnreachable, FilterfarmError
from workers.contract.job import Task, decode
from workers.contract.settings import Settings

#: An id as long as they get for the models there are.
JOB = "efficientnet_v2_l-notebook-01234567"


#: Key and certificate of a server that pretends: self-signed for 127.0.0.1, and used nowhere else.
IMPOSTOR = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgNthMPhhc14iMTTum
dDuXoJMjZT1rVA5jeQ9o7UcgiLOhRANCAATIk0OUyyXLNA84i6Mc/3CZ6w4DNjcm
UaFDPWrBf7FAZdngBzwbiD4gE0DLNIUQg2Egm7OMUldOWQxG6MQWxchC
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBjzCCATagAwIBAgIUejRO2xuG3PB4ir+2dgNV1X+66YkwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJMTI3LjAuMC4xMCAXDTI2MTEyMjE0MzIyM1oYDzIxMjYxMDI5
MTQzMjIzWjAUMRIwEAYDVQQDDAkxMjcuMC4wLjEwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAATIk0OUyyXLNA84i6Mc/3CZ6w4DNjcmUaFDPWrBf7FAZdngBzwbiD4g
E0DLNIUQg2Egm7OMUldOWQxG6MQWxchCo2QwYjAdBgNVHQ4EFgQUHdlsNPpFxSNL
KspeKpYnU0Yf6TswHwYDVR0jBBgwFoAUHdlsNPpFxSNLKspeKpYnU0Yf6TswDwYD
VR0TAQH/BAUwAwEB/zAPBgNVHREECDAGhwR/AAABMAoGCCqGSM49BAMCA0cAMEQC
IHbMUAx0UWgMcmi3oEk74hc2KuIytYNyITRBbveaQzJAAiBfNuC72S89h926WVpD
dmUB12T0jVL/T2EmvoaVwfJdWQ==
-----END CERTIFICATE-----
"""

Use = Callable[[Settings], None]


def tasks(count: int) -> list[Task]:
    return [Task(job=JOB, layer="features.24", filter=number) for number in range(count)]


def queued(client: "redis.Redis") -> list[bytes]:
    """Messages in the order they will be delivered."""
    return [entry for entry in reversed(client.lrange(NAMES.queue(JOB), 0, -1)) if isinstance(entry, bytes)]


def count_of(client: "redis.Redis") -> tuple[int, int]:
    """Messages of the job: queued, and in flight."""
    messages = outstanding(client, NAMES, [JOB])[JOB]
    return messages.queued, messages.in_flight


@contextmanager
def delivered(app: Celery, count: int) -> Iterator[list[Any]]:
    """As many messages, taken from the queue and not acknowledged."""
    with app.connection_for_read() as connection:
        channel: Any = connection.default_channel  # kombu's own, which has no types
        yield [channel.basic_get(NAMES.queue(JOB)) for _ in range(count)]


def test_tasks_are_published_in_order_and_counted(app: Celery, redis_client: "redis.Redis") -> None:
    # Given some tasks
    wanted = tasks(10)
    # When they are enqueued
    assert enqueue(app, NAMES, iter(wanted)) == 10
    # Then they come out in the same order, each a task of ours
    found = []
    for message in map(json.loads, queued(redis_client)):
        assert message["headers"]["task"] == TASK_NAME
        _, kwargs, _ = json.loads(base64.b64decode(message["body"]))
        found.append(decode(Task, json.dumps(kwargs), "a message"))
    assert found == wanted


def test_a_message_is_plain_json_with_references_only_and_small(app: Celery, redis_client: "redis.Redis") -> None:
    # Given one task
    enqueue(app, NAMES, tasks(1))
    # When its message is read as it lies in Redis
    [raw] = queued(redis_client)
    message = json.loads(raw)
    body = base64.b64decode(message["body"])
    # Then it is JSON through and through, and no pickle
    assert message["content-type"] == "application/json"
    assert b"pickle" not in raw
    args, kwargs, embedded = json.loads(body)
    # And holds references, and nothing to come after it
    assert args == []
    assert kwargs == tasks(1)[0].model_dump()
    assert not any(embedded.values())
    # And is as small as the sums in the README take it to be
    assert len(raw) < 1500


def test_no_tasks_are_no_messages(app: Celery, redis_client: "redis.Redis") -> None:
    # Given nothing to do
    # When it is enqueued
    assert enqueue(app, NAMES, []) == 0
    # Then the queue is empty
    assert redis_client.dbsize() == 0


def test_nothing_of_results_is_ever_written(app: Celery, redis_client: "redis.Redis") -> None:
    # Given enqueued tasks
    enqueue(app, NAMES, tasks(2))
    # When Redis is asked for its keys
    # Then there is the queue, and no result of a task
    assert redis_client.keys() == [NAMES.queue(JOB).encode()]


def test_outstanding_are_the_queued_and_those_with_a_worker(app: Celery, redis_client: "redis.Redis") -> None:
    # Given five messages of a job, and one of another
    enqueue(app, NAMES, tasks(5))
    enqueue(app, NAMES, [Task(job="another-job", layer="features.24", filter=0)])
    assert count_of(redis_client) == (5, 0)
    # When two are delivered
    with delivered(app, 2) as messages:
        # Then all five are still outstanding, and two of them in flight
        assert count_of(redis_client) == (3, 2)
        # And when one is acknowledged, four are
        messages[0].ack()
        assert count_of(redis_client) == (3, 1)
        # And a message that is handed back is in its own queue again
        messages[1].requeue()
        assert count_of(redis_client) == (4, 0)
    assert redis_client.hlen(NAMES.unacked) == 0
    # And the other job's is still its own, and a job without messages has none
    both = outstanding(redis_client, NAMES, ["another-job", "no-job"])
    assert [both["another-job"].total, both["no-job"].total] == [1, 0]


def test_foreign_entries_among_the_messages_in_flight_count_for_no_job(redis_client: "redis.Redis") -> None:
    # Given entries that are no message of ours
    for tag, entry in enumerate(["", "{", "[]", "5", '[{}, "", null]', '["x"]']):
        redis_client.hset(NAMES.unacked, str(tag), entry)
    # When a job's messages are counted
    # Then they are not among them
    assert count_of(redis_client) == (0, 0)


def test_a_message_of_another_priority_is_outstanding_too(app: Celery, redis_client: "redis.Redis") -> None:
    # Given a message with a priority
    app.send_task(TASK_NAME, kwargs=tasks(1)[0].model_dump(), queue=job_queue(NAMES.queue(JOB)), priority=9)  # type: ignore[arg-type]  # the stubs know names
    # When outstanding ones are counted
    # Then it is among them
    assert count_of(redis_client) == (1, 0)


def test_refreshing_visibility_touches_only_messages_in_flight(app: Celery, redis_client: "redis.Redis") -> None:
    # Given two messages in flight
    enqueue(app, NAMES, tasks(2))
    with delivered(app, 2) as messages:
        tags = [message.delivery_tag for message in messages]
        before = redis_client.zscore(NAMES.unacked_index, tags[1])
        later = time.time() + 1000
        # When the first is refreshed, and one that was acknowledged long ago
        refresh_visibility(redis_client, NAMES, [tags[0], "gone"], later)
        # Then the first has the new time, the second its old one, and the third none
        assert redis_client.zscore(NAMES.unacked_index, tags[0]) == pytest.approx(later)
        assert redis_client.zscore(NAMES.unacked_index, tags[1]) == before
        assert redis_client.zscore(NAMES.unacked_index, "gone") is None
        assert redis_client.zcard(NAMES.unacked_index) == 2


def test_refreshing_nothing_does_nothing(redis_client: "redis.Redis") -> None:
    # Given a worker without messages
    # When it refreshes them
    refresh_visibility(redis_client, NAMES, iter(()), time.time())
    # Then Redis is as empty as before
    assert redis_client.dbsize() == 0


def test_a_message_of_a_silent_worker_is_redelivered(broker_url: str, redis_client: "redis.Redis") -> None:
    # Given a message in flight, delivered longer ago than the visibility timeout
    app = make_app(Settings(broker_url=broker_url, visibility_timeout_s=5.0), NAMES)
    enqueue(app, NAMES, tasks(1))
    with delivered(app, 1) as messages:
        refresh_visibility(redis_client, NAMES, [messages[0].delivery_tag], time.time() - 6)
        # When another worker looks after such messages
        with app.connection_for_read() as connection:
            channel: Any = connection.default_channel
            channel.qos.restore_visible()
        # Then it is in the queue again
        assert count_of(redis_client) == (1, 0)
    close_pools()


@pytest.mark.parametrize("url", ["redis://wrong:6379/7", "rediss://:s3cret@wrong/1"])
def test_celerys_own_variable_does_not_beat_our_settings(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    # Given Celery's variable in the environment, which beats what code passes as broker_url alone
    monkeypatch.setenv("CELERY_BROKER_URL", url)
    # When the application is made from settings
    app = make_app(Settings(broker_url="redis://right:6379/0"), NAMES)
    # Then it goes where the settings say, to read and to write
    assert app.connection_for_read().hostname == "right"
    assert app.connection_for_write().hostname == "right"


def test_a_misspelt_queue_is_refused(app: Celery) -> None:
    # Given a queue that nobody reads
    # When a task is sent there
    # Then it is refused, and not swallowed
    with pytest.raises(Exception, match="misspelt"):
        app.send_task(TASK_NAME, queue="misspelt")


def publish(settings: Settings) -> None:
    """What "submit" does last."""
    app = make_app(settings, NAMES)
    try:
        enqueue(app, NAMES, tasks(1))
    finally:
        close_pools()


def count(settings: Settings) -> None:
    """What every command does first."""
    with connect(settings, retries=1) as client:
        outstanding(client, NAMES, [JOB])


@pytest.mark.parametrize(
    ("use", "host"), [(publish, "127.0.0.1"), (count, "127.0.0.1"), (count, "no-such-host.invalid")]
)
def test_a_queue_that_does_not_answer_is_unreachable(use: Use, host: str) -> None:
    # Given an address where nobody listens
    settings = Settings(broker_url=f"redis://:s3cret@{host}:{free_port()}/0")
    began = time.monotonic()
    # When it is used
    with pytest.raises(BrokerUnreachable) as caught, broker_errors(settings):
        use(settings)
    # Then one line says so soon, with the address and the variable, and without the password
    assert time.monotonic() - began < 15
    message = str(caught.value)
    assert host in message
    assert "FILTERFARM_BROKER_URL" in message
    assert "s3cret" not in message
    assert "\n" not in message


@pytest.mark.parametrize(("use", "password"), [(publish, "wr0ng"), (count, "wr0ng"), (count, "")])
def test_a_wrong_password_or_none_is_denied(broker_url: str, use: Use, password: str) -> None:
    # Given the wrong password, or none
    right = broker_url.split("@")[0].rpartition(":")[2]
    settings = Settings(broker_url=broker_url.replace(f":{right}@", f":{password}@" if password else ""))
    # When the queue is used
    with pytest.raises(BrokerDenied) as caught, broker_errors(settings):
        use(settings)
    # Then one line says so, and shows neither password
    message = str(caught.value)
    assert "FILTERFARM_BROKER_URL" in message
    assert "wr0ng" not in message
    assert right not in message
    assert "\n" not in message


def test_a_connection_lost_while_messages_are_sent_is_unreachable(broker_url: str) -> None:
    with proxy(urlsplit(broker_url).port or 0) as net:
        settings = Settings(broker_url=broker_url.replace(f":{urlsplit(broker_url).port}", f":{net.port}"))

        # Given a connection that is cut after the first of two messages
        def cut_off() -> Iterator[Task]:
            yield from tasks(1)
            net.set("cut")
            yield from tasks(1)

        # When they are sent
        with pytest.raises(BrokerUnreachable) as caught, broker_errors(settings):
            enqueue(make_app(settings, NAMES), NAMES, cut_off())
        close_pools()
    # Then one line says so
    assert "FILTERFARM_BROKER_URL" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_error_of_ours_passes_unchanged() -> None:
    # Given an error that says already what is wrong
    error = FilterfarmError("already said")
    # When it is raised inside
    with pytest.raises(FilterfarmError) as caught, broker_errors(Settings()):
        raise error
    # Then it is still the same
    assert caught.value is error


@contextmanager
def impostor(folder: Path) -> Iterator[tuple[int, list[bytes]]]:
    """A TLS server with a self-signed certificate: its port, and the first bytes that each client sent."""
    (folder / "impostor.pem").write_text(IMPOSTOR)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "impostor.pem")
    received: list[bytes] = []

    def serve() -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            with client, suppress(OSError), context.wrap_socket(client, server_side=True) as secured:
                received.append(secured.recv(1000))

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1], received
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join(10)


@pytest.mark.parametrize("use", [publish, count])
def test_nothing_is_sent_to_a_tls_server_whose_certificate_does_not_verify(use: Use, tmp_path: Path) -> None:
    # Given a server that is not the queue, and speaks TLS like it
    with impostor(tmp_path) as (port, received):
        settings = Settings(broker_url=f"rediss://:s3cret@127.0.0.1:{port}/0")
        # When it is used as the queue
        with pytest.raises(BrokerUnreachable), broker_errors(settings):
            use(settings)
        # Then it has heard no password, nor anything else
        assert received == []
        # And that is because of its certificate: who does not ask for one does get through
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with socket.create_connection(("127.0.0.1", port)) as plain, context.wrap_socket(plain) as secured:
            secured.sendall(b"hello")
            assert secured.recv(1) == b""
        assert received == [b"hello"]


def test_more_threads_than_connections_share_a_client(settings: Settings) -> None:
    # Given
    client = connect(settings, retries=0)
    # When 150 threads wait for an answer at the same time
    with ThreadPoolExecutor(150) as threads:
        answers = list(threads.map(lambda number: client.blpop([f"empty-{number}"], timeout=0.1), range(150)))
    # Then each got its own
    assert answers == [None] * 150
    assert client.info("clients")["connected_clients"] < 60
    client.close()
