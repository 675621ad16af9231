"""Names and kinds of the tensors of a traced network, whose channels are units.

Names are those of torchvision's feature extraction: the module's path, and for other operations the path of the module
that calls it with the operation's name (``layer1.0.add``, ``inception4a.cat``). Repeats end in ``_1``, ``_2``.
``logits`` names the output of the network.
"""

import operator
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import fx, nn

from workers.contract.errors import UnknownLayer
from workers.contract.job import Kind
from workers.contract.keys import is_name
from workers.networks import tracing
from workers.networks.tracer import MODULE_PATH

LOGITS = "logits"

#: Operations that join the outputs of several branches.
_JOINS = {operator.add, operator.iadd, torch.add, torch.cat, torch.concat, "add", "add_"}


class Unit(NamedTuple):
    """A tensor whose channels may be units."""

    node: fx.Node
    kind: Kind


def named(model: nn.Module, graph: fx.Graph) -> dict[str, Unit]:
    """Name -> tensor, in execution order. The network's output is named ``logits``, unless it is a convolution.

    A convolution's name is that of its module, as in :func:`tracing.convolutions`.
    """
    convolutions = tracing.convolutions(model, graph)
    output = logits(graph)
    if output in convolutions.values():
        output = None
    found = {LOGITS if node is output else name: node for name, node in _names(graph)}
    return {
        name: Unit(node, "conv" if name in convolutions else _kind(model, name, node))
        for name, node in found.items()
        if name in convolutions or is_name(name)
    }


def own_name(graph: fx.Graph, wanted: fx.Node) -> str:
    """The name of a node, also of the one that is called ``logits``."""
    return next(name for name, node in _names(graph) if node is wanted)


def logits(graph: fx.Graph) -> fx.Node | None:
    """The node that the network returns; None if it returns several."""
    (output,) = (node for node in graph.nodes if node.op == "output")
    returned = output.args[0]
    return returned if isinstance(returned, fx.Node) and returned.op.startswith("call_") else None


def find(model: nn.Module, graph: fx.Graph, name: str) -> Unit:
    """The tensor of that name. Raises UnknownLayer."""
    unit = named(model, graph).get(name)
    if unit is None:
        raise UnknownLayer(f"no layer {name!r} in this network; 'filterfarm layers MODEL --kind all' lists them")
    return unit


def _kind(model: nn.Module, name: str, node: fx.Node) -> Kind:
    if name == LOGITS:
        return "logits"
    if tracing.is_module(model, node, (nn.Linear,)):
        return "linear"
    joined = node.all_input_nodes[0] if tracing.is_activation(model, node) else node
    return "block" if _joins(joined) else "other"


def _joins(node: fx.Node) -> bool:
    """True if the node adds or concatenates at least two tensors that are computed from the picture."""
    computed = [source for source in node.all_input_nodes if source.op.startswith("call_")]
    return node.op in {"call_function", "call_method"} and node.target in _JOINS and len(computed) > 1


def _names(graph: fx.Graph) -> Iterator[tuple[str, fx.Node]]:
    counts: Counter[str] = Counter()
    for node in graph.nodes:
        if node.op == "output":
            continue
        if node.op == "call_module":
            name = str(node.target)
        else:
            # fx numbers the operations of the whole graph; the name counts those of one module.
            operation, module = re.sub(r"_[0-9]+$", "", node.name), node.meta.get(MODULE_PATH, "")
            name = f"{module}.{operation}" if module else operation
        counts[name] += 1
        if node.op.startswith("call_"):
            yield (name if counts[name] == 1 else f"{name}_{counts[name] - 1}"), node
