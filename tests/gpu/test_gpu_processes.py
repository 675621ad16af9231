"""Render processes on a GPU: several of them, out of memory, faults of the device, memory over time."""

import warnings
from pathlib import Path

import pytest
import torch

from tests.e2e.conftest import farm  # noqa: F401  # a fixture
from tests.e2e.fleet import Fleet, wait_for
from tests.e2e.whole import check_everything, has_ended
from tests.injection import into_renderer
from tests.jobs import sample_job
from tests.recipes import RAW, recipe_of
from workers.clients.processes import list_devices
from workers.contract.errors import FilterfarmError
from workers.contract.recipe import Recipe
from workers.networks import registry, tracing
from workers.networks.fusion import FusedConvolutions
from workers.networks.layer_extractor import LayerExtractor
from workers.rendering.render import render_layer
from workers.runtime.render_process import Batch, Renderer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]

DEVICE = "cuda:0"


def batch_of(count: int, *, size_px: int = 32) -> Batch:
    job = sample_job("features.0", model="squeezenet1_1", filters=f"0-{count - 1}", size_px=size_px)
    return Batch(job=job, layer="features.0", filters=tuple(range(count)), checkpoint=None, device=DEVICE)


def test_several_processes_on_one_gpu_render_a_job(farm: Fleet) -> None:  # noqa: F811
    # Given a worker of three processes on one GPU
    farm.start("collector")
    worker = farm.start("worker", "--device", DEVICE, "--batch", "8", FILTERFARM_PROCESSES="3")
    # When
    job = farm.submit("squeezenet1_1", "--weights", "none", "--filters", "0-15", "--size", "64", "--steps", "4")["job"]
    wait_for("the job to end", lambda: has_ended(farm, job), 240)
    # Then every tile is there, and each process has started
    check_everything(farm, job)
    assert all(f"process={number} of 3" in farm.log(worker) for number in range(3))


def test_a_batch_that_exceeds_the_share_of_a_process_is_rendered_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given processes of which each may take a 1/16 of the memory, and a batch whose tiles need more
    monkeypatch.setenv("FILTERFARM_PROCESSES", "16")
    share = torch.cuda.get_device_properties(0).total_memory // 16
    renderer = Renderer(hang_s=120)
    size_px = 512
    one_tile = 64 * (size_px // 2) ** 2 * 4  # one of the maps that the backward pass keeps
    count = min(64, 2 * share // one_tile)
    if count * one_tile < share:
        pytest.skip("the memory of this GPU is too large for 64 tiles")
    try:
        # When
        tiles = renderer.render(batch_of(count, size_px=size_px))
    finally:
        renderer.stop()
    # Then
    assert set(tiles) == set(range(count))
    assert not [str(tile) for tile in tiles.values() if isinstance(tile, FilterfarmError)]


def test_a_lost_context_is_replaced_and_costs_only_the_tile_that_caused_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a filter that fails an assertion on the device, after which the process can compute nothing
    fault = "if 2 in filters: torch.zeros(1, device='cuda')[torch.tensor([5], device='cuda')].cpu()"
    for name, value in into_renderer(tmp_path / "fault", fault).items():
        monkeypatch.setenv(name, value)
    renderer = Renderer(hang_s=120)
    try:
        # When
        tiles = renderer.render(batch_of(4))
        # Then that tile alone has failed, and the next batch is rendered by a new process
        failed = {filter_: str(tile) for filter_, tile in tiles.items() if isinstance(tile, FilterfarmError)}
        assert list(failed) == [2]
        assert "device-side assert" in failed[2]
        renderer.check(DEVICE)
    finally:
        renderer.stop()


def test_hidden_devices_are_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    # When / Then
    assert list_devices() == ["cpu"]
    # And given one of them
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert list_devices() == [DEVICE]


def test_memory_stays_flat_over_500_batches_of_mixed_layers() -> None:
    # Given three layers of a network
    device = torch.device(DEVICE)
    model = registry.build("squeezenet1_1", seed=0).to(device).to(memory_format=torch.channels_last)
    graph, fused = tracing.trace(model), FusedConvolutions()
    layers = list(tracing.convolutions(model, graph))[::9]
    recipe = recipe_of("fourier", preprocess=RAW, size_px=64, steps=2)

    def render(batches: int) -> int:
        for number in range(batches):
            layer = layers[number % len(layers)]
            extractor = LayerExtractor(model, graph, layer, "activation", "fp32", fused)
            render_layer(extractor, layer, list(range(1 + number % 8)), recipe, device)
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated(device)

    # When
    early = render(50)
    late = render(450)
    # Then
    assert late < 1.05 * early + 2**20


def test_a_step_reads_no_value_on_the_host() -> None:
    # Given
    device = torch.device(DEVICE)
    model = registry.build("squeezenet1_1", seed=0).to(device)
    extractor = LayerExtractor(model, tracing.trace(model), "features.0", "activation", "fp32")
    short, long = (recipe_of("fourier", preprocess=RAW, size_px=32, steps=steps) for steps in (4, 12))

    def waits(recipe: Recipe) -> int:
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                render_layer(extractor, "features.0", [0, 1], recipe, device)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchronizing" in str(warning.message) for warning in caught)

    # When / Then more steps do not wait more often
    render_layer(extractor, "features.0", [0, 1], short, device)
    assert waits(long) == waits(short)
