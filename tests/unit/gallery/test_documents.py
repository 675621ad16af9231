"""The gallery's documents: what they say, in JSON and in scripts."""

import base64
import json
from typing import Any

import numpy as np
import pytest

from producer.gallery.documents import (
    LayerFacts,
    facts_of,
    javascript,
    job_document,
    jobs_document,
    jobs_entry,
)
from producer.gallery.layer_objects import Entry, entry, layer_cells, layer_objects
from tests.jobs import sample_job, sample_tile
from workers.contract.job import Job, Layer, Weights
from workers.contract.records import FailureRecord, TileRecord
from workers.contract.tile_png import decode_tile

HOSTILE = "</script><img src=x onerror=alert(1)>\u2028\u2029\"'&"

LAYER = Layer(name="features.0", aliases=("block1_conv1",), channels=64, filters="0-2,5")
JOB = sample_job(LAYER, Layer(name="features.2", channels=64, filters="7"))


def tile(filter_: int, **changes: Any) -> Entry:
    pixels, record = decode_tile(sample_tile(JOB, LAYER.name, filter_), (8, 8))
    return entry(record.model_copy(update=changes), pixels, layer_cells(JOB, LAYER))


def failure(filter_: int, reason: str = "out of paint") -> Entry:
    return Entry(record=FailureRecord(job=JOB.id, layer=LAYER.name, filter=filter_, reason=reason, attempts=3))


def stored(entries: dict[int, Entry], *, complete: bool = True, job: Job = JOB) -> dict[str, bytes]:
    """What is written of a layer: key below the job -> body."""
    objects, _ = layer_objects(job, LAYER, entries, sheet_tile_px=(8, 8) if complete else None)
    return {made.key.removeprefix(f"{job.id}/"): made.body for made in objects}


def received(script: bytes) -> list[Any]:
    """The arguments of the one statement of a script."""
    text = script.decode("ascii")
    assert text.startswith("filterfarm.receive(")
    assert text.endswith(");\n")
    found: list[Any] = json.loads(f"[{text.removeprefix('filterfarm.receive(').removesuffix(');' + chr(10))}]")
    return found


ALL = {0: tile(0), 1: tile(1, status="rescued"), 2: tile(2, status="dead", seconds=1 / 3), 5: failure(5, HOSTILE)}


def test_a_complete_layer_has_atlas_strip_records_and_script() -> None:
    # Given / When
    found = stored(ALL)
    # Then they are written in this order, and the records are whole
    assert list(found) == [
        "atlas/features.0.webp", "strips/features.0.webp", "layers/features.0.json", "layers/features.0.js",
    ]  # fmt: skip
    content = json.loads(found["layers/features.0.json"])
    assert content["filters"] == [kept.record.model_dump(mode="json") for kept in ALL.values()]
    assert (content["job"], content["layer"], content["aliases"]) == (JOB.id, "features.0", ["block1_conv1"])
    assert (content["complete"], content["planned"], content["sheet_tile_px"]) == (True, 4, [8, 8])
    assert content["atlas"] == {"columns": 2, "cell_px": [8, 8]}
    vectors = np.frombuffer(base64.b64decode(content["descriptors"]["data"]), np.int8).reshape(4, -1)
    assert vectors.shape[1] == content["descriptors"]["size"] == 64
    assert not vectors[3].any()
    # And a record may be of a later version
    assert TileRecord.model_validate_json(json.dumps(content["filters"][0])) == ALL[0].record


def test_a_layers_script_has_the_same_facts_as_columns() -> None:
    # Given / When
    kind, name, columns = received(stored(ALL)["layers/features.0.js"])
    # Then
    assert (kind, name) == ("layer", "features.0")
    assert (columns["filter"], columns["cell"], columns["status"]) == ([0, 1, 2, 5], [0, 1, 2, 3], "lrdf")
    assert columns["activation"] == [1.5, 1.5, 1.5, None]
    assert columns["seconds"] == [0.25, 0.25, 0.333333, None]
    assert columns["attempts"] == [1, 1, 1, 3]
    assert columns["reasons"] == {"5": HOSTILE}
    assert columns["versions"] == {"filterfarm": "0"}
    assert (columns["channels"], columns["columns"], columns["cell_px"], columns["planned"]) == (64, 2, [8, 8], 4)
    assert columns["stamp"] == json.loads(stored(ALL)["layers/features.0.json"])["stamp"] > 0
    # And a column of one value is that value
    alike = received(stored({0: tile(0), 1: tile(1)}, complete=False)["layers/features.0.js"])[2]
    assert (alike["activation"], alike["device"], alike["seed"]) == (1.5, "cpu", 0)
    assert alike["complete"] is False


