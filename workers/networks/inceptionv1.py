"""Inception v1 as Distill's articles and OpenAI Microscope show it: the network of TensorFlow's "inception5h" example.

GoogLeNet (C. Szegedy et al., "Going Deeper with Convolutions", 2014) with a bias and no batch-norm in each convolution,
two local response normalisations, and 1,008 classes. Layers have the names of Lucid. Other networks of that
architecture, such as torchvision's ``googlenet``, were trained apart: their units are others.
"""

import torch
from torch import nn
from torch.nn import functional as F

#: block -> channels of its convolutions: 1x1; 3x3 and its bottleneck; 5x5 and its bottleneck; after the pool
BLOCKS = {
    "mixed3a": (64, (96, 128), (16, 32), 32),
    "mixed3b": (128, (128, 192), (32, 96), 64),
    "mixed4a": (192, (96, 204), (16, 48), 64),
    "mixed4b": (160, (112, 224), (24, 64), 64),
    "mixed4c": (128, (128, 256), (24, 64), 64),
    "mixed4d": (112, (144, 288), (32, 64), 64),
    "mixed4e": (256, (160, 320), (32, 128), 128),
    "mixed5a": (256, (160, 320), (48, 128), 128),
    "mixed5b": (384, (192, 384), (48, 128), 128),
}

#: Blocks after which the map is halved.
_POOLED = {"mixed3b", "mixed4e"}

CLASSES = 1008


class InceptionV1(nn.Module):
    """Logits (B, 1008) of pictures (B, 3, H, W) with 117 subtracted from pixels in 0..255. Trained at 224 px."""

    def __init__(self) -> None:
        super().__init__()
        self.conv2d0 = nn.Conv2d(3, 64, 7, stride=2)
        self.conv2d1 = nn.Conv2d(64, 64, 1)
        self.conv2d2 = nn.Conv2d(64, 192, 3, padding=1)
        channels = 192
        for name, (ones, threes, fives, pooled) in BLOCKS.items():
            self.add_module(f"{name}_1x1", nn.Conv2d(channels, ones, 1))
            self.add_module(f"{name}_3x3_bottleneck", nn.Conv2d(channels, threes[0], 1))
            self.add_module(f"{name}_3x3", nn.Conv2d(*threes, 3, padding=1))
            self.add_module(f"{name}_5x5_bottleneck", nn.Conv2d(channels, fives[0], 1))
            self.add_module(f"{name}_5x5", nn.Conv2d(*fives, 5, padding=2))
            self.add_module(f"{name}_pool_reduce", nn.Conv2d(channels, pooled, 1))
            self.add_module(name, _Concatenation())
            channels = ones + threes[1] + fives[1] + pooled
        self.softmax2 = nn.Linear(channels, CLASSES)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Logits (B, 1008)."""
        x = self._conv("conv2d0", _padded(pictures, before=2, after=3))
        x = _normalised(_halved(x))
        x = self._conv("conv2d2", self._conv("conv2d1", x))
        x = _halved(_normalised(x))
        for name in BLOCKS:
            x = self._block(name, x)
            if name in _POOLED:
                x = _halved(x)
        return self.softmax2(x.mean(dim=(2, 3)))  # type: ignore[no-any-return]  # a module's output

    def _block(self, name: str, x: torch.Tensor) -> torch.Tensor:
        ones = self._conv(f"{name}_1x1", x)
        threes = self._conv(f"{name}_3x3", self._conv(f"{name}_3x3_bottleneck", x))
        fives = self._conv(f"{name}_5x5", self._conv(f"{name}_5x5_bottleneck", x))
        pooled = self._conv(f"{name}_pool_reduce", F.max_pool2d(x, 3, stride=1, padding=1))
        return self.get_submodule(name)(ones, threes, fives, pooled)  # type: ignore[no-any-return]

    def _conv(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.get_submodule(name)(x))


class _Concatenation(nn.Module):
    """The output of a block: a module of its own, for the name."""

    def forward(self, *parts: torch.Tensor) -> torch.Tensor:
        """Parts (B, C, H, W) as one map, channel after channel."""
        return torch.cat(parts, 1)


def _padded(x: torch.Tensor, *, before: int, after: int, value: float = 0.0) -> torch.Tensor:
    """TensorFlow's padding "SAME" for a stride of 2: with an odd number of rows or columns, one more before them."""
    height, width = x.shape[2], x.shape[3]
    return F.pad(x, (before + width % 2, after, before + height % 2, after), value=value)


def _halved(x: torch.Tensor) -> torch.Tensor:
    return F.max_pool2d(_padded(x, before=0, after=1, value=float("-inf")), 3, stride=2)


def _normalised(x: torch.Tensor) -> torch.Tensor:
    """TensorFlow's local response normalisation with depth_radius 4, alpha 1e-4 / 9 and beta 0.5.

    PyTorch divides alpha by the size of the window.
    """
    return F.local_response_norm(x, 9, alpha=1e-4, beta=0.5, k=1.0)
