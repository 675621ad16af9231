"""A command's connections to the farm that the environment names: settings, bucket, ledger, queue."""

import os
from dataclasses import dataclass
from typing import Any

from celery import Celery

from workers.clients.broker import connect, make_app
from workers.clients.broker_access import broker_errors, check_broker
from workers.clients.identity import identify
from workers.clients.ledger import Ledger
from workers.clients.storage import Store
from workers.contract.keys import RedisKeys
from workers.contract.settings import FARM_VARIABLES, Settings

#: Retry period of the object store client for interactive commands; workers use FILTERFARM_STORAGE_PATIENCE_S.
RETRY_S = 5.0

#: Timeout of a Redis command, which is retried once.
ANSWER_S = 3.0


@dataclass(frozen=True, kw_only=True)
class Session:
    """Open connections to one farm."""

    settings: Settings
    store: Store
    ledger: Ledger
    app: Celery


def read_settings(*, device: str | None = None, batch: int | None = None, local: bool = False) -> Settings:
    """Settings from the environment, overridden by the command line; raises BadSettings.

    ``local``: without the variables of a farm, which a data folder needs not.
    """
    environ = {name: text for name, text in os.environ.items() if not (local and name in FARM_VARIABLES)}
    changes: dict[str, Any] = {}
    if device is not None:
        changes["FILTERFARM_DEVICE"] = device
    if batch is not None:
        changes["FILTERFARM_BATCH"] = str(batch)
    return Settings.from_environ({**environ, **changes})


def open_store(settings: Settings) -> Store:
    """Connect to the bucket; raises object store errors if it is unreachable."""
    store = Store(settings, retry_s=RETRY_S)
    store.check()
    return store


def open_session(settings: Settings, *, writes: bool = False, founds: bool = False) -> Session:
    """Connect to bucket and Redis; raises object store and broker errors if one is unreachable.

    ``writes``: also raise unless both permit what producer, workers and collector do, so that no job is left half made.
    ``founds``: the farm may be a new one on a Redis that serves others. Raises BadSettings as ``identify`` does.
    """
    store = open_store(settings)
    client = connect(settings, retries=1, answer_s=ANSWER_S)
    with broker_errors(settings):
        client.ping()
        if writes:
            check_broker(client)
    if writes:
        store.check_writable()
    with broker_errors(settings):
        names = RedisKeys(identify(settings, store, client, founds=founds))
    return Session(settings=settings, store=store, ledger=Ledger(client, names), app=make_app(settings, names))
