"""Options to recipes: what is said goes before the preset, the preset before the method, and all of them can be run."""

from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner

from producer.cli import text
from producer.cli.job_options import job_options
from producer.planning.job_builder import as_rendered, make_job
from producer.planning.layers import layers
from producer.planning.options import Options
from producer.planning.presets import PRESETS
from producer.planning.recipe_builder import chosen_size, make_recipe
from tests.recipes import RAW
from workers.contract.errors import BadOption
from workers.contract.job import Job, decode
from workers.contract.recipe import METHODS, Recipe


def recipe_for(**changes: Any) -> Recipe:
    return make_recipe(Options.make(model="vgg16", **changes), RAW)


@pytest.mark.parametrize(
    ("method", "steps", "step_size"),
    [("fourier", 64, 0.05), ("notebook", 40, 1.0), ("maco", 128, 0.2), ("pixel", 64, 0.05)],
)
def test_each_method_has_its_own_defaults(method: str, steps: int, step_size: float) -> None:
    # Given / When
    recipe = recipe_for(method=method)
    # Then
    assert (recipe.method, recipe.steps, recipe.step_size) == (method, steps, step_size)
    assert (recipe.height_px, recipe.width_px, recipe.octaves, recipe.octave_scale) == (150, 150, 1, 1.2)


def test_nothing_said_is_lucids_method() -> None:
    # Given / When / Then
    assert recipe_for() == recipe_for(method="fourier")


@pytest.mark.parametrize("method", METHODS)
def test_a_recipe_made_without_the_command_line_has_the_same_defaults(method: str) -> None:
    # Given / When / Then
    assert Recipe.model_validate({"method": method, "preprocess": RAW}) == recipe_for(method=method)
    assert Recipe(preprocess=RAW) == recipe_for()


@pytest.mark.parametrize(
    ("preset", "wanted"),
    [
        ("notebook", {"method": "notebook", "height_px": 150, "steps": 40, "step_size": 1.0, "octaves": 1}),
        ("lucid", {"method": "fourier", "height_px": 128, "steps": 512, "step_size": 0.05}),
        ("maco", {"method": "maco", "height_px": 224, "steps": 256, "step_size": 0.2}),
        ("keras2019", {"method": "notebook", "height_px": 412, "steps": 15, "octaves": 9, "octave_scale": 1.2}),
        ("fast", {"method": "fourier", "height_px": 96, "steps": 32, "step_size": 0.05}),
    ],
)
def test_each_preset_has_the_values_of_its_source(preset: str, wanted: dict[str, Any]) -> None:
    # Given / When
    recipe = recipe_for(preset=preset)
    # Then; what a preset does not say is its method's
    assert {name: getattr(recipe, name) for name in wanted} == wanted
    assert recipe.width_px == recipe.height_px


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("method", METHODS)
def test_a_method_said_with_a_preset_keeps_its_own_step_size(preset: str, method: str) -> None:
    # Given / When
    recipe = make_recipe(Options.make(model="vgg16", preset=preset, method=method, octaves=1), RAW)
    # Then; a step of 1 is one of the notebook's, and would throw Adam about
    assert recipe.step_size == METHODS[method]["step_size"]


def test_every_preset_is_among_those_tested() -> None:
    # Given / When / Then
    assert set(PRESETS) == {"notebook", "lucid", "maco", "keras2019", "fast"}
    assert set(METHODS) == {"notebook", "fourier", "maco", "pixel"}


@pytest.mark.parametrize(
    ("said", "field", "value"),
    [
        ({"size": "64x80"}, "width_px", 80),
        ({"size": "64x80"}, "height_px", 64),
        ({"steps": 3}, "steps", 3),
        ({"step_size": 0.25}, "step_size", 0.25),
        ({"octaves": 2}, "octaves", 2),
        ({"octave_scale": 1.5}, "octave_scale", 1.5),
    ],
)
def test_an_explicit_option_overrides_the_preset_and_changes_nothing_else(
    said: dict[str, Any], field: str, value: float
) -> None:
    # Given
    plain = recipe_for(preset="keras2019")
    # When
    changed = recipe_for(preset="keras2019", **said)
    # Then
    assert getattr(changed, field) == value
    differing = {name for name in Recipe.model_fields if getattr(plain, name) != getattr(changed, name)}
    assert differing <= {field, "height_px", "width_px"} if "size" in said else differing == {field}


