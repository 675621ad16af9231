"""Maps in bfloat16, and how far results are from those of double precision, for tests of code that is compiled."""

import torch

#: A bfloat16 is off by up to 2^-9; of a whole tensor the error is about half of that.
RELATIVE_ERROR = 0.003


def maps(*shape: int, seed: int = 0) -> torch.Tensor:
    """Noise in channels-last memory."""
    noise = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()
    return noise.to(memory_format=torch.channels_last)


def error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Relative to the whole of what is exact."""
    assert found.dtype == torch.bfloat16
    assert found.shape == exact.shape
    return float((found.detach().double() - exact.detach()).norm() / exact.detach().norm())
