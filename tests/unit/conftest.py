"""A network that several tests share and none changes, and a single compute thread."""

from collections.abc import Iterator

import pytest
import torch
from torch import fx, nn

from workers.networks import registry, tracing


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Compute with one thread: tiny pictures gain nothing from more, which wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def vgg16() -> tuple[nn.Module, fx.Graph]:
    """VGG16 with seeded random parameters, and its trace."""
    model = registry.build("vgg16", seed=7)
    return model, tracing.trace(model)
