"""timm's networks: names, preprocessing, sizes, weights from Hugging Face's cache, and what is missing there."""

from pathlib import Path

import huggingface_hub.constants
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.data.config import resolve_model_data_config
from torch import nn

from workers.contract.errors import ExitCode, UnknownModel, WeightsMissing
from workers.contract.job import Weights
from workers.networks import classes, registry, timm_models, weights

RESNET = "timm:test_resnet.r160_in1k"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of Hugging Face's client, which may not download."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def _cached(hub: Path, repository: str) -> Path:
    """The folder of one repository in the cache."""
    folder = hub / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("1" * 40)
    snapshot = folder / "snapshots" / ("1" * 40)
    snapshot.mkdir(parents=True)
    return snapshot


@pytest.mark.parametrize("name", ["test_resnet", "tf_efficientnet_lite0", "vit_tiny_patch16_224", "mobilevit_xxs"])
def test_preprocessing_is_timms(name: str) -> None:
    # Given
    config = resolve_model_data_config(timm.create_model(name, pretrained=False))  # type: ignore[no-untyped-call]  # timm's
    # When
    found = registry.get(f"timm:{name}").preprocess
    # Then
    assert (found.name, found.mean, found.std) == ("model", config["mean"], config["std"])


def test_the_size_is_the_networks_if_it_takes_no_other() -> None:
    # Given / When / Then
    assert registry.get("timm:vit_tiny_patch16_224").size_px == (224, 224)
    assert registry.get("timm:maxvit_nano_rw_256").size_px == (256, 256)
    assert registry.get("timm:resnet18").size_px is None
    assert registry.get("resnet18").size_px is None


def test_the_weights_are_named_by_their_tag() -> None:
    # Given / When / Then
    assert registry.get("timm:resnet18.tv_in1k").weights == ("tv_in1k",)
    assert weights.choose(RESNET, None) == (Weights(source="timm", name="r160_in1k"), None)


def test_an_unknown_network_is_answered_with_the_nearest() -> None:
    # Given / When / Then
    with pytest.raises(UnknownModel, match=r"no model 'timm:resnet81' in timm; nearest: timm:resnet\d") as caught:
        registry.get("timm:resnet81")
    assert caught.value.exit_code == ExitCode.UNKNOWN_MODEL


@pytest.mark.parametrize("name", ["timm:", "timm:resnet18.no_such_tag", "timm:local-dir:/tmp", "timm:org/name"])
def test_nothing_but_a_name_of_timms_is_taken(name: str) -> None:
    # Given / When / Then
    with pytest.raises(UnknownModel, match="in timm"):
        registry.get(name)


@pytest.mark.parametrize("name", ["timm:hf-hub:", "timm:hf-hub:name", "timm:hf-hub:org/", "timm:hf-hub:a/b/c"])
def test_a_network_of_the_hub_has_an_organisation_and_a_name(name: str) -> None:
    # Given / When / Then
    with pytest.raises(UnknownModel, match="write timm:hf-hub:ORGANISATION/NAME"):
        registry.get(name)


def test_weights_that_are_not_in_the_cache_are_one_line(hub: Path) -> None:
    # Given no connection to the hub and an empty cache
    chosen, _ = weights.choose(RESNET, None)
    # When / Then
    with pytest.raises(WeightsMissing) as caught:
        weights.load(RESNET, chosen, None, seed=0)
    message = str(caught.value)
    assert message.startswith(f"the weights of {RESNET} are not in Hugging Face's cache and cannot be downloaded")
    assert "--weights PATH or --weights none" in message
    assert "\n" not in message


def test_a_description_that_is_not_in_the_cache_is_one_line(hub: Path) -> None:
    # Given / When / Then
    with pytest.raises(WeightsMissing, match=r"the description of timm:hf-hub:org/net is not in Hugging Face's cache"):
        registry.get("timm:hf-hub:org/net")


