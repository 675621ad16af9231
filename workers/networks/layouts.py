"""Which axis of each tensor of a traced network holds the channels, and how its places lie in the picture.

Follows the channels from the picture through the graph: convolutions and batch-norms have them on axis 1, linear layers
and layer-norms on the last, and permutations move them. Tensors of other ranks than 2, 3 and 4 have no layout.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AvgPoolNd, _MaxPoolNd
from torch.utils.flop_counter import FlopCounterMode

from workers.contract.errors import BadNetwork, UnknownLayer
from workers.networks import tracing, untraced
from workers.networks.tracer import BATCH, without_values

POOLS = (_AvgPoolNd, _MaxPoolNd, _AdaptiveAvgPoolNd)

#: Largest number of tokens before those of the picture: a class token, a distillation token, and registers.
_MOST_EXTRA_TOKENS = 8

_CHANNELS_FIRST = (_ConvNd, nn.modules.batchnorm._BatchNorm, *POOLS)
_CHANNELS_LAST = (nn.Linear, nn.LayerNorm)
_RESHAPES = {torch.reshape, torch.flatten, "reshape", "view", "flatten"}
_PERMUTES = {torch.permute, "permute"}
_TRANSPOSES = {torch.transpose, torch.swapaxes, "transpose", "swapaxes"}

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the channels of a tensor are, and its places."""

    #: (B, C), (B, N, C), (B, C, N), (B, C, H, W) or (B, H, W, C)
    shape: Shape
    #: the axis of the channels
    axis: int
    #: a node whose rows and columns the N tokens are, after up to eight others; None for other tensors
    grid: fx.Node | None = None
    #: the axis of the channels of that node
    grid_axis: int = 1
    #: rows and columns of that node
    grid_px: tuple[int, int] | None = None

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.shape[self.axis]

    @property
    def has_map(self) -> bool:
        """False for (B, C), whose units have one value for a picture."""
        return len(self.shape) > 2

    @property
    def map_px(self) -> tuple[int, int]:
        """Rows and columns of the map of a unit, as :func:`as_maps` arranges it."""
        places = [side for axis, side in enumerate(self.shape) if axis not in (0, self.axis)]
        if len(places) == 2:
            return places[0], places[1]
        return self.grid_px or (places[0] if places else 1, 1)


def as_maps(tensor: torch.Tensor, axis: int, grid_px: tuple[int, int] | None) -> torch.Tensor:
    """A tensor with channels on ``axis`` as (B, C, H', W').

    The last ``grid_px`` tokens of (B, N, C) are a map of their own size; class tokens and the like, which are before
    them, are left out. Without ``grid_px`` all tokens are a map of one column. (B, C) is a map of one place.
    """
    maps = tensor.movedim(axis, 1).flatten(2) if tensor.ndim == 3 else tensor.movedim(axis, 1)
    if maps.ndim == 2:
        return maps[:, :, None, None]
    if maps.ndim == 4:
        return maps
    if grid_px is None:
        return maps[..., None]
    rows, columns = grid_px
    return maps[:, :, -rows * columns :].reshape(*maps.shape[:2], rows, columns)


