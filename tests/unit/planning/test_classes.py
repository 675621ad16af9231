"""The names of classes: those of weights and of --classes, and names in --filters."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models import get_model_weights, resnet18

from producer.planning.job_builder import check_weights, make_job
from producer.planning.options import Options
from workers.contract.errors import BadFilters, BadOption, PermanentError, WeightsDoNotFit
from workers.contract.job import Layer, Weights
from workers.networks import classes
from workers.networks import weights as loading


def logits(**changes: Any) -> Layer:
    """The layer of a job of EfficientNet-Lite0's classes."""
    values = {"model": "efficientnet_lite0", "layers": "logits", "size": "32", **changes}
    job, _ = make_job(Options.make(**values))
    return job.layers[0]


def refused(kind: type[PermanentError], **changes: Any) -> str:
    with pytest.raises(kind) as caught:
        logits(**changes)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


def checked(**values: Any) -> None:
    """Make a job, and fit its checkpoint to its network."""
    options = Options.make(**values)
    check_weights(*make_job(options), options)


def classes_file(folder: Path, text: str) -> Path:
    path = folder / "classes.txt"
    path.write_text(text, encoding="utf-8")
    return path


def checkpoint_of_three_classes(folder: Path) -> str:
    path = folder / "three.pth"
    torch.save(resnet18(num_classes=3).state_dict(), path)
    return str(path)


def test_published_weights_have_the_names_of_their_classes() -> None:
    layer = logits(filters="281")
    assert (layer.kind, len(layer.names), layer.names[281], layer.names[999]) == (
        "logits", 1000, "tabby", "toilet tissue",
    )  # fmt: skip
    torchvisions = Weights(source="torchvision", name="IMAGENET1K_V2", sha256="0123456789abcdef")
    assert classes.class_names("resnet50", torchvisions) == layer.names


def test_a_file_with_the_hash_of_published_weights_has_their_names() -> None:
    digits = get_model_weights("resnet18")["IMAGENET1K_V1"].url.rpartition("-")[2].removesuffix(".pth")
    same = Weights(source="file", name="mine.pth", sha256=digits.ljust(64, "0"))
    other = Weights(source="file", name="mine.pth", sha256="0" * 64)
    assert classes.class_names("resnet18", same)[281] == "tabby"
    assert classes.class_names("resnet18", other) == ()


@pytest.mark.parametrize(
    ("text", "filters"),
    [
        ("tabby,golden retriever", "207,281"),
        ("Tabby , GOLDEN RETRIEVER", "207,281"),
        ("0-2,tabby,5", "0-2,5,281"),
        ("all", "0-999"),
    ],
)
def test_filters_are_chosen_by_the_names_of_classes(text: str, filters: str) -> None:
    assert logits(filters=text).filters == filters


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"filters": "retriever"}, "no class 'retriever' in logits; nearest: flat-coated retriever, curly-coated"),
        ({"filters": "goldn retrever"}, "no class 'goldn retrever' in logits; nearest: golden retriever"),
        ({"filters": "tabby", "layers": "conv_stem,logits"}, "the units of conv_stem have no names"),
        ({"filters": "tabby", "weights": "none"}, "the units of logits have no names"),
        ({"filters": "tabby", "objective": "deepdream"}, "the units of logits have no names"),
    ],
)
def test_a_name_that_no_class_has_is_refused_with_near_ones(changes: dict[str, Any], said: str) -> None:
    assert said in refused(BadFilters, **changes)


def test_names_of_ones_own_may_contain_commas_and_be_a_json_list(tmp_path: Path) -> None:
    weights = checkpoint_of_three_classes(tmp_path)
    for text in ("cat\ncrane, bird\ndog\n\n", '["cat", "crane, bird", " dog"]', "\ufeffcat\r\ncrane, bird\r\ndog"):
        # Given a file of three names, and a checkpoint of three classes
        own = {"model": "resnet18", "weights": weights, "classes": classes_file(tmp_path, text)}
        # When one is chosen by its name
        layer = logits(**own, filters="crane,bird, dog")
        # Then the job has the checkpoint's classes and these names
        assert (layer.channels, layer.names, layer.filters) == (3, ("cat", "crane, bird", "dog"), "1-2")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a\nb\n", "has 2 names, and the network has 3 classes"),
        ("a\n\nc\n", "name 1 is ''; a name has 1 to 200 printable characters"),
        ("a\nb\x07\nc\n", "name 1 is 'b\\x07'"),
        ('["a", "b", 3]', "is no list of names"),
        ('["a", "b"', "cannot read --classes"),
        (None, "cannot read --classes"),
    ],
)
def test_a_file_of_other_names_is_refused(tmp_path: Path, text: str | None, said: str) -> None:
    path = tmp_path / "missing.txt" if text is None else classes_file(tmp_path, text)
    own = {"model": "resnet18", "weights": checkpoint_of_three_classes(tmp_path), "classes": path}
    assert said in refused(BadOption, **own)


