"""``filterfarm quality`` on the bucket of a farm."""

from producer.jobs.inventory import load_job
from producer.quality.quality import measure, require_whole
from tests.jobs import sample_job, sample_tile
from workers.clients.storage import Store
from workers.contract import keys


def test_tiles_in_any_object_store_are_measured(store: Store) -> None:
    # Given a job in a bucket, each of whose tiles has a single colour
    job = sample_job("features.0", filters="0,2,63", size_px=32)
    store.put(keys.job(job.id), job.to_json(), "application/json")
    for layer, filter_ in job.tiles:
        store.put(keys.tile(job.id, layer, filter_), sample_tile(job, layer, filter_), "image/png")
    # When they are measured
    layers = measure(load_job(job.id, store), store, device="cpu")
    # Then all are measured, and a single colour has no high frequencies
    require_whole(job, layers)
    assert [(tile.filter, tile.high_frequency) for tile in layers[0].tiles] == [(0, 0.0), (2, 0.0), (63, 0.0)]
