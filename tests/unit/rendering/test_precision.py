"""With bf16 the network computes gradients in bf16, and every recorded activation is fp32."""

import pytest
import torch
from torch import nn

from tests.recipes import recipe_of
from workers.contract.recipe import Preprocess
from workers.networks import devices, tracing
from workers.networks.gradient_override import GradientOverride
from workers.networks.layer_extractor import LayerExtractor
from workers.rendering.render import render

CPU = torch.device("cpu")


def small_network() -> nn.Sequential:
    """A convolution, batch-norm and ReLU, a grouped one, and a third."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        layers = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
            nn.Conv2d(8, 12, 3, groups=4), nn.ReLU(), nn.Conv2d(12, 6, 3), nn.ReLU(),
        )  # fmt: skip
    return layers.eval().requires_grad_(False)


def pictures() -> torch.Tensor:
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("layer", ["0", "3", "5"])
def test_gradients_in_bf16_are_nearly_those_in_fp32(layer: str) -> None:
    # Given
    model = small_network()
    chosen = torch.tensor([4, 0, 4])
    gradients = []
    for precision in ("fp32", "bf16"):
        variable = pictures().requires_grad_(True)
        # When
        maps = LayerExtractor(model, tracing.trace(model), layer, "activation", precision).slice(chosen)(variable)
        assert maps.dtype == torch.float32
        (gradient,) = torch.autograd.grad(maps.sum(), variable)
        gradients.append(gradient.flatten())
    # Then they point the same way, and are not the same
    assert gradients[1].dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(gradients[0], gradients[1], dim=0) > 0.99
    assert not torch.equal(*gradients)


def chain_network() -> nn.Sequential:
    """Convolutions as VGG16 has them: two and a pooling, two more, and one without a bias."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        layers = nn.Sequential(
            nn.Conv2d(3, 40, 3, padding=1), nn.ReLU(), nn.Conv2d(40, 40, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(40, 33, 3, padding=1), nn.ReLU(), nn.Conv2d(33, 40, 1), nn.ReLU(),
            nn.Conv2d(40, 20, 3, bias=False), nn.BatchNorm2d(20), nn.ReLU6(),
        )  # fmt: skip
    return layers.eval().requires_grad_(False)


@pytest.mark.parametrize("layer", ["0", "2", "5", "7", "9"])
@pytest.mark.parametrize("tap", ["conv", "activation"])
def test_in_bf16_a_sliced_filter_has_the_maps_and_gradients_of_the_whole_layer(layer: str, tap: str) -> None:
    # Given
    model = chain_network()
    chosen = torch.tensor([14, 0, 14])
    sliced = LayerExtractor(model, tracing.trace(model), layer, tap, "bf16").slice(chosen)
    variable = pictures().requires_grad_(True)
    # When
    alone = sliced.both(variable)
    among = [maps[torch.arange(3), torch.tensor([1, 0, 1])] for maps in sliced.whole(variable)]
    # Then
    for mine, wanted in zip(alone, among, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - wanted).norm() < 0.02 * wanted.norm()
        found, expected = (torch.autograd.grad(maps.sum(), variable, retain_graph=True)[0] for maps in (mine, wanted))
        assert (found - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("layer", ["0", "2", "5", "7", "9"])
def test_in_bf16_a_gradient_override_of_other_pictures_changes_nothing(layer: str) -> None:
    # Given
    model = chain_network()
    sliced = LayerExtractor(model, tracing.trace(model), layer, "activation", "bf16").slice(torch.tensor([14, 0, 14]))
    variable = pictures().requires_grad_(True)
    # When
    plain, overridden = sliced(variable), sliced.both(variable, GradientOverride(torch.tensor([False] * 3)))[0]
    # Then
    assert torch.equal(plain, overridden)
    gradients = [torch.autograd.grad(maps.sum(), variable)[0] for maps in (plain, overridden)]
    assert (gradients[0] - gradients[1]).norm() < 0.01 * gradients[0].norm()


def test_in_bf16_a_slice_of_a_grouped_convolution_gives_the_same_maps_each_time() -> None:
    # Given
    model = small_network()
    tap = LayerExtractor(model, tracing.trace(model), "3", "conv", "bf16")
    variable = pictures()[:1].requires_grad_(True)
    # When
    fresh, again = (tap.slice(torch.tensor([7]))(variable).detach() for _ in range(2))
    # Then
    assert fresh.count_nonzero() > 0
    assert torch.equal(fresh, again)
    wanted = LayerExtractor(model, tracing.trace(model), "3", "conv").slice(torch.tensor([7]))(variable).detach()
    assert (again - wanted).norm() < 0.02 * wanted.norm()


@pytest.mark.parametrize("layer", ["0", "3", "5"])
def test_without_gradients_maps_are_fp32_in_either_precision(layer: str) -> None:
    # Given
    model = small_network()
    chosen = torch.tensor([4, 0, 4])
    with torch.no_grad():
        # When
        maps = [
            LayerExtractor(model, tracing.trace(model), layer, "activation", precision).slice(chosen)(pictures())
            for precision in ("fp32", "bf16")
        ]
    # Then
    assert torch.equal(*maps)


def test_in_bf16_too_only_pictures_with_an_override_get_a_gradient_through_dead_channels() -> None:
    # Given a network whose first activation is dead everywhere
    model = small_network()
    model[1].bias.data.fill_(-100)  # type: ignore[operator]
    sliced = LayerExtractor(model, tracing.trace(model), "3", "conv", "bf16").slice(torch.tensor([4, 0, 4]))
    variable = pictures().requires_grad_(True)
    overridden = torch.tensor([True, False, True])
    # When
    maps, _ = sliced.both(variable, GradientOverride(overridden))
    (gradient,) = torch.autograd.grad(maps.sum(), variable)
    # Then
    assert (gradient.flatten(1).abs().amax(1) > 0).tolist() == overridden.tolist()


def test_a_tile_in_bf16_reaches_the_activation_of_one_in_fp32_and_records_its_precision() -> None:
    # Given
    model = small_network()
    tiles = []
    for precision in ("fp32", "bf16"):
        recipe = recipe_of(preprocess=Preprocess(name="imagenet"), size_px=16, steps=8, seed=0, precision=precision)
        # When
        tiles.append(render(model, tracing.trace(model), "5", [1], recipe, CPU)[0])
    # Then
    assert [tile.precision for tile in tiles] == ["fp32", "bf16"]
    assert tiles[1].start_activation == tiles[0].start_activation
    assert tiles[1].activation == pytest.approx(tiles[0].activation, rel=0.05)


@pytest.mark.parametrize("wanted", ["fp32", "bf16"])
@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_an_explicit_precision_is_taken_on_every_device(wanted: str, device: str) -> None:
    # When / Then
    assert devices.precision(wanted, torch.device(device)) == wanted  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("amx", "allowed", "taken"), [(False, False, "fp32"), (True, False, "fp32"), (True, True, "bf16")]
)
def test_auto_takes_bf16_on_a_cpu_with_a_usable_matrix_unit(
    amx: bool, allowed: bool, taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_init_amx", lambda: allowed)
    # When / Then
    assert devices.precision("auto", CPU) == taken


@pytest.mark.parametrize(("capability", "taken"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((12, 0), "bf16")])
def test_auto_takes_bf16_on_cuda_devices_from_ampere_on(
    capability: tuple[int, int], taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    # When / Then
    assert devices.precision("auto", torch.device("cuda", 0)) == taken


def test_auto_takes_fp32_on_other_devices() -> None:
    # When / Then
    assert devices.precision("auto", torch.device("mps")) == "fp32"
