"""One layer of a job: its sheet, shown in a notebook's cell, and its records."""

import io
import json
from typing import Any

from PIL import Image, PngImagePlugin

from producer.collector.contact_sheet import MAX_SIDE_PX
from producer.jobs.inventory import Reader
from workers.contract import job as contract
from workers.contract import keys
from workers.contract.errors import CorruptTile, JobIncomplete, one_line

#: Longest side in pixels of a sheet that a cell shows; larger sheets are shown scaled down.
SHOWN_PX = 2000


class Layer:
    """One layer of a job. As the last line of a notebook's cell it shows its sheet."""

    def __init__(self, job_id: str, layer: contract.Layer, reader: Reader) -> None:
        self._job_id = job_id
        self._reader = reader
        self.name = layer.name
        self.aliases = layer.aliases
        #: numbers of the units that the job renders, ascending
        self.units = tuple(layer.selected)

    @property
    def sheet(self) -> Image.Image:
        """The contact sheet in full size, RGB, as stored.

        Raises JobIncomplete if it has been removed, CorruptTile if it is no sheet, and object store errors.
        """
        return _open(self._stored(), f"the sheet of {self.name} of {self._job_id}")

    @property
    def records(self) -> list[dict[str, Any]]:
        """One flat dictionary per unit, ascending by ``filter``, as ``pandas.DataFrame`` takes them.

        Keys are the fields of the records in ``layers/<layer>.json``; nested ones are joined by dots, as in
        ``versions.torch``. A failed unit has ``status`` failed and a ``reason``. Raises JobIncomplete if there are no
        records, CorruptTile if they are not readable, and object store errors.
        """
        return read_records(self._job_id, self.name, self._reader)

    def _repr_png_(self) -> bytes:
        data = self._stored()
        sheet = _open(data, f"the sheet of {self.name} of {self._job_id}")
        if max(sheet.size) <= SHOWN_PX:
            return data
        sheet.thumbnail((SHOWN_PX, SHOWN_PX), Image.Resampling.LANCZOS, reducing_gap=3.0)
        out = io.BytesIO()
        sheet.save(out, "PNG")
        return out.getvalue()

    def __repr__(self) -> str:
        names = " ".join([self.name, *(f"({alias})" for alias in self.aliases)])
        return f"<{names} of {self._job_id}: {len(self.units)} unit{'' if len(self.units) == 1 else 's'}>"

    def _stored(self) -> bytes:
        data = self._reader.get(keys.grid(self._job_id, self.name))
        if data is None:
            raise JobIncomplete(f"the sheet of {self.name} of {self._job_id} has been removed; job.wait() waits for it")
        return data


def read_records(job_id: str, layer: str, reader: Reader) -> list[dict[str, Any]]:
    """The records of a layer, as :attr:`Layer.records` describes them."""
    data = reader.get(keys.records(job_id, layer))
    if data is None:
        raise JobIncomplete(f"no records of {layer} of {job_id} are stored yet; job.wait() waits for them")
    try:
        return [_flat(record) for record in json.loads(data)["filters"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptTile(f"the records of {layer} of {job_id} are not readable: {one_line(error, 100)}") from error


def _flat(record: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in record.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _open(data: bytes, what: str) -> Image.Image:
    """The picture in ``data``. Sheets may have more pixels than ``Image.open`` takes for harmless."""
    try:
        picture = PngImagePlugin.PngImageFile(io.BytesIO(data))
        if max(picture.size) > MAX_SIDE_PX:
            raise CorruptTile(f"{what} has {picture.width}x{picture.height} px, and no sheet has that many")
        picture.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise CorruptTile(f"{what} is no readable PNG: {one_line(error, 100)}") from error
    return picture
