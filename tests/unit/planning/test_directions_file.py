"""The file that --directions names: read as numbers and nothing else, and refused in one line that names the option."""

import io
import pickle
import zipfile
from base64 import b64decode
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from producer.planning.job_builder import make_job
from producer.planning.options import Options
from producer.planning.recipe_builder import make_recipe
from tests.recipes import RAW
from workers.contract.directions import MAX_NUMBERS, Directions
from workers.contract.errors import BadOption


def options(path: Path, **changes: Any) -> Options:
    return Options.make(model="vgg16", weights="none", size="32", objective="direction", directions=path, **changes)


def saved(folder: Path, array: object) -> Path:
    path = folder / "directions.npy"
    np.save(path, np.asarray(array))
    return path


def read(path: Path) -> Directions:
    found = make_recipe(options(path), RAW).directions
    assert found is not None
    return found


def numbers(found: Directions) -> list[list[float]]:
    """Decoded by hand: little-endian float32, row after row."""
    flat = np.array(memoryview(b64decode(found.base64)).cast("B").cast("f").tolist())
    return flat.reshape(found.count, found.channels).tolist()


def refused(path: Path) -> str:
    """The one line that says why a file will not do."""
    with pytest.raises(BadOption) as caught:
        make_recipe(options(path), RAW)
    message = str(caught.value)
    assert "\n" not in message
    assert "--directions" in message
    assert 20 < len(message) < 500
    return message


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2", "<i4", ">i8", "u1"])
def test_rows_of_any_number_type_are_directions(tmp_path: Path, dtype: str) -> None:
    # Given
    path = saved(tmp_path, np.array([[1, 2, 3], [0, 5, 0]], dtype))
    # When / Then
    assert numbers(read(path)) == [[1, 2, 3], [0, 5, 0]]


@pytest.mark.parametrize("order", ["C", "F"])
def test_the_order_in_memory_does_not_matter(tmp_path: Path, order: Any) -> None:
    # Given
    path = saved(tmp_path, np.array([[1.5, -2], [0, 4], [7, 0.25]], order=order))
    # When / Then
    assert numbers(read(path)) == [[1.5, -2], [0, 4], [7, 0.25]]


def test_a_single_vector_is_one_direction(tmp_path: Path) -> None:
    # Given
    path = saved(tmp_path, [1.0, -1.0, 0.5])
    # When / Then
    assert numbers(read(path)) == [[1, -1, 0.5]]


def test_a_job_has_one_tile_for_each_direction(tmp_path: Path) -> None:
    # Given
    path = saved(tmp_path, np.random.default_rng(0).normal(size=(3, 64)))
    # When
    job, _ = make_job(options(path, layers="features.0,features.2"))
    # Then
    assert [(layer.name, layer.channels, layer.filters) for layer in job.layers] == [
        ("features.0", 3, "0-2"),
        ("features.2", 3, "0-2"),
    ]


def test_another_file_is_another_job(tmp_path: Path) -> None:
    # Given
    one, _ = make_job(options(saved(tmp_path, np.eye(64)[:2]), layers="features.0"))
    # When
    two, _ = make_job(options(saved(tmp_path, np.eye(64)[1:3]), layers="features.0"))
    # Then
    assert one.id != two.id


def test_channels_that_do_not_fit_name_the_layer_and_its_channels(tmp_path: Path) -> None:
    # Given vectors of 65 numbers, and a layer of 64 channels
    path = saved(tmp_path, np.ones((2, 65)))
    # When
    with pytest.raises(BadOption) as caught:
        make_job(options(path, layers="features.0"))
    # Then
    message = str(caught.value)
    assert "--directions has vectors of 65 numbers, and features.0 has 64 channels" in message
    assert "--layers" in message