def test_another_method_than_the_presets_keeps_the_presets_other_options() -> None:
    # Given / When
    recipe = recipe_for(preset="fast", method="pixel")
    # Then
    assert (recipe.method, recipe.steps, recipe.height_px) == ("pixel", 32, 96)


def test_a_preset_whose_octaves_the_method_cannot_have_is_refused() -> None:
    # Given / When / Then
    with pytest.raises(BadOption, match="octaves need the method notebook"):
        recipe_for(preset="keras2019", method="fourier")


@pytest.mark.parametrize("preset", list(PRESETS))
def test_every_preset_makes_a_valid_job(preset: str) -> None:
    # Given / When
    job, _ = make_job(Options.make(model="vgg16", weights="none", layers="features.0", filters="0-3", preset=preset))
    plans = as_rendered(job)
    # Then it survives the wire, and has a price
    assert decode(Job, job.to_json(), "job") == job
    assert text.plan_as_json(job, plans)["gflop_total"] > 0
    assert job.recipe.described in text.plan(job, plans)


@pytest.mark.parametrize(
    ("text", "wanted"), [(None, (150, 150)), ("96", (96, 96)), ("96x160", (96, 160)), ("8x4096", (8, 4096))]
)
def test_a_size_is_one_number_or_height_by_width(text: str | None, wanted: tuple[int, int]) -> None:
    # Given / When / Then
    assert chosen_size(Options.make(model="vgg16", size=text)) == wanted
    recipe = recipe_for(size=text)
    assert (recipe.height_px, recipe.width_px) == wanted


