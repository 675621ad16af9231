"""The benchmark of a bare GPU machine runs on a CPU at tiny sizes, and the counts of a step are plausible."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.counts import CARDS, Count, counts, summary


def test_the_benchmark_of_a_device_measures_each_subject_and_writes_json(tmp_path: Path) -> None:
    # When
    output = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "tests.benchmarks.gpu", "--tiny", "--device", "cpu", "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)

    # Then each row has times of all subjects, and the table as many lines
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())
    assert {row["precision"] for row in found["rows"]} == {"bf16", "tf32", "fp32"}
    for row in found["rows"]:
        assert set(row["ms"]) == {"1", "2"}
        assert min(*row["ms"].values(), row["plain_ms"], row["lucent_ms"], row["tiles_per_s"], row["gflop"]) > 0
    lines = [line for line in done.stdout.splitlines() if line.startswith("| efficientnet_lite0")]
    assert len(lines) == len(found["rows"])

    # And the tile of a batch equals the tile alone, up to rounding
    together, alone = (found["batch_against_alone"][f"fp32, activation {how}"] for how in ("in the batch", "alone"))
    assert alone == pytest.approx(together, rel=1e-3)


def test_the_benchmark_needs_no_part_of_the_farm() -> None:
    # Given a machine without the packages of the farm; timm brings safetensors
    absent = ("celery", "kombu", "redis", "boto3", "botocore", "pebble", "click", "h5py")
    program = f"import sys\nfor name in {absent}: sys.modules[name] = None\nimport tests.benchmarks.gpu\n"
    # When / Then
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_a_step_of_a_deeper_layer_costs_more_and_its_first_convolution_is_counted() -> None:
    # When
    first, deep = counts("squeezenet1_1", 64, 20, "fp32")
    # Then
    assert first.layer == "features.0"
    assert deep.flop > first.flop > 0
    assert deep.launches > first.launches > 20
    assert min(first.bytes, deep.bytes) > 64 * 64 * 3 * 4


def test_what_takes_longest_bounds_a_layer() -> None:
    # Given a layer of 1 TFLOP and 1 GB per tile and step, and 100 operators
    count = Count(layer="x", filters=10, flop=1e12, bytes=1e9, fixed_bytes=0.0, launches=100)
    fast, slow = CARDS
    # When / Then
    assert count.seconds(fast, 1)["compute"] == pytest.approx(1 / 989)
    assert summary([count], fast, 1)["compute"] == 1
    assert summary([count], slow, 32)["compute"] == 1
    light = Count(layer="x", filters=10, flop=1e6, bytes=1e6, fixed_bytes=0.0, launches=100)
    assert summary([light], fast, 1)["launches"] == 1
