"""Pictures of other channels than RGB: --input, --show and --preprocess, and what is refused."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from producer.planning.job_builder import make_job, notes
from producer.planning.options import Options
from producer.quality.quality import measure
from tests.recipes import recipe_of
from workers.contract.errors import BadOption
from workers.contract.recipe import Preprocess
from workers.networks import registry, tracing
from workers.rendering import images
from workers.rendering.render import render

SOURCE = """
from torch import nn
def grey():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
def flat():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 26 * 26, 10))
def bands():
    return nn.Sequential(nn.Conv2d(5, 4, 3), nn.ReLU())
"""


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "bandnets.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("bandnets", None)


def _options(name: str, **options: object) -> Options:
    return Options.make(model=f"factory:bandnets:{name}", filters="0", **options)


def test_input_gives_the_size_and_the_network_its_channels() -> None:
    # Given
    options = _options("grey", input="1x28x30")
    # When
    job, checkpoint = make_job(options)
    # Then
    assert (job.recipe.channels, job.recipe.height_px, job.recipe.width_px) == (1, 28, 30)
    assert job.recipe.preprocess == Preprocess(name="model", mean=(0.0,), std=(1.0,))
    assert notes(options, job, checkpoint) == [
        "preprocessing model (mean 0, std 1) is a guess; --preprocess changes it"
    ]
    assert make_job(_options("bands"))[0].recipe.channels == 5


def test_a_network_of_one_size_has_logits_at_that_size() -> None:
    # Given a network that takes pictures of 28x28 only, which is not known before it runs
    job, _ = make_job(_options("flat", input="1x28x28", layers="logits"))
    # Then
    assert [(layer.name, layer.channels) for layer in job.layers] == [("logits", 10)]


@pytest.mark.parametrize(
    ("text", "mean", "std"),
    [("0.5,0.25", (0.5,), (0.25,)), ("0,.1,.2,.3,.4,1,1,1,1,2", (0.0, 0.1, 0.2, 0.3, 0.4), (1.0, 1.0, 1.0, 1.0, 2.0))],
)
def test_preprocessing_is_two_numbers_or_two_for_each_channel(
    text: str, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    # Given / When
    job, _ = make_job(_options("bands", preprocess=text))
    # Then
    assert (job.recipe.preprocess.mean, job.recipe.preprocess.std) == (mean, std)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"input": "28x28"}, "cannot read --input '28x28'; write channels x height x width as in 1x28x28"),
        ({"input": "3x28x28"}, "has 3 channels, and the first convolution of factory:bandnets:bands reads 5"),
        ({"show": "0,1"}, "cannot read --show '0,1'"),
        ({"show": "0,1,5"}, "show names three channels of 5"),
        ({"preprocess": "mine"}, "no preprocessing 'mine'; write auto, raw, imagenet, caffe, tf, or MEAN,STD"),
        ({"preprocess": "1,2,3"}, "has 3 numbers; write MEAN,STD"),
        ({"preprocess": "0,0"}, "needs standard deviations above 0"),
        ({"preprocess": "0,x"}, "cannot read --preprocess '0,x'"),
        ({"preprocess": "0,0,1,1"}, "preprocessing of 2 channels, and pictures of 5"),
        ({"preprocess": "imagenet"}, "preprocessing of 3 channels, and pictures of 5"),
        ({"grey": True}, "grey pictures need a network of RGB pictures"),
        ({"input": "5x2x2"}, "must lie in 8..4096"),
    ],
)
def test_what_does_not_fit_the_network_is_refused(options: dict[str, object], told: str) -> None:
    # Given / When / Then
    with pytest.raises(BadOption, match=told.replace("(", r"\(")):
        make_job(_options("bands", **options))


@pytest.mark.parametrize("method", ["fourier", "notebook", "maco", "pixel"])
@pytest.mark.parametrize(("name", "channels", "show"), [("grey", 1, None), ("bands", 5, None), ("bands", 5, (0, 1, 4))])
def test_every_method_renders_them(method: str, name: str, channels: int, show: tuple[int, int, int] | None) -> None:
    # Given
    model = registry.build(f"factory:bandnets:{name}")
    graph = tracing.trace(model)
    assert tracing.input_channels(graph) == channels
    recipe = recipe_of(
        method,
        channels=channels,
        show=show,
        frames=2,
        tap="conv",
        preprocess=Preprocess(name="model", mean=(0.5,), std=(0.5,)),
    )
    # When
    tiles = render(model, graph, "0", [0, 3], recipe, torch.device("cpu"))
    # Then
    for tile in tiles:
        assert not tile.error
        assert tile.pixels.shape == (20, 20, 3)
        assert all(frame.shape == (20, 20, 3) for frame in tile.frames)
        assert tile.activation > tile.start_activation
        assert (tile.pixels[..., 0] == tile.pixels[..., 1]).all() == (channels == 1)


def test_principal_components_show_what_varies_most() -> None:
    # Given a picture of five channels of which one varies most, and another less
    pixels = np.full((8, 8, 5), 100, np.uint8)
    pixels[:4, :, 3] = 200
    pixels[:, :4, 1] = 120
    # When
    shown = images.shown(pixels, None)
    # Then red is the one, and green the other
    assert {int(value) for value in np.unique(shown[..., 0])} == {0, 255}
    assert (shown[:4, :, 0] == 255).all()
    assert (shown[:, :4, 1] == 255).all()
    assert (images.shown(pixels, (3, 1, 0))[..., 0] == pixels[..., 3]).all()
    assert images.shown(pixels[..., :2], None).shape == (8, 8, 3)


def test_quality_needs_the_pictures_that_the_network_reads() -> None:
    # Given
    job, _ = make_job(_options("bands"))
    # When / Then
    with pytest.raises(BadOption, match="its pictures have 5 channels, of which three are stored"):
        measure(job, None, device="cpu")  # type: ignore[arg-type]  # nothing is read
