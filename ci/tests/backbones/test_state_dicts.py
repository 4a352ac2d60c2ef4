"""The network in checkpoints of training programs: found, renamed, chosen among several, or refused."""

import json
import logging
import struct

import pytest
import torch

from core.backbones import build_backbone
from core.backbones.state_dicts import read_state_dict
from core.errors import UserError
from core.models.encoder import load_encoder

TINY = {"width": 4, "depth": 1, "image_size": 32}
CLASSES = torch.ones(10, 16)


def tiny(seed: int = 0, **options) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return build_backbone("r18", 16, **{**TINY, **options}).state_dict()


def under(prefix, weights):
    return {prefix + name: tensor for name, tensor in weights.items()}


@pytest.fixture(scope="module")
def weights():
    return tiny()


@pytest.fixture
def read(tmp_path, caplog):
    """Saves what it is given, reads it, and returns the tensors and the lines of the log."""
    caplog.set_level(logging.INFO)

    def save_and_read(content, network=None):
        torch.save(content, tmp_path / "w.pt")
        found = read_state_dict(tmp_path / "w.pt", network)
        return found, [record.getMessage().removeprefix(f"{tmp_path}/w.pt: ") for record in caplog.records]

    return save_and_read


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in found.items())


@pytest.mark.parametrize(
    "wrap, line",
    [
        (lambda w: {"state_dict": under("model.", w), "epoch": 1}, "the network is under state_dict.model"),
        (lambda w: under("backbone.", w), "the network is under backbone"),
        (lambda w: under("net.", w), "the network is under net"),
        (lambda w: under("encoder.", w), "the network is under encoder"),
        (lambda w: under("module.backbone.", w), "the network is under module.backbone"),
        (lambda w: {"model": under("_orig_mod.module.", w)}, "the network is under model.module"),
        (lambda w: under("some.other.thing.", w), "the network is under some.other.thing"),
        (lambda w: {"net": w, "epoch": 3}, "the network is under net"),
        (lambda w: {"model_state_dict": w, "loss": 0.5}, "the network is under model_state_dict"),
        (lambda w: {"iters": 3, "net_state_dict": w}, "the network is under net_state_dict"),
        (lambda w: {"ema": under("module.", w)}, "the network is under ema.module"),
        (lambda w: {"a": {"b": {"c": w}}}, "the network is under a.b.c"),
        (lambda w: [w, {"lr": 0.1}], "the network is under 0"),
        (lambda w: {k.replace("layer2.", "layer2._orig_mod."): v for k, v in w.items()}, None),
        (lambda w: under("_fsdp_wrapped_module.", w), None),
    ],
)  # fmt: skip
def test_network_is_found_below_any_prefix_and_at_any_depth(wrap, line, weights, read):
    found, lines = read(wrap(weights))
    assert_same(found, weights)
    assert lines == ([line] if line else [])


@pytest.mark.parametrize(
    "wrap, left_out",
    [
        (lambda w: {"state_dict": {**under("model.", w), "head.kernel": CLASSES.T}}, "state_dict.head"),
        (lambda w: {**w, "head.kernel": CLASSES.T, "head.t": torch.tensor(0.1)}, "head"),
        (lambda w: {**w, "fc_classifier.weight": CLASSES, "fc_classifier.bias": torch.ones(10)}, "fc_classifier"),
        (lambda w: {**w, "softmax_fc": CLASSES}, "softmax_fc"),
        (lambda w: {**under("module.", w), "n_averaged": torch.tensor(3)}, "n_averaged"),
        (lambda w: {"model": w, "optimizer": {"state": {0: {"exp_avg": torch.ones(2, 2)}}}}, "optimizer"),
        (
            lambda w: {"state_dict_backbone": w, "state_dict_softmax_fc": {"weight": CLASSES}},
            "state_dict_softmax_fc",
        ),
        (lambda w: {**under("backbone.", w), **under("loss.teacher.", tiny(1))}, "loss"),
        (lambda w: {"model": w, "model_ema": tiny(1)}, "model_ema"),
        (lambda w: {"state_dict_ema": under("module.", tiny(1)), "state_dict": w}, "state_dict_ema"),
        (lambda w: {"state_dict": w, "swa_model": tiny(1)}, "swa_model"),
        (lambda w: {"model": w, "old": tiny(1)}, "old"),
        (lambda w: {**under("model.", w), **under("copy.of.it.", w)}, "copy"),
    ],
)  # fmt: skip
def test_what_belongs_to_the_training_is_left_out_and_named(wrap, left_out, weights, read):
    found, lines = read(wrap(weights))
    assert_same(found, weights)
    assert lines[-1].endswith(f"left out: {left_out}") and len(lines) == 1


