"""``filterfarm quality`` on jobs in a data folder, against the whole network and NumPy."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from producer.cli import quality_text
from producer.jobs.local_store import LocalStore
from producer.quality.quality import LayerQuality, TileQuality, measure, require_whole
from tests.jobs import sample_job, sample_tile
from tests.recipes import HALVES
from workers.contract import keys
from workers.contract.errors import (
    BadOption,
    CorruptTile,
    JobIncomplete,
    NoJob,
    StorageDenied,
    UnknownModel,
    WeightsMissing,
    WeightsUnreadable,
)
from workers.contract.job import Job, Weights
from workers.contract.tile_png import decode_tile, encode_tile
from workers.networks import registry

SIZE_PX = 32


def squeezenet_job(*layers: str, **changes: Any) -> Job:
    """A job of six filters; ``changes`` are arguments of ``sample_job``."""
    return sample_job(*layers, **{"model": "squeezenet1_1", "filters": "3,5,8-11", "size_px": SIZE_PX, **changes})


def lite0_job(*, seed: int = 0) -> Job:
    """The stem of the trained network; its norm scales four of 32 filters to zero."""
    weights = Weights(source="package", name="IMAGENET1K")
    return sample_job(
        "conv_stem", model="efficientnet_lite0", weights=weights, channels=32, filters="0-31", preprocess=HALVES,
        size_px=SIZE_PX, seed=seed,
    )  # fmt: skip


def store(job: Job, data: Path, *, pictures: int = 0, missing: tuple[int, ...] = ()) -> LocalStore:
    """Put a job into a data folder; its tiles are noise with the seed ``pictures``."""
    folder = data / "bucket"
    files = {keys.job(job.id): job.to_json()}
    for layer, filter_ in job.tiles:
        if filter_ in missing:
            continue
        pixels = np.random.default_rng([pictures, filter_]).integers(0, 256, (SIZE_PX, SIZE_PX, 3), dtype=np.uint8)
        _, record = decode_tile(sample_tile(job, layer, filter_), (SIZE_PX, SIZE_PX))
        files[keys.tile(job.id, layer, filter_)] = encode_tile(pixels, record)
    for key, content in files.items():
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(content)
    return LocalStore(data)


def tile(filter_: int, **changes: object) -> TileQuality:
    """A tile with good values, except for ``changes``."""
    good = TileQuality(
        layer="a", filter=filter_, status="live", inert=False, start_activation=1.0, activation=3.0, identified=True,
        selectivity=2.0, high_frequency=0.1,
    )  # fmt: skip
    return replace(good, **changes)  # type: ignore[arg-type]


def layer_of(*tiles: TileQuality, planned: int | None = None, broken: dict[int, str] | None = None) -> LayerQuality:
    return LayerQuality(layer="a", planned=planned or len(tiles), tiles=tiles, broken=broken or {})


def test_activations_are_those_of_the_whole_network(tmp_path: Path) -> None:
    # Given a job's tiles in a folder
    job = squeezenet_job()
    folder = store(job, tmp_path)
    # When they are measured
    (layer,) = measure(job, folder, device="cpu")
    # Then each activation is the mean of the map in the whole network
    filters = list(job.layers[0].selected)
    pictures = [np.random.default_rng([0, f]).integers(0, 256, (SIZE_PX, SIZE_PX, 3), dtype=np.uint8) for f in filters]
    model = registry.build("squeezenet1_1", seed=0)
    seen: list[torch.Tensor] = []
    model.get_submodule("features.1").register_forward_hook(lambda _m, _i, output: seen.append(output.clone()))
    model(torch.from_numpy(np.stack(pictures).astype(np.float32)).permute(0, 3, 1, 2))
    matrix = seen[0].mean(dim=(2, 3)).numpy()[:, filters]
    np.testing.assert_allclose([t.activation for t in layer.tiles], np.diagonal(matrix), rtol=1e-4)
    # And a tile is identified where NumPy finds the column's maximum in its row
    assert [t.identified for t in layer.tiles] == (matrix.argmax(axis=0) == np.arange(len(filters))).tolist()
    assert [t.filter for t in layer.tiles] == filters
    assert layer.planned == len(filters)
    require_whole(job, [layer])


def test_dead_filters_are_those_whose_norm_scales_them_to_zero(tmp_path: Path) -> None:
    # Given tiles of the trained network's stem, all with the status live
    job = lite0_job()
    # When they are measured
    layers = measure(job, store(job, tmp_path), device="cpu")
    # Then four filters of 32 are dead, whatever the status of their tiles
    assert quality_text.figures(layers).dead == 4 / 32


def test_tiles_of_another_job_are_similar_if_their_pictures_are_the_same(tmp_path: Path) -> None:
    # Given three jobs of the same network with other seeds, the second with the first one's pictures
    job, same, other = lite0_job(), lite0_job(seed=1), lite0_job(seed=2)
    folder = store(job, tmp_path)
    store(same, tmp_path)
    store(other, tmp_path, pictures=1)
    # When the first is compared with both
    to_same = quality_text.figures(measure(job, folder, device="cpu", against=same))
    to_other = quality_text.figures(measure(job, folder, device="cpu", against=other))
    # Then its similarity is 1 with the second, and near 0 with the third
    assert to_same.similarity == pytest.approx(1.0)
    assert to_same.matched == 1.0
    assert to_other.similarity is not None
    assert abs(to_other.similarity) < 0.5
    assert to_other.matched is not None
    assert to_other.matched < 0.5


def test_only_common_tiles_are_compared(tmp_path: Path) -> None:
    # Given two jobs, the second of which lacks one tile of the first
    job, other = lite0_job(), lite0_job(seed=1)
    folder = store(job, tmp_path)
    store(other, tmp_path, missing=(7,))
    # When they are compared
    (layer,) = measure(job, folder, device="cpu", against=other)
    # Then that one has no similarity
    assert [t.filter for t in layer.tiles if t.similarity is None] == [7]


def test_a_running_job_is_measured_on_its_stored_tiles(tmp_path: Path) -> None:
    # Given a job that lacks two tiles of six
    job = squeezenet_job()
    # When it is measured
    layers = measure(job, store(job, tmp_path, missing=(5, 9)), device="cpu")
    # Then the others are measured
    assert [t.filter for t in layers[0].tiles] == [3, 8, 10, 11]
    # And one line says how many are missing
    with pytest.raises(JobIncomplete, match="2 of 6 tiles of .* are missing.*of 4 tiles"):
        require_whole(job, layers)
    assert "4 of 6" in quality_text.as_table(layers, against=False)


def test_a_job_without_tiles_is_no_error(tmp_path: Path) -> None:
    # Given a job without tiles
    job = squeezenet_job()
    layers = measure(job, store(job, tmp_path, missing=tuple(job.layers[0].selected)), device="cpu")
    # Then its figures are unknown
    assert quality_text.figures(layers).self_identification is None
    assert "0 of 6" in quality_text.as_table(layers, against=True)


def test_a_single_tile_has_no_others_to_compare_with(tmp_path: Path) -> None:
    job = squeezenet_job(filters="4")
    (layer,) = measure(job, store(job, tmp_path), device="cpu")
    assert layer.tiles[0].identified is None
    assert layer.tiles[0].selectivity is None


def test_broken_tiles_are_named_and_the_others_measured(tmp_path: Path) -> None:
    # Given a tile that was cut, one of another filter, one of another job, and one with no record
    job = squeezenet_job()
    folder = store(job, tmp_path)
    paths = {f: tmp_path / "bucket" / keys.tile(job.id, "features.0", f) for f in job.layers[0].selected}
    paths[3].write_bytes(paths[3].read_bytes()[:500])
    paths[5].write_bytes(paths[8].read_bytes())
    paths[9].write_bytes(sample_tile(squeezenet_job(seed=4), "features.0", 9))
    paths[10].write_bytes(b"\x89PNG")
    # When the job is measured
    layers = measure(job, folder, device="cpu")
    # Then the others are measured, and the broken ones are named
    assert [t.filter for t in layers[0].tiles] == [8, 11]
    assert sorted(layers[0].broken) == [3, 5, 9, 10]
    with pytest.raises(CorruptTile, match="4 of 6 tiles of .*features.0/3: .*delete them") as caught:
        require_whole(job, layers)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (squeezenet_job(), "the job itself"),
        (squeezenet_job(seed=1), "random weights change with the seed"),
        (squeezenet_job(model="squeezenet1_0"), "same model"),
        (squeezenet_job(preprocess=HALVES), "preprocessing"),
    ],
)
def test_jobs_that_cannot_be_compared_are_refused(tmp_path: Path, other: Job, message: str) -> None:
    with pytest.raises(BadOption, match=message):
        measure(squeezenet_job(), store(squeezenet_job(), tmp_path), device="cpu", against=other)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objective": "neuron"}, "--objective neuron"),
        ({"objective": "deepdream"}, "--objective deepdream"),
        ({"negative": True}, "--negative"),
        ({"diversity": 3}, "--objective filter --diversity 3"),
    ],
)
def test_jobs_that_maximise_something_else_are_refused_in_one_line(
    tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    # Given a job whose tiles are not one picture for each filter that maximises it
    job, other = squeezenet_job(), squeezenet_job(**changes)
    # When it is measured, or another against it
    for first, second in ((other, None), (job, other)):
        with pytest.raises(BadOption, match=said) as caught:
            measure(first, store(job, tmp_path), device="cpu", against=second)
        # Then one line says so
        assert "\n" not in str(caught.value)


def test_jobs_without_a_common_layer_are_refused(tmp_path: Path) -> None:
    job, other = squeezenet_job(), squeezenet_job("features.3.squeeze")
    with pytest.raises(BadOption, match="no layer in common"):
        measure(job, store(job, tmp_path), device="cpu", against=other)


def with_checkpoint() -> Job:
    weights = Weights(source="file", name="mine.pth", sha256="ab" * 32)
    return squeezenet_job(weights=weights)


def test_missing_and_broken_weights_are_errors(tmp_path: Path) -> None:
    # Given a job with a checkpoint that is not stored
    job = with_checkpoint()
    folder = store(job, tmp_path)
    # When it is measured
    with pytest.raises(WeightsMissing, match=r"the checkpoint mine\.pth"):
        measure(job, folder, device="cpu")
    # Or if it is stored, but is no checkpoint
    path = tmp_path / "bucket" / keys.weights(job.id, "ab" * 32)
    path.parent.mkdir()
    path.write_bytes(b"rubbish")
    with pytest.raises(WeightsUnreadable, match="no checkpoint that loads safely"):
        measure(job, folder, device="cpu")


def test_the_jobs_own_checkpoint_is_used(tmp_path: Path) -> None:
    # Given a job with a checkpoint of its own, drawn from another seed than the network it would have without
    job = with_checkpoint()
    folder = store(job, tmp_path)
    path = tmp_path / "bucket" / keys.weights(job.id, "ab" * 32)
    path.parent.mkdir()
    torch.save(registry.build("squeezenet1_1", seed=5).state_dict(), path)
    # When it is measured
    (layer,) = measure(job, folder, device="cpu")
    # Then the activations are that network's
    drawn = squeezenet_job(seed=5)
    (wanted,) = measure(drawn, store(drawn, tmp_path), device="cpu")
    assert [t.activation for t in layer.tiles] == pytest.approx([t.activation for t in wanted.tiles])


def test_an_unknown_model_is_an_error(tmp_path: Path) -> None:
    job = squeezenet_job(model="squeezenet9")
    with pytest.raises(UnknownModel):
        measure(job, store(job, tmp_path), device="cpu")


def test_the_error_of_an_unknown_job_names_the_nearest(tmp_path: Path) -> None:
    # Given a folder with a job
    job = squeezenet_job()
    folder = store(job, tmp_path)
    # When an unknown job or an invalid name is loaded
    for name in (job.id[:-1] + "x", "../../etc"):
        with pytest.raises(NoJob, match=job.id):
            folder.require(name)
    # Or from a folder without jobs
    with pytest.raises(NoJob, match="set FILTERFARM_BUCKET"):
        LocalStore(tmp_path / "nowhere").require(job.id)
    # Then the job itself is found
    folder.require(job.id)


def test_an_unreadable_tile_is_an_error(tmp_path: Path) -> None:
    # Given a folder where a tile should be
    job = squeezenet_job()
    folder = store(job, tmp_path, missing=(3,))
    (tmp_path / "bucket" / keys.tile(job.id, "features.0", 3)).mkdir()
    # Then the tile does not count as missing
    with pytest.raises(StorageDenied, match="cannot read"):
        measure(job, folder, device="cpu")


def test_figures_are_shares_and_medians_of_the_filters_that_are_not_dead() -> None:
    # Given a dead filter, a grey tile, a rescued one that was zero on the start image, and a live one
    layer = layer_of(
        tile(0, inert=True, status="dead", activation=0.0, identified=False, selectivity=0.0, high_frequency=0.9),
        tile(1, status="dead", activation=0.0, start_activation=0.0, identified=False, selectivity=0.0),
        tile(2, status="rescued", activation=4.0, start_activation=0.0, selectivity=float("inf")),
        tile(3, activation=8.0, start_activation=2.0),
    )
    # When their figures are computed
    of = quality_text.figures([layer])
    # Then the dead one counts in the share of dead ones alone
    assert (of.planned, of.measured, of.dead) == (4, 4, 1 / 4)
    assert (of.grey, of.rescued, of.self_identification) == (1 / 3, 1 / 3, 2 / 3)
    # And the gain is that of the tiles whose start activation is above zero
    assert (of.gain, of.gain_of) == (4.0, 1)
    assert (of.selectivity, of.high_frequency) == (2.0, 0.1)
    assert (of.similarity, of.matched) == (None, None)


def test_the_table_has_a_row_for_each_layer_and_one_for_all() -> None:
    # Given two layers of two tiles
    layers = [layer_of(tile(0), tile(1)), replace(layer_of(tile(0, identified=False), tile(1)), layer="b")]
    # When they are printed
    rows = [line.split() for line in quality_text.as_table(layers, against=False).split("\n\n")[0].splitlines()]
    # Then each row has the layer's self-identification, and the last row that of all tiles
    column = rows[0].index("self-id") + 1  # gain's cell has a blank in it
    assert [(row[0], row[column]) for row in rows[1:]] == [("a", "100.0%"), ("b", "50.0%"), ("all", "75.0%")]


def test_json_has_null_for_infinite_numbers() -> None:
    # Given a tile whose filter no other tile excites
    layers = [layer_of(tile(0, selectivity=float("inf")))]
    # When the report is written as JSON
    text = json.dumps(quality_text.as_json(squeezenet_job(), layers, None), allow_nan=False)
    # Then the infinite number is null, and the others are unchanged
    report = json.loads(text)
    assert report["whole"]["selectivity"] is None
    assert report["layers"][0]["tiles"][0]["activation"] == 3.0
    assert report["against"] is None
