"""The workers' Kombu transport on a real Redis: messages it delivers or drops, and errors it raises."""

import base64
import json
import logging
import ssl
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from kombu import Connection, Consumer, Queue

from tests.jobs import NAMES
from workers.clients.broker import make_app
from workers.contract.settings import Settings
from workers.runtime import tasks, transport

QUEUE = "some-queue"


@pytest.fixture
def connection(broker_url: str) -> Iterator[Connection]:
    options = {"priority_steps": [0], "polling_interval": 0.1, "socket_timeout": 10}
    with Connection(broker_url, transport=transport.NAME, transport_options=options) as connection:
        yield connection


def envelope(**properties: object) -> dict[str, Any]:
    whole = {
        "delivery_tag": "tag",
        "delivery_info": {"exchange": "", "routing_key": QUEUE},
        "body_encoding": "base64",
        **properties,
    }
    return {
        "body": base64.b64encode(b'"payload"').decode(),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {},
        "properties": whole,
    }


def test_an_entry_that_is_no_kombu_message_is_dropped_and_the_next_is_delivered(
    connection: Connection, redis_client: "redis.Redis", caplog: pytest.LogCaptureFixture
) -> None:
    # Given entries that are not JSON, or JSON without the fields of a message, and one message behind them
    foreign: list[bytes | str] = [
        "{not json",
        b"\xff\xfe",
        "[]",
        "{}",
        json.dumps({"properties": []}),
        json.dumps(envelope(body_encoding="no such encoding")),
        json.dumps(envelope(delivery_tag=["a", "list"])),
        json.dumps(envelope(delivery_info={})),
        json.dumps(envelope() | {"headers": ["a", "list"]}),
    ]
    for entry in [*foreign, json.dumps(envelope())]:
        redis_client.lpush(QUEUE, entry)
    received: list[object] = []

    # When a consumer reads the queue
    with (
        caplog.at_level(logging.ERROR, transport.__name__),
        Consumer(connection, [Queue(QUEUE)], callbacks=[lambda body, _: received.append(body)], no_ack=True),
    ):
        for _ in range(len(foreign) + 1):
            connection.drain_events(timeout=5)

    # Then the message is delivered, and each of the others is one line in the log
    assert received == ["payload"]
    assert len([line for line in caplog.messages if line.startswith("dropped message reason=")]) == len(foreign)
    assert redis_client.llen(QUEUE) == 0


@pytest.mark.parametrize("error", [KeyError, TypeError, ValueError])
def test_an_error_of_the_callback_is_raised(
    connection: Connection, redis_client: "redis.Redis", error: type[Exception]
) -> None:
    redis_client.lpush(QUEUE, json.dumps(envelope()))

    def fail(body: object, message: object) -> None:
        raise error("of the callback")

    with (
        Consumer(connection, [Queue(QUEUE)], callbacks=[fail], no_ack=True),
        pytest.raises(error, match="of the callback"),
    ):
        connection.drain_events(timeout=5)


def test_polling_interval_is_the_timeout_of_a_brpop_and_a_channel_shares_one_client(connection: Connection) -> None:
    channel: Any = connection.default_channel
    assert isinstance(channel, transport.Channel)
    assert channel.brpop_timeout == 0.1
    with channel.conn_or_acquire() as one, channel.conn_or_acquire() as other:
        assert one is other

    # A new pool, as after a fork, gets a new client
    channel._disconnect_pools()
    with channel.conn_or_acquire() as third:
        assert third is not one


def test_before_read_is_called_before_each_read(connection: Connection, redis_client: "redis.Redis") -> None:
    calls: list[None] = []
    channel: Any = connection.default_channel
    channel.before_read = lambda: calls.append(None)
    redis_client.lpush(QUEUE, json.dumps(envelope()))
    with Consumer(channel, [Queue(QUEUE)], callbacks=[lambda body, message: None], no_ack=True):
        connection.drain_events(timeout=5)
    assert calls


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_the_workers_application_uses_it(scheme: str) -> None:
    settings = Settings(
        broker_url=f"{scheme}://:password@broker.invalid:7000/2", bucket_url="s3://bucket", device="cpu"
    )
    app = make_app(settings, NAMES)
    tasks.install(app, settings, NAMES)
    connection = app.connection_for_read()
    assert connection.transport_cls == transport.NAME
    assert isinstance(connection.transport, transport.Transport)
    assert (connection.hostname, connection.port, connection.virtual_host) == ("broker.invalid", 7000, "2")
    assert connection.password == "password"
    assert connection.ssl == ({"ssl_cert_reqs": ssl.CERT_REQUIRED} if scheme == "rediss" else None)
    assert "password" not in connection.as_uri()
    # A clone, such as Celery makes for each reconnection, is the same
    assert isinstance(connection.clone().transport, transport.Transport)


def test_another_kombu_than_5_7_is_named_in_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    transport.check_kombu_version("5.7.3")
    assert not caplog.messages
    transport.check_kombu_version("5.8.0")
    (message,) = caplog.messages
    assert "Kombu 5.8.0 is installed" in message
