"""Units of a small vision transformer, trained on synthetic patterns, and the pictures that the engine renders of them.

A unit of an MLP is its hidden value after the activation function, averaged over the patches.
"""

import math

import numpy as np
import pytest
import torch
from torch import fx, nn
from torch.nn import functional
from torchvision.models import VisionTransformer

from tests.recipes import recipe_of
from workers.networks import tracing
from workers.rendering.render import render

SIZE_PX = 32
CLASSES = ("horizontal", "vertical", "rising", "falling", "checks", "rings", "red", "green", "blue")

#: The hidden layer of the second block's MLP.
HIDDEN = "encoder.layers.encoder_layer_1.mlp.0"
UNITS = list(range(24))


def patterns(labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """(B, 3, 32, 32), mostly in 0..1, for classes (B,): noisy waves of random length and phase, or noisy colours."""
    count = len(labels)

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    rows, columns = torch.meshgrid(torch.arange(SIZE_PX), torch.arange(SIZE_PX), indexing="ij")
    wave, phase, other = 2 * math.pi / uniform(5, 10, 1, 1), uniform(0, 6.28, 1, 1), uniform(0, 6.28, 1, 1)
    centre = uniform(8, 24, 2, 1, 1)
    distance = ((rows - centre[:, 0]) ** 2 + (columns - centre[:, 1]) ** 2).sqrt()
    half = math.sqrt(0.5)
    shapes = torch.stack(
        [
            torch.sin(wave * rows + phase),
            torch.sin(wave * columns + phase),
            torch.sin(wave * half * (rows + columns) + phase),
            torch.sin(wave * half * (rows - columns) + phase),
            torch.sin(wave * rows + phase) * torch.sin(wave * columns + other),
            torch.sin(wave * distance + phase),
            *[torch.zeros(count, SIZE_PX, SIZE_PX)] * 3,
        ]
    )  # (classes, B, 32, 32)
    chosen = shapes[labels, torch.arange(count)][:, None]
    tint = uniform(-0.15, 0.15, 3, 1, 1)
    for colour in range(3):
        tint[labels == 6 + colour, colour] += 0.35
    noise = 0.2 * torch.randn(count, 3, SIZE_PX, SIZE_PX, generator=generator)
    return 0.5 + tint + uniform(0.15, 0.4, 3, 1, 1) * chosen + noise


def fed(pictures: torch.Tensor) -> torch.Tensor:
    """The network's input for pictures in 0..1."""
    return pictures * 2 - 1


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, fx.Graph]:
    """A vision transformer of two blocks, trained for some seconds, and its trace.

    Its patch convolution starts at zero, and weights decay. From a random start, so short a training leaves weights for
    fine noise that the patterns lack, and pictures of MLP units show that noise alone.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = VisionTransformer(
            image_size=SIZE_PX, patch_size=8, num_layers=2, num_heads=4, hidden_dim=64, mlp_dim=128,
            num_classes=len(CLASSES),
        )  # fmt: skip
    nn.init.xavier_uniform_(model.heads.get_submodule("head").weight, generator=generator)
    nn.init.zeros_(model.conv_proj.weight)
    steps, rate = 400, 2e-3
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.5)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    for _ in range(steps):
        labels = torch.randint(len(CLASSES), (64,), generator=generator)
        loss = functional.cross_entropy(model(fed(patterns(labels, generator))), labels)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    model.eval().requires_grad_(False)
    return model, tracing.trace(model)


def shown() -> tuple[torch.Tensor, torch.Tensor]:
    """Patterns that the network was not trained on, (540, 3, 32, 32), and their classes."""
    labels = torch.arange(len(CLASSES)).repeat(60)
    return patterns(labels, torch.Generator().manual_seed(1)), labels


def rendered(network: tuple[nn.Module, fx.Graph], layer: str, units: list[int]) -> torch.Tensor:
    """(B, 3, 32, 32) in 0..1: the stored pictures, by the default recipe. None is dead."""
    tiles = render(*network, layer, units, recipe_of("fourier", size_px=SIZE_PX, steps=64), torch.device("cpu"))
    assert {(tile.status, tile.error) for tile in tiles} == {("live", "")}
    return torch.from_numpy(np.stack([tile.pixels for tile in tiles])).permute(0, 3, 1, 2) / 255


def hidden(model: nn.Module, pictures: torch.Tensor) -> torch.Tensor:
    """(B, units): the MLP's values after its activation function, averaged over the patches, by a hook of torch's."""
    found: list[torch.Tensor] = []
    activation = model.get_submodule(HIDDEN.removesuffix("0") + "1")
    handle = activation.register_forward_hook(lambda _, __, output: found.append(output[:, 1:].mean(dim=1)))
    with torch.no_grad():
        model(fed(pictures))
    handle.remove()
    return found[0][:, UNITS]


def direction(picture: torch.Tensor) -> int:
    """Class 0 to 3 of the grating whose direction has most of the energy of waves of 4 to 16 px; (3, 32, 32)."""
    spectrum = torch.fft.fft2(picture - picture.mean(dim=(1, 2), keepdim=True)).abs().square().sum(dim=0)
    cycles = torch.fft.fftfreq(SIZE_PX)
    rows, columns = torch.meshgrid(cycles, cycles, indexing="ij")
    length = (rows.square() + columns.square()).sqrt()
    angle = torch.atan2(columns, rows).rad2deg() % 180
    energies = [
        spectrum[((angle - wanted + 90) % 180 - 90).abs().lt(22.5) & (length > 1 / 16) & (length < 1 / 4)].sum()
        for wanted in (0, 90, 45, 135)
    ]
    return int(torch.stack(energies).argmax())


def test_pictures_of_logits_are_put_into_their_class_and_show_its_pattern(trained: tuple[nn.Module, fx.Graph]) -> None:
    # Given a network that knows the patterns
    model, _ = trained
    unseen, labels = shown()
    with torch.no_grad():
        assert (model(fed(unseen)).argmax(dim=1) == labels).float().mean() > 0.95
    # When a picture of each class is rendered
    pictures = rendered(trained, "logits", list(range(len(CLASSES))))
    # Then the network puts all but one into their class at least
    with torch.no_grad():
        found = model(fed(pictures)).argmax(dim=1)
    assert (found == torch.arange(len(CLASSES))).sum() >= len(CLASSES) - 1
    # And the gratings run in their directions, and the colours have theirs
    assert [direction(picture) for picture in pictures[:4]] == [0, 1, 2, 3]
    means = pictures[6:].mean(dim=(2, 3))
    assert means.argmax(dim=0).tolist() == [0, 1, 2]


def test_units_of_an_mlp_are_excited_more_by_their_pictures_than_by_patterns(
    trained: tuple[nn.Module, fx.Graph],
) -> None:
    # Given the units' values for patterns
    model, _ = trained
    seen = hidden(model, shown()[0])
    # When each unit's picture is rendered
    own = hidden(model, rendered(trained, HIDDEN, UNITS))
    # Then most of these excite their unit more than each of 540 patterns, and all more than half of the patterns
    assert (own.diagonal() > seen.amax(dim=0)).float().mean() > 0.8
    assert (own.diagonal() > seen.median(dim=0).values).all()
    # And no other unit's picture excites it as much
    assert (own.argmax(dim=0) == torch.arange(len(UNITS))).float().mean() > 0.9
