"""Every object key and every Redis key, and the rule that names must follow.

Objects, below the bucket's prefix (the bucket alone can rebuild everything):

    <job>/job.json                      the frozen job
    <job>/weights/<sha256>              the checkpoint, where the job names a file
    <job>/tiles/<layer>/<filter>.png    one tile
    <job>/frames/<layer>/<filter>.webp  how it came about, where the recipe asks for frames
    <job>/failed/<layer>/<filter>.json  why a filter has no tile, after its last attempt
    <job>/layers/<layer>.json           one record per filter
    <job>/grids/<layer>.png             the sheet of the whole layer
    <job>/index.html                    the gallery
    <job>/status.json                   how the job stands: running, finished, cancelled or stopped

Redis (losing it loses no picture):

    filterfarm.render.<job>             list: the job's queue (Celery's; with its unacked and unacked_index)
    filterfarm.render                   list: nothing of ours; the queue a worker has when there is no job
    filterfarm:jobs                     set: ids of the jobs that workers serve and the collector looks after
    filterfarm:collector                lock: the one collector that acts
    filterfarm:workers                  sorted set: worker name -> when it was last seen (Unix seconds)
    filterfarm:storage                  hash: worker name, or "collector" -> its trouble with the store
    filterfarm:<job>:done               bits: tile number -> stored
    filterfarm:<job>:failed             hash: tile number -> reason
    filterfarm:<job>:attempts           hash: tile number -> renderers it has killed, or errors it has raised
    filterfarm:<job>:starts             hash: tile number -> how often work on it began and did not end
    filterfarm:<job>:claim:<number>     text with a time to live: which message's delivery renders the tile now
    filterfarm:<job>:requeued           bits: tile number -> was enqueued again by the collector
    filterfarm:<job>:submission         text: which submission of the job is the latest
    filterfarm:<job>:submitting         flag with a time to live: somebody is enqueueing this job
    filterfarm:<job>:cancelled          flag: workers drop this job's tasks
    filterfarm:<job>:synced             number of tiles: the bits above have been read from the bucket
"""

import re
from typing import Annotated

from pydantic import StringConstraints

QUEUE = "filterfarm.render"
JOBS = "filterfarm:jobs"
COLLECTOR_LOCK = "filterfarm:collector"
WORKERS = "filterfarm:workers"
STORAGE = "filterfarm:storage"

#: A name becomes a path segment of a key, and of a file where the bucket is a folder: no slash, no leading dot,
#: and short enough for every file system once ".json" is added.
NAME_PATTERN = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$"

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]


def is_name(text: str) -> bool:
    """Whether ``text`` may be a segment of a key."""
    return re.fullmatch(NAME_PATTERN, text) is not None


def job(job_id: str) -> str:
    """Key of the frozen job."""
    return f"{job_id}/job.json"


def weights(job_id: str, sha256: str) -> str:
    """Key of the checkpoint a job was submitted with."""
    return f"{job_id}/weights/{sha256}"


def tile(job_id: str, layer: str, filter_: int) -> str:
    """Key of one tile."""
    return f"{job_id}/tiles/{layer}/{filter_}.png"


def frames(job_id: str, layer: str, filter_: int) -> str:
    """Key of the animation of how a tile came about."""
    return f"{job_id}/frames/{layer}/{filter_}.webp"


def failed(job_id: str, layer: str, filter_: int) -> str:
    """Key of the reason why a filter has no tile."""
    return f"{job_id}/failed/{layer}/{filter_}.json"


def records(job_id: str, layer: str) -> str:
    """Key of a layer's records."""
    return f"{job_id}/layers/{layer}.json"


def grid(job_id: str, layer: str) -> str:
    """Key of a layer's sheet."""
    return f"{job_id}/grids/{layer}.png"


def index(job_id: str) -> str:
    """Key of the job's gallery."""
    return f"{job_id}/index.html"


def status(job_id: str) -> str:
    """Key of the note on how the job ended."""
    return f"{job_id}/status.json"


def parse_filter_key(key: str) -> tuple[str, int] | None:
    """(layer, filter) of a ``tiles/`` or ``failed/`` key, or None where the key is no such thing."""
    match = re.fullmatch(r"[^/]+/(?:tiles|failed)/([^/]+)/(0|[1-9][0-9]{0,8})\.(?:png|json)", key)
    return (match[1], int(match[2])) if match else None


def queue(job_id: str) -> str:
    """Name of the job's queue, which is the Redis key of its list."""
    return f"{QUEUE}.{job_id}"


def claim(job_id: str, number: int) -> str:
    """Redis key of the claim on one tile."""
    return f"filterfarm:{job_id}:claim:{number}"


def redis(job_id: str, field: str) -> str:
    """Redis key of one field of a job's ledger, as listed above."""
    return f"filterfarm:{job_id}:{field}"
