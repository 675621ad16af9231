"""The functions that run in the render process. They import torch; the parent imports this module without torch."""

import functools
import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from workers.contract.errors import DeviceFailed, DeviceFull, FilterfarmError, RenderFailed, one_line
from workers.contract.job import Weights
from workers.contract.recipe import Recipe
from workers.contract.records import Precision

if TYPE_CHECKING:
    from workers.rendering.tile import Tile

log = logging.getLogger(__name__)

#: Environment of the process, because glibc reads it at process start. Large tensors get huge pages if the system has
#: them enabled on request ("madvise"). Address translation was 3 to 9 % of VGG16's time on a CPU. What Apple's MPS
#: lacks is computed by the CPU, such as the gradient of grid_sample in torch before 2026-04
#: (https://github.com/pytorch/pytorch/pull/179756).
ENVIRONMENT = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "PYTORCH_ENABLE_MPS_FALLBACK": "1"}

Result = TypeVar("Result")

#: Seconds between two looks at the files that are being downloaded.
_DOWNLOAD_CHECK_S = 2.0


def begin(progress: Any) -> None:
    """Initialise the process. ``progress``: a shared counter, counted up by each call of a module of the network."""
    progress.value += 1  # before torch is loaded, which can take a while
    from torch.nn.modules.module import register_module_forward_pre_hook

    from workers.networks import process_tuning

    def count(*_: object) -> None:
        progress.value += 1

    _die_with_parent()
    threading.Thread(target=_count_downloads, args=(progress,), daemon=True).start()
    process_tuning.tune()
    # Global to the process, which does nothing but render.
    register_module_forward_pre_hook(count)


def _die_with_parent() -> None:
    """End this process when its parent ends, so that the device is free again."""

    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("the renderer has to be a child process")

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _count_downloads(progress: Any) -> None:
    """Count growing files of torch's downloads as progress: weights may take longer than a hang."""
    import torch

    folder, before = Path(torch.hub.get_dir()) / "checkpoints", 0
    while True:
        time.sleep(_DOWNLOAD_CHECK_S)
        try:
            size = sum(path.stat().st_size for path in folder.glob("*.partial"))
        except OSError:  # one has just ended
            continue
        if size != before:
            before = size
            progress.value += 1


#: Model, weights, checkpoint, seed and device: what identifies a loaded network.
_Network = tuple[str, Weights, Path | None, int, str]


def render(network: _Network, recipe: Recipe, layer: str, filters: list[int]) -> "list[Tile]":
    """The tiles of one batch. Raises a FilterfarmError, which the parent can unpickle without torch."""
    from workers.networks import devices
    from workers.rendering.render import render_layer

    def work() -> "list[Tile]":
        device = _device(network[4])
        size_px = recipe.height_px, recipe.width_px
        tap = _tap(network, layer, recipe.tap, size_px, devices.precision(recipe.precision, device))
        return render_layer(tap, layer, filters, recipe, device)

    return _torch_free(work)


def check(device: str) -> None:
    """Run a trivial computation on the device. Raises as ``render`` does."""
    from workers.networks import devices

    _torch_free(lambda: devices.check(_device(device)))


def _torch_free(work: Callable[[], Result]) -> Result:
    """Return what ``work`` returns; convert its errors with ``failure``."""
    try:
        return work()
    except FilterfarmError:
        raise
    except Exception as error:
        failed = failure(error)
    # Outside the except clause, so that the new error has no reference to the old one. That holds all tensors of a
    # batch that did not fit, and pebble keeps a task's error until the next task has ended.
    raise failed


def failure(error: Exception) -> FilterfarmError:
    """Converts to a torch-free exception: the parent process cannot unpickle torch's."""
    from workers.networks import devices

    reason = f"{type(error).__name__}: {one_line(error, 300)}"
    if devices.is_full(error):
        return DeviceFull(reason)
    if devices.has_failed(error):
        log.error("device failed reason=%s", reason)
        return DeviceFailed(reason)
    return RenderFailed(reason)


def _device(name: str) -> Any:
    import torch

    from workers.networks import devices

    device = torch.device(devices.available()[0] if name == "auto" else name)
    devices.share_memory(device, int(os.environ.get("FILTERFARM_PROCESSES") or 0))
    return device


# A few layers, because batches of several layers and jobs alternate.
@functools.lru_cache(maxsize=4)
def _tap(network: _Network, layer: str, tap: str, size_px: tuple[int, int], precision: Precision) -> Any:
    from workers.networks.tensor_extractor import extractor_of

    model, kernels = _load(network)
    return extractor_of(model, _graph(network, size_px), layer, tap, size_px, precision, kernels)


@functools.lru_cache(maxsize=2)
def _graph(network: _Network, size_px: tuple[int, int]) -> Any:
    from workers.networks.tracing import trace

    model, _ = _load(network)
    return trace(model, size_px)


# Two networks, so that two jobs whose batches alternate are each loaded once.
@functools.lru_cache(maxsize=2)
def _load(network: _Network) -> tuple[Any, Any]:
    import torch

    from workers.networks import weights as loading
    from workers.networks.fusion import FusedConvolutions

    name, weights, checkpoint, seed, device = network
    model = loading.load(name, weights, checkpoint, seed=seed).to(_device(device))
    model = model.to(memory_format=torch.channels_last)
    return model, FusedConvolutions()
