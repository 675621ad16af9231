"""Networks whose code asks for sizes: the graph is the network's own computation at that size, and refuses others."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from workers.networks import cost, tracing, units, untraced
from workers.networks.tensor_extractor import extractor_of

SIZE_PX, OTHER_PX = (20, 24), (22, 24)


class _Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.first(x)
        y: torch.Tensor = self.head(self.middle(maps).mean((2, 3)))
        return y

    def middle(self, maps: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class _Padding(_Base):
    """Pads to a multiple of four, which SIZE_PX is."""

    def middle(self, maps: torch.Tensor) -> torch.Tensor:
        missing = -maps.shape[2] % 4
        padded = F.pad(maps, (0, 0, 0, missing)) if missing > 0 else maps
        joined: torch.Tensor = self.second(padded) + padded
        return joined


class _Tokens(_Base):
    """Takes the side of a map from the number of its tokens, and parts of a shape one by one."""

    def middle(self, maps: torch.Tensor) -> torch.Tensor:
        batch, channels, *sides = F.adaptive_avg_pool2d(maps, 6).shape
        tokens = F.adaptive_avg_pool2d(maps, 6).reshape(batch, channels, sides[0] * sides[1])
        side = int(math.sqrt(tokens.shape[-1]))
        assert len(tokens.shape) == 3
        maps = tokens.reshape(batch, channels, side, side)
        moved: torch.Tensor = self.second(maps) + sum(range(side))
        return moved


class _Masked(_Base):
    """Has a second argument."""

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None, twice: bool = False) -> torch.Tensor:
        maps = self.second(self.first(x))
        if mask is not None:
            maps = maps * mask
        if twice:
            maps = 2 * maps
        y: torch.Tensor = self.head(maps.mean((2, 3)))
        return y


class _Positive(_Base):
    """Decides by values."""

    def middle(self, maps: torch.Tensor) -> torch.Tensor:
        return self.second(maps) if maps.sum() > 0 else maps


class _Pictures(_Base):
    """Does otherwise for another number of pictures."""

    def middle(self, maps: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.second(maps[place : place + 1]) for place in range(maps.shape[0])])


class _Length(_Base):
    """The same, by the length of the batch."""

    def middle(self, maps: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.second(maps[place : place + 1]) for place in range(len(maps))])


class _One(_Base):
    """The same, by iteration."""

    def middle(self, maps: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.second(one[None])[0] for one in maps])


class _Assigning(_Base):
    """Changes a part of a tensor, which a graph cannot hold."""

    def middle(self, maps: torch.Tensor) -> torch.Tensor:
        changed: torch.Tensor = self.second(maps)
        if maps.shape[2] > 8:
            changed[:, :, :2] = 0
        return changed


def network(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval().requires_grad_(False)


@pytest.mark.parametrize("kind", [_Padding, _Tokens, _Masked])
@pytest.mark.parametrize("size_px", [SIZE_PX, OTHER_PX])
@pytest.mark.parametrize("pictures", [1, 2, 5])
def test_logits_are_the_networks_own(kind: type[nn.Module], size_px: tuple[int, int], pictures: int) -> None:
    # Given
    model, batch = network(kind), torch.rand(pictures, 3, *size_px)
    graph = tracing.trace(model, size_px)
    assert not untraced.is_untraced(graph)
    # When
    extractor = extractor_of(model, graph, units.LOGITS, "activation", size_px)
    found = extractor.slice(torch.zeros(pictures, dtype=torch.int64))(batch)
    # Then
    assert torch.allclose(found.flatten(), model(batch)[:, 0], atol=1e-6)


@pytest.mark.parametrize(("kind", "depends"), [(_Padding, True), (_Tokens, True), (_Masked, False)])
def test_a_graph_says_whether_it_is_of_one_size(kind: type[nn.Module], depends: bool) -> None:
    assert tracing.depends_on_size(tracing.trace(network(kind), SIZE_PX)) is depends


def test_a_graph_ends_where_the_network_would_do_otherwise() -> None:
    # Given the graph of pictures that are not padded
    model = network(_Padding)
    graph = tracing.trace(model, SIZE_PX)
    # When
    same, other = (list(cost.costs(model.to("meta"), graph, size, ("conv", "logits"))) for size in (SIZE_PX, OTHER_PX))
    # Then
    assert same == ["first", "second", "logits"]
    assert other == ["first"]


def test_sums_of_such_a_network_are_layers() -> None:
    model = network(_Padding)
    assert units.named(model, tracing.trace(model, SIZE_PX))["add"].kind == "block"


@pytest.mark.parametrize("kind", [_Positive, _Pictures, _Length, _One, _Assigning])
def test_what_a_graph_cannot_hold_is_left_to_hooks(kind: type[nn.Module]) -> None:
    # Given
    model, batch = network(kind), torch.rand(3, 3, *SIZE_PX)
    # When
    graph = tracing.trace(model, SIZE_PX)
    # Then its values are still the network's own
    assert untraced.is_untraced(graph)
    extractor = extractor_of(model, graph, units.LOGITS, "activation", SIZE_PX)
    assert torch.allclose(extractor.slice(torch.tensor([0, 1, 2]))(batch).flatten(), model(batch).diagonal(), atol=1e-6)


def test_the_network_has_its_values_after_the_trace() -> None:
    # Given
    model = network(_Padding)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    # When
    tracing.trace(model, SIZE_PX)
    # Then
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
