"""A job of a farm or of a data folder, to look at from Python."""

import difflib
import operator
from pathlib import Path
from typing import Any, SupportsIndex

from PIL import Image
from rich.console import Console

from producer.jobs.inventory import load_job
from producer.jobs.local_store import LocalStore, chosen_store
from producer.jobs.progress import watch
from producer.jobs.session import Session, open_session, open_store, read_settings
from producer.jobs.status import JobStatus, job_status, local_status, require_complete
from producer.notebook.layer import Layer, read_records
from workers.clients.broker_access import broker_errors
from workers.clients.storage import Store
from workers.contract import job as contract
from workers.contract import keys
from workers.contract.errors import BadFilters, CorruptTile, JobIncomplete, UnknownLayer
from workers.contract.settings import Settings
from workers.contract.tile_png import decode_tile_of, max_bytes


class Job:
    """One job. Pictures and records are read when they are asked for, so that a running job can be looked at.

    All methods raise the errors of ``workers.contract.errors``, each with one line, those of the object store and the
    broker among them.
    """

    def __init__(self, frozen: contract.Job, store: Store | LocalStore, settings: Settings) -> None:
        self._frozen = frozen
        self._store = store
        self._settings = settings
        self._session: Session | None = None

    @classmethod
    def open(cls, job_id: str, *, data: str | Path | None = None) -> "Job":
        """The job of that id: of the data folder ``data``, else of the farm that the environment names.

        Without either it is that of the folder filterfarm-data. Raises NoJob, CorruptJob and BadSettings.
        """
        settings = read_settings(local=data is not None)
        store = chosen_store(Path(data) if data is not None else None, settings, job_id) or open_store(settings)
        return cls(load_job(job_id, store), store, settings)

    @property
    def id(self) -> str:
        """The job's id, which is its folder in the bucket."""
        return self._frozen.id

    @property
    def layers(self) -> list[str]:
        """Names of the layers that the job renders, in the network's order."""
        return [layer.name for layer in self._frozen.layers]

    def layer(self, name: str) -> Layer:
        """A layer by its name or alias, to look at its sheet.

        Raises UnknownLayer if the job has no such layer, and JobIncomplete if its sheet does not exist yet.
        """
        layer = self._find(name)
        if self._store.get(keys.grid(self.id, layer.name), max_bytes=1) is None:
            raise JobIncomplete(self._why_no_sheet(layer))
        return Layer(self.id, layer, self._store)

    def records(self, layer: str | Layer) -> list[dict[str, Any]]:
        """The records of a layer's units as flat dictionaries; see :attr:`Layer.records`. Raises UnknownLayer."""
        return read_records(self.id, self._find(layer).name, self._store)

    def tile(self, layer: str | Layer, unit: SupportsIndex) -> Image.Image:
        """The picture of one unit of a layer, RGB. A tile of a running job can be read as soon as it is stored.

        Raises UnknownLayer, BadFilters if the job does not render that unit, JobIncomplete if it has no tile, and
        CorruptTile if the object is not that tile.
        """
        found, unit = self._find(layer), operator.index(unit)
        if unit not in found.selected:
            raise BadFilters(f"{self.id} renders no unit {unit!r} of {found.name}; it renders {found.filters[:80]}")
        limit = max_bytes(self._frozen.recipe.tile_px) + 1
        data = self._store.get(keys.tile(self.id, found.name, unit), max_bytes=limit)
        if data is None:
            reason = self.status.reasons.get(f"{found.name}/{unit}")
            raise JobIncomplete(
                f"unit {unit} of {found.name} of {self.id} "
                + (f"failed: {reason}" if reason else "has no tile yet; job.wait() waits for it")
            )
        try:
            pixels, _ = decode_tile_of(self._frozen, found.name, unit, data)
        except CorruptTile as error:
            raise CorruptTile(f"unit {unit} of {found.name} of {self.id}: {error}") from error
        return Image.fromarray(pixels)

    @property
    def status(self) -> JobStatus:
        """State of the job at this moment: counts of tiles, by layer too, and what it waits for."""
        if isinstance(self._store, LocalStore):
            return local_status(self._frozen, self._store)
        with broker_errors(self._settings):
            if self._session is None:
                self._session = open_session(self._settings)
            return job_status(self._frozen, self._session.store, self._session.ledger)

    def wait(self) -> "Job":
        """Show the progress until the job has ended; returns the job. "Interrupt kernel" ends the wait, not the job.

        Raises JobIncomplete if tiles or sheets are missing then, and StorageDenied if the farm may not store them.
        """
        require_complete(watch(lambda: self.status, Console(stderr=True)))
        return self

    @property
    def gallery(self) -> str:
        """Where the job's page is: the path of its file, or for a farm its address as an S3 object."""
        key = keys.index(self.id)
        if isinstance(self._store, LocalStore):
            return str(self._store.path(key).absolute())
        return f"s3://{self._settings.bucket}/{self._settings.prefix}{key}"

    def __repr__(self) -> str:
        where = self._store.data if isinstance(self._store, LocalStore) else self._settings.bucket_url
        layers = len(self._frozen.layers)
        return (
            f"<job {self.id} in {where}: {layers} layer{'' if layers == 1 else 's'}, {len(self._frozen.tiles):,} tiles>"
        )

    def _find(self, layer_or_name: str | Layer) -> contract.Layer:
        name = layer_or_name.name if isinstance(layer_or_name, Layer) else layer_or_name
        for layer in self._frozen.layers:
            if name == layer.name or name in layer.aliases:
                return layer
        every = [known for layer in self._frozen.layers for known in (layer.name, *layer.aliases)]
        near = difflib.get_close_matches(str(name), every, n=3, cutoff=0.3) or every[:3]
        raise UnknownLayer(f"no layer {str(name)[:80]!r} in {self.id}; nearest: {', '.join(near)} (job.layers has all)")

    def _why_no_sheet(self, layer: contract.Layer) -> str:
        status = self.status
        reason = status.problems.get(layer.name)
        counts = next((entry for entry in status.layers if entry.layer == layer.name), None)
        stored = f"{counts.stored} of {counts.planned} tiles are stored" if counts else "its tiles are not counted"
        if counts and counts.failed:
            stored += f", {counts.failed} failed"
        way_out = "job.wait() waits for it" if status.state == "running" else "submit the job again to resume it"
        return f"{self.id} has no sheet of {layer.name}" + (f": {reason}" if reason else f" yet: {stored}; {way_out}")
