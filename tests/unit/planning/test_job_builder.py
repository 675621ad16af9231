"""What a job contains before anything runs, and what a person can get wrong in its options."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from producer.planning.job_builder import check_weights, make_job
from producer.planning.layers import LayerPlan, accepted_sizes, layers, select
from producer.planning.options import Options
from workers.contract.errors import (
    BadFilters,
    BadOption,
    PermanentError,
    UnknownLayer,
    UnknownModel,
    WeightsMissing,
    WeightsUnreadable,
)
from workers.contract.tile_png import MAX_TILE_PIXELS

VGG16: dict[str, Any] = {"model": "vgg16", "weights": "none", "size": "32"}


@pytest.fixture(scope="module")
def vgg16() -> list[LayerPlan]:
    """The layers of VGG16."""
    return layers("vgg16", (150, 150))


def changed(**changes: Any) -> Options:
    """VGG16's options with some changed."""
    return Options.make(**(VGG16 | changes))


def refused(kind: type[PermanentError], **changes: Any) -> str:
    """The one line that says why a job cannot be made."""
    with pytest.raises(kind) as caught:
        make_job(changed(**changes))
    message = str(caught.value)
    assert "\n" not in message
    assert 10 < len(message) < 500
    return message


def test_vgg16_has_13_layers_and_4224_filters(vgg16: list[LayerPlan]) -> None:
    # Given VGG16
    # Then its totals are the published ones, and the aliases are Keras's
    assert len(vgg16) == 13
    assert sum(plan.channels for plan in vgg16) == 4224
    assert [plan.aliases for plan in vgg16[:3]] == [("block1_conv1",), ("block1_conv2",), ("block2_conv1",)]
    assert vgg16[-1].aliases == ("block5_conv3",)
    assert vgg16[-1].output_px == (9, 9)


def test_inception_v3_has_94_layers_and_17216_filters() -> None:
    # Given Inception v3, whose auxiliary head nobody runs
    plans = layers("inception_v3", (299, 299))
    # Then its totals are those of the network itself
    assert len(plans) == 94
    assert sum(plan.channels for plan in plans) == 17216
    assert not [plan.name for plan in plans if plan.name.startswith("AuxLogits")]


def test_a_deeper_layer_costs_more_and_a_larger_picture_too(vgg16: list[LayerPlan]) -> None:
    # Given the costs of VGG16's layers
    costs = [plan.step_gflop for plan in vgg16]
    # Then they grow from layer to layer
    assert costs == sorted(costs)
    # And about fourfold with twice the size
    larger = layers("vgg16", (300, 300))[4].step_gflop
    assert larger / costs[4] == pytest.approx(4.0, rel=0.05)


def test_the_cost_of_the_second_layer_is_computed_by_hand(vgg16: list[LayerPlan]) -> None:
    # Given the trunk of VGG16's second layer: 64 filters of 3 x 3 x 3 at 150 px, and one filter of 3 x 3 x 64 behind it
    trunk, own = 2 * 150 * 150 * 64 * 27, 2 * 150 * 150 * 576
    # When forward and backward are counted
    # Then that is its cost
    assert vgg16[1].step_gflop == pytest.approx(2e-9 * (trunk + own))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("features.0", ["features.0"]),
        ("block1_conv1", ["features.0"]),
        ("block5_conv3, features.0", ["features.0", "features.28"]),
        ("block1_*", ["features.0", "features.2"]),
        ("features.2?", ["features.21", "features.24", "features.26", "features.28"]),
        ("features.2,block1_conv2,*.2", ["features.2"]),
        (",features.0,", ["features.0"]),
    ],
)
def test_layers_are_selected_by_names_aliases_and_globs(vgg16: list[LayerPlan], text: str, expected: list[str]) -> None:
    # Given the layers of VGG16
    # When some are selected
    found = [plan.name for plan in select(vgg16, text, "vgg16")]
    # Then each is there once, in the order they run
    assert found == expected


@pytest.mark.parametrize("text", ["all", " all ", "*"])
def test_all_layers_can_be_selected(vgg16: list[LayerPlan], text: str) -> None:
    # Given the layers of VGG16
    # When all are selected
    # Then all are there
    assert select(vgg16, text, "vgg16") == vgg16


