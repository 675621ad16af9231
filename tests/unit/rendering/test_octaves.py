"""Octaves against a second implementation of Keras's conv_filter_visualization.py of 2019, and animation frames."""

import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.recipes import recipe_of
from tests.unit.rendering.tiny import AFTER, LAYER, fed, network, tap_of, tiles_of
from workers.contract.recipe import Recipe
from workers.rendering import images, optimization
from workers.rendering.methods import render_batch
from workers.rendering.objectives import objective
from workers.rendering.rng import PictureRng

if TYPE_CHECKING:
    from numpy.typing import NDArray

CPU = torch.device("cpu")


def octaves_of(size_px: tuple[int, int], **changes: Any) -> Recipe:
    few: dict[str, Any] = {
        "octaves": 3,
        "octave_scale": 1.2,
        "steps": 3,
        "height_px": size_px[0],
        "width_px": size_px[1],
    }
    return recipe_of(**{**few, **changes})


def sizes_of(recipe: Recipe) -> list[tuple[int, int]]:
    """Height and width in each octave: the first is scaled down as often as there are octaves, the last once."""
    return [
        (int(recipe.height_px / recipe.octave_scale**up), int(recipe.width_px / recipe.octave_scale**up))
        for up in range(recipe.octaves, 0, -1)
    ]


def script_deprocess(picture: "NDArray[np.float32]") -> "NDArray[np.uint8]":
    x = picture - picture.mean()
    x = x / (x.std() + 1e-7) * 0.25 + 0.5
    return np.trunc(np.clip(x, 0, 1) * 255).astype(np.uint8)  # type: ignore[no-any-return]


def script_process(pixels: "NDArray[np.uint8]", former: "NDArray[np.float32]") -> "NDArray[np.float32]":
    """``process_image``: the inverse of ``script_deprocess``, with the mean and deviation of the picture before it."""
    return ((pixels / 255 - 0.5) * 4 * former.std() + former.mean()).astype(np.float32)  # type: ignore[no-any-return]


def script_picture(layers: nn.Sequential, filter_: int, recipe: Recipe) -> "NDArray[np.float32]":
    """The picture (H, W, 3) at the end of the script, before rounding to pixels."""
    sizes = sizes_of(recipe)
    bits = np.random.PCG64(np.random.SeedSequence([recipe.seed, 0, filter_, zlib.crc32(LAYER.encode())]))
    noise = np.random.Generator(bits).random((*sizes[0], 3), dtype=np.float32)
    picture = (noise - np.float32(0.5)) * 20 + 128
    for following in [*sizes[1:], (recipe.height_px, recipe.width_px)]:
        for _ in range(recipe.steps):
            variable = torch.from_numpy(picture.transpose(2, 0, 1)[None].copy()).requires_grad_(True)
            layers[:AFTER](fed(variable))[0, filter_].mean().backward()
            assert variable.grad is not None
            gradient = variable.grad[0].permute(1, 2, 0).numpy()
            picture = picture + recipe.step_size * gradient / (np.sqrt(np.mean(gradient**2)) + 1e-7)  # Keras's epsilon
        height, width = following
        bigger = Image.fromarray(script_deprocess(picture)).resize((width, height), Image.Resampling.BICUBIC)
        picture = script_process(np.asarray(bigger), picture)
    return picture


@pytest.mark.parametrize("size_px", [(36, 36), (30, 43), (41, 28)])
@pytest.mark.parametrize("quiet", [1.0, 1e-4])
def test_tiles_in_octaves_equal_those_of_the_script(size_px: tuple[int, int], quiet: float) -> None:
    # Given a network, in one case with gradients as small as those of large pictures
    layers, recipe = network(nn.Identity()), octaves_of(size_px, steps=4, step_size=2.0)
    for name in ("weight", "bias"):
        getattr(layers[3], name).mul_(quiet)
    # When
    tiles = tiles_of(layers, [3, 6], recipe)
    # Then they differ by at most one grey level per octave, which is float noise
    for tile in tiles:
        wanted = script_deprocess(script_picture(layers, tile.filter, recipe))
        assert tile.pixels.shape == (*size_px, 3)
        difference = np.abs(tile.pixels.astype(int) - wanted.astype(int))
        assert difference.max() <= 2
        assert (difference > 0).mean() <= 0.02
        assert tile.activation > tile.start_activation


