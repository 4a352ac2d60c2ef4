"""Model arguments as encoders: run folders, state dicts, our own and foreign ONNX files."""

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from core.backbones import build_backbone
from core.errors import UserError
from core.models.encoder import load_encoder
from core.models.weights import fingerprint

OPTIONS = {"width": 8, "depth": 1}


@pytest.fixture
def module():
    torch.manual_seed(0)
    return build_backbone("r18", 16, image_size=40, **OPTIONS).eval()


@pytest.fixture
def run(module, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    torch.save(module.state_dict(), folder / "model.pt")
    config = {"network": "r18", "network_options": OPTIONS, "embedding_size": 16, "image_size": 40}
    config |= {"normalization": "face", "old_model_fingerprint": "0ld"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def images(count, size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)


def network_input(batch):
    return torch.from_numpy((batch.astype(np.float32) - 127.5) / 127.5).permute(0, 3, 1, 2)


def write_onnx(path, batch="N", side=12, names=("data", "fc1"), before=()):
    """A foreign model: the operators of `before` with their constants, the mean over pixels, a 3 x 5 matrix."""
    matrix = np.arange(15, dtype=np.float32).reshape(3, 5)
    source = names[0]
    nodes, constants = [], [numpy_helper.from_array(matrix, "matrix")]
    for number, (kind, value) in enumerate(before):
        constants.append(numpy_helper.from_array(np.float32(value), f"c{number}"))
        nodes.append(helper.make_node(kind, [source, f"c{number}"], [f"x{number}"]))
        source = f"x{number}"
    nodes += [
        helper.make_node("GlobalAveragePool", [source], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "matrix"], [names[1]]),
    ]
    graph = helper.make_graph(
        nodes,
        "other",
        [helper.make_tensor_value_info(names[0], TensorProto.FLOAT, [batch, 3, side, side])],
        [helper.make_tensor_value_info(names[1], TensorProto.FLOAT, [batch, 5])],
        constants,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_run_folder_gives_the_embeddings_of_its_network_and_all_facts_of_its_config(run, module):
    encoder = load_encoder(run)
    batch = images(3, 40)
    with torch.no_grad():
        wanted = module(network_input(batch))
    found = encoder(batch)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert found.dtype == torch.float32 and not found.requires_grad and not found.is_inference()
    assert (encoder.name, encoder.network, encoder.embedding_size, encoder.image_size) == ("run", "r18", 16, 40)
    assert encoder.mean == encoder.std == (127.5,) * 3 and encoder.device == torch.device("cpu")
    assert encoder.fingerprint == fingerprint(module.state_dict()) and encoder.old_model_fingerprint == "0ld"
    assert not encoder.module.training
    torch.testing.assert_close(encoder(torch.from_numpy(batch)), found, rtol=0, atol=0)


def test_embeddings_are_float32_inside_a_callers_autocast(run):
    encoder, batch = load_encoder(run), images(2, 40)
    wanted = encoder(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(encoder(batch), wanted)


def test_bare_state_dict_needs_only_its_network(module, tmp_path):
    torch.save(module.state_dict(), tmp_path / "bare.pt")
    encoder = load_encoder(tmp_path / "bare.pt", "r18")
    assert (encoder.name, encoder.embedding_size, encoder.image_size) == ("bare", 16, 48)
    assert encoder(images(2, 48)).shape == (2, 16)
    assert encoder.fingerprint == fingerprint(module.state_dict())
    with pytest.raises(UserError, match="does not know its network: name it with -net"):
        load_encoder(tmp_path / "bare.pt")


def test_model_file_of_a_run_keeps_the_image_size_of_the_run(run):
    encoder = load_encoder(run / "model.pt", "r18")
    assert encoder.image_size == 40
    with pytest.raises(UserError, match="-net"):
        load_encoder(run / "model.pt")


def test_network_that_contradicts_the_run_is_an_error(run):
    assert load_encoder(run, "r18").network == "r18"
    with pytest.raises(UserError, match="holds network r18, not r50"):
        load_encoder(run, "r50")
    with pytest.raises(UserError, match="unknown network 'r19'"):
        load_encoder(run, "r19")


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda run: (run / "model.pt").unlink(), "not found: .*model.pt"),
        (lambda run: (run / "config.json").unlink(), "not found: .*config.json; if .*/model.pt is the model,"),
        (lambda run: (run / "config.json").write_text("{"), "config.json is not a readable"),
        (lambda run: (run / "config.json").write_text("3"), "config.json is not a readable"),
        (lambda run: (run / "config.json").write_text("{}"), "config.json has no 'embedding_size'"),
        (lambda run: edit(run, network="r34x"), "unknown network 'r34x'"),
        (lambda run: edit(run, network="mbf", network_options={}), "not those of network mbf.*look like"),
        (lambda run: edit(run, embedding_size=8), r"fc.weight is \(16, 576\) in place of \(8, 576\)"),
        (lambda run: edit(run, normalization="none"), "unknown normalization 'none', known are face, imagenet"),
        (lambda run: edit(run, normalization=["face"]), r"config.json: normalization is \['face'\], of type list"),
        (lambda run: edit(run, network_options=[1]), r"config.json: network_options is \[1\], of type list"),
        (lambda run: edit(run, network=["r18"]), r"config.json: network is \['r18'\], of type list"),
        (lambda run: edit(run, embedding_size="16"), "config.json: embedding_size is '16', of type str"),
        (lambda run: edit(run, image_size=None), "config.json: image_size is None"),
    ],
)
def test_damaged_run_folder_is_reported_in_one_line(run, damage, message):
    damage(run)
    with pytest.raises(UserError, match=message) as error:
        load_encoder(run)
    assert "\n" not in str(error.value)