@pytest.mark.parametrize(
    "beside",
    [
        {"neck.weight": torch.ones(16, 16)},
        {"whiten.weight": torch.ones(8, 16), "whiten.bias": torch.ones(8)},
        {"embedding.0.weight": torch.ones(16, 16), "embedding.1.weight": torch.ones(16)},
        {"bn.weight": torch.ones(16)},
    ],
)
@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_layer_that_may_be_part_of_the_model_is_not_dropped(beside, prefix, weights, tmp_path):
    torch.save({**under(prefix, weights), **beside}, tmp_path / "w.pt")
    name = next(iter(beside))
    with pytest.raises(UserError, match=f"{name} does not belong.*a part of the model export it to ONNX") as error:
        load_encoder(tmp_path / "w.pt", "r18")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("names", [("student.", "teacher."), ("old_model.", "new_model."), ("net1.", "net2.")])
def test_two_networks_that_could_be_meant_are_refused(names, weights, read):
    places = ", ".join(name.removesuffix(".") for name in names)
    with pytest.raises(UserError, match=f"holds several networks, under {places}: for the one that is meant, save its"):
        read({**under(names[0], weights), **under(names[1], tiny(1))})


def test_given_network_decides_between_an_old_and_a_new_model(weights, read):
    new = build_backbone("mbf", 16, image_size=32).state_dict()
    content = {**under("old_model.", weights), **under("new_model.", new)}
    assert_same(read(content, "r18")[0], weights)
    assert_same(read(content, "mbf")[0], new)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_floating_point_numbers_become_float32(kind, weights, read):
    found, _ = read({name: t.to(kind) if t.is_floating_point() else t for name, t in weights.items()})
    for name, tensor in weights.items():
        wanted = tensor.to(kind).float() if tensor.is_floating_point() else tensor
        assert found[name].dtype == wanted.dtype and torch.equal(found[name], wanted)


def write_safetensors(tensors, path, cut=0):
    """By the format's description: length of the header, header in JSON, bytes."""
    header, blob = {"__metadata__": {"format": "pt"}}, b""
    types = {torch.float32: "F32", torch.float16: "F16", torch.int64: "I64"}
    for name, tensor in tensors.items():
        data = tensor.contiguous().numpy().tobytes()
        place = [len(blob), len(blob) + len(data)]
        header[name] = {"dtype": types[tensor.dtype], "shape": list(tensor.shape), "data_offsets": place}
        blob += data
    text = json.dumps(header).encode()
    path.write_bytes((struct.pack("<Q", len(text)) + text + blob)[: -cut or None])
    return path


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: w,
        lambda w: under("model.net.", w),
        lambda w: {name: t.half() if t.is_floating_point() else t for name, t in w.items()},
    ],
    ids=["plain", "prefix", "half"],
)
def test_safetensors_are_read_whatever_the_file_is_called(wrap, weights, tmp_path):
    wrapped = wrap(weights)
    found = read_state_dict(write_safetensors(wrapped, tmp_path / "model.safetensors"))
    plain = {name.removeprefix("model.net."): tensor for name, tensor in wrapped.items()}
    assert_same(found, {name: t.float() if t.is_floating_point() else t for name, t in plain.items()})
    assert_same(read_state_dict(write_safetensors(wrapped, tmp_path / "weights.bin")), found)
    encoder = load_encoder(tmp_path / "model.safetensors", "r18")
    assert (encoder.embedding_size, encoder.image_size) == (16, 32)


def test_safetensors_that_are_cut_off_are_damaged(weights, tmp_path):
    path = write_safetensors(weights, tmp_path / "model.safetensors", cut=100)
    with pytest.raises(UserError, match=r"model.safetensors: it is damaged .*get it again"):
        read_state_dict(path)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_file_without_a_known_network_says_what_it_holds(read):
    with pytest.raises(UserError, match="holds no network that is known here .*foo.bar.w.: export the network to ONNX"):
        read({"foo": {"bar": {"w": torch.ones(2)}}, "x": 1})
    with pytest.raises(UserError, match="w.pt has no weights"):
        read({"x": 1, "y": ["z"]})
    with pytest.raises(UserError, match="holds quantised weights"):
        read({"fc.weight": torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8)})
