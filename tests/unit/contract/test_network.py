"""Addresses of networks, and jobs that have one."""

import pytest

from tests.jobs import sample_job
from workers.contract.errors import CorruptJob, JobNotUnderstood
from workers.contract.job import Job, decode_job, decode_whole_job
from workers.contract.keys import is_name
from workers.contract.network import Network, split_address

TIMM = Network(source="timm", name="resnet50.a1_in1k")


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("vgg16", "vgg16"),
        ("timm:resnet50.a1_in1k", "timm-resnet50.a1_in1k"),
        ("timm:hf-hub:timm/resnet18", "timm-hf-hub-timm-resnet18"),
        ("factory:nets.small:make", "nets.small-make"),
        ("pt2:my net.pt2", "my-net.pt2"),
        ("timm:" + "x" * 290, "timm-" + "x" * 91),
    ],
)
def test_the_name_in_ids_is_made_of_the_address(address: str, name: str) -> None:
    # Given / When
    found, network = split_address(address)
    # Then
    assert found == name
    assert is_name(found)
    assert (network.address if network else found) == address


@pytest.mark.parametrize("address", ["timm:", "timm: x", "timm:a\nb", "timm:" + "x" * 301])
def test_an_address_that_no_job_can_store_is_an_error(address: str) -> None:
    # Given / When / Then
    with pytest.raises(ValueError, match="name"):
        split_address(address)


def _job(network: Network | None) -> Job:
    job = sample_job(model="timm-resnet50.a1_in1k")
    content = {name: getattr(job, name) for name in ("model", "weights", "layers", "recipe", "grid")}
    return Job(**content, network=network)


def test_a_job_keeps_where_its_network_comes_from() -> None:
    # Given
    job = _job(TIMM)
    # When
    again = decode_job(job.to_json(), job.id)
    # Then
    assert again == job
    assert again.address == "timm:resnet50.a1_in1k"
    assert job.id.startswith("timm-resnet50.a1_in1k-")
    assert len({job.id, _job(None).id, _job(Network(source="timm", name="resnet50_a1.in1k")).id}) == 3


def test_jobs_without_one_are_written_and_named_as_before() -> None:
    # Given / When
    job = sample_job()
    # Then
    assert job.address == job.model == "vgg16"
    assert b"network" not in job.to_json()


def test_a_source_of_a_later_version_is_left_to_others() -> None:
    # Given
    job = _job(TIMM)
    data = job.to_json().replace(b'"source": "timm"', b'"source": "later"')
    # When / Then
    with pytest.raises(JobNotUnderstood, match="network.source='later'"):
        decode_whole_job(data, job.id)
    with pytest.raises(CorruptJob):
        decode_job(data, job.id)


def test_a_job_keeps_the_name_of_a_file_and_not_its_folder() -> None:
    # Given / When / Then
    assert split_address("pt2:/home/me/nets/small.pt2") == ("small.pt2", Network(source="pt2", name="small.pt2"))
