"""The network of a ``.pt2`` file: its graph of torch's operators, with torch.nn's modules where these are named.

Convolutions, norms, activation functions and poolings become modules under the path that they had when the network was
exported, so that whatever handles other networks handles these. Other operators are called as functions. Only operators
that compute are known: none reads a file, changes a tensor in place or runs code.
"""

import operator
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.func import functional_call

from workers.contract.errors import BadNetwork, BadOption, one_line
from workers.contract.job import Weights, file_sha256
from workers.networks import pt2_files, pt2_modules, pt2_operations, tracer, tracing
from workers.networks.checkpoint import stored_name
from workers.networks.pt2_files import DTYPES, SAVE, bad

#: How addresses of these files begin.
PREFIX = "pt2:"


class Picture(NamedTuple):
    """The input that a program was exported with."""

    channels: int
    #: height and width; None if it takes others
    size_px: tuple[int, int] | None


def load(path: Path) -> fx.GraphModule:
    """The network of a file, in evaluation mode and on the CPU; raises BadNetwork."""
    archive = pt2_files.read(path)
    try:
        return _Builder(path, archive).network()
    except BadNetwork:
        raise
    except Exception as error:  # a program that is not what torch writes may fail anywhere
        raise bad(path, f"cannot be built ({type(error).__name__}: {one_line(error, 100)}); {SAVE}") from error


def choose(address: str, text: str | None) -> tuple[Weights, Path]:
    """The file as the network's weights, for ``--weights text``; raises BadOption if that is given."""
    path = Path(address.removeprefix(PREFIX)).expanduser()
    if text not in (None, "DEFAULT"):
        raise BadOption(f"--network {path.name[:120]} has its own weights; leave out --weights {text[:80]}")
    try:
        return Weights(source="file", name=stored_name(path), sha256=file_sha256(path)), path
    except OSError as error:
        raise bad(path, f"cannot be read: {error.strerror}") from error


def picture(network: nn.Module) -> Picture:
    """The input of a network that ``load`` returned."""
    found: Picture = network.meta["picture"]  # type: ignore[index,assignment]
    return found


