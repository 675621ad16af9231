"""Networks that several tests look at and none changes."""

import pytest
from torch import fx, nn

from workers import graph, models


@pytest.fixture(scope="session")
def vgg16() -> tuple[nn.Module, fx.Graph]:
    """VGG16 with seeded random parameters, and its trace."""
    model = models.build("vgg16", seed=7)
    return model, graph.trace(model)