def test_an_unknown_layer_names_the_nearest(vgg16: list[LayerPlan]) -> None:
    # Given a slip of the keyboard
    # When it is selected
    with pytest.raises(UnknownLayer) as caught:
        select(vgg16, "features.0,block5_conv9", "vgg16")
    # Then the error shows it, and what may have been meant
    assert "'block5_conv9' in vgg16" in str(caught.value)
    assert "block5_conv" in str(caught.value).split("nearest:")[1]


@pytest.mark.parametrize("text", ["", ",", " , "])
def test_a_selection_of_nothing_is_refused(vgg16: list[LayerPlan], text: str) -> None:
    # Given a selection that names nothing
    # When it is read, then it is refused
    with pytest.raises(UnknownLayer, match="names no layer"):
        select(vgg16, text, "vgg16")


def test_an_unknown_model_names_the_nearest() -> None:
    # Given a slip of the keyboard
    # When a job is made
    # Then the error shows it, and what may have been meant
    message = refused(UnknownModel, model="vgg61")
    assert "'vgg61'" in message
    assert "vgg16" in message


@pytest.mark.parametrize("name", ["", "..", "x" * 10_000, "vgg16\n", "../../etc/passwd"])
def test_a_model_that_is_no_name_is_unknown(name: str) -> None:
    # Given something that is no model's name
    # When a job is made, then it is refused in one line
    refused(UnknownModel, model=name)


def test_a_grid_that_is_too_small_names_its_room_and_a_remedy() -> None:
    # Given 64 filters and 4 x 4 places
    # When a job is made
    message = refused(BadOption, layers="features.0", grid="4x4")
    # Then the error has the numbers and the way out
    assert "a grid of 4x4 holds 16 tiles, and features.0 has 64" in message
    assert "--grid auto or --filters 0-15" in message


def test_the_filters_that_a_small_grid_advises_do_fit() -> None:
    # Given the way out of that error
    # When it is taken
    job, _ = make_job(changed(layers="features.0", grid="4x4", filters="0-15"))
    # Then the job is made
    assert len(job.tiles) == 16


@pytest.mark.parametrize("grid", ["auto", "8x8"])
def test_labels_are_part_of_the_job_and_off_unless_asked_for(grid: str) -> None:
    # Given the same options with labels, with --no-labels and with neither
    chosen = {"layers": "features.0", "grid": grid, "filters": "0-15"}
    labelled, without, neither = (
        make_job(changed(**chosen, **labels))[0] for labels in ({"labels": True}, {"labels": False}, {})
    )
    # Then labels make another job, and --no-labels does not
    assert labelled.grid.labels
    assert without == neither
    assert labelled.id != neither.id


def test_a_picture_too_small_for_the_network_is_refused_with_the_layer_it_does_not_reach() -> None:
    # Given Inception v3, which shrinks its pictures
    # When a job of 32 px is made
    message = refused(BadOption, model="inception_v3", size="32")
    # Then the error says how far they get
    assert "inception_v3 does not compute" in message
    assert "for 32x32 px pictures; use another --size, such as 150, 224, 256" in message
    assert "--size" in message


def test_a_small_picture_will_do_for_the_layers_it_reaches() -> None:
    # Given Inception v3's first layer
    # When a job of 32 px is made of it alone
    job, _ = make_job(Options.make(model="inception_v3", weights="none", size="32", layers="Conv2d_1a_3x3.conv"))
    # Then that is fine
    assert [layer.name for layer in job.layers] == ["Conv2d_1a_3x3.conv"]


