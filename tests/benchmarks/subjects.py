"""The subjects that the speed benchmark compares. Each runs in its own process, which measures on request.

``python -m tests.benchmarks.subjects NAME`` answers each line of JSON on its standard input by one on its standard
output. Only one process measures at a time, and they alternate, so that noise of the machine affects all alike.

    ours     the engine as the render process runs it: tuned process, layer extractors, batches
    plain    the graph cut at the layer, no weight gradients, one picture at a time, nothing tuned
    lucent   the whole network forward, backward with weight gradients, one picture at a time, nothing tuned
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from workers.contract.recipe import Recipe
from workers.networks import devices, process_tuning, registry, tracing, weights
from workers.networks.fusion import FusedConvolutions
from workers.networks.layer_extractor import LayerExtractor
from workers.networks.subgraphs import subgraph
from workers.rendering.optimization import rms
from workers.rendering.render import render_layer
from workers.runtime import render_child

#: Pictures (B, 3, H, W) -> the mean of each one's own map, (B,).
Forward = Callable[[torch.Tensor], torch.Tensor]

#: Seconds over which the rate of a convolution is measured, about as long as a step. A shared machine may be twice as
#: fast for the time of one convolution, but not for that of a step.
_PEAK_S = 0.5

#: 3 x 3 convolutions of which the fastest is the peak: channels, and side of the map in pixels.
_PEAK_SHAPES = ((64, 150), (128, 75), (256, 37), (512, 18))


class Subject:
    """One such process, from the side of the benchmark."""

    def __init__(self, name: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.subjects", name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, **(render_child.ENVIRONMENT if name == "ours" else {})},
        )  # fmt: skip

    def ask(self, what: str, **how: Any) -> Any:
        """The answer of the process. Raises RuntimeError if the process has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({"what": what, **how}), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the process of the benchmark's subject ended with code {self._process.wait()}")
        return json.loads(answer)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


class Networks:
    """Keeps the last requested network, with random parameters, which take the same time as trained ones."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._last: tuple[str, nn.Module, Any, FusedConvolutions] | None = None
        self.device = torch.device(devices.available()[0])

    def get(self, model: str) -> tuple[nn.Module, Any, FusedConvolutions]:
        if self._last is None or self._last[0] != model:
            network = registry.build(model, seed=0).to(self.device).requires_grad_(self._name == "lucent")
            if self._name == "ours":
                network = network.to(memory_format=torch.channels_last)
            self._last = model, network, tracing.trace(network), FusedConvolutions()
        return self._last[1:]


def forward_of(name: str, networks: Networks, ask: dict[str, Any]) -> Forward:
    """The mean map of a subject, for the request's model and layer."""
    network, trace, kernels = networks.get(ask["model"])
    if name == "ours":
        chosen = devices.precision(ask["precision"], networks.device)
        tap = LayerExtractor(network, trace, ask["layer"], "activation", chosen, kernels)
        sliced = tap.slice(torch.arange(ask["batch"], device=networks.device) % tap.channels)
        return lambda pictures: sliced(pictures).mean(dim=(1, 2))
    chain = tracing.tapped(network, tracing.find(network, trace, ask["layer"]), "activation")
    if name == "plain":
        cut = subgraph(network, trace, upto=chain[-1])
        return lambda pictures: cut(pictures)[:, 0].mean(dim=(1, 2))
    whole = torch.fx.GraphModule(network, _keeping(trace, chain[-1]))

    def forward(pictures: torch.Tensor) -> torch.Tensor:
        kept, _ = whole(pictures)
        return kept[:, 0].mean(dim=(1, 2))  # type: ignore[no-any-return]

    return forward


def _keeping(trace: torch.fx.Graph, kept: torch.fx.Node) -> torch.fx.Graph:
    """The whole network; returns the output of ``kept`` (a copy, because later layers may overwrite it) and its own."""
    both = torch.fx.Graph()
    places: dict[torch.fx.Node, torch.fx.Node] = {}
    copy = None
    for node in trace.nodes:
        if node.op == "output":
            both.output((copy, places[node.all_input_nodes[0]]))
            return both
        places[node] = both.node_copy(node, places.__getitem__)
        if node is kept:
            copy = both.call_method("clone", (places[node],))
    raise ValueError("a network without an output")


