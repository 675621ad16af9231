"""Stride of a layer, and the size of the image that is optimised for it. Used by planner and renderer alike."""

#: Layers of at least this stride get Lucid's transforms. The receptive fields of shallower ones are small, and rotation
#: and scaling only blur their patterns.
_ROTATED_AT_STRIDE = 8

#: Margin in pixels on each side of the tile that shallow layers see. It exceeds the jitter, so that the border of the
#: network's input is never inside the tile.
_MARGIN_PX = 16

#: Difference in side, in pixels, of the two pictures from which a stride is computed. A multiple of usual strides.
_WIDER_PX = 64


def wider_px(size_px: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the larger picture for :func:`layer_stride`."""
    return size_px[0] + _WIDER_PX, size_px[1] + _WIDER_PX


def layer_stride(size_px: tuple[int, int], map_px: tuple[int, int], wider_map_px: tuple[int, int] | None) -> float:
    """Stride of a layer: distance in pixels of the input between two neighbouring places of its map.

    ``size_px`` and ``map_px`` are (height, width) of a picture and of its map, ``wider_map_px`` of the map of the
    larger picture, or None if the network does not take that. The stride follows from the growth of the map, which does
    not depend on padding. If the map does not grow, as after global pooling, it is the ratio of picture and map.
    """
    gains = [] if wider_map_px is None else [wide - side for wide, side in zip(wider_map_px, map_px, strict=True)]
    if gains and min(gains) > 0:
        return _WIDER_PX / min(gains)
    return max(size_px[0] / map_px[0], size_px[1] / map_px[1])


def is_shallow(stride: float) -> bool:
    """True if pictures for a layer of that stride are jittered, but neither scaled nor rotated."""
    # A ratio of picture and map is slightly too large if the map lacks places at the edges.
    return round(stride) < _ROTATED_AT_STRIDE


def seen_px(size_px: tuple[int, int], stride: float, *, pinned: bool = False) -> tuple[int, int]:
    """Height and width of the network's input for a tile of ``size_px``.

    For shallow layers, which cost little, it includes a margin: zero padding at the border of the input excites their
    filters, and must not show in the tile. ``pinned``: the objective is one place of the map, which needs no margin.
    """
    both_px = 2 * _MARGIN_PX if is_shallow(stride) and not pinned else 0
    return size_px[0] + both_px, size_px[1] + both_px