def edit(run, **changes):
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | changes))


def test_normalization_of_the_run_is_applied(run, module):
    edit(run, normalization="imagenet")
    encoder, batch = load_encoder(run), images(1, 40)
    mean, std = np.float32([123.675, 116.28, 103.53]), np.float32([58.395, 57.12, 57.375])
    with torch.no_grad():
        wanted = module(torch.from_numpy((batch - mean) / std).permute(0, 3, 1, 2))
    torch.testing.assert_close(encoder(batch), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["run", "model.pt of it", "bare.pt", "onnx"])
def test_model_is_fed_what_the_caller_says(kind, run, module, tmp_path, caplog):
    torch.save(module.state_dict(), tmp_path / "bare.pt")
    path = {"run": run, "model.pt of it": run / "model.pt", "bare.pt": tmp_path / "bare.pt"}.get(kind)
    path = path or write_onnx(tmp_path / "other.onnx")
    network = "r18" if path.suffix == ".pt" else None
    own = load_encoder(path, network)
    caplog.clear()
    with caplog.at_level("INFO"):
        told = load_encoder(path, network, mean=(100, 110, 120), std=60, channel_order="BGR")
    batch = images(2, own.image_size)
    fed = (batch[..., ::-1].astype(np.float32) - np.float32([100, 110, 120])) / 60
    wanted = own.module(torch.from_numpy(fed).permute(0, 3, 1, 2))
    torch.testing.assert_close(told(batch), wanted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(told(batch), own(batch), rtol=1e-2)
    side, line = own.image_size, "BGR, mean (100.0, 110.0, 120.0), std (60.0, 60.0, 60.0) (as told)"
    assert caplog.messages == [f"model {own.name} is fed {side}x{side} {line}"]
    assert told.preprocessing == f"{side} pixels, mean (100.0, 110.0, 120.0), std (60.0, 60.0, 60.0), BGR"


def test_fingerprint_covers_what_the_caller_says_and_stays_where_that_changes_nothing(run):
    own = load_encoder(run).fingerprint
    assert load_encoder(run, mean="face", std=127.5, channel_order="RGB").fingerprint == own
    told = [
        {"mean": "face", "std": 128},
        {"mean": 128, "std": "face"},
        {"channel_order": "BGR"},
        {"mean": "imagenet", "std": "imagenet"},
        {"mean": "imagenet", "std": "imagenet", "channel_order": "BGR"},
    ]
    found = [load_encoder(run, **one).fingerprint for one in told]
    assert len({own, *found}) == 1 + len(told)
    assert load_encoder(run, **told[0]).fingerprint == found[0] and all(len(one) == 64 for one in found)


def test_a_guess_that_the_caller_replaces_is_no_warning(tmp_path, caplog):
    path = write_onnx(tmp_path / "m.onnx")
    with caplog.at_level("INFO"):
        load_encoder(path, mean="face", std="face")
        load_encoder(path, channel_order="BGR")
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]
    assert (
        "(as told)" in caplog.messages[0] and "nothing in the file says so; the channel order as told)" in caplog.text
    )


