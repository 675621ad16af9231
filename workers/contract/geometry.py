"""How much of a picture a layer is shown: what a plan counts is what a worker does."""

#: Layers whose map is this many times smaller than the picture are treated as Lucid does. Shallower ones look at few
#: pixels, which rotation and scaling only blur.
_TURNED_AT_STRIDE = 8

#: What shallow layers are shown beyond the tile on each side: with the jitter, all of the margin, and never the tile's
#: own rim at the edge.
_ROOM_PX = 16

#: By how much both sides of a picture grow to tell how fast a layer's map does: a multiple of what networks stride.
_WIDER_PX = 64


def wider_px(size_px: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the larger picture that :func:`layer_stride` asks for."""
    return size_px[0] + _WIDER_PX, size_px[1] + _WIDER_PX


def layer_stride(size_px: tuple[int, int], map_px: tuple[int, int], wider_map_px: tuple[int, int] | None) -> float:
    """How many pixels of a picture lie between two places of a layer's map; (height, width) each.

    ``wider_map_px`` is its map of the larger picture, None where the network takes none. What the map gains tells the
    stride also where a network without padding cuts off the edges. Behind a pooling of everything it gains nothing;
    then the stride is how many times smaller than the picture the map is.
    """
    gains = [] if wider_map_px is None else [wide - side for wide, side in zip(wider_map_px, map_px, strict=True)]
    if gains and min(gains) > 0:
        return _WIDER_PX / min(gains)
    return max(size_px[0] / map_px[0], size_px[1] / map_px[1])


def is_shallow(stride: float) -> bool:
    """Whether a layer of that stride sees pictures moved, but neither zoomed nor turned."""
    # Where it is worked out from the map's size alone, that may lack some places at the picture's edges.
    return round(stride) < _TURNED_AT_STRIDE


def seen_px(size_px: tuple[int, int], stride: float, *, pinned: bool = False) -> tuple[int, int]:
    """Height and width of what is seen of a canvas whose tile is ``size_px``; ``pinned``: for one place of the map.

    Shallow layers, which cost little, are shown some of the margin too, so that the edge, whose padding excites their
    filters, is nowhere in the tile.
    """
    margin_px = 2 * _ROOM_PX if is_shallow(stride) and not pinned else 0
    return size_px[0] + margin_px, size_px[1] + margin_px
