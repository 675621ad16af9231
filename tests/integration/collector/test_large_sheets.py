"""The sheet of a layer that does not fit into memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image


@pytest.mark.timeout(600)
def test_two_thousand_tiles_of_1024_px_are_assembled_in_300_mb(tmp_path: Path) -> None:
    # Given a process that may use 300 MB beyond what Python and its packages take
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.collector.large_sheet", "2048", str(tmp_path)],
        capture_output=True, text=True, check=False, timeout=500, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    # When it assembles the layer, then it succeeds
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    assert result["grown_mb"] < 300
    # And the sheet is no larger than viewers take, and says that its tiles are smaller
    Image.MAX_IMAGE_PIXELS, before = None, Image.MAX_IMAGE_PIXELS
    try:
        with Image.open(tmp_path / "sheet.png") as sheet:
            assert max(sheet.size) <= 16_000
            assert min(sheet.size) > 14_000
            assert "scaled down" in sheet.info["Description"]
    finally:
        Image.MAX_IMAGE_PIXELS = before
    records = json.loads((tmp_path / "records.json").read_text())
    assert len(records["filters"]) == 2048
    assert records["sheet_tile_px"] == result["tile_px"]
