"""How much of a picture a layer is shown: what a plan counts is what a worker does."""

#: Layers whose map is this many times smaller than the picture are treated as Lucid does. Shallower ones look at few
#: pixels, which rotation and scaling only blur.
_TURNED_AT_STRIDE = 8

#: What shallow layers are shown beyond the tile on each side: with the jitter, all of the margin, and never the tile's
#: own rim at the edge.
_ROOM_PX = 16


def layer_stride(size_px: tuple[int, int], map_px: tuple[int, int]) -> float:
    """How many times smaller than the picture a layer's map is; (height, width) each."""
    return max(size_px[0] / map_px[0], size_px[1] / map_px[1])


def is_shallow(stride: float) -> bool:
    """Whether a layer of that stride sees pictures moved, but neither zoomed nor turned."""
    # A map has whole steps, but may lack some at the picture's edges.
    return round(stride) < _TURNED_AT_STRIDE


def seen_px(size_px: tuple[int, int], stride: float, *, pinned: bool = False) -> tuple[int, int]:
    """Height and width of what is seen of a canvas whose tile is ``size_px``; ``pinned``: for one place of the map.

    Shallow layers, which cost little, are shown some of the margin too, so that the edge, whose padding excites their
    filters, is nowhere in the tile.
    """
    margin_px = 2 * _ROOM_PX if is_shallow(stride) and not pinned else 0
    return size_px[0] + margin_px, size_px[1] + margin_px
