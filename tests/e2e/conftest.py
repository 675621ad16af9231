"""Fixtures of the end-to-end tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.fleet import Fleet, fleet


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[Fleet]:
    """A fleet whose bucket is a plain folder, as ``filterfarm run`` has it."""
    with fleet(tmp_path, "rclone") as made:
        yield made


@pytest.fixture
def strict_farm(tmp_path: Path) -> Iterator[Fleet]:
    """A fleet on the strictest S3 server a wheel can bring."""
    with fleet(tmp_path, "seaweedfs") as made:
        yield made
