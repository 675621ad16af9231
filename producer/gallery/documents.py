"""The gallery's JSON documents: of a layer, of a job, and of all jobs. ``producer/README.md`` describes each field.

Each is stored twice: as JSON, and as a script that calls ``filterfarm.receive``, because a page that was opened as a
file may load scripts and no JSON. All functions are pure.
"""

import base64
import json
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from producer.gallery import descriptors
from producer.gallery.thumbnails import Cells, cell_px, strip_filters
from workers.contract import keys
from workers.contract.job import Job, Layer
from workers.contract.records import FailureRecord, TileRecord

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Record = TileRecord | FailureRecord

JOB_FORMAT, JOBS_FORMAT = "filterfarm gallery", "filterfarm jobs"

#: Letters of the statuses in a layer's script. Another status is "?".
_LETTERS = {"live": "l", "rescued": "r", "dead": "d", "failed": "f"}

#: Significant digits of a number in a layer's script; records have all.
_DIGITS = 6


@dataclass(frozen=True, kw_only=True)
class LayerFacts:
    """What the job's document says of a layer's objects. The default is that of a layer without any."""

    #: changes with the layer's data; 0: there is none
    stamp: int = 0
    #: tiles by status
    rescued: int = 0
    dead: int = 0
    #: number of tiles in the strip
    strip: int = 0
    #: the contact sheet exists
    sheet: bool = False


def javascript(kind: str, name: str, document: Mapping[str, Any]) -> bytes:
    """One statement that hands the document to the page. It is valid in a script element and in every encoding."""
    arguments = (json.dumps(value, separators=(",", ":"), allow_nan=False) for value in (kind, name, document))
    text = f"filterfarm.receive({','.join(arguments)});\n"
    return text.replace("<", "\\u003c").encode("ascii")


def layer_document(
    job: Job,
    layer: Layer,
    records: Mapping[int, Record],
    vectors: "NDArray[np.int8]",
    plan: Cells,
    *,
    sheet_tile_px: tuple[int, int] | None,
    stamp: int,
) -> bytes:
    """``layers/<layer>.json``: the records, one per line, and what the atlas needs.

    ``records``: filter -> record, ascending. ``vectors``: its descriptors, (count, SIZE) int8. ``sheet_tile_px``: None
    as long as the layer is not complete.
    """
    content = {
        "job": job.id,
        "layer": layer.name,
        "complete": sheet_tile_px is not None,
        "aliases": list(layer.aliases),
        "planned": len(layer.selected),
        "stamp": stamp,
        "sheet_tile_px": None if sheet_tile_px is None else list(sheet_tile_px),
        "atlas": {"columns": plan.columns, "cell_px": list(plan.cell_px)},
        "descriptors": {"of": "pictures", "size": descriptors.SIZE, "data": _base64(vectors)},
    }
    head = json.dumps(content)
    lines = ",\n".join(record.model_dump_json() for record in records.values())
    return f'{head[:-1]}, "filters": [\n{lines}\n]}}\n'.encode()


def layer_columns(
    job: Job, layer: Layer, records: Mapping[int, Record], vectors: "NDArray[np.int8]", plan: Cells, *, complete: bool
) -> dict[str, Any]:
    """The content of ``layers/<layer>.js``, without its stamp: the records as columns. Arguments as above."""
    found = list(records.values())
    places = {filter_: place for place, filter_ in enumerate(layer.selected)}
    versions = Counter(
        json.dumps(record.versions, sort_keys=True) for record in found if isinstance(record, TileRecord)
    )

    def column(name: str) -> Any:
        return _column([_short(getattr(record, name, None)) for record in found])

    return {
        "job": job.id,
        "layer": layer.name,
        "aliases": list(layer.aliases),
        **({"names": {str(filter_): layer.names[filter_] for filter_ in records}} if layer.names else {}),
        "complete": complete,
        "planned": len(layer.selected),
        "channels": layer.channels,
        "columns": plan.columns,
        "cell_px": list(plan.cell_px),
        "filter": list(records),
        "cell": [places[filter_] for filter_ in records],
        "status": "".join(_LETTERS.get(record.status, "?") for record in found),
        "start": column("start_activation"),
        "activation": column("activation"),
        "stored": column("stored_activation"),
        "seed": column("seed"),
        "steps": column("steps"),
        "restarts": column("restarts"),
        "attempts": column("attempts"),
        "seconds": column("seconds"),
        "precision": column("precision"),
        "device": column("device"),
        "reasons": {str(record.filter): record.reason for record in found if isinstance(record, FailureRecord)},
        "versions": json.loads(versions.most_common(1)[0][0]) if versions else {},
        "descriptors": {"size": descriptors.SIZE, "data": _base64(vectors)},
    }


