"""Downloads of a job from the bucket."""

from pathlib import Path

import pytest

from producer.jobs.download import fetch
from tests.jobs import finish_tiles, sample_job
from workers.clients.ledger import Ledger
from workers.clients.storage import Store
from workers.contract import keys
from workers.contract.errors import BadOption

JOB = sample_job("features.0", "features.2")


def files(folder: Path) -> set[str]:
    """All files below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def finished(store: Store, ledger: Ledger) -> set[str]:
    """Paths of the files of a job that is complete in the bucket."""
    finish_tiles(JOB, set(range(len(JOB.tiles))), store, ledger)
    others = [keys.job(JOB.id), keys.index(JOB.id), keys.status(JOB.id)]
    for layer in JOB.layers:
        others += [keys.grid(JOB.id, layer.name), keys.records(JOB.id, layer.name)]
    for key in others:
        store.put(key, key.encode(), "text/plain")
    wanted = [*others, *(keys.tile(JOB.id, layer, filter_) for layer, filter_ in JOB.tiles)]
    return {key.removeprefix(f"{JOB.id}/") for key in wanted}


def test_a_job_is_copied_completely_byte_by_byte(store: Store, finished: set[str], tmp_path: Path) -> None:
    # Given a finished job
    folder = tmp_path / "some" / "where"
    # When it is fetched into a folder that does not exist yet
    count = fetch(JOB, folder, store)
    # Then the folder holds all of it, and nothing else
    assert count == len(finished)
    assert files(folder) == finished
    assert all((folder / name).read_bytes() == store.get(f"{JOB.id}/{name}") for name in finished)


def test_fetching_again_changes_nothing_and_keeps_other_files(store: Store, finished: set[str], tmp_path: Path) -> None:
    # Given a folder that a job was fetched into, with a file that is not of the job
    fetch(JOB, tmp_path, store)
    (tmp_path / "notes.txt").write_text("mine")
    # When it is fetched again
    fetch(JOB, tmp_path, store)
    # Then that file is unchanged
    assert files(tmp_path) == finished | {"notes.txt"}
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_of_a_running_job_the_stored_tiles_are_copied(store: Store, ledger: Ledger, tmp_path: Path) -> None:
    # Given a job of which two tiles are stored
    store.put(keys.job(JOB.id), JOB.to_json(), "application/json")
    finish_tiles(JOB, {0, 5}, store, ledger)
    # When it is fetched, and again after another tile is stored
    assert fetch(JOB, tmp_path, store) == 3
    finish_tiles(JOB, {1}, store, ledger)
    fetch(JOB, tmp_path, store)
    # Then the stored tiles are copied
    expected = {keys.tile(JOB.id, *JOB.tiles[number]).removeprefix(f"{JOB.id}/") for number in (0, 1, 5)}
    assert files(tmp_path) == {"job.json", *expected}


def test_objects_that_do_not_belong_to_the_job_are_not_copied(store: Store, finished: set[str], tmp_path: Path) -> None:
    # Given foreign objects below the job's prefix
    for key in ("evil.sh", "tiles/features.0/63.png", "tiles/features.0/0.png.part", "tiles/other/0.png", "x/y/z"):
        store.put(f"{JOB.id}/{key}", b"x", "text/plain")
    # When the job is fetched
    folder = tmp_path / "a" / "b" / "c"
    fetch(JOB, folder, store)
    # Then these are not copied, and no file is outside the folder
    assert files(folder) == finished
    assert files(tmp_path) == {f"a/b/c/{name}" for name in finished}


def test_animations_are_copied_with_their_tiles(store: Store, ledger: Ledger, tmp_path: Path) -> None:
    # Given a job with frames, two tiles and the animations of both
    job = JOB.model_copy(update={"recipe": JOB.recipe.model_copy(update={"frames": 4})})
    finish_tiles(job, {0, 5}, store, ledger)
    tiles = [job.tiles[number] for number in (0, 5)]
    for layer, filter_ in tiles:
        store.put(keys.frames(job.id, layer, filter_), b"animation", "image/webp")
    # When it is fetched
    assert fetch(job, tmp_path, store) == 4
    # Then each animation has the path that the gallery uses
    assert {f"frames/{layer}/{filter_}.webp" for layer, filter_ in tiles} <= files(tmp_path)


def test_a_folder_that_is_not_writable_is_reported_in_one_line(
    store: Store, finished: set[str], tmp_path: Path
) -> None:
    # Given a file in the place of the folder
    path = tmp_path / "file"
    path.write_text("")
    # When the job is fetched into it, or below it
    for folder in (path, path / "below"):
        with pytest.raises(BadOption) as caught:
            fetch(JOB, folder, store)
        # Then one line names it
        assert str(folder) in str(caught.value)
        assert "\n" not in str(caught.value)
