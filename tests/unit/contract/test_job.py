"""The frozen job and the task message: identity, immutability, and what does not decode."""

import json
import re
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from tests.jobs import sample_job
from workers.contract.errors import CorruptJob, JobNotUnderstood
from workers.contract.frozen import Frozen
from workers.contract.job import Grid, Job, Layer, Task, Weights, decode, decode_job, decode_task, decode_whole_job
from workers.contract.recipe import Preprocess, Recipe
from workers.contract.records import FailureRecord

#: path in job.json -> another value it may have
CHANGES: dict[str, Any] = {
    "model": "vgg19",
    "network": {"source": "timm", "name": "vgg19"},
    "weights.source": "file",
    "weights.name": "mine.pth",
    "weights.sha256": "0123456789abcdef",
    "weights.layout": "keras",
    "layers.0.kind": "block",
    "layers.0.names": [f"class {unit}" for unit in range(64)],
    "layers.0.name": "features.2",
    "layers.0.aliases": ["block1_conv1"],
    "layers.0.channels": 65,
    "layers.0.filters": "0-2",
    "recipe.tap": "conv",
    "recipe.preprocess.name": "imagenet",
    "recipe.preprocess.mean": [0.5, 0.5, 0.5],
    "recipe.preprocess.std": [0.5, 0.5, 0.5],
    "recipe.height_px": 9,
    "recipe.width_px": 9,
    "recipe.grey": True,
    "recipe.channels": 1,
    "recipe.show": [0, 1, 4],
    "recipe.objective": "deepdream",
    "recipe.negative": True,
    "recipe.neuron": [0, 1],
    "recipe.directions": {"count": 1, "channels": 2, "base64": "AACAPwAAAAA="},
    "recipe.diversity": 2,
    "recipe.octaves": 2,
    "recipe.octave_scale": 1.3,
    "recipe.total_variation": 0.5,
    "recipe.l2": 0.5,
    "recipe.blur": 0.5,
    "recipe.frames": 3,
    "recipe.steps": 41,
    "recipe.step_size": 1.5,
    "recipe.seed": 1,
    "recipe.rescue": False,
    "recipe.precision": "fp32",
    "recipe.method": "fourier",
    "grid.rows": 2,
    "grid.columns": 5,
    "grid.margin_px": 4,
    "grid.labels": True,
}

#: path in job.json -> what else has to be so for that value to be allowed
NEEDS: dict[str, dict[str, Any]] = {
    "recipe.neuron": {"recipe.objective": "neuron"},
    "recipe.directions": {"recipe.objective": "direction"},
    "recipe.show": {"recipe.channels": 5},
    "recipe.octaves": {"recipe.height_px": 16, "recipe.width_px": 16},
}

#: Not part of the id, or of one possible value only.
UNCHANGEABLE = {"format", "versions", "id"}


