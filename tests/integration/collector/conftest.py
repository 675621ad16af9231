"""Collectors on real servers."""

from collections.abc import Callable

import pytest
import redis
from celery import Celery

from producer.collector.collector import Collector
from tests.jobs import NAMES
from workers.clients.ledger import Ledger
from workers.clients.storage import Store
from workers.contract.settings import Settings

MakeCollector = Callable[[], Collector]


@pytest.fixture
def make_collector(settings: Settings, store: Store, app: Celery, redis_client: "redis.Redis") -> MakeCollector:
    """Makes a new collector, as after a restart."""
    return lambda: Collector(settings, store=store, ledger=Ledger(redis_client, NAMES), app=app)


@pytest.fixture
def collector(make_collector: MakeCollector) -> Collector:
    """One collector."""
    return make_collector()
