"""``filterfarm quality`` on jobs of class logits: which class the network and others read in the stored tiles."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models import get_model_weights

from producer.cli import quality_text
from producer.quality.class_reader import ClassReader
from producer.quality.quality import measure
from tests.jobs import sample_job
from tests.recipes import HALVES
from tests.unit.quality.test_quality import SIZE_PX, layer_of, squeezenet_job, store, tile
from workers.contract.errors import BadOption, UnknownModel, WeightsMissing
from workers.contract.job import Job, Layer, Weights
from workers.networks import registry, weights
from workers.rendering import images, metrics

CLASSES = [3, 5, 8, 9, 10, 11]


def job_of_classes(*, count: int = 1000) -> Job:
    """Six classes of the trained EfficientNet-Lite0."""
    layer = Layer(name="logits", aliases=("classifier",), kind="logits", channels=count, filters="3,5,8-11")
    packaged = Weights(source="package", name="IMAGENET1K")
    return sample_job(layer, model="efficientnet_lite0", weights=packaged, preprocess=HALVES, size_px=SIZE_PX)


def pictures() -> np.ndarray:
    """The tiles that ``store`` writes."""
    noise = [np.random.default_rng([0, class_]).integers(0, 256, (SIZE_PX, SIZE_PX, 3), np.uint8) for class_ in CLASSES]
    return np.stack(noise)


@torch.no_grad()
def whole_network(model: str, batch: np.ndarray) -> np.ndarray:
    """Logits of the trained network for pixels in -1..1."""
    network = weights.load(model, weights.choose(model, None)[0], None, seed=0)
    logits: np.ndarray = network(torch.from_numpy(batch.astype(np.float32)).permute(0, 3, 1, 2) / 127.5 - 1).numpy()
    return logits


def ranks_of(logits: np.ndarray) -> list[int]:
    """Place of each tile's class in the order of its logits."""
    orders = np.argsort(-logits, axis=1).tolist()
    return [order.index(class_) for order, class_ in zip(orders, CLASSES, strict=True)]


def test_the_class_of_a_stored_tile_is_read_by_its_network_and_by_another(tmp_path: Path) -> None:
    # Given stored tiles of classes
    job = job_of_classes()
    # When they are measured, with another trained network as a reader
    (layer,) = measure(job, store(job, tmp_path), device="cpu", read_by=["efficientnet_lite1"])
    # Then the places of the tiles' classes are those of the whole networks, the other at its own input size
    assert [one.rank for one in layer.tiles] == ranks_of(whole_network("efficientnet_lite0", pictures()))
    larger = np.stack([images.resize(picture, (240, 240)) for picture in pictures()])
    assert [one.read_by["efficientnet_lite1"] for one in layer.tiles] == ranks_of(
        whole_network("efficientnet_lite1", larger)
    )


def test_a_class_among_others_of_the_same_logit_is_not_the_first() -> None:
    logits = np.array([[1.0, 3.0, 2.0], [2.0, 2.0, 2.0], [np.nan, np.nan, np.nan], [1.0, 2.0, 3.0]])
    assert metrics.ranks(logits, np.array([1, 0, 0, 0])).tolist() == [0, 2, 2, 2]


def test_top_1_and_top_5_are_shares_of_the_tiles() -> None:
    # Given four tiles of classes
    layers = [layer_of(*(tile(number, rank=rank, read_by={"other": 5}) for number, rank in enumerate((0, 0, 4, 5))))]
    # When their figures are computed
    of = quality_text.figures(layers)
    # Then
    assert of.accuracy == quality_text.Accuracy(top1=0.5, top5=0.75)
    assert of.read_by == {"other": quality_text.Accuracy(top1=0.0, top5=0.0)}
    # And the table has a row for each network
    rows = [line.split() for line in quality_text.as_table(layers, against=False).splitlines()]
    assert ["the", "network", "itself", "50.0%", "75.0%"] in rows
    assert ["other", "0.0%", "0.0%"] in rows
    # And JSON has the same
    report = json.loads(json.dumps(quality_text.as_json(squeezenet_job(), layers, None)))
    assert report["whole"]["accuracy"] == {"top1": 0.5, "top5": 0.75}
    assert report["layers"][0]["tiles"][3]["read_by"] == {"other": 5}


def test_tiles_of_filters_have_no_class() -> None:
    of = quality_text.figures([layer_of(tile(0))])
    assert of.accuracy.top1 is None
    assert "top-1" not in quality_text.as_table([layer_of(tile(0))], against=False)


def test_a_job_without_classes_is_not_read_by_others(tmp_path: Path) -> None:
    job = squeezenet_job()
    with pytest.raises(BadOption, match="--read-by needs pictures of classes.*--layers logits"):
        measure(job, store(job, tmp_path), device="cpu", read_by=["efficientnet_lite1"])


def test_a_network_of_other_classes_cannot_read() -> None:
    with pytest.raises(BadOption, match="efficientnet_lite1 tells 1000 classes and the job's network 10;"):
        ClassReader("efficientnet_lite1", classes=10, device="cpu")


def test_an_unknown_reader_or_one_without_weights_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UnknownModel, match="efficientnet_lite0"):
        ClassReader("efficientnet_lite9", classes=1000, device="cpu")
    with pytest.raises(WeightsMissing, match="squeezenet1_1"):
        ClassReader("squeezenet1_1", classes=1000, device="cpu")


def test_weights_without_a_classifier_cannot_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given default weights whose classifier is not a number, as that of VGG16's original weights
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    parameters = dict(registry.build("squeezenet1_1").state_dict())
    parameters["classifier.1.bias"] = parameters["classifier.1.bias"] * float("nan")
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    name = Path(get_model_weights("squeezenet1_1")["DEFAULT"].url).name
    torch.save(parameters, tmp_path / "hub" / "checkpoints" / name)
    # When / Then
    with pytest.raises(BadOption, match="IMAGENET1K_V1 have no trained classifier"):
        ClassReader("squeezenet1_1", classes=1000, device="cpu")