class _Builder:
    def __init__(self, path: Path, archive: pt2_files.Archive) -> None:
        self._path = path
        self._program = archive.program["graph_module"]
        self._tensors = self._program["graph"]["tensor_values"]
        self._graph = fx.Graph()
        self._modules = pt2_modules.Modules()
        self._root = self._modules.root
        #: name in the program -> node, and for parameters and constants the tensor under its own name
        self._values: dict[str, Any] = {}
        self._stored: dict[str, tuple[str, torch.Tensor]] = {}
        self._read: dict[str, fx.Node] = {}
        #: nodes that are computed from the picture
        self._computed: set[fx.Node] = set()
        self._input = self._inputs({**archive.constants, **archive.weights})
        self._batch, self._picture = self._described()

    def network(self) -> fx.GraphModule:
        pictures = self._graph.placeholder("pictures")
        pictures.meta[tracing.CHANNELS] = self._picture.channels
        self._pictures = self._values[self._input] = pictures
        self._computed.add(pictures)
        for entry in self._program["graph"]["nodes"]:
            self._add(entry)
        outputs = [
            self._values[spec["user_output"]["arg"]["as_tensor"]["name"]]
            for spec in self._program["signature"]["output_specs"]
            if "user_output" in spec and "as_tensor" in spec["user_output"]["arg"]
        ]
        if not outputs or not all(output in self._computed for output in outputs):
            raise bad(self._path, f"computes nothing from its picture; {SAVE}")
        self._graph.output(outputs[0] if len(outputs) == 1 else tuple(outputs))
        network = fx.GraphModule(self._root, self._graph, "ExportedNetwork")
        network.graph.eliminate_dead_code()
        network.recompile()
        network.meta.update({tracer.MODULE_PATH: "", "picture": self._picture})
        network.eval().requires_grad_(False)
        self._check(network)
        return network

    def _inputs(self, tensors: dict[str, torch.Tensor]) -> str:
        """Remember parameters and constants, and return the name of the one input that is neither."""
        pictures = []
        for spec in self._program["signature"]["input_specs"]:
            ((kind, content),) = spec.items()
            if kind == "user_input":
                argument = content["arg"]
                pictures.append(argument.get("as_tensor", {}).get("name"))
            elif kind in {"parameter", "buffer", "tensor_constant"}:
                name = content[f"{kind}_name"]
                if not pt2_operations.SAFE.fullmatch(name):
                    raise bad(self._path, f"has a tensor of the name {name[:60]!r}; letters, digits, _ and . are read")
                self._stored[content["arg"]["name"]] = name, tensors[name]
            else:
                raise bad(self._path, f"has an input of the kind {kind[:40]!r}, which is not read; {SAVE}")
        if len(pictures) != 1 or pictures[0] is None:
            raise bad(self._path, f"takes {len(pictures)} inputs; export a network that takes one tensor of pictures")
        return str(pictures[0])

    def _described(self) -> tuple[int | None, Picture]:
        meta = self._tensors[self._input]
        sizes = [size.get("as_int") for size in meta["sizes"]]
        dtype = DTYPES.get(meta["dtype"])
        if len(sizes) != 4 or dtype is None or not dtype.is_floating_point or type(sizes[1]) is not int:
            shape = "x".join("?" if size is None else str(size) for size in sizes)
            kind = str(dtype).removeprefix("torch.")
            raise bad(
                self._path,
                f"takes {kind} tensors of {shape}; export a network that takes floating-point pictures of batch x "
                "channels x height x width",
            )
        batch, channels, height, width = sizes
        size_px = (height, width) if type(height) is int and type(width) is int else None
        return batch, Picture(channels, size_px)

    def _check(self, network: fx.GraphModule) -> None:
        """Raise BadNetwork unless the network computes two pictures at once."""
        size = self._picture.size_px or (224, 224)
        tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        shapes = {name: tensor.to("meta") for name, tensor in tensors.items()}
        try:
            with torch.device("meta"), torch.no_grad():
                output = functional_call(network, shapes, (torch.zeros(2, self._picture.channels, *size),))
            first = output if isinstance(output, torch.Tensor) else output[0]
            if first.shape[0] != 2:
                raise ValueError(f"the output is of shape {tuple(first.shape)}")
        except Exception as error:  # whatever an operator raises
            raise bad(
                self._path,
                f"does not compute two pictures at once ({one_line(error, 80)}); export it with two pictures and "
                "dynamic_shapes=({0: torch.export.Dim('batch')},)",
            ) from error

    def _add(self, entry: dict[str, Any]) -> None:
        target, outputs = str(entry["target"]), entry["outputs"]
        if target in pt2_operations.SIZES:
            node = self._call(
                pt2_operations.SIZES[target], tuple(self._argument(one["arg"]) for one in entry["inputs"]), {}, "size"
            )
            return self._keep(node, outputs)
        match = re.fullmatch(r"torch\.ops\.aten\.(\w+)\.(\w+)", target, re.ASCII)
        if match is None:
            raise bad(self._path, f"calls {target[:80]}, and torch's aten operators are read; {SAVE}")
        name, overload = match.groups()
        if name.startswith(pt2_operations.CHECKS):
            return None
        arguments = {one["name"]: self._argument(one["arg"]) for one in entry["inputs"]}
        if name == "sym_size":
            x, dim = arguments.values()
            return self._keep(self._graph.call_method("size", (x, dim)), outputs)
        in_place = name.endswith("_")
        name = name.rstrip("_")
        if name.lstrip("_") not in pt2_operations.OPERATORS or overload.endswith("out"):
            raise bad(self._path, f"calls aten.{name[:60]}, which is not known; export a network without it")
        path = pt2_operations.module_path(entry)
        made = self._modules.make(name, arguments, path, self._stored_of(entry))
        if made is not None:
            node = self._graph.call_module(made, (next(iter(arguments.values())),))
            node.name = self._graph._graph_namespace.create_name(name, node)
        else:
            node = self._function(name, overload, entry, arguments)
        node.meta[tracer.MODULE_PATH] = path
        self._keep(node, outputs)
        if in_place:
            # The program goes on with the changed tensor under its old name.
            self._values[entry["inputs"][0]["arg"]["as_tensor"]["name"]] = node
        return None

    def _function(self, name: str, overload: str, entry: dict[str, Any], arguments: dict[str, Any]) -> fx.Node:
        keywords = {one["name"] for one in entry["inputs"] if one["kind"] == 2}
        given = [value for key, value in arguments.items() if key not in keywords]
        named = {
            key: value
            for key, value in arguments.items()
            if key in keywords and key not in pt2_operations.PLACES and key.isidentifier()
        }
        if name in {"view", "reshape", "_unsafe_view", "expand"}:
            given[1] = self._shape(entry, given)
        function = pt2_operations.FUNCTIONS.get(f"{name}.{overload}")
        if function is None or named:
            function = getattr(getattr(torch.ops.aten, name), overload)
        return self._call(
            function, tuple(map(self._as_node, given)), {k: self._as_node(v) for k, v in named.items()}, name
        )

    def _shape(self, entry: dict[str, Any], given: list[Any]) -> list[Any]:
        """The new shape of a reshaping, with the number of pictures for what was that number in the export."""
        x, shape = given[0], list(given[1])
        before = self._tensors[entry["inputs"][0]["arg"]["as_tensor"]["name"]]["sizes"][0].get("as_int")
        is_of_pictures = entry["target"].endswith("expand.default") or (isinstance(x, fx.Node) and x in self._computed)
        if is_of_pictures and self._batch is not None and shape[:1] == [before] == [self._batch]:
            shape[0] = self._graph.call_method("size", (self._pictures, 0))
        return shape

    def _call(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> fx.Node:
        return self._graph.create_node("call_function", function, args, kwargs, name=name)

    def _keep(self, node: fx.Node, outputs: list[dict[str, Any]]) -> None:
        if not self._computed.isdisjoint(node.all_input_nodes):
            self._computed.add(node)
        names = [name for output in outputs for name in pt2_operations.names_in(output)]
        several = len(outputs) > 1 or any("as_tensors" in output for output in outputs)
        for place, name in enumerate(names):
            self._values[name] = node
            if several:
                part = self._values[name] = self._call(operator.getitem, (node, place), {}, "getitem")
                part.meta[tracer.MODULE_PATH] = node.meta.get(tracer.MODULE_PATH, "")
                if node in self._computed:
                    self._computed.add(part)

    def _stored_of(self, entry: dict[str, Any]) -> dict[str, tuple[str, torch.Tensor]]:
        """Argument -> name and values of the parameter or constant that it is."""
        names = {one["name"]: one["arg"].get("as_tensor", {}).get("name") for one in entry["inputs"]}
        return {argument: self._stored[name] for argument, name in names.items() if name in self._stored}

    def _argument(self, argument: dict[str, Any]) -> Any:
        return pt2_operations.value_of(argument, lambda name: self._values.get(name, _Stored(name)))

    def _as_node(self, value: Any) -> Any:
        """An argument with nodes for stored tensors, which are read only where no module holds them."""
        if isinstance(value, list):
            return [self._as_node(one) for one in value]
        if not isinstance(value, _Stored):
            return value
        if value.name not in self._read:
            name, tensor = self._stored[value.name]
            attribute = f"stored_{len(self._read)}_{name.replace('.', '_')}"
            self._root.register_buffer(attribute, tensor)
            self._read[value.name] = self._graph.get_attr(attribute)
        return self._read[value.name]


class _Stored(NamedTuple):
    """A parameter or constant as an argument."""

    name: str
