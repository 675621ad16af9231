"""Parts of a traced network as modules of their own, which share its parameters."""

from torch import fx, nn


def subgraph(model: nn.Module, graph: fx.Graph, upto: fx.Node, beside: fx.Node | None = None) -> fx.GraphModule:
    """The operations that node ``upto`` depends on and ``upto`` itself: network input to the output of ``upto``.

    With ``beside``, to the outputs of both nodes.
    """
    ends = [upto] if beside is None else [upto, beside]
    needed, todo = set(ends), list(ends)
    while todo:
        for source in todo.pop().all_input_nodes:
            if source not in needed:
                needed.add(source)
                todo.append(source)
    part = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node in needed:
            copies[node] = part.node_copy(node, copies.__getitem__)
    part.output(copies[upto] if beside is None else tuple(copies[end] for end in ends))
    return fx.GraphModule(model, part)


def part(model: nn.Module, chain: list[fx.Node]) -> nn.Module:
    """The operations after the first node of a chain, as a module: output of the first node to that of the last."""
    if len(chain) == 1:
        return nn.Identity()
    part = fx.Graph()
    copies = {chain[0]: part.placeholder("maps")}
    for node in chain[1:]:
        for source in node.all_input_nodes:
            if source not in copies and source.op == "get_attr":
                copies[source] = part.node_copy(source)
        copies[node] = part.node_copy(node, copies.__getitem__)
    part.output(copies[chain[-1]])
    return fx.GraphModule(model, part)
