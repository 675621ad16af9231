"""All object keys and Redis keys, and the pattern of names.

Objects below the bucket's prefix. Everything can be rebuilt from them:

    <job>/job.json                      the frozen job
    <job>/weights/<sha256>              the checkpoint, if the job's weights are a file
    <job>/tiles/<layer>/<filter>.png    one tile
    <job>/frames/<layer>/<filter>.webp  its animation, if the recipe has frames
    <job>/failed/<layer>/<filter>.json  reason of a failure, after the last attempt
    <job>/layers/<layer>.json           one record per filter, of those that have ended
    <job>/layers/<layer>.js             the same as columns, as a script that the gallery loads
    <job>/atlas/<layer>.webp            thumbnails of all tiles of the layer
    <job>/strips/<layer>.webp           thumbnails of at most eight of them
    <job>/grids/<layer>.png             the contact sheet of the layer; once it is there, the layer is assembled
    <job>/index.html                    the gallery's page
    <job>/assets/<asset>                its style sheet and scripts
    <job>/gallery.json                  the job's progress and layers
    <job>/gallery.js                    the same as a script
    <job>/status.json                   state: running, finished, cancelled or stopped
    index.html                          the page that lists all jobs
    assets/<asset>                      its style sheet and scripts
    index.json                          all jobs
    index.js                            the same as a script
    farm.json                           the id of the farm, which its Redis keys carry

Redis. A loss costs time and no tile. Several farms may share a Redis:

    filterfarm:farms                            hash: id of a farm -> its bucket and endpoint
    filterfarm.render.<farm>.<job>              list: the job's queue (Celery's; with unacked.<farm> and the like)
    filterfarm.render.<farm>                    list: always empty; the queue of a worker without a job
    filterfarm:<farm>:jobs                      set: ids of the open jobs
    filterfarm:<farm>:collector                 lock: the active collector
    filterfarm:<farm>:workers                   sorted set: worker name -> time of its last heartbeat (Unix seconds)
    filterfarm:<farm>:storage                   hash: worker name, or "collector" -> its object store error
    filterfarm:<farm>:troubles                  hash: machine -> why it does not render
    filterfarm:<farm>:<job>:done                bits: tile number -> the tile is stored
    filterfarm:<farm>:<job>:failed              hash: tile number -> reason
    filterfarm:<farm>:<job>:attempts            hash: tile number -> machines that could not render it, and why
    filterfarm:<farm>:<job>:starts              hash: tile number -> number of unfinished attempts
    filterfarm:<farm>:<job>:claim:<number>      text with a time to live: token of the claim on the tile
    filterfarm:<farm>:<job>:fed                 number of tiles, from the first on, that have been enqueued
    filterfarm:<farm>:<job>:requeued            bits: tile number -> the collector has re-enqueued the tile
    filterfarm:<farm>:<job>:submission          text: id of the latest submission
    filterfarm:<farm>:<job>:submitting          flag with a time to live: the job is being enqueued
    filterfarm:<farm>:<job>:cancelled           flag: workers drop this job's tasks
    filterfarm:<farm>:<job>:synced              number of tiles, once the state above was read from the bucket
"""

import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import StringConstraints

#: Redis key of the hash of farms, and object key of a farm's id.
FARMS = "filterfarm:farms"
FARM_OBJECT = "farm.json"

#: Object keys of the page of all jobs and of its data.
JOBS_PAGE, JOBS, JOBS_SCRIPT = "index.html", "index.json", "index.js"

#: A name is a segment of a key, and a file name if the bucket is a folder: no slash, no leading dot, and short enough
#: for every file system with ".json" added.
NAME_PATTERN = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$"

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]


def is_name(text: str) -> bool:
    """True if ``text`` may be a segment of a key."""
    return re.fullmatch(NAME_PATTERN, text) is not None


def job(job_id: str) -> str:
    """Key of the frozen job."""
    return f"{job_id}/job.json"


def weights(job_id: str, sha256: str) -> str:
    """Key of the checkpoint that the job was submitted with."""
    return f"{job_id}/weights/{sha256}"