@pytest.mark.parametrize(("octaves", "scale"), [(2, 1.5), (5, 1.2)])
def test_sizes_grow_as_in_the_script(octaves: int, scale: float) -> None:
    # Given / When
    recipe = octaves_of((60, 37), octaves=octaves, octave_scale=scale)
    # Then
    assert list(recipe.octave_px) == sizes_of(recipe)
    assert len(recipe.octave_px) == octaves


def test_the_sizes_of_the_script_itself() -> None:
    # Given its 412 px in nine octaves, which begin at int(412 / 1.2**9)
    recipe = octaves_of((412, 412), octaves=9)
    # When / Then
    assert [height for height, _ in recipe.octave_px] == [79, 95, 114, 137, 165, 198, 238, 286, 343]


def test_one_octave_is_the_notebooks_method() -> None:
    # Given
    layers = network()
    # When
    (plain,), (one,) = tiles_of(layers, [3], recipe_of()), tiles_of(layers, [3], recipe_of(octaves=1, octave_scale=2.0))
    # Then
    assert np.array_equal(plain.pixels, one.pixels)
    assert recipe_of().octave_px == ((20, 20),)


def test_the_activation_is_that_of_the_full_size_and_the_start_activation_that_of_the_smallest() -> None:
    # Given
    layers, recipe = network(), octaves_of((30, 43))
    # When
    (tile,) = tiles_of(layers, [3], recipe)
    # Then
    end = torch.from_numpy(script_picture(layers, 3, recipe).transpose(2, 0, 1)[None].copy())
    bits = np.random.PCG64(np.random.SeedSequence([3, 0, 3, zlib.crc32(LAYER.encode())]))
    start = (np.random.Generator(bits).random((17, 24, 3), dtype=np.float32) - np.float32(0.5)) * 20 + 128
    first = torch.from_numpy(start.transpose(2, 0, 1)[None].copy())
    assert tile.activation == pytest.approx(float(layers[:AFTER](fed(end))[0, 3].mean()), rel=1e-3)
    assert tile.start_activation == pytest.approx(float(layers[:AFTER](fed(first))[0, 3].mean()), rel=1e-4)


def test_a_step_of_one_octave_does_not_shrink_with_the_gradient_as_the_notebooks_does() -> None:
    # Given a network whose gradients are below the notebook's 1e-5
    layers = network(nn.Identity())
    for name in ("weight", "bias"):
        getattr(layers[3], name).mul_(1e-3)
    # When
    (octaves,) = tiles_of(layers, [3], octaves_of((24, 24), octaves=2))
    (notebook,) = tiles_of(layers, [3], recipe_of(height_px=24, width_px=24))
    # Then
    ours, theirs = (tile.activation - tile.start_activation for tile in (octaves, notebook))
    assert ours > 100 * theirs > 0


def test_work_counts_octaves_by_their_area() -> None:
    # Given
    recipe = octaves_of((60, 37), steps=7, diversity=2)
    # When
    work = recipe.work
    # Then
    assert work == pytest.approx(sum(2 * 7 * height * width for height, width in sizes_of(recipe)) / (60 * 37))
    assert recipe.total_steps == 21
    assert recipe_of(steps=7).work == 7


def test_an_enlarged_picture_keeps_its_mean_and_contrast() -> None:
    # Given a smooth picture, which bicubic interpolation changes little
    y, x = np.mgrid[:20, :24]
    picture = np.stack([np.sin(y / 5), np.cos(x / 6), np.sin((x + y) / 7)], axis=2).astype(np.float32) * 30 + 100
    # When
    grown = images.enlarge(picture, (30, 41))
    # Then
    assert grown.shape == (30, 41, 3)
    assert grown.mean() == pytest.approx(picture.mean(), abs=1.0)
    assert grown.std() == pytest.approx(picture.std(), rel=0.05)
    np.testing.assert_allclose(
        grown, script_process(np.asarray(Image.fromarray(script_deprocess(picture)).resize((41, 30), 3)), picture),
        rtol=0, atol=0.01,
    )  # fmt: skip


def test_resizing_to_the_same_size_changes_nothing() -> None:
    # Given
    pixels = np.random.default_rng(0).integers(0, 256, (9, 14, 3), np.uint8)
    # When / Then
    assert np.array_equal(images.resize(pixels, (9, 14)), pixels)