def test_weights_are_read_from_the_cache(hub: Path) -> None:
    # Given trained weights in the cache of Hugging Face's client
    trained = timm.create_model("test_resnet", pretrained=False).eval()
    save_file(trained.state_dict(), _cached(hub, "timm/test_resnet.r160_in1k") / "model.safetensors")
    # When
    loaded = weights.load(RESNET, Weights(source="timm", name="r160_in1k"), None, seed=0)
    # Then
    pictures = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(pictures), trained(pictures))
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_a_network_of_the_hub_is_built_from_its_description(hub: Path) -> None:
    # Given a network of five classes with its own preprocessing in the cache
    folder = _cached(hub, "org/net")
    (folder / "config.json").write_text(
        '{"architecture": "test_resnet", "num_classes": 5, "pretrained_cfg": {"input_size": [3, 96, 96], '
        '"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "first_conv": "conv1.0", "classifier": "fc"}}'
    )
    trained = timm.create_model("test_resnet", pretrained=False, num_classes=5).eval()
    save_file(trained.state_dict(), folder / "model.safetensors")
    # When
    known = registry.get("timm:hf-hub:org/net")
    loaded = weights.load(known.name, weights.choose(known.name, None)[0], None, seed=0)
    # Then
    assert (known.preprocess.mean, known.preprocess.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert isinstance(head := loaded.get_submodule("fc"), nn.Linear)
    assert head.out_features == 5
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), trained.parameters(), strict=True))


def test_a_description_on_the_hub_names_the_classes(hub: Path) -> None:
    # Given
    folder = _cached(hub, "org/net")
    (folder / "config.json").write_text(
        '{"architecture": "test_resnet", "num_classes": 2, "label_names": ["n1", "n2"], '
        '"label_descriptions": {"n2": "barn owl"}, "pretrained_cfg": {}}'
    )
    # When / Then
    assert timm_models.class_names(timm_models.description("timm:hf-hub:org/net")) == ("n1", "barn owl")


@pytest.mark.parametrize(
    ("name", "count", "first"),
    [
        ("timm:resnet18.tv_in1k", 1000, "tench"),
        ("timm:vit_tiny_patch16_224.augreg_in21k", 21843, "organism, being"),
        ("timm:resnet18.fb_swsl_ig1b_ft_in1k", 1000, "tench"),
        ("timm:vit_base_patch16_clip_224.laion2b", 0, ""),
    ],
)
def test_classes_of_trained_weights_have_names(name: str, count: int, first: str) -> None:
    names = classes.class_names(name, Weights(source="timm", name="any"))
    assert len(names) == count
    assert names[:1] == ((first,) if count else ())


@pytest.mark.parametrize("labels", [{"0": "owl"}, ["owl", ""], ["owl", "a\nb"], ["owl", "b" * 201]])
def test_labels_that_are_no_names_are_not_used(labels: object) -> None:
    assert timm_models.class_names({"label_names": labels, "num_classes": 2}) == ()


def test_a_file_loads_as_for_other_networks(tmp_path: Path) -> None:
    # Given a checkpoint
    trained = timm.create_model("test_resnet", pretrained=False)
    path = tmp_path / "mine.pth"
    torch.save({"state_dict": trained.state_dict()}, path)
    # When
    chosen, checkpoint = weights.choose("timm:test_resnet", str(path))
    loaded = weights.load("timm:test_resnet", chosen, checkpoint, seed=0)
    # Then
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), trained.parameters(), strict=True))


def test_a_network_without_trained_weights_says_so() -> None:
    # Given a network of which timm has no weights
    name = next(name for name in timm.list_models("*resnet*") if not registry.get(f"timm:{name}").weights)
    # When / Then
    with pytest.raises(WeightsMissing, match="no trained weights of timm:.*; use --weights PATH or --weights none"):
        weights.choose(f"timm:{name}", None)
    with pytest.raises(WeightsMissing, match="neither a file nor one of none"):
        weights.choose(f"timm:{name}", "nothing")


def test_random_weights_are_drawn_from_the_seed() -> None:
    # Given / When
    one, same, other = (registry.build("timm:test_resnet", seed=seed).state_dict() for seed in (1, 1, 2))
    # Then
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)