def test_a_partial_layer_is_never_taken_for_a_complete_one() -> None:
    # Given
    facts = LayerFacts(
        stamp=json.loads(stored(ALL)["layers/features.0.json"])["stamp"], rescued=1, dead=1, strip=2, sheet=True
    )
    # When / Then
    assert facts_of(stored(ALL)["layers/features.0.json"], LAYER) == facts
    assert facts_of(stored(ALL, complete=False)["layers/features.0.json"], LAYER) is None
    some = {filter_: kept for filter_, kept in ALL.items() if filter_ != 1}
    assert facts_of(stored(some)["layers/features.0.json"], LAYER) is None
    for data in (None, b"", b"[]", b"{", b'{"filters": []}', b'{"complete": true, "filters": [{}]}'):
        assert facts_of(data, LAYER) is None


def test_a_cell_does_not_move_while_the_layer_fills() -> None:
    # Given / When
    some = received(stored({5: tile(5), 1: tile(1)}, complete=False)["layers/features.0.js"])[2]
    # Then
    assert (some["filter"], some["cell"]) == ([1, 5], [1, 3])


def test_the_stamp_changes_with_the_data_alone() -> None:
    # Given / When
    stamps = [
        json.loads(stored(entries)["layers/features.0.json"])["stamp"]
        for entries in (ALL, dict(ALL), {**ALL, 0: tile(0, activation=2.0)}, {**ALL, 0: tile(1)})
    ]
    # Then
    assert stamps[0] == stamps[1]
    assert len(set(stamps)) == 3


def test_a_layer_of_failures_alone_has_no_strip() -> None:
    # Given / When / Then
    assert "strips/features.0.webp" not in stored({filter_: failure(filter_) for filter_ in LAYER.selected})


@pytest.mark.parametrize("text", [HOSTILE, "é", "\x00", "]]>"])
def test_a_script_is_one_statement_whatever_the_text_in_it(text: str) -> None:
    # Given / When
    script = javascript("jobs", text, {text: [text]})
    # Then
    assert received(script) == ["jobs", text, {text: [text]}]
    assert b"<" not in script
    assert script.count(b"\n") == 1


def document(**changes: Any) -> dict[str, Any]:
    job = JOB.model_copy(update={"weights": Weights(source="file", name=HOSTILE.replace("/", ""), sha256="0" * 64)})
    given: dict[str, Any] = {
        "state": "running", "layers": {"features.0": LayerFacts(stamp=7, rescued=1, dead=1, strip=2, sheet=True)},
        "done": {"features.0": 3}, "failed": {"features.0": 1}, "updated": 99,
    }  # fmt: skip
    return job_document(job, **(given | changes))


def test_a_jobs_document_has_progress_and_layers_in_order() -> None:
    # Given / When
    found = document()
    # Then
    assert (found["format"], found["version"], found["job"], found["state"]) == (
        "filterfarm gallery", 1, JOB.id, "running",
    )  # fmt: skip
    assert (found["tiles"], found["done"], found["failed"], found["frames"]) == (5, 3, 1, False)
    assert (found["tile_px"], found["cell_px"], found["described"]) == ([8, 8], [8, 8], JOB.recipe.described)
    assert found["layers"] == [
        {"name": "features.0", "aliases": ["block1_conv1"], "channels": 64, "count": 4, "done": 3, "rescued": 1,
         "dead": 1, "failed": 1, "stamp": 7, "strip": 2, "sheet": True},
        {"name": "features.2", "aliases": [], "channels": 64, "count": 1, "done": 0, "rescued": 0,
         "dead": 0, "failed": 0, "stamp": 0, "strip": 0, "sheet": False},
    ]  # fmt: skip
    assert HOSTILE.replace("/", "").encode() not in javascript("job", JOB.id, found)


def test_the_list_of_jobs_has_one_entry_each_sorted_by_id() -> None:
    # Given
    entry_ = jobs_entry(document())
    # When
    found = jobs_document({"b": {**entry_, "id": "b"}, "a": {**entry_, "id": "a"}})
    # Then
    assert (found["format"], found["version"]) == ("filterfarm jobs", 1)
    assert [job["id"] for job in found["jobs"]] == ["a", "b"]
    assert entry_["layer_names"] == ["features.0", "features.2"]
    assert (entry_["layers"], entry_["tiles"], entry_["done"], entry_["updated"]) == (2, 5, 3, 99)
    assert entry_["strip"] == f"{JOB.id}/strips/features.0.webp"
    assert jobs_entry(document(layers={}))["strip"] is None


def test_a_layers_script_names_its_units_also_those_that_failed() -> None:
    # Given logits of which one failed
    logits = Layer(name=LAYER.name, kind="logits", names=tuple("abc"), channels=3, filters="0,2")
    job = sample_job(logits)
    # When its objects are made
    objects, _ = layer_objects(job, logits, {0: ALL[0], 2: failure(2)}, sheet_tile_px=(8, 8))
    # Then the page finds both by their names
    script = next(made.body for made in objects if made.key.endswith(".js"))
    assert received(script)[2]["names"] == {"0": "a", "2": "c"}
    # And other layers have none
    assert "names" not in received(stored(ALL)["layers/features.0.js"])[2]