@pytest.mark.parametrize("kind", ["run", "onnx"])
def test_images_of_another_size_or_type_are_refused(kind, run, tmp_path):
    encoder = load_encoder(run if kind == "run" else write_onnx(tmp_path / "m.onnx", side=40))
    with pytest.raises(UserError, match="40, 40, 3.*got torch.uint8 .2, 41, 41, 3."):
        encoder(images(2, 41))
    with pytest.raises(UserError, match="takes uint8 images.*got torch.float32"):
        encoder(images(2, 40).astype(np.float32))


@pytest.mark.parametrize("batch", ["N", 1, 3])
def test_foreign_onnx_with_dynamic_or_fixed_batch(batch, tmp_path):
    encoder = load_encoder(write_onnx(tmp_path / "other.onnx", batch))
    pixels = images(7, 12)
    wanted = network_input(pixels).mean((2, 3)) @ torch.arange(15.0).reshape(3, 5)
    torch.testing.assert_close(encoder(pixels), wanted, rtol=1e-4, atol=1e-4)
    assert (encoder.network, encoder.embedding_size, encoder.image_size) == ("onnx", 5, 12)
    assert encoder.mean == (127.5,) * 3 and len(encoder.fingerprint) == 64


def test_onnx_that_normalises_its_input_gets_raw_pixels(tmp_path):
    before = (("Sub", 127.5), ("Mul", 1 / 127.5))
    encoder = load_encoder(write_onnx(tmp_path / "mxnet.onnx", before=before))
    plain = load_encoder(write_onnx(tmp_path / "plain.onnx"))
    pixels = images(2, 12)
    torch.testing.assert_close(encoder(pixels), plain(pixels), rtol=1e-4, atol=1e-4)
    assert encoder.mean == (0.0,) * 3


def test_onnx_metadata_sets_the_normalisation(tmp_path):
    path = write_onnx(tmp_path / "m.onnx")
    model = onnx.load(path)
    helper.set_model_props(model, {"network": "r50", "mean": "[1, 2, 3]", "std": "[4, 5, 6]"})
    onnx.save(model, path)
    encoder = load_encoder(path)
    assert (encoder.network, encoder.mean, encoder.std) == ("r50", (1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    with pytest.raises(UserError, match="holds network r50, not r18"):
        load_encoder(path, "r18")
    helper.set_model_props(model, {"mean": "[1, 2]", "std": "[4, 5, 6]"})
    onnx.save(model, path)
    with pytest.raises(UserError, match=r"m.onnx has metadata that make no sense: the mean .*, got '\[1, 2\]'"):
        load_encoder(path)


def test_dynamic_height_and_width_are_taken_as_112(tmp_path):
    assert load_encoder(write_onnx(tmp_path / "m.onnx", side="side")).image_size == 112


def test_onnx_with_dynamic_height_and_width_that_does_not_take_112_is_an_error(tmp_path):
    before = (("Add", np.zeros((3, 24, 24))),)
    with pytest.raises(UserError, match="cannot run .*other.onnx on images of 112x112 .*fixed height and width"):
        load_encoder(write_onnx(tmp_path / "other.onnx", side="side", before=before))


def test_damaged_onnx_and_missing_models_are_errors_with_their_names(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(UserError, match="cannot load .*bad.onnx"):
        load_encoder(tmp_path / "bad.onnx")
    with pytest.raises(UserError, match="model not found: .*none.onnx"):
        load_encoder(tmp_path / "none.onnx")
