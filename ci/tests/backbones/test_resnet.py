"""The landmark networks against torchvision's own, pooling in half precision, pretrained weights, any image size."""

import json
import math
import urllib.error

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torchvision.models import get_model, get_model_weights

from core.backbones import build_backbone, list_backbones, read_layout
from core.backbones.resnet import GeM
from core.errors import UserError
from core.models.encoder import load_encoder
from core.models.export import export_onnx
from core.models.weights import shapes_of

NAMES = ("resnet18", "resnet50", "resnet101")
IMAGENET_MEAN, IMAGENET_STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])


pytestmark = pytest.mark.usefixtures("one_thread")


def torchvision_file(folder, name="resnet18", seed=1):
    """A file of torchvision's network with random weights, as its releases are: without counters of batch norms."""
    torch.manual_seed(seed)
    weights = get_model(name, weights=None).state_dict()
    for key, tensor in weights.items():
        if key.endswith("running_mean"):
            tensor.normal_(0, 0.1)
    torch.save({k: v for k, v in weights.items() if not k.endswith("num_batches_tracked")}, folder / f"{name}.pth")
    return folder / f"{name}.pth", weights


def write_run(folder, module, network="resnet18", image_size=32, **options):
    folder.mkdir()
    torch.save(module.state_dict(), folder / "model.pt")
    config = {"network": network, "network_options": options, "embedding_size": module.bn.num_features}
    (folder / "config.json").write_text(json.dumps(config | {"image_size": image_size, "normalization": "imagenet"}))
    return folder


def small(pooling="avg", **options):
    """A resnet18 with batch statistics that are not those of a new network."""
    torch.manual_seed(0)
    module = build_backbone("resnet18", 8, image_size=32, pooling=pooling, **options)
    module.train()
    with torch.no_grad():
        module(torch.randn(4, 3, 32, 32))
    return module.eval()


def images(count, height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8)


@pytest.mark.parametrize("name", NAMES)
def test_embeddings_are_those_of_torchvisions_network_with_another_last_layer(name, tmp_path):
    path, weights = torchvision_file(tmp_path, name)
    torch.manual_seed(2)
    network = build_backbone(name, 16, pretrained=str(path)).eval()
    reference = get_model(name, weights=None)
    reference.load_state_dict(weights)
    reference.fc = nn.Sequential(nn.Linear(reference.fc.in_features, 16, bias=False), nn.BatchNorm1d(16))
    reference.fc[0].weight.data.copy_(network.embedding.weight)
    for key in ("weight", "bias", "running_mean", "running_var"):
        value = torch.rand(16) + 0.5
        getattr(network.bn, key).data.copy_(value)
        getattr(reference.fc[1], key).data.copy_(value)
    x = torch.randn(2, 3, 64, 48)
    with torch.no_grad():
        assert torch.equal(network(x), reference.eval()(x))
    assert name in list_backbones()


def test_weights_without_a_file_are_torchvisions_initialisation():
    torch.manual_seed(3)
    network = build_backbone("resnet18", 16)
    torch.manual_seed(3)
    reference = get_model("resnet18", weights=None)
    assert torch.equal(network.trunk.layer4[1].conv2.weight, reference.layer4[1].conv2.weight)


def gem_by_hand(x, p):
    """In float64, map by map."""
    return [[(channel.double().clamp(min=1e-6) ** p).mean() ** (1 / p) for channel in image] for image in x]


@pytest.mark.parametrize("p", [1.0, 2.92, 3.0, 20.0])
def test_gem_is_the_generalised_mean(p):
    x = torch.randn(2, 3, 5, 4).relu() * torch.tensor([1e-3, 1.0, 1e3]).view(1, 3, 1, 1)
    x.requires_grad_()
    pooled = GeM(p)(x)
    torch.testing.assert_close(
        pooled[:, :, 0, 0].detach().double(), torch.tensor(gem_by_hand(x.detach(), p)), rtol=1e-5, atol=0
    )
    expected = x.detach().double().requires_grad_()
    sum(value for image in gem_by_hand(expected, p) for value in image).backward()
    pooled.sum().backward()
    torch.testing.assert_close(x.grad.double(), expected.grad, rtol=1e-4, atol=1e-6)


def test_learnable_exponent_has_the_derivative_of_the_formula():
    x = torch.randn(2, 3, 5, 4, dtype=torch.float32).relu()
    pool = GeM(3.0, learnable=True)
    pool(x).sum().backward()
    p = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    sum(value for image in gem_by_hand(x, p) for value in image).backward()
    torch.testing.assert_close(pool.p.grad[0].double(), p.grad, rtol=1e-5, atol=0)