def test_one_layer_of_several_that_does_not_fit_is_named(tmp_path: Path) -> None:
    # Given
    path = saved(tmp_path, np.ones((2, 64)))
    # When / Then
    with pytest.raises(BadOption, match=r"features\.5 has 128 channels"):
        make_job(options(path, layers="features.2,features.5"))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((0, 8)),
        np.zeros((8, 0)),
        np.ones((2, 3, 4)),
        np.array([[1.0, np.nan]]),
        np.array([[1.0, np.inf]]),
        np.array([[1.0, 2.0], [0.0, 0.0]]),
        np.array([[True, False]]),
        np.array([[1 + 2j, 3]]),
        np.array([["a", "b"]]),
        np.array([[1e300, 1.0]]),
        np.array([[1e-300, 0.0]]),
    ],
    ids=[
        "no rows", "no channels", "three dimensions", "nan", "infinite", "a row of zeros", "booleans", "complex",
        "text", "too large for float32", "nothing left in float32",
    ],
)  # fmt: skip
def test_an_array_that_holds_no_directions_is_refused(tmp_path: Path, array: object) -> None:
    # Given / When / Then
    refused(saved(tmp_path, array))


class Trap:
    """Runs when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self._mark,)


def test_pickled_objects_are_refused_and_never_loaded(tmp_path: Path) -> None:
    # Given an array of objects, and a bare pickle, that leave a mark when they are loaded
    mark, arrays, bare = tmp_path / "mark", tmp_path / "objects.npy", tmp_path / "bare.npy"
    np.save(arrays, np.array([Trap(mark)], object), allow_pickle=True)
    bare.write_bytes(pickle.dumps(Trap(mark)))
    # When
    messages = [refused(arrays), refused(bare)]
    # Then
    assert not mark.exists()
    assert all("numpy.save" in message for message in messages)
    # And they would have
    pickle.loads(bare.read_bytes())  # noqa: S301
    assert mark.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (9, 9), }".ljust(128) + b"\n",
        b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999, 99), }".ljust(128),
        b"\x93NUMPY\x01\x00\xff\xff{",
        b"\x93NUMPY\x01\x00\x10\x00__import__('os')",
        b"\x93NUMPY\x01\x00\x10\x00{'descr': '<f4', (",
        b"PK\x03\x04 no archive",
    ],
    ids=[
        "empty", "text", "cut short", "claims too much", "cut in its header", "code in its header", "open brackets",
        "broken archive",
    ],
)  # fmt: skip
def test_a_file_that_is_no_array_is_refused(tmp_path: Path, data: bytes) -> None:
    # Given
    path = tmp_path / "directions.npy"
    path.write_bytes(data)
    # When / Then
    refused(path)


def test_an_archive_of_arrays_is_refused(tmp_path: Path) -> None:
    # Given numpy.savez's, and an archive of something else
    arrays, other = tmp_path / "several.npz", tmp_path / "other.npy"
    np.savez(arrays, one=np.ones((2, 3)))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a.txt", "b")
    other.write_bytes(out.getvalue())
    # When / Then
    refused(arrays)
    refused(other)


def test_a_folder_and_a_file_that_is_nowhere_are_refused(tmp_path: Path) -> None:
    # Given / When / Then
    refused(tmp_path)
    assert "nowhere.npy" in refused(tmp_path / "nowhere.npy")


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((2, MAX_NUMBERS), "f8"), ((1, MAX_NUMBERS + 1), "f4"), ((MAX_NUMBERS + 1, 1), "i1"), ((1001, 1000), "f2")],
)
def test_more_numbers_than_a_job_can_carry_are_refused(tmp_path: Path, shape: tuple[int, int], dtype: str) -> None:
    # Given
    path = saved(tmp_path, np.ones(shape, dtype))
    # When / Then
    assert "1000000 numbers" in refused(path)


def test_as_many_numbers_as_a_job_can_carry_are_read(tmp_path: Path) -> None:
    # Given
    path = saved(tmp_path, np.ones((1000, MAX_NUMBERS // 1000)))
    # When / Then
    assert (read(path).count, read(path).channels) == (1000, 1000)


def test_directions_need_their_objective_and_the_objective_needs_directions(tmp_path: Path) -> None:
    # Given
    path = saved(tmp_path, np.ones((1, 3)))
    # When / Then
    for bad in (Options.make(model="vgg16", directions=path), Options.make(model="vgg16", objective="direction")):
        with pytest.raises(BadOption, match="directions"):
            make_recipe(bad, RAW)
