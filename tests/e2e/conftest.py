"""Fixtures of the end-to-end tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.fleet import Fleet, fleet


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[Fleet]:
    """A fleet on rclone, whose bucket is a plain folder as in ``filterfarm run``."""
    with fleet(tmp_path, "rclone") as made:
        yield made


@pytest.fixture
def strict_farm(tmp_path: Path) -> Iterator[Fleet]:
    """A fleet on SeaweedFS, the strictest S3 server available as a wheel."""
    with fleet(tmp_path, "seaweedfs") as made:
        yield made