@pytest.mark.parametrize("fill", [0.0, -1.0, 65504.0])
@pytest.mark.parametrize("p", [3.0, 50.0])
def test_gem_has_no_nan_for_dead_or_huge_maps_in_half_precision(fill, p):
    x = torch.full((1, 2, 3, 3), fill, dtype=torch.float16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        pooled = GeM(p)(x)
    pooled.sum().backward()
    assert pooled.dtype == torch.float32 and x.grad.isfinite().all()
    torch.testing.assert_close(pooled, torch.full_like(pooled, max(fill, 1e-6)), rtol=1e-3, atol=0)


def test_poolings_differ_and_very_large_exponents_approach_the_maximum():
    x = torch.randn(2, 3, 40, 56)
    with torch.no_grad():
        average, largest = small("avg").trunk(x), small("max").trunk(x)
        gem, limit = small("gem").trunk(x), small("gem", gem_p=400).trunk(x)
    assert (average < gem + 1e-6).all() and (gem < largest + 2e-6).all() and not torch.allclose(average, gem)
    torch.testing.assert_close(limit, largest, rtol=2e-2, atol=1e-5)


@pytest.mark.parametrize("learnable", [False, True])
def test_exponent_is_in_the_state_dict_and_trained_only_if_asked(learnable):
    module = build_backbone("resnet18", 8, pooling="gem", gem_p=2.5, gem_p_learnable=learnable)
    assert module.state_dict()["trunk.avgpool.p"].tolist() == [2.5]
    assert ("trunk.avgpool.p" in dict(module.named_parameters())) == learnable


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pooling", ["avg", "gem", "max"])
def test_layout_has_depth_pooling_and_size(name, pooling):
    with torch.device("meta"):
        module = build_backbone(name, 24, pooling=pooling)
    layout = read_layout(shapes_of(module.state_dict()))
    assert (layout.names, layout.embedding_size, layout.image_size) == ((name,), 24, 224)
    assert layout.options == {"pooling": pooling} and layout.normalization == "imagenet"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"pooling": "mean"}, "unknown pooling 'mean': choose 'avg', 'gem', 'max'"),
        ({"gem_p": 0}, "gem_p must be a number above 0, got 0"),
        ({"gem_p": math.inf}, "gem_p must be a number above 0"),
        ({"image_size": 0}, "image_size must be"),
        ({"width": 16}, "has no option 'width': its options are image_size, pooling"),
        ({"pretrained": "/nowhere/resnet18.pth"}, "model weights not found: /nowhere/resnet18.pth"),
    ],
)
def test_wrong_options_are_errors(options, message):
    with pytest.raises(UserError, match=message):
        build_backbone("resnet18", 8, **options)


def test_pretrained_file_of_another_network_is_refused(tmp_path):
    path, _ = torchvision_file(tmp_path, "resnet50")
    with pytest.raises(UserError, match=r"torchvision's resnet18: layer1.0.conv1.weight is \(64, 64, 1, 1\)"):
        build_backbone("resnet18", 8, pretrained=str(path))


def test_imagenet_weights_come_from_torchvisions_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub._get_torch_home", lambda: str(tmp_path))
    path, weights = torchvision_file(tmp_path)
    cached = tmp_path / "hub" / "checkpoints" / get_model_weights("resnet18")["IMAGENET1K_V1"].url.rpartition("/")[2]
    cached.parent.mkdir(parents=True)
    path.rename(cached)
    network = build_backbone("resnet18", 8, pretrained="imagenet")
    assert torch.equal(network.trunk.conv1.weight, weights["conv1.weight"])


def test_without_network_and_cache_the_error_says_what_to_do(tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("torch.hub._get_torch_home", lambda: str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", no_network)
    with pytest.raises(UserError, match="no route to host.*copy it there, or set network_options.pretrained") as error:
        build_backbone("resnet50", 8, pretrained="imagenet")
    assert "\n" not in str(error.value)


def test_run_folder_no_longer_needs_its_pretrained_weights(tmp_path):
    module = small()
    run = write_run(tmp_path / "run", module, pretrained="/gone/resnet18.pth")
    encoder = load_encoder(run)
    batch = images(2, 32, 32)
    with torch.no_grad():
        wanted = module(torch.from_numpy((batch / np.float32(255) - IMAGENET_MEAN) / IMAGENET_STD).permute(0, 3, 1, 2))
    torch.testing.assert_close(encoder(batch), wanted, rtol=1e-4, atol=1e-4)


def test_encoder_takes_images_of_any_size(tmp_path):
    encoder = load_encoder(write_run(tmp_path / "run", small("gem"), pooling="gem"))
    assert encoder.any_size and encoder.image_size == 32
    for height, width in ((32, 32), (40, 40), (33, 57), (1, 1)):
        assert encoder(images(2, height, width)).shape == (2, 8)
    with pytest.raises(UserError, match=r"takes uint8 images \(B, height, width, 3\), got torch.float32"):
        encoder(images(2, 32, 32).astype(np.float32))
    with pytest.raises(UserError, match="got torch.uint8"):
        encoder(images(2, 32, 32)[0])


@pytest.mark.parametrize("pooling", ["avg", "gem", "max"])
def test_bare_state_dict_needs_only_its_network(pooling, tmp_path):
    module = small(pooling, gem_p=2.0)
    torch.save(module.state_dict(), tmp_path / "bare.pt")
    encoder = load_encoder(tmp_path / "bare.pt", "resnet18")
    run = load_encoder(write_run(tmp_path / "run", module, pooling=pooling))
    assert encoder.image_size == 224 and encoder.any_size and encoder.mean == (123.675, 116.28, 103.53)
    assert torch.equal(encoder(images(2, 32, 32)), run(images(2, 32, 32)))
    with pytest.raises(UserError, match="not those of network resnet50.*they look like those of resnet18"):
        load_encoder(tmp_path / "bare.pt", "resnet50")


def test_export_gives_pytorchs_embeddings_and_imagenets_normalisation(tmp_path):
    encoder = load_encoder(write_run(tmp_path / "run", small("gem"), pooling="gem"))
    assert export_onnx(encoder, tmp_path / "model.onnx") < 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    assert session.get_inputs()[0].shape[1:] == [3, 32, 32]
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["mean"]) == [123.675, 116.28, 103.53] and metadata["network"] == "resnet18"
    exported = load_encoder(tmp_path / "model.onnx")
    assert not exported.any_size
    torch.testing.assert_close(exported(images(3, 32, 32)), encoder(images(3, 32, 32)), rtol=1e-3, atol=1e-4)
