"""Whether a device computes at all, asked before anything is rendered on it."""

import re

import pytest
import torch
from torch import nn

from workers.networks import devices


def test_a_device_that_computes_passes() -> None:
    # When / Then nothing is raised
    devices.check(torch.device("cpu"))


def test_a_device_that_computes_wrongly_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a device whose results are half as large again as they should be
    right = nn.Conv2d._conv_forward
    monkeypatch.setattr(nn.Conv2d, "_conv_forward", lambda *arguments: 1.5 * right(*arguments))
    # When / Then
    with pytest.raises(ArithmeticError, match=r"5832, not 3888"):
        devices.check(torch.device("cpu"))


def test_torchs_error_for_an_absent_device_is_raised() -> None:
    # When / Then
    with pytest.raises((RuntimeError, AssertionError), match="CUDA|NVIDIA"):
        devices.check(torch.device("cuda:99"))


def test_what_a_device_can_do_is_one_line() -> None:
    # When / Then
    assert re.fullmatch(r"cpu renders in (fp32|bf16), a convolution at [0-9]+ GFLOP/s", devices.examine("cpu"))


def test_a_device_that_does_not_compute_says_so_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given
    right = nn.Conv2d._conv_forward
    monkeypatch.setattr(nn.Conv2d, "_conv_forward", lambda *arguments: 1.5 * right(*arguments))
    # When / Then
    assert devices.examine("cpu").startswith("cpu does not compute: ArithmeticError: the gradient of a sum")
    assert devices.examine("cuda:99").startswith("cuda:99 does not compute: ")


def test_memory_is_shared_on_gpus_alone() -> None:
    # When / Then nothing is raised for a device without a limit
    devices.share_memory(torch.device("cpu"), 4)
