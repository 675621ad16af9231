"""What Redis must permit, on real servers that do not: limited users, replicas, clusters, other kinds of server."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis

from tests.servers import free_port, running, valkey_program, wait_until_ready
from workers.clients.broker import connect
from workers.clients.broker_access import broker_errors, check_broker
from workers.contract import keys
from workers.contract.errors import BrokerDenied, BrokerUnreachable, FilterfarmError
from workers.contract.settings import Settings


@contextmanager
def server(folder: Path, *options: str) -> Iterator[str]:
    """A Valkey with these options and no password; gives its URL."""
    port = free_port()
    command = [valkey_program(), "--port", str(port), "--bind", "127.0.0.1", "--save", "", *options]
    with running(command, folder, {}) as process, redis.Redis(port=port) as client:
        wait_until_ready(client.ping, redis.RedisError, process, folder)
        yield f"redis://127.0.0.1:{port}/0"


@pytest.fixture(scope="module")
def acl_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Valkey whose users have the password ``pw`` and the rights that their names tell."""
    folder = tmp_path_factory.mktemp("acl")
    users = {
        "default": "nopass ~* &* +@all",
        "managed": ">pw ~* &* +@all -@dangerous",
        "named": ">pw ~filterfarm* ~unacked* ~_kombu* &* +@all -@dangerous",
        "ours": ">pw ~filterfarm* &* +@all",
        "reader": ">pw ~* &* +@read +@connection +@transaction +time",
        "unscripted": ">pw ~* &* +@all -@scripting",
        "unwatched": ">pw ~* &* +@all -watch",
        "unblocking": ">pw ~* &* +@all -@blocking",
    }
    (folder / "users.acl").write_text("".join(f"user {name} on {rights}\n" for name, rights in users.items()))
    with server(folder, "--aclfile", str(folder / "users.acl")) as url:
        yield url


def check(url: str) -> None:
    """Try the server at ``url`` as every command does that writes."""
    settings = Settings(broker_url=url)
    with broker_errors(settings), connect(settings, retries=0) as client:
        check_broker(client)


def refused(kind: type[FilterfarmError], url: str) -> str:
    """The one line that says why the server at ``url`` cannot be used."""
    with pytest.raises(kind) as caught:
        check(url)
    assert "\n" not in str(caught.value)
    assert "pw" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("user", ["managed", "named"])
def test_a_user_without_dangerous_commands_suffices_and_nothing_is_left(acl_url: str, user: str) -> None:
    # When
    check(acl_url.replace("//", f"//{user}:pw@"))
    # Then
    with redis.Redis.from_url(acl_url) as client:
        assert client.keys() == []


@pytest.mark.parametrize(
    ("user", "part"),
    [
        ("ours", "unacked"),
        ("reader", "SADD"),
        ("unscripted", "evalsha"),
        ("unwatched", "watch"),
        ("unblocking", "BRPOP"),
    ],
)
def test_a_user_that_may_not_do_what_the_farm_does_is_refused_with_the_command(
    acl_url: str, user: str, part: str
) -> None:
    # When
    message = refused(BrokerDenied, acl_url.replace("//", f"//{user}:pw@"))
    # Then
    assert part.lower() in message.lower()
    assert "filterfarm*, unacked* and _kombu*" in message
    with redis.Redis.from_url(acl_url) as client:
        assert client.keys() == []


def test_a_replica_is_refused_and_the_primary_asked_for(tmp_path: Path) -> None:
    # Given
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    with (
        server(tmp_path / "one") as primary,
        server(tmp_path / "two", "--replicaof", f"127.0.0.1 {urlsplit(primary).port}") as replica,
    ):
        # When
        message = refused(BrokerUnreachable, replica)
    # Then
    assert "is a replica" in message
    assert "name the primary in FILTERFARM_BROKER_URL" in message


@pytest.mark.parametrize("slots", ["all", "none"])
def test_a_cluster_is_refused(tmp_path: Path, slots: str) -> None:
    # Given
    with server(tmp_path, "--cluster-enabled", "yes") as url:
        if slots == "all":
            with redis.Redis.from_url(url) as client:
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        # When
        message = refused(BrokerDenied, url)
    # Then
    assert "is a cluster, which Celery cannot use" in message


def test_a_database_that_does_not_exist_is_refused(acl_url: str) -> None:
    assert "DB index is out of range" in refused(BrokerDenied, acl_url.removesuffix("/0") + "/99")


def test_a_key_of_another_program_with_our_name_is_reported(tmp_path: Path) -> None:
    # Given
    with server(tmp_path) as url, redis.Redis.from_url(url) as client:
        client.set(keys.FARMS, "theirs")
        # When / Then
        assert "WRONGTYPE" in refused(BrokerDenied, url)