def facts_of(data: bytes | None, layer: Layer) -> LayerFacts | None:
    """The facts in a stored ``layers/<layer>.json``; None if it is missing, partial or unreadable."""
    try:
        content = json.loads(data or b"")
        statuses = {int(record["filter"]): str(record["status"]) for record in content["filters"]}
        if content["complete"] is not True or tuple(statuses) != tuple(layer.selected):
            return None
        return layer_facts(statuses, int(content["stamp"]), complete=True)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def layer_facts(statuses: Mapping[int, str], stamp: int, *, complete: bool) -> LayerFacts:
    """``statuses``: filter -> status in its record."""
    counts = Counter(statuses.values())
    return LayerFacts(
        stamp=stamp,
        rescued=counts["rescued"],
        dead=counts["dead"],
        strip=len(strip_filters(statuses)),
        sheet=complete,
    )


def stamp_of(parts: Sequence[bytes]) -> int:
    """A number other than 0 that depends on these bytes alone."""
    checksum = 0
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    return checksum or 1


def job_document(
    job: Job,
    *,
    state: str,
    layers: Mapping[str, LayerFacts],
    done: Mapping[str, int],
    failed: Mapping[str, int],
    updated: int,
) -> dict[str, Any]:
    """``gallery.json``. ``layers``, ``done`` and ``failed`` (in tiles) are by name; a layer without entry has none."""
    return {
        "format": JOB_FORMAT,
        "version": 1,
        "job": job.id,
        "model": job.model,
        "weights": job.weights.name,
        "method": job.recipe.method,
        "described": job.recipe.described,
        "recipe": job.recipe.model_dump(mode="json", exclude={"directions"}),
        "state": state,
        "tiles": len(job.tiles),
        "done": sum(done.values()),
        "failed": sum(failed.values()),
        "updated": updated,
        "tile_px": list(job.recipe.tile_px),
        "cell_px": list(cell_px(job.recipe)),
        "frames": job.recipe.frames > 0,
        "generator": generator(),
        "layers": [
            _layer_entry(
                layer, layers.get(layer.name, LayerFacts()), done.get(layer.name, 0), failed.get(layer.name, 0)
            )
            for layer in job.layers
        ],
    }


def _layer_entry(layer: Layer, facts: LayerFacts, done: int, failed: int) -> dict[str, Any]:
    return {
        "name": layer.name,
        "aliases": list(layer.aliases),
        "channels": layer.channels,
        "count": len(layer.selected),
        "done": done,
        "rescued": facts.rescued,
        "dead": facts.dead,
        "failed": failed,
        "stamp": facts.stamp,
        "strip": facts.strip,
        "sheet": facts.sheet,
    }


def jobs_entry(document: Mapping[str, Any]) -> dict[str, Any]:
    """A job's entry in ``index.json``, from its ``gallery.json``. Raises KeyError and TypeError for other documents."""
    layers = document["layers"]
    # The last layers are those whose pictures tell most.
    shown = next((layer["name"] for layer in reversed(layers) if layer["strip"]), None)
    return {
        "id": document["job"],
        **{name: document[name] for name in ("model", "weights", "method", "described", "state")},
        **{name: document[name] for name in ("tiles", "done", "failed")},
        "layers": len(layers),
        "layer_names": [layer["name"] for layer in layers],
        "updated": document["updated"],
        "strip": None if shown is None else keys.strip(document["job"], shown),
    }


def jobs_document(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """``index.json``: the entries by id."""
    return {"format": JOBS_FORMAT, "version": 1, "jobs": [entries[job_id] for job_id in sorted(entries)]}


def generator() -> str:
    """What names this program in a page."""
    return f"filterfarm {version('filterfarm')}"


def to_json(document: Mapping[str, Any]) -> bytes:
    """A job's or the jobs' document."""
    return json.dumps(document, indent=1, allow_nan=False).encode()


def _short(value: Any) -> Any:
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value


def _column(values: list[Any]) -> Any:
    """One value if all are the same."""
    return values[0] if values and all(value == values[0] for value in values) else values


def _base64(vectors: "NDArray[np.int8]") -> str:
    return base64.b64encode(vectors.tobytes()).decode()
