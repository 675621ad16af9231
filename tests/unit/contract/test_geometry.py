"""What a layer is shown: how fast its map goes over the picture, and what of the margin it sees."""

import functools

import pytest
import torch

from producer.planning.job_builder import as_rendered, make_job
from producer.planning.layers import LayerPlan, layers
from producer.planning.options import Options
from workers.contract.geometry import layer_stride, wider_px
from workers.contract.recipe import Recipe
from workers.networks import registry, tracing
from workers.rendering.render import render


@functools.cache
def plans(model: str, side_px: int) -> dict[str, LayerPlan]:
    return {plan.name: plan for plan in layers(model, (side_px, side_px))}


@pytest.mark.parametrize("side_px", [96, 128, 150, 161])
@pytest.mark.parametrize(
    ("model", "layer", "stride"),
    [
        ("vgg16", "features.0", 1),
        ("vgg16", "features.14", 4),
        ("vgg16", "features.28", 16),
        ("efficientnet_lite0", "conv_stem", 2),
        ("efficientnet_lite0", "blocks.2.0.conv_pw", 4),
        ("efficientnet_lite0", "conv_head", 32),
        # whose first convolutions have no padding, so that their maps lack what lies at the edges
        ("inception_v3", "Conv2d_2b_3x3.conv", 2),
        ("inception_v3", "Conv2d_4a_3x3.conv", 4),
        ("inception_v3", "Mixed_5b.branch1x1.conv", 8),
        ("inception_v3", "Mixed_7c.branch_pool.conv", 32),
        # whose pools round up
        ("squeezenet1_1", "features.12.expand3x3", 16),
    ],
)
def test_a_layers_stride_is_that_of_the_layers_up_to_it(model: str, layer: str, stride: int, side_px: int) -> None:
    # Given its map of a picture, and of a larger one
    size_px = side_px, side_px
    own, wider = plans(model, side_px)[layer].output_px, plans(model, wider_px(size_px)[0])[layer].output_px
    # When / Then
    assert own is not None
    assert layer_stride(size_px, own, wider) == stride


def test_after_global_pooling_the_stride_is_the_whole_picture() -> None:
    # Given a squeeze-and-excitation
    layer = "features.2.0.block.2.fc1"
    own, wider = (plans("efficientnet_b0", side)[layer].output_px for side in (128, 192))
    # When / Then
    assert own == wider == (1, 1)
    assert layer_stride((128, 128), (1, 1), wider) == 128


def test_of_a_network_that_takes_few_sizes_the_map_itself_says_it() -> None:
    # When / Then
    assert layer_stride((224, 112), (56, 28), None) == 4


def test_a_network_that_takes_few_sizes_is_shown_the_tile_alone() -> None:
    # Given a network of windows that takes 224 px, and neither 256 nor 288
    layer = "blocks.0.layers.1.layers.MBconv.layers.conv_a.0"
    job, _ = make_job(Options.make(model="maxvit_t", weights="none", size="224", layers=layer, filters="0", steps=1))
    recipe: Recipe = job.recipe
    # When it is planned and rendered
    (plan,) = as_rendered(job)
    model = registry.build("maxvit_t")
    (tile,) = render(model, tracing.trace(model), layer, [0], recipe, torch.device("cpu"))
    # Then
    assert plan.step_gflop == plans("maxvit_t", 224)[layer].step_gflop > 0
    assert (tile.error, tile.pixels.shape) == ("", (224, 224, 3))