def tile(job_id: str, layer: str, filter_: int) -> str:
    """Key of one tile."""
    return f"{job_id}/tiles/{layer}/{filter_}.png"


def frames(job_id: str, layer: str, filter_: int) -> str:
    """Key of a tile's animation."""
    return f"{job_id}/frames/{layer}/{filter_}.webp"


def failed(job_id: str, layer: str, filter_: int) -> str:
    """Key of a tile's failure record."""
    return f"{job_id}/failed/{layer}/{filter_}.json"


def records(job_id: str, layer: str) -> str:
    """Key of a layer's records."""
    return f"{job_id}/layers/{layer}.json"


def layer_script(job_id: str, layer: str) -> str:
    """Key of a layer's records as a script."""
    return f"{job_id}/layers/{layer}.js"


def atlas(job_id: str, layer: str) -> str:
    """Key of the thumbnails of a layer."""
    return f"{job_id}/atlas/{layer}.webp"


def strip(job_id: str, layer: str) -> str:
    """Key of the thumbnails of a few tiles of a layer."""
    return f"{job_id}/strips/{layer}.webp"


def grid(job_id: str, layer: str) -> str:
    """Key of a layer's contact sheet."""
    return f"{job_id}/grids/{layer}.png"


def index(job_id: str) -> str:
    """Key of the gallery's page of the job."""
    return f"{job_id}/index.html"


def asset(job_id: str, name: str) -> str:
    """Key of a file that the page loads; without a job, of one that the page of all jobs loads."""
    return f"{job_id}/assets/{name}" if job_id else f"assets/{name}"


def gallery(job_id: str) -> str:
    """Key of the job's progress and layers."""
    return f"{job_id}/gallery.json"


def gallery_script(job_id: str) -> str:
    """Key of the same as a script."""
    return f"{job_id}/gallery.js"


def status(job_id: str) -> str:
    """Key of the job's state."""
    return f"{job_id}/status.json"


def parse_filter_key(key: str) -> tuple[str, int] | None:
    """(layer, filter) of a ``tiles/`` or ``failed/`` key, or None for other keys."""
    match = re.fullmatch(r"[^/]+/(?:tiles|failed)/([^/]+)/(0|[1-9][0-9]{0,8})\.(?:png|json)", key)
    return (match[1], int(match[2])) if match else None


@dataclass(frozen=True)
class RedisKeys:
    """The Redis keys of one farm, as listed above."""

    farm: str

    @property
    def default_queue(self) -> str:
        """The queue of a worker without a job."""
        return f"filterfarm.render.{self.farm}"

    @property
    def unacked(self) -> str:
        """Kombu's hash of messages between delivery and acknowledgement."""
        return f"unacked.{self.farm}"

    @property
    def unacked_index(self) -> str:
        """Kombu's sorted set of their delivery times."""
        return f"unacked_index.{self.farm}"

    @property
    def unacked_mutex(self) -> str:
        """Kombu's lock for redelivering those of others."""
        return f"unacked_mutex.{self.farm}"

    @property
    def jobs(self) -> str:
        """The open jobs."""
        return f"filterfarm:{self.farm}:jobs"

    @property
    def collector(self) -> str:
        """The collector's lock."""
        return f"filterfarm:{self.farm}:collector"

    @property
    def workers(self) -> str:
        """The workers' heartbeats."""
        return f"filterfarm:{self.farm}:workers"

    @property
    def storage(self) -> str:
        """The object store errors."""
        return f"filterfarm:{self.farm}:storage"

    @property
    def troubles(self) -> str:
        """The machines that do not render."""
        return f"filterfarm:{self.farm}:troubles"

    def queue(self, job_id: str) -> str:
        """Name of the job's queue, which is the key of its list."""
        return f"{self.default_queue}.{job_id}"

    def claim(self, job_id: str, number: int) -> str:
        """The claim on one tile."""
        return f"filterfarm:{self.farm}:{job_id}:claim:{number}"

    def field(self, job_id: str, name: str) -> str:
        """One field of a job's ledger."""
        return f"filterfarm:{self.farm}:{job_id}:{name}"
