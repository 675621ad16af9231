"""Another network that reads the class of a job's tiles: whether a picture shows its class to more than one network."""

from typing import TYPE_CHECKING

import numpy as np

from workers.contract.errors import BadOption

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Pictures in the network at a time.
_BATCH = 16


class ClassReader:
    """A known network with its default weights and their preprocessing.

    Raises UnknownModel, WeightsMissing, WeightsUnreadable, and BadOption if it has not ``classes`` classes or its
    weights have no trained classifier.
    """

    def __init__(self, name: str, *, classes: int, device: str) -> None:
        import torch

        from workers.networks import registry, weights

        chosen, checkpoint = weights.choose(name, None)
        self.name = name
        self._model = weights.load(name, chosen, checkpoint, seed=0).to(torch.device(device))
        self._preprocess = weights.preprocess("auto", name, chosen)
        self._device = torch.device(device)
        self._side_px = registry.get(name).input_px
        side_px = self._side_px or 224
        logits = self.logits(np.zeros((1, side_px, side_px, 3), np.uint8))
        if logits.shape[1] != classes:
            raise BadOption(
                f"--read-by {name} tells {logits.shape[1]} classes and the job's network {classes}; choose a network "
                "of the same classes"
            )
        if not np.isfinite(logits).all():
            raise BadOption(
                f"--read-by {name}: its weights {chosen.name} have no trained classifier; choose another network"
            )

    def logits(self, pictures: "NDArray[np.uint8]") -> "NDArray[np.float32]":
        """Logits (T, C) of pictures (T, H, W, 3) uint8, resized to the network's input size if that is known."""
        import torch

        from workers.networks import devices
        from workers.rendering import images

        if self._side_px is not None and pictures.shape[1:3] != (self._side_px, self._side_px):
            size_px = self._side_px, self._side_px
            pictures = np.stack([images.resize(picture, size_px) for picture in pictures])
        parts = []
        with torch.no_grad(), devices.exact():
            for first in range(0, len(pictures), _BATCH):
                batch = torch.from_numpy(pictures[first : first + _BATCH].astype(np.float32)).to(self._device)
                parts.append(self._model(images.to_network(batch.permute(0, 3, 1, 2), self._preprocess)).cpu().numpy())
        return np.concatenate(parts)
