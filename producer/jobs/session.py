"""What a command needs of the farm that the environment names: settings, store, ledger and queue, each checked."""

import os
from dataclasses import dataclass
from typing import Any

from celery import Celery

from workers.clients.broker import broker_errors, connect, make_app
from workers.clients.ledger import Ledger
from workers.clients.storage import Store
from workers.contract.settings import Settings

#: People wait this long for storage before they are told; workers are more patient.
RETRY_S = 5.0

#: And this long for each of two answers from Redis.
ANSWER_S = 3.0


@dataclass(frozen=True, kw_only=True)
class Session:
    """One person's connection to the farm."""

    settings: Settings
    store: Store
    ledger: Ledger
    app: Celery


def read_settings(*, device: str | None = None, batch: int | None = None) -> Settings:
    """Settings from the environment, with what the command line says on top; raises BadSettings."""
    changes: dict[str, Any] = {}
    if device is not None:
        changes["FILTERFARM_DEVICE"] = device
    if batch is not None:
        changes["FILTERFARM_BATCH"] = str(batch)
    return Settings.from_environ({**os.environ, **changes})


def open_store(settings: Settings) -> Store:
    """The bucket; raises the storage errors where it is out of reach."""
    store = Store(settings, retry_s=RETRY_S)
    store.check()
    return store


def open_session(settings: Settings) -> Session:
    """Bucket, ledger and queue; raises the storage and broker errors where one is out of reach."""
    store = open_store(settings)
    client = connect(settings, retries=1, answer_s=ANSWER_S)
    with broker_errors(settings):
        client.ping()
    return Session(settings=settings, store=store, ledger=Ledger(client), app=make_app(settings))
