"""The identity of a farm: an id in its bucket, which the keys of its Redis carry.

It lies in the bucket because one bucket has several addresses: a name in Docker's network, a tunnel's port on a laptop.
Redis lists the farms that it serves. A process that looks into another bucket than they do is told so, instead of
dropping every message as one of an unknown job.
"""

import json
import uuid
from typing import Protocol, cast

import redis

from workers.contract import keys
from workers.contract.errors import BadSettings
from workers.contract.settings import Settings

#: Seconds for which one process has the right to write a bucket's first id.
_FOUNDING_S = 30


class _Store(Protocol):
    def get(self, key: str, *, max_bytes: int = ...) -> bytes | None: ...
    def put(self, key: str, body: bytes, content_type: str) -> None: ...


def identify(settings: Settings, store: _Store, client: "redis.Redis", *, founds: bool = False) -> str:
    """The id of the farm that the settings name, which is written into a bucket without one.

    ``founds``: this process, a collector, may add the farm to a Redis that serves others. Raises BadSettings if Redis
    serves other farms only, the store's errors, and redis.RedisError.
    """
    farm = _read(settings, store)
    if not farm:
        with client.lock(f"{keys.FARMS}:founding", timeout=_FOUNDING_S):
            farm = _read(settings, store) or _write(settings, store)
    entries = cast("dict[bytes, bytes]", client.hgetall(keys.FARMS))
    known = {name.decode(errors="replace"): place.decode(errors="replace") for name, place in entries.items()}
    if farm in known:
        return farm
    if known and not founds:
        raise BadSettings(
            f"Redis at {settings.public_broker_url} serves the farm of {' and of '.join(sorted(known.values()))}, and "
            f"this process is set to {settings.place}; correct {settings.variable('bucket_url')}, "
            f"{settings.variable('endpoint_url')} or {settings.variable('broker_url')} (a second farm on one Redis "
            "begins with its 'filterfarm collector')"
        )
    client.hset(keys.FARMS, farm, settings.place)
    return farm


def known_farm(client: "redis.Redis") -> str | None:
    """The id of the only farm that Redis serves, for when the bucket cannot be read; None if there is not one."""
    found = cast("list[bytes]", client.hkeys(keys.FARMS))
    return found[0].decode(errors="replace") if len(found) == 1 else None


def _read(settings: Settings, store: _Store) -> str:
    """The id in the bucket; "" if there is none."""
    data = store.get(keys.FARM_OBJECT, max_bytes=65_536)
    if data is None:
        return ""
    try:
        farm = str(json.loads(data)["farm"])
    except (ValueError, KeyError, TypeError):
        farm = ""
    if not keys.is_name(farm):
        raise BadSettings(f"{keys.FARM_OBJECT} in {settings.bucket_url} is not valid; delete it")
    return farm


def _write(settings: Settings, store: _Store) -> str:
    farm = uuid.uuid4().hex[:12]
    content = {"farm": farm, "bucket": settings.bucket_url, "endpoint": settings.endpoint_url}
    store.put(keys.FARM_OBJECT, json.dumps(content, indent=1).encode(), "application/json")
    return farm