def leaves(kind: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Path of every field of a record that is no record itself."""
    inner: dict[str, tuple[type[BaseModel], str]] = {
        "weights": (Weights, "weights."),
        "layers": (Layer, "layers.0."),
        "recipe": (Recipe, "recipe."),
        "preprocess": (Preprocess, "recipe.preprocess."),
        "grid": (Grid, "grid."),
    }
    for name in kind.model_fields:
        if name in inner:
            yield from leaves(*inner[name])
        else:
            yield prefix + name


def changed(path: str, value: object, base: Job | None = None, others: dict[str, Any] | None = None) -> bytes:
    """job.json with one value replaced, and maybe others."""
    document = json.loads((base or sample_job()).to_json())
    del document["id"]  # which is that of the content
    for changed_path, new in {path: value, **(others or {})}.items():
        place: Any = document
        *parents, last = changed_path.split(".")
        for part in parents:
            place = place[int(part) if part.isdigit() else part]
        place[last] = new
    return json.dumps(document).encode()


def refused(kind: type[Frozen], data: bytes | str) -> str:
    """The one line that says why ``data`` does not decode."""
    with pytest.raises(CorruptJob) as caught:
        decode(kind, data, "job x")
    message = str(caught.value)
    assert message.startswith("job x is not valid: ")
    assert "\n" not in message
    assert len(message) < 500
    return message


def test_the_id_is_the_same_in_every_process_and_version() -> None:
    # Given a job whose id is known
    job = sample_job("features.0", "features.2", filters="0-7,9")
    # When the id is made here
    # Then it has not changed: running jobs are found again after an upgrade
    assert job.id == "vgg16-notebook-3c52ed655121"


def test_the_id_is_readable_and_may_be_part_of_a_key() -> None:
    # Given a job
    job = sample_job()
    # Then its id says model and method, and twelve digits of its content
    assert re.fullmatch(r"vgg16-notebook-[0-9a-f]{12}", job.id)


@pytest.mark.parametrize("path", sorted(CHANGES))
def test_the_id_changes_with_every_field_that_matters(path: str) -> None:
    # Given a job whose sheet is one row of four, and one that differs in one field
    job = sample_job(grid=Grid(rows=1, columns=4))
    other = decode(Job, changed(path, CHANGES[path], job, NEEDS.get(path)), "a job")
    # When both ids are made
    # Then they differ
    assert other.id != job.id
    # And not for what else the value needs
    if path in NEEDS and path != "recipe.directions":  # without which there is no such objective
        assert other.id != decode(Job, changed("grid.rows", 1, job, NEEDS[path]), "a job").id


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"recipe.neuron": [0, 0]}, "needs the objective neuron"),
        ({"recipe.objective": "direction"}, "needs directions"),
        ({"recipe.directions": {"count": 1, "channels": 2, "base64": "AACAPwAAAAA="}}, "needs directions"),
        (
            {"recipe.directions": {"count": 2, "channels": 2, "base64": "AACAPwAAAAA="}},
            "not as long as 2 directions of 2",
        ),
        ({"recipe.directions": {"count": 1, "channels": 2, "base64": "?"}}, "base64"),
        ({"recipe.directions": {"count": 2000, "channels": 2000, "base64": ""}}, "more than 1000000 numbers"),
        ({"recipe.octaves": 2, "recipe.method": "fourier"}, "octaves need the method notebook"),
        ({"recipe.octaves": 5}, "smaller than 8 px"),
        ({"recipe.diversity": 0}, "greater than or equal to 1"),
    ],
)
def test_parts_of_a_recipe_that_do_not_go_together_are_refused(wrong: dict[str, object], told: str) -> None:
    # Given a job of which some parts do not fit the others
    (path, value), *others = wrong.items()
    # When it is decoded
    # Then it is refused
    assert told in refused(Job, changed(path, value, None, dict(others)))


def test_no_field_of_a_job_is_forgotten_here() -> None:
    # Given every field of a job
    # Then it is known to change the id, or not to
    assert set(leaves(Job)) == set(CHANGES) | UNCHANGEABLE


def test_the_id_does_not_change_with_versions() -> None:
    # Given two jobs made by different versions
    job = sample_job()
    upgraded = job.model_copy(update={"versions": {"filterfarm": "99"}})
    # Then an upgrade resumes and does not restart
    assert upgraded.versions != job.versions
    assert upgraded.id == job.id


def test_an_option_that_0_1_0_did_not_have_is_in_no_job_without_it() -> None:
    # Given a job without labels and one with them
    plain, labelled = sample_job(), sample_job(grid=Grid(labels=True))
    # Then the file and both ids of the first are as before
    assert b"labels" not in plain.to_json()
    assert sample_job(grid=Grid(labels=False)).id == plain.id
    assert sample_job(grid=Grid(labels=False)).first_id == plain.first_id
    # And the second says it, in its file and in its id
    assert decode_whole_job(labelled.to_json(), labelled.id).grid.labels
    assert labelled.id != plain.id
    assert not labelled.has_content_of(plain)


def test_a_job_cannot_be_changed() -> None:
    # Given a job
    job = sample_job()
    # When any level of it is assigned to
    # Then it refuses
    for record, name in ((job, "model"), (job.recipe, "seed"), (job.layers[0], "filters"), (job.grid, "rows")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(record, name, getattr(record, name))


def test_a_job_comes_back_from_its_json() -> None:
    # Given a job that uses every field
    job = sample_job("features.0", "features.2", grid=Grid(rows=2, columns=3, margin_px=0))
    # When it is written and read
    back = decode(Job, job.to_json(), "a job")
    # Then it is the same, with the same id
    assert back == job
    assert back.id == job.id


def test_a_task_comes_back_from_its_json_and_is_small() -> None:
    # Given a task
    task = Task(job="vgg16-notebook-01234567", layer="features.24", filter=511)
    # When it is written and read
    text = task.model_dump_json()
    # Then it is the same, and holds references only
    assert decode(Task, text, "a task") == task
    assert set(json.loads(text)) == {"version", "job", "layer", "filter"}


def test_tiles_are_numbered_by_layer_and_filter() -> None:
    # Given a job of two layers
    job = sample_job("features.2", "features.0", filters="1,5")
    # When its tiles are numbered
    # Then layers keep the job's order, and each filter has its own number
    assert job.tiles == (("features.2", 1), ("features.2", 5), ("features.0", 1), ("features.0", 5))
    assert [job.tiles.number(*tile) for tile in job.tiles] == list(range(len(job.tiles)))
    assert [job.tiles[number] for number in range(len(job.tiles))] == list(job.tiles)
    assert ("features.2", 1) in job.tiles
    assert all(absent not in job.tiles for absent in (("features.2", 2), ("features.1", 1), None, 3))


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"null", b"[]", b'"job"', b"7", b"\xff\xfe\x00", b"\x89PNG\r\n\x1a\n", b"{}", b"[" * 100_000,
        b"\x00" * 99,
    ],
    ids=["empty", "cut", "null", "list", "text", "number", "utf-16", "png", "no-fields", "deep", "zeros"],
)  # fmt: skip
def test_data_that_is_no_job_is_a_corrupt_job(data: bytes) -> None:
    # Given an object that somebody else put there
    # When it is decoded
    # Then one line says so
    refused(Job, data)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.99])
def test_a_job_that_was_cut_off_is_corrupt(keep: float) -> None:
    # Given the beginning of a job
    data = sample_job().to_json()
    # When it is decoded
    # Then one line says so
    refused(Job, data[: int(len(data) * keep)])


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("format", 2),
        ("format", "1"),
        ("format", None),
        ("model", "../vgg16"),
        ("model", "vgg16/x"),
        ("model", ".hidden"),
        ("model", ""),
        ("model", "vgg16\n"),
        ("model", "vgg16\x00"),
        ("model", "x" * 10_000),
        ("model", "ａ"),
        ("model", 16),
        ("layers", []),
        ("layers.0.name", "../../etc/passwd"),
        ("layers.0.name", ".."),
        ("layers.0.name", "n" * 10_000),
        ("layers.0.aliases", ["<b>"]),
        ("layers.0.aliases", ["../x"]),
        ("layers.0.channels", 0),
        ("layers.0.channels", 10**12),
        ("layers.0.filters", "0-64"),
        ("layers.0.filters", "3,2,1"),
        ("layers.0.filters", "0,1,2"),
        ("layers.0.filters", "all"),
        ("layers.0.filters", ""),
        ("layers.0.filters", "9" * 10_000),
        ("weights.name", "../secret.pth"),
        ("weights.name", "a\nb"),
        ("weights.sha256", "../x"),
        ("weights.source", "url"),
        ("recipe.method", "dream"),
        ("recipe.height_px", 7),
        ("recipe.height_px", 4097),
        ("recipe.height_px", "150"),
        ("recipe.height_px", 150.5),
        ("recipe.height_px", True),
        ("recipe.steps", -1),
        ("recipe.step_size", 0),
        ("recipe.step_size", float("nan")),
        ("recipe.step_size", float("inf")),
        ("recipe.preprocess.mean", [float("nan"), 0.0, 0.0]),
        ("recipe.preprocess.mean", [0.0, 0.0]),
        ("recipe.preprocess.std", [float("-inf"), 1.0, 1.0]),
        ("recipe.seed", -1),
        ("recipe.seed", 2**63),
        ("recipe.seed", 10**400),
        ("grid.rows", 0),
        ("grid.margin_px", -1),
        ("versions", {"torch": 2}),
    ],
)
def test_a_job_with_one_impossible_value_is_corrupt_and_the_place_is_named(path: str, value: object) -> None:
    # Given a good job with one value that cannot be
    # When it is decoded
    message = refused(Job, changed(path, value))
    # Then one line names the place, if not the very field
    assert path.split(".")[0] in message


def test_a_layer_that_is_listed_twice_is_corrupt() -> None:
    # Given a job that names a layer twice
    document = json.loads(sample_job().to_json())
    document["layers"] *= 2
    # When it is decoded
    # Then one line says so
    assert "listed twice" in refused(Job, json.dumps(document))


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"version": None},
        {"job": "../other"},
        {"job": "x" * 10_000},
        {"job": None},
        {"layer": "a/b"},
        {"layer": "a\nb"},
        {"filter": -1},
        {"filter": 1.0},
        {"filter": "3"},
        {"filter": float("nan")},
        {"filter": 10**30},
    ],
    ids=lambda change: str(change)[:40],
)
def test_a_task_with_one_impossible_value_is_corrupt(change: dict[str, object]) -> None:
    # Given a good task with one value that cannot be
    body = {"version": 1, "job": "vgg16-notebook-01234567", "layer": "features.0", "filter": 3}
    # When it is decoded
    # Then one line says so
    refused(Task, json.dumps(body | change))


def test_a_failure_record_comes_back_from_its_json() -> None:
    # Given why a filter has no tile
    record = FailureRecord(job="vgg16-notebook-01234567", layer="features.0", filter=3, reason="it died", attempts=3)
    # When it is written and read
    # Then it is the same
    assert decode(FailureRecord, record.model_dump_json(), "a failure") == record


@pytest.mark.parametrize("path", ["extra", "recipe.extra", "layers.0.extra", "weights.extra", "grid.extra"])
def test_readers_ignore_a_field_of_a_later_version_and_workers_leave_its_job_to_others(path: str) -> None:
    # Given a job with a field that this version does not know
    job = sample_job()
    document = json.loads(changed(path, 1, job))
    data = json.dumps(document | {"id": job.id}).encode()
    # When / Then
    assert decode_job(data, job.id) == job
    with pytest.raises(JobNotUnderstood, match=f"{re.escape(path)}='1', which filterfarm .* does not know; upgrade it"):
        decode_whole_job(data, job.id)


@pytest.mark.parametrize(("path", "value"), [("recipe.method", "dream"), ("recipe.objective", "logit"), ("format", 2)])
def test_a_worker_leaves_a_job_with_a_word_of_a_later_version_to_others(path: str, value: object) -> None:
    # Given
    job = sample_job()
    data = json.dumps(json.loads(changed(path, value, job)) | {"id": job.id}).encode()
    # When / Then
    with pytest.raises(JobNotUnderstood, match=path):
        decode_whole_job(data, job.id)
    # And a reader says that it is not valid
    with pytest.raises(CorruptJob, match=path):
        decode_job(data, job.id)


def test_a_message_of_a_later_version_is_left_to_others() -> None:
    # Given
    body = {"version": 2, "job": "a-job", "layer": "x", "filter": 1, "extra": 1}
    # When / Then
    with pytest.raises(JobNotUnderstood) as caught:
        decode_task(body)
    assert caught.value.job_id == "a-job"
    with pytest.raises(CorruptJob):
        decode_task({**body, "job": "../x"})
    assert decode_task({**body, "version": 1}) == Task(job="a-job", layer="x", filter=1)


def test_the_id_stays_what_the_file_says() -> None:
    # Given a job of a later version, whose id this version would compute otherwise
    document = json.loads(sample_job().to_json()) | {"id": "vgg16-later-0123456789abcdef"}
    data = json.dumps(document).encode()
    # When / Then
    assert decode_job(data, "vgg16-later-0123456789abcdef").id == "vgg16-later-0123456789abcdef"
    assert decode_job(data, "vgg16-later-0123456789abcdef").has_content_of(sample_job())
    with pytest.raises(CorruptJob, match="holds the content of"):
        decode_job(data, "another")


def test_a_job_of_a_million_tiles_takes_no_memory_for_them() -> None:
    # Given
    tracemalloc.start()
    # When
    job = sample_job(*(f"layer{number}" for number in range(100)), filters="0-9999", channels=10_000)
    found = [job.tiles[number] for number in (0, 9_999, 10_000, 999_999)]
    numbers = [job.tiles.number(*tile) for tile in found]
    # Then
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(job.tiles) == 1_000_000
    assert numbers == [0, 9_999, 10_000, 999_999]
    assert found == [("layer0", 0), ("layer0", 9_999), ("layer1", 0), ("layer99", 9_999)]
    assert peak < 2_000_000
