"""Inception v1 of Lucid: its layers, and what it computes, against an independent forward of the published names."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from producer.planning.layers import layers
from workers.contract.errors import WeightsDoNotFit, WeightsMissing
from workers.networks import registry, tracing, weights
from workers.networks.inceptionv1 import BLOCKS

State = dict[str, torch.Tensor]

#: The layers of OpenAI Microscope, and their units.
LISTED = {
    "conv2d0": 64, "conv2d1": 64, "conv2d2": 192, "mixed3a": 256, "mixed3b": 480, "mixed4a": 508, "mixed4b": 512,
    "mixed4c": 512, "mixed4d": 528, "mixed4e": 832, "mixed5a": 832, "mixed5b": 1024,
}  # fmt: skip


def published(seed: int) -> State:
    """Random parameters by the names of the published file."""
    model = registry.build("inceptionv1", seed=seed)
    return {
        name.replace("softmax2.", "softmax2_pre_activation_matmul.")
        if name.startswith("softmax2")
        else "_pre_relu_conv.".join(name.rsplit(".", 1)): tensor
        for name, tensor in model.state_dict().items()
    }


def same(x: torch.Tensor, size: int, *, value: float = 0.0) -> torch.Tensor:
    """TensorFlow's padding "SAME" for a window of that size and a stride of 2, by its definition."""
    sides = []
    for length in (x.shape[3], x.shape[2]):
        total = max((-(-length // 2) - 1) * 2 + size - length, 0)
        sides += [total // 2, total - total // 2]
    return F.pad(x, sides, value=value)


def lrn(x: torch.Tensor) -> torch.Tensor:
    """tf.nn.local_response_normalization(x, depth_radius=4, bias=1, alpha=1e-4 / 9, beta=0.5), channel by channel."""
    squares = F.pad(x**2, (0, 0, 0, 0, 4, 4))
    sums = sum(squares[:, shift : shift + x.shape[1]] for shift in range(9))
    return x / (1 + 1e-4 / 9 * sums) ** 0.5


def reference(state: State, x: torch.Tensor) -> State:
    """The maps of all layers after their activation, by Lucid's names."""
    maps: State = {}

    def conv(name: str, x: torch.Tensor, **options: int) -> torch.Tensor:
        weight, bias = (state[f"{name}_pre_relu_conv.{kind}"] for kind in ("weight", "bias"))
        maps[name] = F.conv2d(x, weight, bias, **options).clamp(min=0)
        return maps[name]

    def pool(x: torch.Tensor) -> torch.Tensor:
        return F.max_pool2d(same(x, 3, value=float("-inf")), 3, 2)

    x = conv("conv2d1", lrn(pool(conv("conv2d0", same(x, 7), stride=2))))
    x = pool(lrn(conv("conv2d2", x, padding=1)))
    for name in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"):
        name = f"mixed{name}"
        if name in ("mixed4a", "mixed5a"):
            x = pool(x)
        threes = conv(f"{name}_3x3", conv(f"{name}_3x3_bottleneck", x), padding=1)
        fives = conv(f"{name}_5x5", conv(f"{name}_5x5_bottleneck", x), padding=2)
        pooled = conv(f"{name}_pool_reduce", F.max_pool2d(x, 3, 1, 1))
        x = maps[name] = torch.cat([conv(f"{name}_1x1", x), threes, fives, pooled], 1)
    matrix, bias = (state[f"softmax2_pre_activation_matmul.{kind}"] for kind in ("weight", "bias"))
    maps["logits"] = x.mean((2, 3)) @ matrix.T + bias
    return maps


def test_it_has_57_convolutions_with_bias_and_5804_listed_units() -> None:
    # Given
    model = registry.skeleton("inceptionv1")
    # When
    convolutions = tracing.convolutions(model, tracing.trace(model))
    # Then
    assert len(convolutions) == 57
    assert all(model.get_parameter(f"{name}.bias") is not None for name in convolutions)
    assert not any("norm" in type(module).__name__.lower() for module in model.modules())
    assert model.get_parameter("softmax2.weight").shape == (1008, 1024)
    assert sum(LISTED.values()) == 5804
    assert set(LISTED) - set(convolutions) == set(BLOCKS)


@pytest.mark.parametrize("size", [(64, 64), (75, 64)])
def test_it_computes_what_the_published_description_says(tmp_path: Path, size: tuple[int, int]) -> None:
    # Given a file by the published names, and a picture of even or odd sides
    state = published(seed=4)
    path = tmp_path / "inception5h.pth"
    torch.save(state, path)
    chosen, checkpoint = weights.choose("inceptionv1", str(path))
    weights.check("inceptionv1", chosen, path)
    model = weights.load("inceptionv1", chosen, checkpoint, seed=0)
    pictures = torch.from_numpy(np.random.default_rng(1).uniform(-117, 138, (2, 3, *size)).astype(np.float32))
    # When
    got: State = {}
    for name in LISTED:
        model.get_submodule(name).register_forward_hook(lambda *values, name=name: got.update({name: values[2]}))
    with torch.no_grad():
        logits = model(pictures)
    # Then every listed layer agrees, convolutions before their activation
    wanted = reference(state, pictures)
    for name, channels in LISTED.items():
        assert got[name].shape[1] == channels
        torch.testing.assert_close(got[name].clamp(min=0), wanted[name], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits, wanted["logits"], rtol=1e-4, atol=1e-5)


def test_its_input_is_pixels_minus_117() -> None:
    # Given / When
    preprocess = registry.get("inceptionv1").preprocess
    # Then
    assert [(117 / 255 - mean) / std for mean, std in zip(preprocess.mean, preprocess.std, strict=True)] == [0, 0, 0]
    assert preprocess.std == (1 / 255,) * 3


def test_without_a_file_the_way_out_is_said() -> None:
    # Given / When / Then
    for text in (None, "DEFAULT"):
        with pytest.raises(WeightsMissing, match=r"no trained weights of inceptionv1.*--weights PATH.*--weights none"):
            weights.choose("inceptionv1", text)
    assert weights.choose("inceptionv1", "none")[0].source == "none"


def test_googlenets_weights_do_not_fit(tmp_path: Path) -> None:
    # Given
    path = tmp_path / "googlenet.pth"
    torch.save(registry.build("googlenet").state_dict(), path)
    chosen, _ = weights.choose("inceptionv1", str(path))
    # When / Then
    with pytest.raises(WeightsDoNotFit, match=r"googlenet\.pth.*conv2d0\.weight is missing.*and \d+ more"):
        weights.check("inceptionv1", chosen, path)


def test_listed_blocks_are_layers_by_microscopes_names() -> None:
    # Given / When
    plans = layers("inceptionv1", (64, 64), {"conv", "block"})
    # Then
    channels = {name: plan.channels for plan in plans for name in (plan.name, *plan.aliases)}
    assert {name: channels[name] for name in LISTED} == LISTED


def test_kerass_names_of_inception_v3s_blocks_are_layers() -> None:
    # Given / When
    plans = layers("inception_v3", (75, 75), {"block"})
    # Then the last concatenation of each block has Keras's name
    named = {plan.aliases[0]: plan.channels for plan in plans if plan.aliases}
    assert [named[f"mixed{number}"] for number in range(11)] == [256, 288, 288, *[768] * 5, 1280, 2048, 2048]
