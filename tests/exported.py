"""Files of ``torch.export.save`` for tests, and copies of them with other members."""

import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

#: Member of a file -> its new bytes, or what makes them of its JSON; None leaves it out.
Changes = Mapping[str, bytes | Callable[[dict[str, Any]], object] | None]


class Small(nn.Module):
    """Two convolutions, a norm, a sum and a classifier, with operations that change their input."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
            nn.Dropout(), nn.Conv2d(8, 8, 3, padding="same"), nn.ReLU6(inplace=True), nn.MaxPool2d(2),
        )  # fmt: skip
        self.scale = nn.Parameter(torch.rand(8, 1, 1) + 0.5)
        self.head = nn.Linear(8, 5)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to (B, 5)."""
        maps = self.features(pictures)
        total = maps.relu() + maps * self.scale
        total += maps
        pooled = total.mean((2, 3))
        logits: torch.Tensor = self.head(pooled.view(pooled.shape[0], -1))
        return logits


def small(seed: int = 0, channels: int = 3) -> nn.Module:
    """A network in evaluation mode whose norm has its own statistics."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Small(channels)
        for tensor in (model.features[1].running_mean, model.features[1].running_var):
            tensor.uniform_(0.5, 1.5)  # type: ignore[operator]
    return model.eval()


def export(model: nn.Module, path: Path, *inputs: torch.Tensor, dynamic: Any = None) -> Path:
    """Write the file; without inputs, for pictures of 1x3x32x32."""
    exported = torch.export.export(model, inputs or (torch.rand(1, 3, 32, 32),), dynamic_shapes=dynamic)
    torch.export.save(exported, path)
    return path


def changed(source: Path, changes: Changes, name: str = "changed.pt2", compression: int = zipfile.ZIP_STORED) -> Path:
    """A copy of the file with other members."""
    path = source.with_name(name)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w", compression) as new:
        root = old.namelist()[0].partition("/")[0]
        members = {member.removeprefix(f"{root}/"): old.read(member) for member in old.namelist()}
        for member, change in changes.items():
            if callable(change):
                content = json.loads(members[member])
                change(content)
                members[member] = json.dumps(content).encode()
            elif change is None:
                del members[member]
            else:
                members[member] = change
        for member, data in members.items():
            new.writestr(f"{root}/{member}", data)
    return path
