"""The batch of each layer: as large as fits, and of the sizes that were tried the fastest."""

import pytest

from tests.jobs import sample_job
from workers.runtime.batch_size import BatchSizer, Kind, candidate_sizes, max_batch_size

RECIPE = sample_job().recipe
LAYER: Kind = ("vgg16", "features.0", RECIPE)
OTHER: Kind = ("vgg16", "features.2", RECIPE)


def rendered(pace: BatchSizer, seconds_per_tile: dict[int, float], waiting: int = 16) -> list[int]:
    """Sizes of twelve parts, each of which takes as long as its size says."""
    sizes = []
    for _ in range(12):
        sizes.append(pace.size(LAYER, waiting))
        pace.note(LAYER, sizes[-1], sizes[-1] * seconds_per_tile[sizes[-1]])
    return sizes


@pytest.mark.parametrize("best", [16, 8, 4])
def test_each_size_is_tried_twice_and_the_fastest_is_kept(best: int) -> None:
    # Given
    seconds = {size: 1.0 if size == best else 1.5 for size in (16, 8, 4)}
    # When
    sizes = rendered(BatchSizer((16, 8, 4)), seconds)
    # Then
    assert sizes == [16, 16, 8, 8, 4, 4] + [best] * 6


def test_a_slow_first_part_does_not_count_against_a_size() -> None:
    # Given a first part that had to load the network
    pace = BatchSizer((16, 8, 4))
    pace.note(LAYER, 16, 100.0)
    # When
    sizes = rendered(pace, {16: 1.0, 8: 1.5, 4: 1.5})
    # Then
    assert sizes[-1] == 16


def test_layers_are_measured_apart() -> None:
    # Given
    pace = BatchSizer((16, 8, 4))
    rendered(pace, {16: 2.0, 8: 1.0, 4: 2.0})
    # When / Then
    assert pace.size(LAYER, 16) == 8
    assert pace.size(OTHER, 16) == 16


def test_what_did_not_fit_is_not_tried_again() -> None:
    # Given
    pace = BatchSizer((16, 8, 4))
    # When
    pace.record_oom(LAYER, 16)
    # Then
    assert set(rendered(pace, {8: 2.0, 4: 1.0})) == {8, 4}
    assert pace.size(OTHER, 16) == 16


def test_what_fits_is_not_taken_back_by_what_is_heard_later() -> None:
    # Given
    pace = BatchSizer()
    # When
    for tiles in (4, 16):
        pace.record_oom(LAYER, tiles)
    # Then
    assert pace.size(LAYER, 16) == 2


def test_even_one_tile_goes_where_nothing_fits() -> None:
    # Given
    pace = BatchSizer()
    # When
    pace.record_oom(LAYER, 1)
    # Then
    assert pace.size(LAYER, 5) == 1


@pytest.mark.parametrize("waiting", [1, 3, 8])
def test_a_batch_that_somebody_chose_goes_as_it_is(waiting: int) -> None:
    # Given
    pace = BatchSizer(candidate_sizes(8, "cpu"))
    # When
    pace.note(LAYER, waiting, 1.0)
    # Then
    assert pace.size(LAYER, waiting) == waiting


def test_a_few_tiles_go_at_once_however_few() -> None:
    # When / Then
    assert [BatchSizer((16, 8, 4)).size(LAYER, waiting) for waiting in (1, 3, 4, 7, 9)] == [1, 3, 4, 4, 8]


@pytest.mark.parametrize(("device", "most"), [("cpu", 16), ("auto", 16), ("cuda:1", 32), ("mps", 32)])
def test_what_is_tried_depends_on_the_device(device: str, most: int) -> None:
    # When / Then
    assert max_batch_size(device) == most
    assert candidate_sizes(0, device) == (most, most // 2, most // 4)