@pytest.mark.parametrize(
    "text", ["", "x", "96x", "96 x 96", "96x96x96", "-96", "+96", "9.5", "٩٦", "96\n", "4097", "7x99"]
)
def test_no_other_size_is_read(text: str) -> None:
    # Given / When / Then
    with pytest.raises(BadOption, match="--size") as caught:
        recipe_for(size=text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("said", "option"),
    [
        ({"steps": 0}, "--steps 0"),
        ({"step_size": 2000.0}, "--step-size 2000"),
        ({"octave_scale": 5.0}, "--octave-scale 5"),
        ({"octaves": 33}, "--octaves 33"),
        ({"diversity": 17}, "--diversity 17"),
        ({"tv": 1001.0}, "--tv 1001"),
        ({"l2": -0.5}, "--l2 -0.5"),
        ({"blur": float("inf")}, "--blur inf"),
        ({"frames": 201}, "--frames 201"),
        ({"steps": 3, "frames": 4}, "4 frames of 3 steps"),
        ({"size": "1100", "diversity": 16, "frames": 1}, "frames of 17630 px; WebP holds 16383 at most"),
        ({"seed": -1}, "--seed -1"),
        ({"precision": "fp8"}, "--precision fp8"),
        ({"neuron": "1;2", "objective": "neuron"}, "--neuron '1;2'"),
        ({"neuron": "-1,2", "objective": "neuron"}, "--neuron '-1,2'"),
        ({"neuron": "1,2", "objective": "deepdream"}, "neuron"),
        ({"neuron": "1,2", "objective": "neuron", "method": "notebook", "octaves": 2}, "single octave"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_option(said: dict[str, Any], option: str) -> None:
    # Given / When
    with pytest.raises(BadOption) as caught:
        recipe_for(**said)
    # Then
    assert option in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_neurons_place_is_row_and_column() -> None:
    # Given / When / Then
    assert recipe_for(objective="neuron", neuron="3,14").neuron == (3, 14)
    assert recipe_for(objective="neuron").neuron is None


def test_deepdream_has_one_tile_a_layer() -> None:
    # Given / When
    job, _ = make_job(
        Options.make(model="vgg16", weights="none", size="32", layers="features.0,features.2", objective="deepdream")
    )
    # Then
    assert job.tiles == (("features.0", 0), ("features.2", 0))


@pytest.mark.parametrize(
    ("said", "filters", "steps"),
    [
        ({"method": "notebook"}, 1, 7.0),
        ({"method": "notebook", "diversity": 3}, 64, 21.0),
        ({"method": "notebook", "objective": "deepdream", "filters": "all"}, 64, 7.0),
        # int(40 / 1.44) = 27, int(40 / 1.2) = 33; int(64 / 1.44) = 44, int(64 / 1.2) = 53
        ({"method": "notebook", "octaves": 2}, 1, 7 * (27 * 44 + 33 * 53) / (40 * 64)),
        ({"method": "notebook", "octaves": 2, "diversity": 2}, 64, 14 * (27 * 44 + 33 * 53) / (40 * 64)),
        # 16 px more on each side are seen, except where one place of the map is meant
        ({"method": "fourier"}, 1, 7 * (72 * 96) / (40 * 64)),
        ({"method": "maco", "diversity": 2}, 64, 14 * (72 * 96) / (40 * 64)),
        ({"method": "fourier", "objective": "neuron"}, 1, 7.0),
    ],
)
def test_the_plan_counts_the_filters_of_the_objective(said: dict[str, Any], filters: int, steps: float) -> None:
    # Given VGG16's second layer at 40 x 64 px: forward and backward of 64 filters of 3 x 3 x 3 and some of 3 x 3 x 64
    options = {
        "model": "vgg16", "weights": "none", "size": "40x64", "layers": "features.2", "filters": "0-4", "steps": 7,
    }  # fmt: skip
    step_flop = 2 * 2 * 40 * 64 * (64 * 27 + filters * 576)
    # When
    job, _ = make_job(Options.make(**{**options, **said}))
    plans = as_rendered(job)
    found = text.plan_as_json(job, plans)
    # Then
    tiles = len(job.tiles)
    assert found["layers"][0]["gflop_per_tile"] == pytest.approx(step_flop * steps / 1e9)
    assert found["gflop_total"] == pytest.approx(tiles * step_flop * steps / 1e9)
    assert f"{tiles * step_flop * steps / 1e12:,.1f} TFLOP" in text.plan(job, plans)


def test_the_plan_counts_a_direction_as_the_whole_layer(tmp_path: Path) -> None:
    # Given two directions in VGG16's second layer
    np.save(tmp_path / "two.npy", np.eye(2, 64, dtype=np.float32))
    options = Options.make(
        model="vgg16", weights="none", size="40x64", layers="features.2", filters="all", steps=7, method="notebook",
        objective="direction", directions=tmp_path / "two.npy",
    )  # fmt: skip
    # When
    job, _ = make_job(options)
    plans = as_rendered(job)
    # Then
    step_flop = 2 * 2 * 40 * 64 * (64 * 27 + 64 * 576)
    assert text.plan_as_json(job, plans)["gflop_total"] == pytest.approx(2 * 7 * step_flop / 1e9)


def test_of_a_deep_layer_no_margin_is_seen_and_counted() -> None:
    # Given a layer whose map is eight times smaller than the picture
    options = Options.make(model="vgg16", weights="none", size="160", layers="features.17", filters="0")
    # When
    job, _ = make_job(options)
    plans = as_rendered(job)
    # Then
    (alone,) = [plan for plan in layers("vgg16", (160, 160)) if plan.name == "features.17"]
    assert plans == [alone]


def test_the_command_line_passes_explicit_options_only() -> None:
    # Given
    seen: list[Options] = []

    @click.command()
    @job_options
    def command(options: Options) -> None:
        seen.append(options)

    said = (
        "vgg16 --preset lucid --method maco --objective neuron --negative --neuron 3,4 --diversity 4 --size 96x160 "
        "--grey --steps 5 --step-size 0.5 --octaves 2 --octave-scale 1.5 --tv 0.25 --l2 0.5 --blur 0.75 --frames 3"
    )
    # When
    for line in ("vgg16", said):
        result = CliRunner().invoke(command, line.split())
        assert result.exit_code == 0, result.output
    # Then
    assert seen[0] == Options.make(model="vgg16")
    assert seen[1] == Options.make(
        model="vgg16", preset="lucid", method="maco", objective="neuron", negative=True, neuron="3,4", diversity=4,
        size="96x160", grey=True, steps=5, step_size=0.5, octaves=2, octave_scale=1.5, tv=0.25, l2=0.5,
        blur=0.75, frames=3,
    )  # fmt: skip