def step_of(name: str, networks: Networks, ask: dict[str, Any]) -> Callable[[], None]:
    """One gradient step of a subject on pictures of its own, ``batch`` of the request at once."""
    forward = forward_of(name, networks, ask)
    pictures = torch.rand(ask["batch"], 3, ask["size"], ask["size"], device=networks.device) * 20 + 128
    if name == "ours":
        pictures = pictures.contiguous(memory_format=torch.channels_last)
    parameters = [p for p in networks.get(ask["model"])[0].parameters() if p.requires_grad]

    def step() -> None:
        variable = pictures.detach().requires_grad_(True)
        # Computes the gradients of all leaves that require one; for "lucent" these include the weights.
        torch.autograd.backward(forward(variable).sum())
        gradient = variable.grad
        assert gradient is not None
        pictures.addcdiv_(gradient, rms(gradient) + 1e-5)
        for parameter in parameters:
            parameter.grad = None

    return step


def steps(name: str, networks: Networks, ask: dict[str, Any]) -> list[float]:
    """Seconds of some gradient steps, per tile."""
    batch = ask["batch"] if name == "ours" else 1
    step = step_of(name, networks, {**ask, "batch": batch})
    taken: list[float] = []
    while len(taken) < 2 or (len(taken) < ask["steps"] and sum(taken) * batch < ask["seconds"]):
        began = time.perf_counter()
        step()
        if networks.device.type == "cuda":
            torch.cuda.synchronize()
        taken.append((time.perf_counter() - began) / batch)
    return taken[1:]  # the first one warms up


def peak(networks: Networks, ask: dict[str, Any]) -> list[float]:
    """GFLOP/s of single convolutions, forward and backward to the input, in the requested precision.

    ``shapes`` and ``seconds`` of the request replace those above.
    """
    dtype = torch.bfloat16 if ask["precision"] == "bf16" else torch.float32
    rates = []
    for channels, size in ask.get("shapes", _PEAK_SHAPES):
        for batch in ask.get("batches", (4, 8, 16)):
            x, weight = (
                torch.randn(shape, device=networks.device, dtype=dtype)
                .contiguous(memory_format=torch.channels_last)
                for shape in ((batch, channels, size, size), (channels, channels, 3, 3))
            )  # fmt: skip
            taken: list[float] = []
            while len(taken) < 2 or sum(taken[1:]) < ask.get("seconds", _PEAK_S):
                began = time.perf_counter()
                variable = x.requires_grad_(True)
                maps = F.conv2d(variable, weight, padding=1)
                torch.autograd.grad(maps, variable, maps.detach())
                if networks.device.type == "cuda":
                    torch.cuda.synchronize()
                taken.append(time.perf_counter() - began)
            seconds = sum(taken[1:]) / (len(taken) - 1)  # the first one warms up
            rates.append(4e-9 * batch * channels * channels * 9 * size * size / seconds)
    return rates


def _tiles(networks: Networks, ask: dict[str, Any]) -> dict[str, Any]:
    """Tiles rendered by the function that a worker calls: seconds, and the activation of each live tile, in fp32."""
    network, trace, kernels = networks.get(ask["model"])
    if ask["trained"]:
        chosen, file = weights.choose(ask["model"], None)
        network = weights.load(ask["model"], chosen, file, seed=0).to(networks.device)
        network = network.to(memory_format=torch.channels_last)
        trace, kernels = tracing.trace(network), FusedConvolutions()
    recipe = Recipe.model_validate_json(json.dumps(ask["recipe"]))
    chosen_precision = devices.precision(recipe.precision, networks.device)
    answer: dict[str, Any] = {"activations": {}, "seconds": 0.0}
    for layer in ask["layers"]:
        tap = LayerExtractor(network, trace, layer, recipe.tap, chosen_precision, kernels)
        if ask["warm"]:
            quick = recipe.model_copy(update={"steps": 1})
            render_layer(tap, layer, list(range(ask["batch"])), quick, networks.device)
        began = time.perf_counter()
        for first in range(0, ask["filters"], ask["batch"]):
            filters = [f for f in range(first, min(first + ask["batch"], ask["filters"])) if f < tap.channels]
            tiles = render_layer(tap, layer, filters, recipe, networks.device)
            live = {tile.filter: tile.activation for tile in tiles if tile.status == "live"}
            answer["activations"].setdefault(layer, {}).update(live)
        answer["seconds"] += time.perf_counter() - began
    return answer


def main() -> None:
    """Answer until the standard input ends."""
    name = sys.argv[1]
    if name == "ours":
        process_tuning.tune()
    networks = Networks(name)
    for line in sys.stdin:
        ask = json.loads(line)
        answers: dict[str, Callable[[dict[str, Any]], Any]] = {
            "steps": lambda a: steps(name, networks, a),
            "peak": lambda a: peak(networks, a),
            "tiles": lambda a: _tiles(networks, a),
            "device": lambda _: devices.describe(networks.device),
            "precision": lambda _: devices.precision("auto", networks.device),
        }
        print(json.dumps(answers[ask["what"]](ask)), flush=True)


if __name__ == "__main__":
    main()
