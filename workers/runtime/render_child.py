"""What runs in the renderer's own process. Torch is imported there alone: the parent, which imports this too, does
without it.
"""

import functools
import logging
import multiprocessing
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from workers.contract.errors import DeviceFailed, DeviceFull, FilterfarmError, RenderFailed
from workers.contract.job import Weights
from workers.contract.recipe import Recipe
from workers.contract.records import Precision

if TYPE_CHECKING:
    from workers.rendering.tile import Tile

log = logging.getLogger(__name__)

#: What the process is to find in its environment, because glibc reads it when a process starts: large tensors lie in
#: huge pages where the system gives them to whoever asks. Address translation was 3 to 9 % of VGG16's time on a CPU.
ENVIRONMENT = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}

Result = TypeVar("Result")


def begin(progress: Any) -> None:
    """What the process does first; ``progress`` counts from then on what it has done."""
    progress.value += 1  # before torch is loaded, which can take a while
    from torch.nn.modules.module import register_module_forward_pre_hook

    from workers.networks import process_tuning

    def go_on(*_: object) -> None:
        progress.value += 1

    _die_with_parent()
    process_tuning.tune()
    # Every call of any part of a network is progress. For as long as this process lives, which does nothing else.
    register_module_forward_pre_hook(go_on)


def _die_with_parent() -> None:
    """A renderer without its worker would hold the device for nobody."""

    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("a renderer is always some process's child")

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


#: Model, weights, checkpoint, seed, device: what makes a network what it is.
_Network = tuple[str, Weights, Path | None, int, str]


def render(network: _Network, recipe: Recipe, layer: str, filters: list[int]) -> "list[Tile]":
    """The tiles of one batch; raises what can go wrong with it, without torch in it."""
    from workers.networks import devices
    from workers.rendering.render import render_layer

    def work() -> "list[Tile]":
        device = _device(network[4])
        tap = _tap(network, layer, recipe.tap, devices.precision(recipe.precision, device))
        return render_layer(tap, layer, filters, recipe, device)

    return _telling(work)


def check(device: str) -> None:
    """Compute a little on the device; raises what can go wrong with that, without torch in it."""
    from workers.networks import devices

    _telling(lambda: devices.check(_device(device)))


def _telling(work: Callable[[], Result]) -> Result:
    """What ``work`` returns; what it raises is what the parent is told."""
    try:
        return work()
    except FilterfarmError:
        raise
    except Exception as error:
        failed = failure(error)
    # Out here, where the error is forgotten: it holds all tensors of a batch that did not fit, and pebble keeps what a
    # task raises until the next one has ended.
    raise failed


def failure(error: Exception) -> FilterfarmError:
    """What the parent is told of an error, as text: it has no torch to unpickle torch's exceptions with."""
    from workers.networks import devices

    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    if devices.is_full(error):
        return DeviceFull(reason)
    if devices.has_failed(error):
        log.error("the device failed: %s", reason)
        return DeviceFailed(reason)
    return RenderFailed(reason)


def _device(name: str) -> Any:
    import torch

    from workers.networks import devices

    return torch.device(devices.available()[0] if name == "auto" else name)


# The child's only state, with the networks: a few taps, because layers and jobs take turns.
@functools.lru_cache(maxsize=4)
def _tap(network: _Network, layer: str, tap: str, precision: Precision) -> Any:
    from workers.networks.layer_extractor import LayerExtractor

    model, graph, kernels = _load(network)
    return LayerExtractor(model, graph, layer, tap, precision, kernels)


# Two, so that two jobs that take turns load once each.
@functools.lru_cache(maxsize=2)
def _load(network: _Network) -> tuple[Any, Any, Any]:
    import torch

    from workers.networks import weights as loading
    from workers.networks.fusion import FusedConvolutions
    from workers.networks.tracing import trace

    name, weights, checkpoint, seed, device = network
    model = loading.load(name, weights, checkpoint, seed=seed).to(_device(device))
    model = model.to(memory_format=torch.channels_last)
    return model, trace(model), FusedConvolutions()
