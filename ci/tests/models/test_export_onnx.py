"""ONNX files: names and shapes of the contract, the check before writing, round trips, the `insightface` package."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import core.models.export
from core.backbones import build_backbone
from core.errors import UserError
from core.models.encoder import Encoder, load_encoder
from core.models.export import export_onnx, to_onnx, worst_difference
from core.models.weights import fingerprint

TOOL = Path(__file__).resolve().parents[3] / "tools" / "export_onnx.py"
TINY = {"width": 8, "depth": 1}
NETWORKS = {"r18": 32, "mbf": 512, "vit_t": 128}


def make_encoder(network, embedding_size, image_size, **options):
    torch.manual_seed(0)
    module = build_backbone(network, embedding_size, image_size=image_size, **options).eval()
    grey = (127.5,) * 3
    description = (network, network, embedding_size, image_size, grey, grey, fingerprint(module.state_dict()))
    return Encoder(*description, torch.device("cpu"), module)


@pytest.fixture(scope="module", params=NETWORKS)
def exported(request, tmp_path_factory):
    """A network at its full size with random weights, and its file."""
    encoder = make_encoder(request.param, NETWORKS[request.param], 112)
    path = tmp_path_factory.mktemp("onnx") / f"{request.param}.onnx"
    assert export_onnx(encoder, path) < 1e-5
    return encoder, path


@pytest.fixture(scope="module")
def tiny():
    """A small encoder and its ONNX model."""
    encoder = make_encoder("r18", 8, 32, **TINY)
    return encoder, to_onnx(encoder)


def images(count, size):
    return np.random.default_rng(1).integers(0, 256, (count, size, size, 3), np.uint8)


def test_file_has_one_input_one_output_dynamic_batch_and_nothing_beside_it(exported):
    encoder, path = exported
    model = onnx.load(path, load_external_data=False)
    onnx.checker.check_model(model)
    shapes = [
        [(value.name, [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]) for value in values]
        for values in (model.graph.input, model.graph.output)
    ]
    assert shapes == [[("input", ["batch", 3, 112, 112])], [("embedding", ["batch", encoder.embedding_size])]]
    assert os.listdir(path.parent) == [path.name]
    assert str(TOOL.parent.parent).encode() not in path.read_bytes()


def test_file_as_model_argument_gives_pytorch_s_embeddings(exported):
    encoder, path = exported
    loaded = load_encoder(path)
    assert (loaded.network, loaded.embedding_size, loaded.image_size) == (encoder.network, encoder.embedding_size, 112)
    for count in (1, 2, 5):
        wanted = encoder(images(count, 112))
        torch.testing.assert_close(loaded(images(count, 112)), wanted, rtol=0, atol=1e-5 * wanted.norm(dim=1).max())


def test_insightface_package_loads_the_file_as_a_recognition_model(exported):
    model_zoo = pytest.importorskip("insightface.model_zoo", reason="the dev extra is not installed")
    encoder, path = exported
    model = model_zoo.get_model(str(path), providers=["CPUExecutionProvider"])
    assert (model.taskname, model.input_size) == ("recognition", (112, 112))
    assert (model.input_mean, model.input_std) == (127.5, 127.5)
    rgb = images(2, 112)
    found = np.concatenate([model.get_feat(np.ascontiguousarray(image[..., ::-1])) for image in rgb])
    wanted = encoder(rgb).numpy()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.linalg.norm(wanted, axis=1).max())
    np.testing.assert_allclose(model.get_feat([image[..., ::-1] for image in rgb]), found, rtol=0, atol=1e-4)


def run_tool(*arguments):
    return subprocess.run([sys.executable, TOOL, *map(str, arguments)], capture_output=True, text=True, timeout=120)


def test_tool_writes_a_model_with_its_metadata_and_what_the_command_line_says_of_its_input(tmp_path):
    module = build_backbone("r18", 8, image_size=24, **TINY)
    torch.save(module.state_dict(), tmp_path / "model.pt")
    config = {"network": "r18", "network_options": TINY, "embedding_size": 8, "image_size": 24}
    config |= {"normalization": "imagenet", "old_model_fingerprint": "0ld"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    result = run_tool("-m", tmp_path, "--channel-order", "BGR", "-o", tmp_path / "m.onnx")
    assert (result.returncode, result.stdout) == (0, "")
    fed, written = result.stderr.splitlines()
    assert "is fed 24x24 BGR" in fed and fed.endswith("(as told)") and "m.onnx: r18" in written
    told = load_encoder(tmp_path, channel_order="BGR")
    assert {entry.key: entry.value for entry in onnx.load(tmp_path / "m.onnx").metadata_props} == {
        "network": "r18",
        "embedding_size": "8",
        "input_size": "24",
        "mean": "[103.53, 116.28, 123.675]",
        "std": "[57.375, 57.12, 58.395]",
        "channel_order": "BGR",
        "fingerprint": told.fingerprint,
        "old_model_fingerprint": "0ld",
    }
    loaded = load_encoder(tmp_path / "m.onnx")
    assert loaded.old_model_fingerprint == "0ld"
    torch.testing.assert_close(loaded(images(2, 24)), told(images(2, 24)), rtol=1e-4, atol=1e-4)


def test_tool_ends_with_one_error_line_for_a_state_dict_without_a_network(tmp_path):
    torch.save(build_backbone("r18", 8, image_size=32, **TINY).state_dict(), tmp_path / "w.pt")
    result = run_tool("-m", tmp_path / "w.pt", "-o", tmp_path / "m.onnx")
    lines = result.stderr.splitlines()
    assert result.returncode == 2 and lines[-1].startswith("error: ") and "-net" in lines[-1] and len(lines) == 1
    assert os.listdir(tmp_path) == ["w.pt"]


def test_output_in_a_missing_folder_is_an_error(tiny, tmp_path):
    with pytest.raises(UserError, match="the folder .*none of the output m.onnx does not exist"):
        export_onnx(tiny[0], tmp_path / "none" / "m.onnx")
    with pytest.raises(UserError, match="is a folder: name a file"):
        export_onnx(tiny[0], tmp_path)


@pytest.mark.parametrize("bias", [0.5, float("nan")])
def test_model_that_differs_from_pytorch_is_not_written(tiny, tmp_path, monkeypatch, bias):
    encoder = make_encoder("r18", 8, 32, **TINY)
    with torch.no_grad():
        encoder.module.features.bias[3] += bias
    monkeypatch.setattr(core.models.export, "to_onnx", lambda _: tiny[1])
    (tmp_path / "m.onnx").write_text("before")
    with pytest.raises(UserError, match="does not give PyTorch's embeddings: nothing written"):
        export_onnx(encoder, tmp_path / "m.onnx")
    assert os.listdir(tmp_path) == ["m.onnx"] and (tmp_path / "m.onnx").read_text() == "before"


def test_worst_difference_sees_one_wrong_number(tiny, tmp_path):
    encoder, model = tiny
    onnx.save(model, tmp_path / "m.onnx")
    assert worst_difference(encoder, tmp_path / "m.onnx") < 1e-5
    other = make_encoder("r18", 8, 32, **TINY)
    with torch.no_grad():
        other.module.features.bias[3] += 0.01
    assert 1e-4 < worst_difference(other, tmp_path / "m.onnx") < 1e-1


def test_onnx_file_and_too_large_network_are_refused(tiny, tmp_path, monkeypatch):
    encoder, model = tiny
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(UserError, match="is already an ONNX file"):
        export_onnx(load_encoder(tmp_path / "m.onnx"), tmp_path / "n.onnx")
    monkeypatch.setattr(core.models.export, "MAX_BYTES", 1000)
    with pytest.raises(UserError, match="cannot be larger than 2 GiB"):
        export_onnx(encoder, tmp_path / "n.onnx")
    assert not (tmp_path / "n.onnx").exists()
