"""Records a network's operations with torch.fx. Where its code asks for a size, the size of a sample picture decides.

torch.fx passes placeholders through the network's code. Many networks branch on the size of a tensor, such as those
that pad it to a multiple of their window, and a placeholder is neither true nor false. Here such a question is answered
by a run without values, on the meta device, of the operations so far. The graph then holds an assertion of the answer,
so that it accepts no picture for which the network's code would have run otherwise.

A question about values, such as whether a sum is positive, has no answer: torch.fx.TraceError.
"""

import copy
import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

#: Key of a node's metadata: path of the module whose code calls the operation, "" for the network itself.
MODULE_PATH = "module_path"

#: Pictures in the batch of a run without values. With one, a parameter or a window could be taken for the batch.
BATCH = 2

_OTHER_BATCH = 3


class Tracer(fx.Tracer):
    """Traces a network in evaluation mode for pictures of ``channels`` channels and about ``size_px``.

    Leaves of the trace are torch.nn's own modules and every subclass of a convolution. Raises whatever the network's
    code raises when it meets placeholders.
    """

    def __init__(self, channels: int, size_px: tuple[int, int]) -> None:
        super().__init__()
        self._picture_shape = channels, *size_px
        self._run: _Run | None = None

    @property
    def asked(self) -> bool:
        """True if the network's code asked for a size."""
        return self._run is not None

    def trace(self, root: Any, concrete_args: Any = None) -> fx.Graph:
        """The operations in execution order."""
        graph = super().trace(root, concrete_args)
        for argument in [node for node in graph.nodes if node.op == "placeholder"][1:]:
            if not argument.users:
                graph.erase_node(argument)
        if self.asked:
            # What was answered may be the number of pictures.
            self._start(_OTHER_BATCH).to_the_end()
        return graph

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        """Leave other arguments than the picture, such as a mask of attention, at their defaults."""
        function, arguments = super().create_args_for_root(root_fn, is_module, concrete_args)
        return function, (arguments[:2] if function is root_fn else arguments)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Note the module whose code calls the operation."""
        node = super().create_node(*args, **kwargs)
        node.meta[MODULE_PATH] = self.scope.module_path
        return node

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Also True for timm's convolutions, which pad by control flow."""
        return isinstance(m, _ConvNd) or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> "_Placeholder":
        """The placeholder of a node's value."""
        return _Placeholder(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Whether a value is true for the sample picture; asserted in the graph."""
        answer = bool(self.value(obj))
        self._assert(operator.truth if answer else operator.not_, obj)
        return answer

    def to_int(self, obj: fx.Proxy) -> int:
        """A number for the sample picture; asserted in the graph."""
        answer = int(self.value(obj))
        self._assert(operator.eq, obj, answer)
        return answer

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """The parts of a value, of which there are as many as for the sample picture."""
        return iter([operator.getitem(obj, place) for place in range(self.length(obj))])

    def length(self, obj: fx.Proxy) -> int:
        """The length of a value for the sample picture; asserted in the graph."""
        answer = len(self.value(obj))
        self._assert(operator.eq, self.create_proxy("call_function", len, (obj,), {}), answer)
        return answer

    def value(self, obj: fx.Proxy) -> Any:
        """A value for the sample picture. Raises fx.proxy.TraceError if it is a tensor, whose content is not known."""
        if self._run is None:
            self._without_values = without_values(self.root)
            self._run = self._start(BATCH)
        found = self._run.value(obj.node)
        if isinstance(found, torch.Tensor) and found.ndim == 0:
            raise fx.proxy.TraceError("the network's control flow depends on values")
        return found

    def _start(self, pictures: int) -> "_Run":
        interpreter = _Interpreter(self._without_values, self.graph, self.root)
        return _Run(interpreter, (pictures, *self._picture_shape))

    def _assert(self, condition: Any, *arguments: Any) -> None:
        holds = self.create_proxy("call_function", condition, arguments, {})
        self.create_proxy("call_function", torch._assert, (holds, "the network does otherwise at this size"), {})


class _Placeholder(fx.Proxy):
    """A placeholder that is a number, or of a length, where Python needs one."""

    tracer: Tracer

    def __getattr__(self, name: str) -> "_Attribute":
        return _Attribute(self, name)

    def __int__(self) -> int:
        return self.tracer.to_int(self)

    __index__ = __int__

    def __len__(self) -> int:
        return self.tracer.length(self)


class _Attribute(_Placeholder, fx.proxy.Attribute):
    """An attribute or a method of a placeholder, such as a shape."""


class _Interpreter(fx.Interpreter):
    """Runs modules although torch.fx has replaced ``nn.Module.__call__`` while it traces."""

    def __init__(self, model: nn.Module, graph: fx.Graph, traced: nn.Module) -> None:
        super().__init__(model, graph=graph)
        self._traced = traced

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        try:
            return super().get_attr(target, args, kwargs)
        except RuntimeError:  # a constant, which tracing has added to the network since it was copied
            return operator.attrgetter(target)(self._traced).detach().to("meta")

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self.fetch_attr(target).forward(*args, **kwargs)


class _Run:
    """A run of a graph without values, which goes as far as it is asked."""

    def __init__(self, interpreter: _Interpreter, shape: tuple[int, ...]) -> None:
        self._interpreter, self._graph, self._shape = interpreter, interpreter.graph, shape

    def value(self, wanted: fx.Node) -> Any:
        """The value of a node; a tensor on the meta device."""
        environment = self._interpreter.env
        for node in self._graph.nodes:
            if wanted in environment:
                break
            if node in environment or node.op == "output":
                continue
            if node.op == "placeholder":
                environment[node] = torch.zeros(self._shape, device="meta")
                continue
            with torch.no_grad(), torch.device("meta"):
                environment[node] = self._interpreter.run_node(node)
        return environment[wanted]

    def to_the_end(self) -> None:
        """Run all operations. Raises what they raise."""
        (output,) = (node for node in self._graph.nodes if node.op == "output")
        for node in output.all_input_nodes:
            self.value(node)


def without_values(model: nn.Module) -> nn.Module:
    """A copy whose tensors are on the meta device, where they have shapes but no values."""
    own = [tensor for module in model.modules() for tensor in vars(module).values() if isinstance(tensor, torch.Tensor)]
    # Other objects than the network's own, also where those are on the meta device: torch.fx knows its parameters.
    tensors = {id(tensor): tensor.detach().to("meta") for tensor in (*model.parameters(), *model.buffers(), *own)}
    return copy.deepcopy(model, tensors)