@pytest.mark.parametrize(
    ("changes", "option"),
    [
        ({"size": "7"}, "--size"),
        ({"size": "0"}, "--size"),
        ({"size": "-5"}, "--size"),
        ({"size": "5000"}, "--size"),
        ({"steps": -1}, "--steps"),
        ({"steps": 10**6}, "--steps"),
        ({"step_size": 0.0}, "--step-size"),
        ({"step_size": -1.0}, "--step-size"),
        ({"step_size": float("nan")}, "--step-size"),
        ({"step_size": float("inf")}, "--step-size"),
        ({"seed": -1}, "--seed"),
        ({"seed": 2**63}, "--seed"),
        ({"margin": -1}, "--margin"),
        ({"margin": 1000}, "--margin"),
        ({"grid": "0x8"}, "--grid"),
        ({"grid": "8"}, "--grid"),
        ({"grid": "8x"}, "--grid"),
        ({"grid": "-8x8"}, "--grid"),
        ({"grid": "99999x99999"}, "--grid"),
        ({"grid": "x" * 10_000}, "--grid"),
        ({"size": "x32"}, "--size"),
        ({"size": "32x7"}, "--size"),
        ({"size": "9" * 10_000}, "--size"),
        ({"method": "dream"}, "--method dream"),
        ({"preset": "dream"}, "preset 'dream'"),
        ({"objective": "dream"}, "--objective"),
        ({"neuron": "1"}, "--neuron"),
        ({"neuron": "0,0"}, "objective neuron"),
        ({"objective": "neuron", "neuron": "0,32"}, "--neuron 0,32"),
        ({"objective": "neuron", "neuron": "32,0"}, "map of 32x32"),
        ({"objective": "direction"}, "directions"),
        ({"diversity": 0}, "--diversity"),
        ({"octaves": 0}, "--octaves"),
        ({"octaves": 3}, "octaves"),
        ({"method": "notebook", "octaves": 30}, "octaves"),
        ({"method": "notebook", "octave_scale": 1.0}, "--octave-scale"),
        ({"tv": -1.0}, "--tv"),
        ({"l2": float("nan")}, "--l2"),
        ({"blur": -1.0}, "--blur"),
        ({"frames": -1}, "--frames"),
        ({"tap": "softmax"}, "--tap"),
    ],
)
def test_every_bad_option_gives_one_line_that_names_it(changes: dict[str, Any], option: str) -> None:
    # Given one option that cannot be
    # When a job is made
    # Then one line names the option
    assert option in refused(BadOption, layers="features.0", filters="0", **changes)


def test_a_range_selects_the_filters_that_each_layer_has() -> None:
    # Given a range of which the first layers have but the beginning
    # When a job of all layers is made
    job, _ = make_job(changed(filters="60-100"))
    # Then each renders what it has
    assert [layer.filters for layer in job.layers] == ["60-63"] * 2 + ["60-100"] * 11


@pytest.mark.parametrize(
    ("layers", "filters", "message"),
    [
        ("features.0", "0-64", "no filter 64 in features.0; it has 64 filters, 0-63"),
        ("all", "0-512", "no filter 512 in features.17; it has 512 filters, 0-511"),
        ("all", "100,102-104", "no filter 100,102-104 in features.0; it has 64 filters, 0-63"),
    ],
)
def test_filters_that_no_layer_has_and_layers_that_have_none_of_them_are_refused(
    layers: str, filters: str, message: str
) -> None:
    # When a job is made of them, then the error names a layer and what it has
    assert message in refused(BadFilters, layers=layers, filters=filters)


def test_unknown_weights_are_refused_with_a_list_of_known_ones() -> None:
    # Given a name that is neither published nor a file
    # When a job is made
    message = refused(WeightsMissing, weights="nowhere.pth")
    # Then the error shows it, and what there is
    assert "'nowhere.pth'" in message
    assert "IMAGENET1K_FEATURES" in message


@pytest.mark.parametrize("content", [b"", b"?", b"\x89HDF\r\n\x1a\n", b"PK\x03\x04", b"\x00" * 100, b"{}"])
def test_a_checkpoint_of_unknown_format_is_refused(tmp_path: Path, content: bytes) -> None:
    # Given a file that is no checkpoint
    path = tmp_path / "weights"
    path.write_bytes(content)
    options = changed(weights=str(path))
    job, checkpoint = make_job(options)
    # When its weights are checked, then the error says how to save them
    with pytest.raises(WeightsUnreadable, match=r"save the model's state_dict|save it again with model\.save_weights"):
        check_weights(job, checkpoint, options)


def test_the_same_options_make_the_same_job() -> None:
    # Given options written in two ways
    one, _ = make_job(changed(layers="block1_conv1,features.2", filters="0-3"))
    two, _ = make_job(changed(layers="features.2,features.0", filters="3,2,0-1,1"))
    # Then it is one job, with one id, and with the versions that made it
    assert one.id == two.id
    assert {"filterfarm", "torch"} <= set(one.versions)