def test_a_name_of_several_classes_is_refused_with_their_numbers(tmp_path: Path) -> None:
    own = {"model": "resnet18", "weights": checkpoint_of_three_classes(tmp_path)}
    message = refused(BadFilters, **own, classes=classes_file(tmp_path, "crane\ndog\nCrane\n"), filters="crane")
    assert message == "several classes of logits are named 'crane'; write the number: 0, 2"


def test_class_names_without_logits_are_refused(tmp_path: Path) -> None:
    message = refused(BadOption, layers="conv_stem", classes=classes_file(tmp_path, "a\n"))
    assert message == "--classes names the units of logits; choose --layers logits with --objective filter"


def test_weights_without_a_classifier_have_no_logits() -> None:
    message = refused(BadOption, model="vgg16")
    assert message.startswith("the weights IMAGENET1K_FEATURES of vgg16 have no classifier, and so no logits")


def test_a_checkpoints_own_classifier_is_loaded_whatever_its_number_of_classes(tmp_path: Path) -> None:
    # Given a checkpoint of three classes
    path = checkpoint_of_three_classes(tmp_path)
    weights, file = loading.choose("resnet18", path)
    # When it is loaded
    model = loading.load("resnet18", weights, file, seed=0)
    # Then the network has its three classes
    saved = torch.load(path, weights_only=True)
    torch.testing.assert_close(model.get_submodule("fc").weight, saved["fc.weight"])
    torch.testing.assert_close(model.get_submodule("fc").bias, saved["fc.bias"])


def test_a_checkpoint_without_classifier_is_refused_for_logits_alone(tmp_path: Path) -> None:
    # Given a checkpoint of the convolutions
    state = {name: tensor for name, tensor in resnet18().state_dict().items() if not name.startswith("fc.")}
    torch.save(state, tmp_path / "trunk.pth")
    options = {"model": "resnet18", "weights": str(tmp_path / "trunk.pth"), "size": "32"}
    # Then it fits a job of convolutions
    checked(**options, layers="layer4.1.conv2")
    # And not one of classes
    with pytest.raises(WeightsDoNotFit, match="fc.weight is missing.*with its classifier"):
        checked(**options, layers="logits")


def test_pictures_of_classes_have_the_size_of_the_networks_input() -> None:
    # Given jobs of logits, one with a size of its own, one of other layers as well, and one with a preset's size
    def size_px(**values: str) -> tuple[int, int]:
        job, _ = make_job(Options.make(**{"layers": "logits", "weights": "none", "filters": "0", **values}))
        return job.recipe.height_px, job.recipe.width_px

    # When / Then
    assert size_px(model="efficientnet_lite0") == (224, 224)
    assert size_px(model="efficientnet_lite0", layers="classifier") == (224, 224)
    assert size_px(model="efficientnet_lite1") == (240, 240)
    assert size_px(model="inception_v3") == (299, 299)
    assert size_px(model="efficientnet_lite0", size="150") == (150, 150)
    assert size_px(model="efficientnet_lite0", preset="fast") == (96, 96)
    assert size_px(model="efficientnet_lite0", layers="conv_stem,logits") == (150, 150)
    assert size_px(model="efficientnet_lite0", layers="conv_stem") == (150, 150)


@pytest.mark.parametrize(
    ("options", "size_px", "steps"),
    [
        ({}, 224, 128),
        ({"size": "96", "steps": 7}, 96, 7),
        ({"preset": "fast"}, 96, 32),
        ({"method": "notebook"}, 224, 40),
        ({"layers": "logits,conv1"}, 150, 64),
        ({"layers": "conv1"}, 150, 64),
    ],
)
def test_pictures_of_classes_are_as_large_as_the_networks_input_and_take_more_steps(
    options: dict[str, Any], size_px: int, steps: int
) -> None:
    job, _ = make_job(Options.make(**{"model": "resnet18", "weights": "none", "layers": "logits", **options}))
    assert (job.recipe.height_px, job.recipe.width_px, job.recipe.steps) == (size_px, size_px, steps)
