"""Networks of other programs, restated here from their descriptions: the same embeddings as this project's."""

import logging

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import get_model

from core.backbones import build_backbone, read_layout
from core.backbones.state_dicts import read_state_dict
from core.errors import UserError
from core.models.encoder import load_encoder

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


@pytest.fixture(autouse=True)
def same_numbers(one_thread: None) -> None:
    torch.manual_seed(0)


def randomised(network):
    """With batch statistics and scales that are not those of a new network."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            if module.affine:
                module.weight.data.uniform_(0.5, 1.5)
                module.bias.data.normal_(0, 0.1)
    return network.eval()


def images(height=40, width=56):
    return np.random.default_rng(0).integers(0, 256, (2, height, width, 3), np.uint8)


def as_input(pixels, mean, std):
    scaled = (torch.from_numpy(pixels).float() / 255 - torch.tensor(mean)) / torch.tensor(std)
    return scaled.permute(0, 3, 1, 2)


def assert_close(found, wanted):
    """Sums in another order: 1e-5 of the largest number."""
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())


class RetrievalNetwork(nn.Module):
    """Radenović et al., arXiv 1711.02512, as cnnimageretrieval-pytorch stores it."""

    def __init__(self, architecture, pooling="gem", whitening=None):
        super().__init__()
        layers = list(get_model(architecture, weights=None).children())[:-2]
        self.features = nn.Sequential(*layers)
        self.pool, self.pooling = nn.Module(), pooling
        if pooling == "gem":
            self.pool.p = nn.Parameter(torch.tensor([2.7]))
        size = 512 if architecture in ("resnet18", "resnet34") else 2048
        self.whiten = nn.Linear(size, whitening) if whitening else None

    def forward(self, x):
        x = self.features(x)
        if self.pooling == "gem":
            x = x.clamp(min=1e-6).pow(self.pool.p).mean((2, 3)).pow(1 / self.pool.p)
        else:
            x = x.mean((2, 3)) if self.pooling == "spoc" else x.amax((2, 3))
        x = x / (x.norm(dim=1, keepdim=True) + 1e-6)
        if self.whiten is not None:
            x = self.whiten(x)
            x = x / (x.norm(dim=1, keepdim=True) + 1e-6)
        return x


def retrieval_checkpoint(network, architecture, **meta):
    whitening = network.whiten is not None
    meta = {"architecture": architecture, "pooling": network.pooling, "whitening": whitening, **IMAGENET, **meta}
    return {"epoch": 9, "meta": meta, "state_dict": network.state_dict(), "optimizer": {"state": {}}}


@pytest.mark.parametrize(
    "architecture, pooling, whitening, new_format, meta",
    [
        ("resnet18", "gem", 512, True, {"outputdim": 512}),
        ("resnet18", "gem", None, False, {"Lw": {"sfm": {"ss": {"m": np.ones((3, 1)), "P": np.eye(3)}}}}),
        ("resnet34", "mac", None, True, {}),
        ("resnet50", "spoc", 256, True, {"regional": False, "local_whitening": False}),
    ],
)
def test_retrieval_network_gives_the_embeddings_of_its_description(
    architecture, pooling, whitening, new_format, meta, tmp_path, caplog
):
    caplog.set_level(logging.INFO)
    network = randomised(RetrievalNetwork(architecture, pooling, whitening))
    content = retrieval_checkpoint(network, architecture, **meta)
    torch.save(content, tmp_path / "gem.pth", _use_new_zipfile_serialization=new_format)
    encoder = load_encoder(tmp_path / "gem.pth", architecture)
    with torch.no_grad():
        wanted = network(as_input(images(), **IMAGENET))
    assert_close(encoder(images()), wanted)
    assert encoder.any_size and encoder.embedding_size == wanted.shape[1]
    assert ("which is not applied" in caplog.text) == ("Lw" in meta)


@pytest.mark.parametrize(
    "removed, added, meta, message",
    [
        ("pool.p", {"pool.p": torch.ones(512)}, {}, "whose pooling is gem with 512 exponents"),
        ("pool.p", {}, {"pooling": "rmac"}, "whose pooling is rmac"),
        ("pool.p", {}, None, "whose pooling is not told"),
        ("pool.p", {"pool.rpool.p": torch.ones(1)}, {"regional": True}, "with pool.rpool.p, which is not read"),
        ("", {"lwhiten.weight": torch.eye(512)}, {}, "with lwhiten.weight, which is not read"),
        (
            "features.",
            {"features.0.weight": torch.ones(64, 3, 3, 3)},
            {"architecture": "vgg16"},
            "on vgg16; only ResNets",
        ),
    ],
)
def test_other_retrieval_networks_are_refused_by_name(removed, added, meta, message, tmp_path):
    content = retrieval_checkpoint(RetrievalNetwork("resnet18"), "resnet18")
    kept = {k: v for k, v in content["state_dict"].items() if not removed or not k.startswith(removed)}
    content = {"state_dict": kept | added} | ({} if meta is None else {"meta": content["meta"] | meta})
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(UserError, match=f"x.pth is a retrieval network {message}.*: export the network to ONNX"):
        load_encoder(tmp_path / "x.pth", "resnet18")


def test_retrieval_network_with_other_preprocessing_is_told_to_be_given_it(tmp_path, caplog):
    content = retrieval_checkpoint(RetrievalNetwork("resnet18"), "resnet18", mean=[0.5, 0.5, 0.5], std=[0.2, 0.2, 0.2])
    torch.save(content, tmp_path / "x.pth")
    read_state_dict(tmp_path / "x.pth")
    assert "takes other images than ImageNet's: give --mean 127.5 127.5 127.5 --std 51.0 51.0 51.0" in caplog.text


@pytest.mark.parametrize(
    "name, write", [("resnet18", "torch"), ("resnet34", "safetensors"), ("resnet50", "safetensors")]
)
def test_imagenet_network_gives_its_pooled_feature(name, write, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    network = randomised(get_model(name, weights=None))
    if write == "torch":
        torch.save({"state_dict": {f"model.{k}": v for k, v in network.state_dict().items()}}, tmp_path / "model.pth")
    else:
        save_file(network.state_dict(), tmp_path / "model.pth")
    encoder = load_encoder(tmp_path / "model.pth", name)
    network.fc = nn.Identity()
    with torch.no_grad():
        wanted = network(as_input(images(), **IMAGENET))
    assert_close(encoder(images()), wanted)
    assert "the classifier of ImageNet, fc, is left out" in caplog.text


@pytest.mark.parametrize("rows, beside", [(256, False), (512, False), (256, True)])
def test_last_layer_that_may_make_the_embedding_is_not_dropped(rows, beside, tmp_path):
    weights = {k: v for k, v in get_model("resnet18", weights=None).state_dict().items() if not k.startswith("fc.")}
    last = {"fc.weight": torch.ones(rows, 512), "fc.bias": torch.ones(rows)}
    torch.save({("backbone." if beside else "") + k: v for k, v in weights.items()} | last, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"fc.weight does not belong.*export it to ONNX"):
        load_encoder(tmp_path / "w.pt", "resnet18")
    network = build_backbone("resnet18", 8, pretrained=str(tmp_path / "w.pt"))  # which takes the trunk alone
    assert torch.equal(network.trunk.conv1.weight, weights["conv1.weight"])


@pytest.mark.parametrize("name", ["resnext50_32x4d", "wide_resnet50_2"])
def test_relatives_with_the_same_names_are_not_taken_for_resnets(name, tmp_path):
    with torch.device("meta"):
        weights = get_model(name, weights=None).state_dict()
    assert read_layout({f"trunk.{key}": tuple(tensor.shape) for key, tensor in weights.items()}) is None
    torch.save({key: torch.zeros(()).expand(tensor.shape) for key, tensor in weights.items()}, tmp_path / "w.pt")
    with pytest.raises(UserError, match="known networks are .*; export any other to ONNX"):
        load_encoder(tmp_path / "w.pt", "resnet50")


def test_advbct_network_gives_its_embeddings(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    convnet, projection, norm = get_model("resnet18", weights=None), nn.Linear(512, 16, bias=False), nn.BatchNorm1d(16)
    convnet.fc = nn.Identity()
    parts = {"convnet": randomised(convnet), "projection_dim": projection, "bn": randomised(norm)}
    training = {"projection_cls": nn.Linear(16, 9, bias=False), "discriminator": nn.Sequential(nn.Linear(16, 100))}
    weights = nn.ModuleDict(parts | training).state_dict()
    torch.save({"epoch": 3, "model": {f"module.{k}": v for k, v in weights.items()}}, tmp_path / "w.pth")
    with torch.no_grad():
        wanted = norm(projection(convnet(as_input(images(), **IMAGENET))))
    encoder = load_encoder(tmp_path / "w.pth", "resnet18")
    assert_close(encoder(images()), wanted)
    line = "the network is under model.module; left out: model.module.projection_cls, model.module.discriminator"
    assert line in caplog.text


class IrUnit(nn.Module):
    """A residual unit as AdaFace has it; the older form of face.evoLVe has no norm in the middle."""

    def __init__(self, inner, channels, stride, middle_norm):
        super().__init__()
        self.shortcut_layer = nn.MaxPool2d(1, stride)
        if inner != channels:
            convolution = nn.Conv2d(inner, channels, 1, stride, bias=False)
            self.shortcut_layer = nn.Sequential(convolution, nn.BatchNorm2d(channels))
        layers = [nn.BatchNorm2d(inner), nn.Conv2d(inner, channels, 3, 1, 1, bias=False)]
        layers += [nn.BatchNorm2d(channels)] if middle_norm else []
        layers += [nn.PReLU(channels), nn.Conv2d(channels, channels, 3, stride, 1, bias=False)]
        self.res_layer = nn.Sequential(*layers, nn.BatchNorm2d(channels))

    def forward(self, x):
        return self.res_layer(x) + self.shortcut_layer(x)


def ir_network(units, width=4, middle_norm=True, affine=False, size=16):
    body, channels = [], width
    for stage, count in enumerate(units):
        for position in range(count):
            body.append(IrUnit(channels, width * 2**stage, 1 if position else 2, middle_norm))
            channels = width * 2**stage
    stem = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.PReLU(width))
    end = [nn.BatchNorm2d(channels), nn.Dropout(0.4), nn.Flatten(), nn.Linear(channels * 4, size)]
    end.append(nn.BatchNorm1d(size, affine=affine))
    parts = {"input_layer": stem, "body": nn.Sequential(*body), "output_layer": nn.Sequential(*end)}
    return randomised(nn.ModuleDict(parts))


@pytest.mark.parametrize(
    "name, units, options",
    [
        ("r18", (2, 2, 2, 2), {}),
        ("r50", (3, 4, 14, 3), {}),
        ("r18", (2, 2, 2, 2), {"middle_norm": False, "affine": True}),
        ("r34", (3, 4, 6, 3), {"affine": True}),
    ],
)
@pytest.mark.parametrize("prefix", ["model.", "net.", ""])
def test_ir_network_of_adaface_gives_its_embeddings(name, units, options, prefix, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    parts = ir_network(units, **options)
    weights = {prefix + key: tensor for key, tensor in parts.state_dict().items()}
    torch.save({"state_dict": {**weights, "head.kernel": torch.ones(16, 10)}}, tmp_path / "adaface.ckpt")
    encoder = load_encoder(tmp_path / "adaface.ckpt", name)
    x = images(32, 32)
    with torch.no_grad():
        wanted = parts["output_layer"](parts["body"](parts["input_layer"](as_input(x, [0.5] * 3, [0.5] * 3))))
    assert_close(encoder(x), wanted)
    assert "left out: state_dict.head" in caplog.text


@pytest.mark.parametrize(
    "name", ["body", "body.0", "body.x.res_layer.1.weight", "body.0.res_layer", "output_layer.9.x"]
)
def test_names_that_only_begin_as_those_of_a_known_kind_are_no_traceback(name, tmp_path):
    weights = ir_network((1, 1, 1, 1)).state_dict() | {name: torch.ones(4)}
    torch.save(weights, tmp_path / "w.pt")
    with pytest.raises(UserError, match="does not belong|known networks are"):
        load_encoder(tmp_path / "w.pt", "r18")


def test_ir_network_with_squeeze_and_excitation_is_not_taken_for_one_without(tmp_path):
    parts = ir_network((2, 2, 2, 2))
    weights = parts.state_dict() | {"body.0.res_layer.6.fc1.weight": torch.ones(1, 4, 1, 1)}
    torch.save(weights, tmp_path / "w.pt")
    with pytest.raises(UserError, match="the known networks are r18, .*; export any other to ONNX"):
        load_encoder(tmp_path / "w.pt", "r18")
