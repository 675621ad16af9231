"""A mask of a batch's pictures of which the host must know whether it is empty, read without stalling the device."""

from collections import deque
from typing import NamedTuple

import torch

#: Steps by which the mask is late on a GPU. While the host waits for the mask of the step before the last, the last
#: step is still queued, so that the device has work.
_LAG = 1


class _Known(NamedTuple):
    mask: torch.Tensor
    #: on the host: whether any of the mask is set
    is_any: torch.Tensor | bool
    #: the copy to the host has ended; None if it was waited for
    copied: "torch.cuda.Event | None"


class LaggedMask:
    """A (B,) bool mask that changes once a step.

    To read on the host whether any of it is set, CUDA would have to finish all queued work. There, the mask is used one
    step late, and copied meanwhile. The lag is fixed and that of each picture, so that a tile depends neither on timing
    nor on its batch. On other devices there is no lag.
    """

    def __init__(self, first: torch.Tensor) -> None:
        self._recent = deque([_copied(first)], maxlen=1 + (_LAG if first.is_cuda else 0))

    def push(self, mask: torch.Tensor) -> None:
        """The mask as it is after a step."""
        self._recent.append(_copied(mask))

    def read(self) -> torch.Tensor | None:
        """The mask to use in this step; None if no picture is set."""
        mask, is_any, copied = self._recent[0]
        if copied is not None:
            copied.synchronize()
        return mask if is_any else None


def _copied(mask: torch.Tensor) -> _Known:
    if not mask.is_cuda:
        return _Known(mask, bool(mask.any()), None)
    is_any = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(mask.any(), non_blocking=True)
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record()
    return _Known(mask, is_any, copied)
