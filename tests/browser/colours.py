"""Colours of what is on the screen, compared with those of tiles."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Locator

#: Largest mean difference per value of two pictures that count as the same: scaled, compressed, smoothed.
ALIKE = 24.0


def on_screen(place: Locator) -> "NDArray[np.uint8]":
    """What an element looks like, (H, W, 3) RGB."""
    return np.asarray(Image.open(io.BytesIO(place.screenshot(animations="disabled"))).convert("RGB"))


def difference(one: "NDArray[np.uint8]", other: "NDArray[np.uint8]") -> float:
    """Mean absolute difference per value of two pictures, after both are scaled to 16 x 16 px."""
    small = [
        np.asarray(Image.fromarray(pixels).resize((16, 16), Image.Resampling.BOX), float) for pixels in (one, other)
    ]
    return float(np.abs(small[0] - small[1]).mean())