def layout_of(model: nn.Module, graph: fx.Graph, wanted: fx.Node, size_px: tuple[int, int]) -> Layout:
    """The layout of one node for pictures of ``size_px``, (height, width). The model may be on any device.

    Raises UnknownLayer if the tensor has no channels, or if pictures of that size are not accepted.
    """
    if not untraced.is_untraced(graph):
        model = without_values(model)
    for step in propagate(model, graph, size_px):
        if step.node is wanted:
            if step.layout is not None:
                return step.layout
            raise UnknownLayer(f"{wanted} has no axis of channels; choose a tensor of shape (B, C, H, W) or (B, C)")
    raise UnknownLayer(f"the network does not compute {wanted} for pictures of {size_px[0]}x{size_px[1]} px")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One operation of the network."""

    node: fx.Node
    #: None if the tensor has no channels, or the operation returns no tensor
    layout: Layout | None
    #: floating-point operations for one picture; a multiply-add counts as two
    flop: float


def propagate(model: nn.Module, graph: fx.Graph, size_px: tuple[int, int]) -> Iterator[Step]:
    """Every operation in execution order, for pictures of ``size_px``. The model should be on the meta device.

    Ends at the first operation that does not accept pictures of that size. A network that is not traced may need
    values, and so another device; of its operations, those that do not accept such pictures are left out.
    """
    runner = fx.Interpreter(model, graph=graph)
    #: of every tensor that is computed from the picture; None where it is not known
    layouts: dict[fx.Node, Layout | None] = {}
    for node in graph.nodes:
        if node.op == "output":
            return
        if node.op == "placeholder":
            device = next((tensor.device for tensor in model.parameters()), torch.device("meta"))
            shape = (BATCH, tracing.input_channels(graph), *size_px)
            runner.env[node] = torch.zeros(shape, device=device)
            layouts[node] = Layout(shape=shape, axis=1)
            continue
        if any(source not in runner.env for source in node.all_input_nodes):
            continue
        counter = FlopCounterMode(display=False)
        try:
            with counter, torch.no_grad():
                value = runner.env[node] = runner.run_node(node)
        except (RuntimeError, AssertionError, ValueError, TypeError, IndexError, BadNetwork):
            if untraced.is_untraced(graph):
                continue
            return
        layout = None
        sources = [source for source in node.all_input_nodes if source in layouts]
        if sources and isinstance(value, torch.Tensor):
            layout = layouts[node] = _layout(model, node, tuple(value.shape), {one: layouts[one] for one in sources})
        elif sources and isinstance(value, tuple):  # such as attention's values and weights
            layouts[node] = layouts[sources[0]]
        yield Step(node=node, layout=layout, flop=counter.get_total_flops() / BATCH)


def _layout(model: nn.Module, node: fx.Node, shape: Shape, inputs: dict[fx.Node, Layout | None]) -> Layout | None:
    """The layout of a node's output of that shape. It follows that of the first input of the same rank, if any is."""
    known = {source: layout for source, layout in inputs.items() if layout is not None}
    same_rank = [source for source, layout in known.items() if len(layout.shape) == len(shape)]
    source = next(iter(same_rank or known), None)
    before = None if source is None else known[source]
    axis = _axis(model, node, shape, before) if shape and shape[0] == BATCH else None
    if axis is None or len(shape) not in (2, 3, 4):
        return None
    if len(shape) != 3 or before is None:
        return Layout(shape=shape, axis=axis)
    is_map = len(before.shape) == 4
    grid, grid_axis = (source, before.axis) if is_map else (before.grid, before.grid_axis)
    grid_px = before.map_px if is_map else before.grid_px
    tokens = shape[3 - axis]
    if grid_px is None or not 0 <= tokens - grid_px[0] * grid_px[1] <= _MOST_EXTRA_TOKENS:
        return Layout(shape=shape, axis=axis)
    return Layout(shape=shape, axis=axis, grid=grid, grid_axis=grid_axis, grid_px=grid_px)


def _axis(model: nn.Module, node: fx.Node, shape: Shape, before: Layout | None) -> int | None:
    """The axis of the channels in the output of a node, of that shape, whose input has the layout ``before``."""
    if len(shape) == 2:
        return 1
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        if isinstance(module, _CHANNELS_FIRST):
            return 1
        if isinstance(module, _CHANNELS_LAST):
            return len(shape) - 1
    if before is None:
        return None
    rank = len(before.shape)
    if node.target in _PERMUTES:
        given = node.args[1:] if len(node.args) > 2 else (node.args[1] if len(node.args) > 1 else node.kwargs["dims"])
        order = [int(axis) % rank for axis in given]  # type: ignore[union-attr,arg-type]  # the order of axes
        return order.index(before.axis)
    if node.target in _TRANSPOSES and len(node.args) == 3:
        one, other = (int(axis) % rank for axis in node.args[1:])  # type: ignore[arg-type]  # two axes
        return {one: other, other: one}.get(before.axis, before.axis)
    is_flatten = node.op == "call_module" and isinstance(model.get_submodule(str(node.target)), nn.Flatten)
    if node.target in _RESHAPES or is_flatten:
        axis = 1 if before.axis == 1 else len(shape) - 1
        return axis if before.axis in (1, rank - 1) and shape[axis] == before.channels else None
    return before.axis if len(shape) == rank else None