@pytest.mark.parametrize(
    ("changes", "places"),
    [
        ({"steps": 12, "frames": 4}, [3, 6, 9, 12]),
        ({"steps": 10, "frames": 3}, [3, 7, 10]),
        ({"steps": 5, "frames": 5}, [1, 2, 3, 4, 5]),
        ({"steps": 7, "frames": 1}, [7]),
    ],
)
@pytest.mark.parametrize("method", ["notebook", "fourier"])
def test_frames_are_evenly_spaced_intermediate_pictures(
    method: str, changes: dict[str, int], places: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a constant learning rate, so that a shorter optimisation is the beginning of a longer one
    monkeypatch.setattr(optimization, "_FINAL_SHARE", 1e-9)
    layers, stream = network(), PictureRng(seed=3, restart=0, layer=LAYER, filter=3)
    recipe = recipe_of(method, **changes)
    # With an activation function, the early objective of Lucid's method depends on the number of steps.
    tap = tap_of(layers, tap="activation" if method == "notebook" else "conv")
    look = objective(tap, [3], recipe, CPU)
    # When
    (frames,) = render_batch(look, [stream], recipe, tap, CPU).frames
    # Then each equals the tile of as many steps. A shorter optimisation has the first of Lucid's transforms.
    assert len(frames) == recipe.frames
    for frame, steps in zip(frames, places, strict=True):
        shorter = recipe.model_copy(update={"steps": steps, "frames": 0})
        (wanted,) = render_batch(look, [stream], shorter, tap, CPU).pixels
        assert np.abs(frame.astype(int) - wanted.astype(int)).max() <= 1


@pytest.mark.parametrize("method", ["notebook", "fourier", "maco", "pixel"])
def test_the_last_frame_is_the_tile_and_frames_do_not_change_it(method: str) -> None:
    # Given
    layers = network()
    # When
    (plain,), (tile,) = (tiles_of(layers, [3], recipe_of(method, frames=frames)) for frames in (0, 4))
    # Then
    assert plain.frames == ()
    assert len(tile.frames) == 4
    assert np.array_equal(tile.frames[-1], tile.pixels)
    assert np.array_equal(tile.pixels, plain.pixels)
    assert not np.array_equal(tile.frames[0], tile.frames[-1])


def test_frames_of_octaves_have_the_tiles_size_and_the_last_is_the_tile() -> None:
    # Given
    layers, recipe = network(), octaves_of((30, 43), frames=5, steps=4)
    # When
    (tile,) = tiles_of(layers, [3], recipe)
    # Then
    assert [frame.shape for frame in tile.frames] == [(30, 43, 3)] * 5
    assert np.array_equal(tile.frames[-1], tile.pixels)


def test_every_tile_of_a_batch_has_its_own_frames() -> None:
    # Given
    layers, recipe = network(), recipe_of("fourier", frames=2)
    # When
    together = tiles_of(layers, [3, 6], recipe)
    # Then
    for tile in together:
        (alone,) = tiles_of(layers, [tile.filter], recipe)
        for one, other in zip(tile.frames, alone.frames, strict=True):
            assert np.abs(one.astype(int) - other.astype(int)).max() <= 1


def test_more_frames_than_steps_are_refused() -> None:
    # Given / When / Then
    with pytest.raises(ValueError, match="frames"):
        recipe_of(steps=3, frames=4)
    assert octaves_of((30, 43), steps=3, frames=9).frames == 9


def test_a_neuron_is_in_the_middle_of_every_octave_and_any_other_place_is_refused() -> None:
    # Given a map of 13 x 20 in full size, and smaller ones in the octaves before
    layers, recipe = network(), octaves_of((30, 43), objective="neuron", step_size=4.0)
    # When
    (tile,) = tiles_of(layers, [3], recipe)
    # Then
    maps = layers[:AFTER](fed(tile.pixels))[0]
    assert maps.shape[1:] == (13, 20)
    assert tile.stored_activation == pytest.approx(float(maps[3, 6, 10]), rel=1e-4)
    assert tile.activation > tile.start_activation
    with pytest.raises(ValueError, match="single octave"):
        octaves_of((30, 43), objective="neuron", neuron=(2, 2))
