"""Downloads of a job from the bucket."""

import random
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from producer.jobs.download import fetch, fetch_zip
from tests.conftest import S3
from tests.jobs import finish_tiles, sample_job
from tests.s3proxy import S3Proxy, s3_proxy
from workers.clients.ledger import Ledger
from workers.clients.storage import Store
from workers.clients.stored_object import StoredObject
from workers.contract import keys
from workers.contract.errors import BadOption, StorageUnreachable
from workers.contract.settings import Settings

JOB = sample_job("features.0", "features.2")


def files(folder: Path) -> set[str]:
    """All files below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def finished(store: Store, ledger: Ledger) -> set[str]:
    """Paths of the files of a job that is complete in the bucket."""
    finish_tiles(JOB, set(range(len(JOB.tiles))), store, ledger)
    others = [keys.job(JOB.id), keys.index(JOB.id), keys.status(JOB.id)]
    others += [f"{JOB.id}/{name}" for name in ("gallery.json", "gallery.js", "assets/app.js", "assets/LICENSE.txt")]
    for layer in JOB.layers:
        others += [keys.grid(JOB.id, layer.name), keys.records(JOB.id, layer.name)]
        others += [f"{JOB.id}/{name}" for name in (f"layers/{layer.name}.js", f"atlas/{layer.name}.webp")]
    others.append(keys.failed(JOB.id, *JOB.tiles[0]))
    for key in others:
        store.put(key, key.encode(), "text/plain")
    wanted = [*others, *(keys.tile(JOB.id, layer, filter_) for layer, filter_ in JOB.tiles)]
    return {key.removeprefix(f"{JOB.id}/") for key in wanted}


def test_a_job_is_copied_completely_byte_by_byte(store: Store, finished: set[str], tmp_path: Path) -> None:
    # Given a finished job
    folder = tmp_path / "some" / "where"
    # When it is fetched into a folder that does not exist yet
    count, unchanged = fetch(JOB, folder, store)
    # Then the folder holds all of it, and nothing else
    assert (count, unchanged) == (len(finished), 0)
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
    assert fetch(JOB, tmp_path, store) == (3, 0)
    finish_tiles(JOB, {1}, store, ledger)
    fetch(JOB, tmp_path, store)
    # Then the stored tiles are copied
    expected = {keys.tile(JOB.id, *JOB.tiles[number]).removeprefix(f"{JOB.id}/") for number in (0, 1, 5)}
    assert files(tmp_path) == {"job.json", *expected}


def test_objects_that_do_not_belong_to_the_job_are_not_copied(store: Store, finished: set[str], tmp_path: Path) -> None:
    # Given foreign objects below the job's prefix
    for key in (
        "evil.sh",
        "assets/evil.sh",
        "weights/x",
        "atlas/other.webp",
        "tiles/features.0/63.png",
        "tiles/features.0/0.png.part",
        "tiles/other/0.png",
        "x/y/z",
    ):
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
    assert fetch(job, tmp_path, store) == (4, 0)
    # Then each animation has the path that the gallery uses
    assert {f"frames/{layer}/{filter_}.webp" for layer, filter_ in tiles} <= files(tmp_path)


def settle() -> None:
    """Wait until the time of an object tells its last write: a listing has whole seconds."""
    time.sleep(3.5)


def test_only_what_changed_is_fetched_again(store: Store, finished: set[str], tmp_path: Path) -> None:
    # Given a folder that a job was fetched into once its objects were some seconds old
    settle()
    fetch(JOB, tmp_path, store)
    # When it is fetched again, then nothing is
    assert fetch(JOB, tmp_path, store) == (0, len(finished))

    # And when one tile is written again with as many bytes
    key = keys.tile(JOB.id, *JOB.tiles[2])
    path = tmp_path / key.partition("/")[2]
    body = store.get(key)
    assert body
    store.put(key, body[::-1], "image/png")
    # Then that one is
    assert fetch(JOB, tmp_path, store) == (1, len(finished) - 1)
    assert path.read_bytes() == body[::-1]


def test_a_second_write_within_the_same_second_is_fetched(store: Store, tmp_path: Path) -> None:
    # Given an object that was fetched just after it was written
    for _ in range(3):
        store.put(keys.status(JOB.id), b"one", "application/json")
        fetch(JOB, tmp_path, store)
        # When it is written again at once, with as many bytes
        store.put(keys.status(JOB.id), b"two", "application/json")
        # Then it is fetched
        assert fetch(JOB, tmp_path, store).fetched == 1
        assert (tmp_path / "status.json").read_bytes() == b"two"


def test_a_file_that_is_truncated_changed_or_gone_is_fetched(store: Store, finished: set[str], tmp_path: Path) -> None:
    # Given a fetched folder of which three files are damaged
    settle()
    fetch(JOB, tmp_path, store)
    paths = [tmp_path / keys.tile(JOB.id, *JOB.tiles[number]).partition("/")[2] for number in range(3)]
    whole = [path.read_bytes() for path in paths]
    paths[0].write_bytes(whole[0][:-1])
    paths[1].write_bytes(whole[1][::-1])
    paths[2].unlink()
    # When it is fetched again, then these are
    assert fetch(JOB, tmp_path, store) == (3, len(finished) - 3)
    assert [path.read_bytes() for path in paths] == whole


def cut_after(proxy: S3Proxy, number: int) -> None:
    """Let the proxy answer no more requests than these."""
    while proxy.received < number:
        time.sleep(0.002)
    proxy.down = True


def test_an_interrupted_download_leaves_no_half_file_and_the_next_completes(
    s3: S3, settings: Settings, store: Store, finished: set[str], tmp_path: Path
) -> None:
    # Given a store that cuts all connections after some requests
    settle()
    with s3_proxy(s3.endpoint) as proxy:
        proxy.delay_s = 0.1
        through = Store(replace(settings, endpoint_url=proxy.endpoint), retry_s=0)
        threading.Thread(target=cut_after, args=(proxy, 8), daemon=True).start()
        # When a job is fetched
        with pytest.raises(StorageUnreachable):
            fetch(JOB, tmp_path, through)
    assert 0 < len(files(tmp_path)) < len(finished)
    # Then each file is whole
    assert all((tmp_path / name).read_bytes() == store.get(f"{JOB.id}/{name}") for name in files(tmp_path))
    # And the next fetch completes
    fetch(JOB, tmp_path, store)
    assert files(tmp_path) == finished


def test_a_zip_holds_the_job_in_its_folder(store: Store, finished: set[str], tmp_path: Path) -> None:
    # Given a finished job, one sheet of which is large, and a foreign object
    large = random.Random(0).randbytes(5 << 20)
    store.put(keys.grid(JOB.id, "features.0"), large, "image/png")
    store.put(f"{JOB.id}/evil.sh", b"x", "text/plain")
    # When it is fetched as a zip, twice
    path, again = tmp_path / "new" / "pictures.zip", tmp_path / "again.zip"
    assert fetch_zip(JOB, path, store) == fetch_zip(JOB, again, store) == len(finished)
    # Then it holds all of it in order, pictures as they are and text compressed, and both are the same
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == sorted(f"{JOB.id}/{name}" for name in finished)
        assert all(archive.read(name) == store.get(name) for name in archive.namelist())
        stored = {info.filename for info in archive.infolist() if info.compress_type == zipfile.ZIP_STORED}
        assert stored == {name for name in archive.namelist() if name.endswith((".png", ".webp"))}
    assert path.read_bytes() == again.read_bytes()
    # And nothing else was written
    assert files(tmp_path) == {"new/pictures.zip", "again.zip"}


def test_a_zip_is_replaced_only_by_a_complete_one(
    s3: S3, settings: Settings, store: Store, finished: set[str], tmp_path: Path
) -> None:
    # Given a zip, and a store that fails after the listing
    path = tmp_path / "pictures.zip"
    path.write_bytes(b"an earlier one")
    with s3_proxy(s3.endpoint) as proxy:
        through = Store(replace(settings, endpoint_url=proxy.endpoint), retry_s=0)
        listed = through.list_objects

        def list_then_fail(prefix: str) -> Iterator[StoredObject]:
            yield from listed(prefix)
            proxy.down = True

        through.list_objects = list_then_fail  # type: ignore[method-assign]
        # When the job is fetched
        with pytest.raises(StorageUnreachable):
            fetch_zip(JOB, path, through)
    # Then the earlier one is there, and no part of a new one
    assert path.read_bytes() == b"an earlier one"
    assert files(tmp_path) == {"pictures.zip"}


def test_a_zip_in_place_of_a_folder_is_refused(store: Store, finished: set[str], tmp_path: Path) -> None:
    # Given a folder of that name
    (tmp_path / "pictures.zip").mkdir()
    # When / Then
    with pytest.raises(BadOption, match=r"pictures\.zip: Is a directory"):
        fetch_zip(JOB, tmp_path / "pictures.zip", store)


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