@pytest.mark.parametrize(
    ("model", "layer", "sizes"),
    [
        ("vit_b_16", "conv_proj", [224]),
        ("maxvit_t", "blocks.3.layers.1.layers.MBconv.layers.conv_c", [224]),
        ("inception_v3", "Mixed_7c.branch_pool.conv", [150, 224, 256, 299, 384, 512]),
    ],
)
def test_the_sizes_that_a_network_takes_are_known(model: str, layer: str, sizes: list[int]) -> None:
    assert accepted_sizes(model, layer) == sizes


@pytest.mark.parametrize(("model", "size"), [("vit_b_16", "225"), ("vit_b_16", "512"), ("maxvit_t", "256")])
def test_a_size_that_a_network_does_not_take_is_not_too_small(model: str, size: str) -> None:
    # When
    message = refused(BadOption, model=model, layers="all", filters="0", size=size)
    # Then
    assert f"for {size}x{size} px pictures; use another --size, such as 224" in message
    assert "small" not in message


def test_a_tile_that_the_collector_could_not_read_is_refused() -> None:
    # Given sixteen pictures of 4096 px side by side
    message = refused(BadOption, size="4096", diversity=16, filters="0", layers="features.0")
    # Then
    assert "a tile would have 4096x65566 px" in message
    assert "--diversity" in message
    # And the limit is Pillow's
    assert (Image.MAX_IMAGE_PIXELS or 0) >= MAX_TILE_PIXELS


def names_of(layers: str, **changes: Any) -> list[tuple[str, str]]:
    """Name and kind of the job's layers."""
    job, _ = make_job(changed(**{"model": "resnet18", "size": "64", "layers": layers, **changes}))
    return [(layer.name, layer.kind) for layer in job.layers]


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("conv1,layer1.0.add", [("conv1", "conv"), ("layer1.0.add", "block")]),
        ("logits", [("logits", "logits")]),
        # the logits' own name is an alias
        ("fc", [("logits", "logits")]),
        ("layer4.1.bn?", [("layer4.1.bn1", "other"), ("layer4.1.bn2", "other")]),
        ("layer4.*.add", [("layer4.0.add", "block"), ("layer4.1.add", "block")]),
        # a glob that matches convolutions chooses them alone
        ("layer4.1.*", [("layer4.1.conv1", "conv"), ("layer4.1.conv2", "conv")]),
    ],
)
def test_layers_of_any_kind_are_named(text: str, chosen: list[tuple[str, str]]) -> None:
    assert names_of(text) == chosen


def test_all_means_all_convolutions() -> None:
    assert {kind for _, kind in names_of("all")} == {"conv"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"objective": "neuron"}, "--objective neuron needs the places of a map"),
        ({"diversity": 3}, "--diversity 3 needs the places of a map"),
    ],
)
def test_what_needs_a_map_is_refused_for_units_without_one(options: dict[str, Any], said: str) -> None:
    message = refused(BadOption, model="resnet18", size="64", layers="conv1,logits", **options)
    assert said in message
    assert "the units of logits have one value for a picture" in message


def test_a_neuron_of_a_transformer_is_a_patch() -> None:
    # Given a block of ViT-B/32, whose 49 patches are 7 x 7
    block = "encoder.layers.encoder_layer_0.add"
    options = {"model": "vit_b_32", "layers": block, "size": "224", "objective": "neuron"}
    # Then the last of them is a place, and the next is none
    make_job(changed(**options, neuron="6,6"))
    assert "map of 7x7" in refused(BadOption, **options, neuron="7,0")


def test_a_transformer_is_refused_at_another_size_with_those_that_it_takes() -> None:
    message = refused(BadOption, model="vit_b_32", layers="logits", size="64")
    assert message == "vit_b_32 does not compute logits for 64x64 px pictures; use another --size, such as 224"


def test_a_layer_of_another_kind_that_does_not_exist_has_near_names() -> None:
    assert "nearest: layer1.0.add" in refused(UnknownLayer, model="resnet18", layers="layer1.0.ad")
