"""What runs before a layer computes what the network does, in fewer operations, and leaves the network alone."""

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from workers.contract.records import Precision
from workers.networks import registry, tracing
from workers.networks.fusion import FusedConvolutions
from workers.networks.subgraphs import subgraph
from workers.networks.tracing import is_norm


class Knotted(nn.Module):
    """Every way a norm may and may not stand behind a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.plain_norm = nn.BatchNorm2d(8)
        self.bare_norm = nn.BatchNorm2d(8, affine=False)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.functional_norm = nn.BatchNorm2d(8)
        self.read_twice = nn.Conv2d(8, 8, 1)
        self.its_norm = nn.BatchNorm2d(8)
        self.runs_twice = nn.Conv2d(8, 8, 1)
        self.first_norm = nn.BatchNorm2d(8)
        self.second_norm = nn.BatchNorm2d(8)
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bare_norm(self.plain_norm(self.plain(x))))
        norm = self.functional_norm
        x = F.batch_norm(self.grouped(x), norm.running_mean, norm.running_var, norm.weight, bias=norm.bias, eps=0.1)
        y = self.read_twice(x)
        x = y + self.its_norm(y)
        x = self.second_norm(self.runs_twice(F.relu(self.first_norm(self.runs_twice(x)))))
        return self.last(x)  # type: ignore[no-any-return]


def knotted() -> Knotted:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = Knotted().eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                    if tensor is not None:
                        tensor.data.uniform_(0.5, 1.5)
    return model.requires_grad_(False)


def whole(model: nn.Module) -> fx.GraphModule:
    trace = tracing.trace(model)
    (end,) = next(node for node in trace.nodes if node.op == "output").all_input_nodes
    return subgraph(model, trace, upto=end)


def norms(upstream: fx.GraphModule) -> int:
    return sum(is_norm(upstream, node) for node in upstream.graph.nodes)


def test_folded_equals_unfolded_whatever_the_norms_stand_behind() -> None:
    # Given
    model = knotted()
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    upstream = whole(model)
    assert norms(upstream) == 6
    # When
    fast = FusedConvolutions().optimize(upstream, "fp32")
    # Then the norm of a convolution's only reader is gone, of a module and of a function, and no other
    assert norms(fast) == 4
    torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)


def test_folding_leaves_the_network_and_its_modules_unchanged() -> None:
    # Given
    model = knotted()
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    upstream, before = whole(model), model(x)
    # When
    FusedConvolutions().optimize(upstream, "fp32")
    FusedConvolutions().optimize(upstream, "bf16")
    # Then
    assert torch.equal(model(x), before)
    assert torch.equal(upstream(x), before)
    assert all(tensor.dtype == torch.float32 for tensor in model.parameters())


def test_in_bf16_every_tensor_is_bf16() -> None:
    # Given
    model = knotted()
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    # When
    half = FusedConvolutions().optimize(whole(model), "bf16")
    answer = half(x.bfloat16())
    # Then
    assert answer.dtype == torch.bfloat16
    torch.testing.assert_close(answer.float(), model(x), rtol=0.1, atol=0.1)


def test_no_gradient_of_any_parameter_is_computed() -> None:
    # Given
    model = knotted()
    fast = FusedConvolutions().optimize(whole(model), "fp32")
    x = torch.randn(1, 3, 8, 8, requires_grad=True)
    # When
    fast(x).sum().backward()
    # Then
    assert x.grad is not None
    assert not any(parameter.requires_grad for parameter in fast.parameters())
    assert all(parameter.grad is None for parameter in [*model.parameters(), *fast.parameters()])


def test_layer_extractors_of_one_network_share_their_fused_convolutions() -> None:
    # Given
    model = normed()
    fused = FusedConvolutions()
    # When
    first, second = (fused.optimize(whole(model), "fp32") for _ in range(2))
    # Then
    for name in ("0", "2"):
        assert first.get_submodule(name) is second.get_submodule(name)
    assert first.get_submodule("0") is not model.get_submodule("0")


def normed() -> nn.Module:
    """A convolution with its batch-norm, and one that can be compiled; seeded and frozen."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Conv2d(3, 128, 1), nn.BatchNorm2d(128), nn.Conv2d(128, 128, 3))
    return model.eval().requires_grad_(False)


def pooled() -> nn.Module:
    """Convolutions with ReLUs and poolings behind them: one of each kind that goes together, and one read twice."""

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(32, 32, 3, padding=1)
            self.norm = nn.BatchNorm2d(32)
            self.second = nn.Conv2d(32, 32, 3, padding=1)
            self.pool = nn.MaxPool2d(2)
            self.read_twice = nn.Conv2d(32, 32, 3, padding=1)
            self.meeting = nn.MaxPool2d(3, 1, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = F.relu6(self.norm(self.first(x)))
            x = self.pool(torch.relu_(self.second(x)))
            y = self.read_twice(x)
            return self.meeting(F.relu(y)) + y  # type: ignore[no-any-return]

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return Pooled().eval().requires_grad_(False)


def test_extractors_share_weights_in_bf16() -> None:
    # Given
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3, stride=2)).requires_grad_(False)
    fused = FusedConvolutions()
    # When
    first, second = (fused.optimize(whole(model), "bf16") for _ in range(2))
    # Then
    assert first.get_submodule("2") is second.get_submodule("2")
    assert first.get_submodule("2").weight.dtype == torch.bfloat16


def test_in_bf16_torch_convolves() -> None:
    # Given
    model = pooled()
    x = torch.randn(2, 32, 8, 8, generator=torch.Generator().manual_seed(0))
    # When
    half = FusedConvolutions().optimize(whole(model), "bf16")
    # Then
    assert {type(half.get_submodule(name)) for name in ("first", "second", "read_twice")} == {nn.Conv2d}
    torch.testing.assert_close(half(x.bfloat16()).float(), model(x), rtol=0.05, atol=0.05)


def test_no_norm_of_efficientnet_is_left() -> None:
    # Given timm's layers have an identity between each norm and its activation
    model = registry.build("efficientnet_lite0", seed=2)
    trace = tracing.trace(model)
    last = tracing.find(model, trace, "blocks.6.0.conv_pwl").all_input_nodes[0]
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    upstream = subgraph(model, trace, upto=last)
    for precision, most in (("fp32", 1e-4), ("bf16", 0.1)):
        # When
        fast = FusedConvolutions().optimize(upstream, precision)  # type: ignore[arg-type]  # one of the two
        # Then
        assert norms(fast) == 0
        found, wanted = fast(x if precision == "fp32" else x.bfloat16()).float(), upstream(x)
        assert (found - wanted).norm() < most * wanted.norm()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_networks_on_other_devices_keep_their_librarys_operations(precision: Precision) -> None:
    # Given any device but the CPU, whatever the CPU beside it can do
    model = registry.build("vgg16", seed=2).to("meta")
    # When
    fast = FusedConvolutions().optimize(whole(model), precision)
    # Then
    assert sum(type(module) is nn.Conv2d for module in fast.modules()) == 13
