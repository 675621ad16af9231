"""Batch size per layer: the fastest of the sizes that fit into memory."""

import pytest

from tests.jobs import sample_job
from workers.runtime.batch_size import BatchSizer, Kind, candidate_sizes, max_batch_size, process_count

RECIPE = sample_job().recipe
LAYER: Kind = ("vgg16", "features.0", RECIPE)
OTHER: Kind = ("vgg16", "features.2", RECIPE)


def rendered(sizer: BatchSizer, seconds_per_tile: dict[int, float], waiting: int = 16) -> list[int]:
    """Sizes of twelve batches, with a rendering time per tile for each size."""
    sizes = []
    for _ in range(12):
        sizes.append(sizer.size(LAYER, waiting))
        sizer.note(LAYER, sizes[-1], sizes[-1] * seconds_per_tile[sizes[-1]])
    return sizes


@pytest.mark.parametrize("best", [16, 8, 4])
def test_each_size_is_tried_twice_and_the_fastest_is_kept(best: int) -> None:
    # Given
    seconds = {size: 1.0 if size == best else 1.5 for size in (16, 8, 4)}
    # When
    sizes = rendered(BatchSizer((16, 8, 4)), seconds)
    # Then
    assert sizes == [16, 16, 8, 8, 4, 4] + [best] * 6


def test_a_slow_first_batch_does_not_rule_out_its_size() -> None:
    # Given a first batch whose time includes loading the network
    sizer = BatchSizer((16, 8, 4))
    sizer.note(LAYER, 16, 100.0)
    # When
    sizes = rendered(sizer, {16: 1.0, 8: 1.5, 4: 1.5})
    # Then
    assert sizes[-1] == 16


def test_each_layer_has_its_own_measurements() -> None:
    # Given
    sizer = BatchSizer((16, 8, 4))
    rendered(sizer, {16: 2.0, 8: 1.0, 4: 2.0})
    # When / Then
    assert sizer.size(LAYER, 16) == 8
    assert sizer.size(OTHER, 16) == 16


def test_a_size_that_did_not_fit_is_not_tried_again() -> None:
    # Given
    sizer = BatchSizer((16, 8, 4))
    # When
    sizer.record_oom(LAYER, 16)
    # Then
    assert set(rendered(sizer, {8: 2.0, 4: 1.0})) == {8, 4}
    assert sizer.size(OTHER, 16) == 16


def test_a_later_out_of_memory_error_of_a_larger_batch_does_not_raise_the_size() -> None:
    # Given
    sizer = BatchSizer()
    # When
    for tiles in (4, 16):
        sizer.record_oom(LAYER, tiles)
    # Then
    assert sizer.size(LAYER, 16) == 2


def test_the_smallest_size_is_one_even_if_nothing_fits() -> None:
    # Given
    sizer = BatchSizer()
    # When
    sizer.record_oom(LAYER, 1)
    # Then
    assert sizer.size(LAYER, 5) == 1


@pytest.mark.parametrize("waiting", [1, 3, 8])
def test_a_configured_batch_size_is_not_changed(waiting: int) -> None:
    # Given
    sizer = BatchSizer(candidate_sizes(8, "cpu"))
    # When
    sizer.note(LAYER, waiting, 1.0)
    # Then
    assert sizer.size(LAYER, waiting) == waiting


def test_a_batch_has_at_most_the_waiting_tiles() -> None:
    # When / Then
    assert [BatchSizer((16, 8, 4)).size(LAYER, waiting) for waiting in (1, 3, 4, 7, 9)] == [1, 3, 4, 4, 8]


@pytest.mark.parametrize(("device", "most"), [("cpu", 16), ("auto", 16), ("cuda:1", 128), ("mps", 128)])
def test_the_sizes_that_are_tried_depend_on_the_device(device: str, most: int) -> None:
    # When / Then
    assert max_batch_size(device) == most
    assert candidate_sizes(0, device) == (most, most // 2, most // 4)


@pytest.mark.parametrize(
    ("device", "cores", "devices", "count"),
    [
        ("cpu", 64, 1, 1),
        ("mps", 12, 1, 1),
        ("cuda:0", 1, 1, 1),
        ("cuda:0", 4, 1, 2),
        ("cuda:0", 16, 1, 4),
        ("cuda:0", 16, 8, 1),
        ("cuda:3", 64, 8, 4),
    ],
)
def test_a_gpu_has_a_process_for_every_two_cores_up_to_four(device: str, cores: int, devices: int, count: int) -> None:
    # When / Then
    assert process_count(device, cores=cores, devices=devices) == count
