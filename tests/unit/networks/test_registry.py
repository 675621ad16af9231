"""The registry: names, builders, preprocessing, Keras's names for VGG's layers."""

import pytest
import torch
from torch import nn
from torchvision import models as torchvision_models

from workers.contract.errors import ExitCode, UnknownModel
from workers.networks import registry
from workers.rendering import images

#: Their published transform is followed by one inside the network, which ours leaves out.
GOOGLE = ("googlenet", "inception_v3")


def test_every_torchvision_classifier_and_every_packaged_network_has_a_name() -> None:
    # Given / When
    names = registry.names()
    # Then
    assert names == sorted(names)
    others = {*registry.PACKAGED, "inceptionv1"}
    assert set(torchvision_models.list_models(module=torchvision_models)) | others == set(names)


def test_an_unknown_model_is_answered_with_the_nearest() -> None:
    # Given / When / Then
    with pytest.raises(UnknownModel, match=r"no model 'vgg61'; nearest: .*vgg16") as caught:
        registry.get("vgg61")
    assert caught.value.exit_code == ExitCode.UNKNOWN_MODEL


def test_a_name_like_no_other_is_answered_with_where_to_look() -> None:
    # Given / When / Then
    with pytest.raises(UnknownModel, match="filterfarm layers"):
        registry.get("Q" * 500)


@pytest.mark.parametrize("name", ["fcn_resnet50", "raft_small", "quantized_resnet18", "VGG16", ""])
def test_models_of_other_tasks_are_unknown(name: str) -> None:
    # Given / When / Then
    with pytest.raises(UnknownModel):
        registry.get(name)


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "efficientnet_lite0", "inception_v3"])
def test_a_network_is_built_frozen_and_in_evaluation_mode(name: str) -> None:
    # Given / When
    model = registry.build(name)
    # Then
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "efficientnet_lite0", "googlenet"])
def test_the_seed_decides_the_parameters(name: str) -> None:
    # Given / When
    one, same, other = (registry.build(name, seed=seed).state_dict() for seed in (1, 1, 2))
    # Then
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


def test_building_leaves_the_global_random_numbers_alone() -> None:
    # Given
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    # When
    registry.build("shufflenet_v2_x0_5", seed=1)
    # Then
    assert torch.equal(torch.rand(3), wanted)


@pytest.mark.parametrize("name", ["vgg16", "inception_v3", "efficientnet_lite0", "regnet_y_400mf", "swin_t"])
def test_a_skeleton_has_the_shapes_and_no_memory(name: str) -> None:
    # Given
    built = registry.build(name)
    # When
    skeleton = registry.skeleton(name)
    # Then
    assert {parameter.device.type for parameter in skeleton.parameters()} == {"meta"}
    assert {key: tensor.shape for key, tensor in skeleton.state_dict().items()} == {
        key: tensor.shape for key, tensor in built.state_dict().items()
    }
    assert not any(module.training for module in skeleton.modules())


def test_each_network_has_the_preprocessing_of_its_published_weights() -> None:
    # Given torchvision's own recipes; the Caffe weights of VGG16 are fed raw pixels, as weights.preprocess decides
    wrong = {}
    for name in torchvision_models.list_models(module=torchvision_models):
        for entry in torchvision_models.get_model_weights(name):
            if name in GOOGLE or entry.name == "IMAGENET1K_FEATURES":
                continue
            recipe = entry.transforms()
            # When
            ours = registry.get(name).preprocess
            if (ours.mean, ours.std) != (tuple(recipe.mean), tuple(recipe.std)):
                wrong[f"{name} {entry.name}"] = (ours.mean, tuple(recipe.mean))
    # Then
    assert wrong == {}


@pytest.mark.parametrize("name", GOOGLE)
def test_the_google_networks_get_the_input_of_torchvisions_own_transform(name: str) -> None:
    # Given
    pictures = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 255
    theirs = torchvision_models.get_model(name, weights=None, init_weights=False, transform_input=True)
    recipe = torchvision_models.get_model_weights(name)["IMAGENET1K_V1"].transforms()
    mean, std = torch.tensor(recipe.mean).view(1, 3, 1, 1), torch.tensor(recipe.std).view(1, 3, 1, 1)
    wanted = theirs._transform_input((pictures / 255 - mean) / std)
    # When
    fed = images.to_network(pictures, registry.get(name).preprocess)
    # Then
    torch.testing.assert_close(fed, wanted, rtol=0, atol=1e-5)
    assert not registry.build(name).transform_input


def test_the_first_published_weights_are_torchvisions_default() -> None:
    # Given / When
    defaults = {
        name: registry.get(name).weights[0] for name in torchvision_models.list_models(module=torchvision_models)
    }
    # Then all but the notebook's VGG16
    assert defaults.pop("vgg16") == "IMAGENET1K_FEATURES"
    assert defaults == {name: torchvision_models.get_model_weights(name).DEFAULT.name for name in defaults}
    assert registry.get("resnet50").weights == ("IMAGENET1K_V2", "IMAGENET1K_V1")
    assert registry.get("efficientnet_lite0").weights == ("IMAGENET1K",)


def test_vggs_layers_have_keras_names() -> None:
    # Given
    model = registry.skeleton("vgg16")
    # When
    aliases = registry.aliases("vgg16", model)
    # Then
    places = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
    blocks = [(1, 2), (2, 2), (3, 3), (4, 3), (5, 3)]
    names = [f"block{block}_conv{place}" for block, count in blocks for place in range(1, count + 1)]
    assert aliases == {f"features.{place}": (name,) for place, name in zip(places, names, strict=True)}


def test_batch_norms_do_not_shift_keras_names() -> None:
    # Given
    plain, normed = registry.skeleton("vgg19"), registry.skeleton("vgg19_bn")
    # When / Then
    assert list(registry.aliases("vgg19", plain).values()) == list(registry.aliases("vgg19_bn", normed).values())
    assert registry.aliases("vgg19_bn", normed)["features.49"] == ("block5_conv4",)


def test_inceptions_layers_have_keras_numbers_in_the_order_of_creation() -> None:
    # Given / When
    aliases = registry.aliases("inception_v3", registry.skeleton("inception_v3"))
    # Then, of the 94 convolutions and 11 concatenations of Keras's network, without the auxiliary head
    assert len(aliases) == 94 + 11
    assert aliases["Mixed_5b.cat"] == ("mixed0",)
    assert aliases["Mixed_7c.cat_2"] == ("mixed10",)
    assert aliases["Conv2d_1a_3x3.conv"] == ("conv2d_1", "activation_1")
    assert aliases["Mixed_5b.branch1x1.conv"] == ("conv2d_6", "activation_6")
    assert aliases["Mixed_5b.branch3x3dbl_1.conv"] == ("conv2d_9", "activation_9")
    assert aliases["Mixed_7c.branch_pool.conv"] == ("conv2d_94", "activation_94")


def test_slashes_in_keras_names_become_dots() -> None:
    # Given / When
    aliases = registry.aliases("squeezenet1_1", nn.Identity())
    # Then
    assert len(aliases) == 26
    assert aliases["features.3.squeeze"] == ("fire2.squeeze1x1",)
    assert aliases["features.12.expand3x3"] == ("fire9.expand3x3",)


def test_other_networks_have_no_aliases() -> None:
    # Given / When / Then
    assert registry.aliases("resnet18", nn.Identity()) == {}
