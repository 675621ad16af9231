"""Networks that torch.fx cannot trace, such as those whose control flow depends on values.

Their graph has a node for each convolution and linear layer, which reads the input of that layer from a run of the
whole network. The run ends at the layer: a hook raises an exception there. Everything that cuts a traced network at a
layer works for such a graph. What it does not know: sums and concatenations, and the norm and activation function after
a layer, except in an ``nn.Sequential``, which calls its parts in their order.
"""

from typing import Any

import torch
from torch import fx, nn

from workers.contract.errors import BadNetwork

#: Names of the modules that are added to the network. The first is no valid name of a layer.
_INPUTS, _OUTPUT = "<inputs>", "network_output"

#: The layers that are found.
_KINDS = (nn.Conv2d, nn.Linear)


class _Reached(BaseException):
    """Raised by the hook, and no Exception: the network's own handlers must not catch it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        super().__init__()
        self.tensor = tensor


class _Run(nn.Module):
    """Runs the network up to the input of one layer, or whole. The network is not a child of this module."""

    def __init__(self, network: nn.Module, layer: str = "") -> None:
        super().__init__()
        self._network, self._layer = (network,), layer

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to the layer's input, or the network's output, in the dtype of the pictures."""
        (network,) = self._network
        dtype = next((tensor.dtype for tensor in network.parameters()), pictures.dtype)
        if not self._layer:
            output: torch.Tensor = network(pictures.to(dtype))
            return output.to(pictures.dtype) if isinstance(output, torch.Tensor) else output
        handle = network.get_submodule(self._layer).register_forward_pre_hook(_stop)
        try:
            network(pictures.to(dtype))
        except _Reached as reached:
            return reached.tensor.to(pictures.dtype)
        finally:
            handle.remove()
        size = "x".join(map(str, pictures.shape[-2:]))
        raise BadNetwork(f"layer {self._layer!r} never runs for pictures of {size} px; choose another layer")


def _stop(_: nn.Module, inputs: tuple[Any, ...]) -> None:
    raise _Reached(inputs[0])


def graph_of(model: nn.Module) -> fx.Graph:
    """The graph of a network that is not traced, which adds modules without parameters to the network."""
    graph = fx.Graph()
    pictures = graph.placeholder("pictures")
    layers = {name: module for name, module in model.named_modules() if isinstance(module, _KINDS)}
    runs = nn.Module()
    for number, name in enumerate(layers):
        runs.add_module(str(number), _Run(model, name))
        layer = graph.call_module(name, (graph.call_module(f"{_INPUTS}.{number}", (pictures,)),))
        for following in _following(model, name):
            layer = graph.call_module(following, (layer,))
    whole = graph.call_module(_OUTPUT, (pictures,))
    graph.output(whole)
    model.add_module(_INPUTS, runs)
    model.add_module(_OUTPUT, _Run(model))
    return graph


def is_untraced(graph: fx.Graph) -> bool:
    """True if ``graph_of`` made the graph."""
    return any(node.op == "call_module" and node.target == _OUTPUT for node in graph.nodes)


def _following(model: nn.Module, name: str) -> list[str]:
    """Names of the modules after a layer in its ``nn.Sequential`` that are no layers and have no children."""
    parent, _, own = name.rpartition(".")
    container = model.get_submodule(parent)
    if type(container) is not nn.Sequential:
        return []
    children = list(container.named_children())
    found = []
    for child, module in children[[key for key, _ in children].index(own) + 1 :]:
        if isinstance(module, _KINDS) or any(True for _ in module.children()):
            break
        found.append(f"{parent}.{child}" if parent else child)
    return found
