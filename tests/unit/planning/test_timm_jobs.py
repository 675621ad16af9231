"""Jobs of timm's networks: their ids, and sizes that the network decides."""

import pytest
from click.testing import CliRunner

from producer.cli.main import cli
from producer.planning.job_builder import make_job, notes
from producer.planning.options import Options
from workers.contract.keys import is_name


def test_a_job_of_timms_network_has_a_valid_id() -> None:
    # Given
    options = Options.make(model="timm:test_resnet.r160_in1k", weights="none", filters="0", layers="conv1.*")
    # When
    job, checkpoint = make_job(options)
    # Then
    assert is_name(job.id)
    assert job.id.startswith("timm-test_resnet.r160_in1k-fourier-")
    assert job.address == options.model
    assert notes(options, job, checkpoint) == []


@pytest.mark.parametrize(("size", "told"), [(None, "150x150"), ("128", "128x128"), ("64x96", "64x96")])
def test_the_size_is_the_networks_and_that_is_said(size: str | None, told: str) -> None:
    # Given a network that takes pictures of one size only, and another size
    options = Options.make(model="timm:vit_tiny_patch16_224", weights="none", filters="0", size=size)
    # When
    job, checkpoint = make_job(options)
    # Then
    assert (job.recipe.height_px, job.recipe.width_px) == (224, 224)
    assert notes(options, job, checkpoint) == [
        f"timm:vit_tiny_patch16_224 takes no pictures but those of 224x224; --size {told} is not used"
    ]


def test_nothing_is_said_about_the_networks_own_size() -> None:
    # Given
    options = Options.make(model="timm:vit_tiny_patch16_224", weights="none", filters="0", size="224")
    # When / Then
    assert notes(options, *make_job(options)) == []


def test_layers_lists_names_that_match_and_does_not_list_all() -> None:
    # Given / When
    listed = CliRunner().invoke(cli, ["layers", "timm:test_res*"])
    without = CliRunner().invoke(cli, ["layers"])
    # Then
    assert listed.stdout.split() == ["timm:test_resnet", "timm:test_resnet.r160_in1k"]
    assert "timm:" not in without.stdout
    assert "timm:NAME" in without.stderr
