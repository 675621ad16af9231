"""The measures of ``filterfarm quality``, against values worked out by hand and NumPy's."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.recipes import RAW, recipe_of
from workers.contract.errors import UnknownLayer
from workers.contract.recipe import Preprocess
from workers.networks import tracing
from workers.rendering import metrics
from workers.rendering.metrics import LayerProbe

CPU = torch.device("cpu")


def network() -> nn.Module:
    """Two colour filters before a batch-norm: red minus green, and twice blue, which the norm scales to zero."""
    conv = nn.Conv2d(3, 2, 1, bias=False)
    conv.weight.data = torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, 2.0]])[:, :, None, None]
    norm = nn.BatchNorm2d(2, eps=0.0)
    norm.weight.data = torch.tensor([0.5, 0.0])
    norm.bias.data = torch.tensor([1.0, 3.0])
    return nn.Sequential(conv, norm, nn.ReLU(inplace=True)).eval().requires_grad_(False)


def probe(*, tap: str = "activation", preprocess: Preprocess = RAW, batch: int = 16) -> LayerProbe:
    model = network()
    recipe = recipe_of(preprocess=preprocess, size_px=8, tap=tap)
    return LayerProbe(model, tracing.trace(model), "0", recipe, CPU, batch=batch)


def plain(*colours: tuple[int, int, int]) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    """One picture of a single colour for each."""
    return np.array(colours, np.uint8)[:, None, None, :].repeat(8, axis=1).repeat(8, axis=2)


def wave(
    cycles_per_px: float, *, size_px: int = 64, amplitude: float = 100.0
) -> "np.ndarray[tuple[int, ...], np.dtype[np.float64]]":
    """A grey picture (H, W, 3) of vertical stripes."""
    row = 128 + amplitude * np.cos(2 * np.pi * cycles_per_px * np.arange(size_px))
    return np.broadcast_to(row[None, :, None], (size_px, size_px, 3)).copy()


def test_a_response_is_the_mean_of_the_map_after_the_activation_function() -> None:
    # Given pictures of one colour, of which a filter's map is known: relu((red - green) / 2 + 1) and relu(3)
    pictures = plain((10, 4, 0), (4, 10, 200), (0, 0, 0))
    # When the layer's responses are computed
    responses = probe().responses(pictures)
    # Then they are these values, one row per picture
    assert responses.tolist() == [[4.0, 3.0], [0.0, 3.0], [1.0, 3.0]]


def test_the_output_of_the_convolution_is_read_before_operations_in_place_change_it() -> None:
    assert probe(tap="conv").responses(plain((4, 10, 200))).tolist() == [[-6.0, 400.0]]


def test_pictures_are_preprocessed_as_in_the_recipe() -> None:
    # Given a preprocessing that divides pixels by 510
    preprocess = Preprocess(name="model", mean=(0.0, 0.0, 0.0), std=(2.0, 2.0, 2.0))
    # When the convolution's own responses to one colour are computed
    responses = probe(tap="conv", preprocess=preprocess).responses(plain((255, 0, 51)))
    # Then red is a half, and blue twice a tenth
    np.testing.assert_allclose(responses, [[0.5, 0.2]], rtol=1e-6)


def test_the_batch_size_does_not_change_the_responses() -> None:
    # Given seven pictures of noise
    pictures = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), dtype=np.uint8)
    # When they are computed one by one, three at a time and all at once
    one, three, all_ = (probe(batch=batch).responses(pictures) for batch in (1, 3, 7))
    # Then the responses are the same, and equal to NumPy's
    red_less_green = pictures[..., 0].astype(float) - pictures[..., 1]
    wanted = np.maximum(red_less_green / 2 + 1, 0).mean(axis=(1, 2))
    for responses in (one, three, all_):
        np.testing.assert_allclose(responses[:, 0], wanted, rtol=1e-5)


def test_a_filter_whose_norm_scales_it_to_zero_is_inert() -> None:
    assert probe().inert.tolist() == [False, True]


def test_an_unknown_layer_is_an_error() -> None:
    model = network()
    with pytest.raises(UnknownLayer):
        LayerProbe(model, tracing.trace(model), "9", recipe_of(preprocess=RAW), CPU)


def test_a_tile_is_identified_where_no_other_excites_its_filter_more() -> None:
    # Given four tiles. The first two excite their own filter most, the third is exceeded, and the fourth has an equal.
    own = np.array([[5, 1, 3, 2], [4, 2, 0, 0], [0, 1, 2, 1], [1, 0, 0, 2]], np.float32)
    # Then the third is not identified
    assert metrics.identified(own).tolist() == [True, True, False, True]


@pytest.mark.parametrize(("shortfall", "is_identified"), [(0.0009, True), (0.0011, False)])
def test_a_tile_is_identified_within_the_rounding_error_of_eight_bits(shortfall: float, is_identified: bool) -> None:
    own = np.array([[6 * (1 - shortfall), 1, 0], [6, 2, 0], [0, 0, 1]])
    assert metrics.identified(own).tolist() == [is_identified, True, True]


def test_equal_pictures_identify_no_filter() -> None:
    own = np.tile(np.array([3.0, 1.0, 2.0]), (3, 1))
    assert metrics.identified(own).tolist() == [False, False, False]


def test_a_filter_that_no_tile_excites_is_not_identified() -> None:
    own = np.array([[0.0, 1.0, 0.5], [0.0, 2.0, 0.5], [0.0, 1.0, 1.0]])
    assert metrics.identified(own).tolist() == [False, True, True]


def test_selectivity_is_own_activation_over_the_best_other() -> None:
    # Given a filter excited twice as much by its own tile, one half as much, one by its own alone, and one by none
    own = np.array([[4, 6, 0, 0], [2, 3, 0, 0], [1, 1, 7, 0], [0, 0, -1, -2]], np.float32)
    # Then the selectivities are these ratios
    assert metrics.selectivity(own).tolist() == [2.0, 0.5, np.inf, 0.0]


@pytest.mark.parametrize(
    ("cycles_per_px", "share"), [(1 / 16, 0.0), (3 / 16, 0.0), (5 / 16, 1.0), (1 / 2, 1.0)], ids=str
)
def test_the_power_of_stripes_lies_at_their_frequency(cycles_per_px: float, share: float) -> None:
    pictures = wave(cycles_per_px)[None].astype(np.uint8)
    assert metrics.high_frequency(pictures)[0] == pytest.approx(share, abs=2e-3)


def test_power_is_the_square_of_the_amplitude() -> None:
    # Given coarse stripes and fine ones of half their amplitude
    pictures = (wave(1 / 16, amplitude=80) + wave(3 / 8, amplitude=40) - 128)[None].astype(np.uint8)
    # Then the fine ones have a fifth of the power
    assert metrics.high_frequency(pictures)[0] == pytest.approx(0.2, abs=5e-3)


def test_white_noise_has_equal_power_at_all_frequencies() -> None:
    # Given white noise
    pictures = np.random.default_rng(1).integers(0, 256, (16, 64, 64, 3), dtype=np.uint8)
    # Then the share is that of the plane of frequencies outside the circle: 1 - pi / 16
    assert metrics.high_frequency(pictures).mean() == pytest.approx(1 - np.pi / 16, abs=0.01)


def test_a_plain_picture_has_no_power_and_a_ramp_none_that_is_fine() -> None:
    # Given one colour, and a ramp from black to white, whose edges differ by a step that the window suppresses
    ramp = np.broadcast_to(np.linspace(0, 255, 64)[None, :, None], (64, 64, 3))
    pictures = np.stack([np.full((64, 64, 3), 77), ramp]).astype(np.uint8)
    # Then neither has fine detail
    assert metrics.high_frequency(pictures) == pytest.approx([0.0, 0.0], abs=1e-4)


def test_the_spectrum_is_the_sum_over_all_pixels_of_the_definition() -> None:
    # Given a small picture that is not square
    height, width = 6, 10
    picture = np.random.default_rng(2).integers(0, 256, (height, width, 3), dtype=np.uint8)
    # When its Fourier transform is taken by the definition, under the window's definition
    y, x = np.arange(height), np.arange(width)
    window = np.outer(np.sin(np.pi * y / height) ** 2, np.sin(np.pi * x / width) ** 2)
    high = total = 0.0
    for v in range(height):
        for u in range(width):
            turn = np.exp(-2j * np.pi * (v * y[:, None] / height + u * x[None, :] / width))
            power = sum(
                abs(((picture[:, :, c] - picture[:, :, c].mean()) * window * turn).sum()) ** 2 for c in range(3)
            )
            frequency = np.hypot(min(v, height - v) / height, min(u, width - u) / width)
            total += power
            high += power * (frequency > 0.25)
    # Then the share is the same
    assert metrics.high_frequency(picture[None])[0] == pytest.approx(high / total)


def test_similarity_is_one_for_the_same_and_zero_on_average() -> None:
    # Given the responses of five filters to twelve tiles
    ours = np.random.default_rng(3).normal(5, 1, (12, 5)).astype(np.float32)
    # When they are compared with themselves
    cosines = metrics.similarity(ours, ours)
    # Then each has a similarity of one with itself, and the common mean adds none between different tiles
    assert np.diagonal(cosines) == pytest.approx(1.0)
    assert np.abs(cosines.mean()) < 0.1
    assert cosines.min() >= -1.0 - 1e-9


def test_similarity_is_the_cosine_of_standard_scores() -> None:
    # Given two sets of responses, with one filter of large responses and one of none
    generator = np.random.default_rng(4)
    ours, theirs = (generator.normal(0, [1, 1, 1000, 0], (3, 4)) + [0, 7, 0, 2] for _ in range(2))
    # When their similarity is worked out by hand for the first of ours and the third of theirs
    both = np.concatenate([ours, theirs])[:, :3]
    scores = (both - both.mean(axis=0)) / both.std(axis=0)
    wanted = scores[0] @ scores[5] / np.sqrt((scores[0] @ scores[0]) * (scores[5] @ scores[5]))
    # Then the matrix has the same value
    assert metrics.similarity(ours.astype(np.float32), theirs.astype(np.float32))[0, 2] == pytest.approx(
        wanted, abs=1e-4
    )


def test_tiles_that_excite_no_filter_are_similar_to_none() -> None:
    assert metrics.similarity(np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32)).tolist() == [[0, 0], [0, 0]]
