"""Fixtures of all tests: a clean environment and real servers, which start when the first test asks for them."""

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import boto3
import pytest
import redis
from botocore.config import Config
from celery import Celery
from kombu import pools

from tests import servers
from tests.jobs import NAMES
from workers.clients.broker import make_app
from workers.clients.ledger import Ledger
from workers.clients.storage import Store
from workers.contract.settings import Settings

#: Environment variables that could point a test at a real farm.
_FOREIGN = ("FILTERFARM_", "AWS_", "CELERY_")

BUCKET = "filterfarm"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the settings and credentials of the person who runs the tests."""
    for name in [name for name in os.environ if name.startswith(_FOREIGN)]:
        monkeypatch.delenv(name)
    # boto3's default session caches the first credentials that it finds.
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)


@dataclass(frozen=True, kw_only=True)
class S3:
    """A running object store and the key pair that it accepts."""

    name: str
    endpoint: str
    key: str
    secret: str

    def sign_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Give this process the credentials."""
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", self.key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", self.secret)


def with_bucket(server: S3) -> S3:
    """Create the bucket that all tests share, and one object, because SeaweedFS is slow to store its first."""
    client = boto3.session.Session(server.key, server.secret, region_name="us-east-1").client(
        "s3", endpoint_url=server.endpoint, config=Config(s3={"addressing_style": "path"})
    )
    client.create_bucket(Bucket=BUCKET)
    client.put_object(Bucket=BUCKET, Key="first/object", Body=b"x")
    client.close()
    return server


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of the queue that all tests share."""
    with servers.valkey(tmp_path_factory.mktemp("valkey")) as url:
        yield url


@pytest.fixture(scope="session")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """The object store of ``filterfarm run``."""
    with servers.rclone(tmp_path_factory.mktemp("rclone")) as (endpoint, key, secret):
        yield with_bucket(S3(name="rclone", endpoint=endpoint, key=key, secret=secret))


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """The object store of deploy/compose.yaml."""
    with servers.seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as (endpoint, key, secret):
        yield with_bucket(S3(name="seaweedfs", endpoint=endpoint, key=key, secret=secret))


@pytest.fixture
def redis_client(valkey: str) -> "Iterator[redis.Redis]":
    """A client of the queue, emptied for this test."""
    with redis.Redis.from_url(valkey) as client:
        client.flushall()
        yield client


@pytest.fixture
def broker_url(valkey: str, redis_client: "redis.Redis") -> str:
    """URL of the queue, emptied for this test."""
    return valkey


@pytest.fixture(params=["rclone", "seaweedfs"])
def s3(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> S3:
    """Each object store in turn; this process has its credentials."""
    server = request.getfixturevalue(request.param)
    assert isinstance(server, S3)
    server.sign_in(monkeypatch)
    return server


@pytest.fixture
def settings(s3: S3, broker_url: str) -> Settings:
    """Settings for an empty queue and an empty folder of a bucket that exists."""
    folder = uuid.uuid4().hex
    return Settings(broker_url=broker_url, bucket_url=f"s3://{BUCKET}/{folder}", endpoint_url=s3.endpoint)


@pytest.fixture
def app(broker_url: str) -> Iterator[Celery]:
    """The Celery application that publishes to the emptied queue."""
    made = make_app(Settings(broker_url=broker_url), NAMES)
    yield made
    close_pools()


def close_pools() -> None:
    """Close Kombu's connections, which all applications of one address share."""
    pools.reset()


@pytest.fixture
def store(settings: Settings) -> Store:
    """The empty folder of ``settings``."""
    return Store(settings, retry_s=10)


@pytest.fixture
def ledger(redis_client: "redis.Redis") -> Ledger:
    """The empty ledger of ``settings``."""
    return Ledger(redis_client, NAMES)
