"""Files that are no weights are named as what they are; only what is cut off is called damaged."""

import gzip
import io
import pickle
import shutil
import tarfile
import zipfile

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from core.backbones.file_kinds import ONNX, SAFETENSORS, TORCH_OLD, TORCH_ZIP, kind_of_file
from core.backbones.state_dicts import read_state_dict
from core.errors import UserError
from core.models.encoder import load_encoder


def torch_file(**options):
    buffer = io.BytesIO()
    torch.save({"fc.weight": torch.arange(5000.0)}, buffer, **options)
    return buffer.getvalue()


def torchscript(folder):
    module = torch.jit.script(nn.Linear(2, 3))
    torch.jit.save(module, folder / "script.pt")
    return (folder / "script.pt").read_bytes()


def onnx_model(**options):
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    return helper.make_model(graph, **options).SerializeToString()


def archive(**files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as target:
        for name, content in files.items():
            target.writestr(name.replace("__", "/").replace("_dot_", "."), content)
    return buffer.getvalue()


def tar(content):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as target:
        info = tarfile.TarInfo("weights.pt")
        info.size = len(content)
        target.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def npz():
    buffer = io.BytesIO()
    np.savez(buffer, a=np.ones(3))
    return buffer.getvalue()


OTHERS = {
    "web page": ("w.pt", lambda: b"<!DOCTYPE html>\n<html><head>", "a web page; download the file itself"),
    "page": ("w.pt", lambda: b"\n  <html lang='en'>" + b"x" * 9000, "a web page"),
    "git lfs": (
        "w.pt",
        lambda: b"version https://git-lfs.github.com/spec/v1\noid",
        "a pointer of Git LFS.*git lfs pull",
    ),
    "keras": ("w.h5", lambda: b"\x89HDF\r\n\x1a\n" + bytes(99), "an HDF5 file, as Keras writes it.*ONNX"),
    "keras zip": (
        "w.keras",
        lambda: archive(config_dot_json="{}", model_dot_weights_dot_h5="x"),
        "a Keras model.*ONNX",
    ),
    "tensorflow": ("w.pb", lambda: b"\x0a\x05input\x12\x01x", "a TensorFlow model.*ONNX"),
    "tflite": ("w.tflite", lambda: b"\x1c\x00\x00\x00TFL3" + bytes(50), "a TensorFlow Lite model.*ONNX"),
    "mxnet": ("w.params", lambda: (0x112).to_bytes(8, "little") + bytes(40), "a file of parameters of MXNet.*ONNX"),
    "paddle": (
        "w.pdparams",
        lambda: pickle.dumps({"w": np.ones(2)}, 2),
        "a Python pickle that torch.save did not write",
    ),
    "pickle": ("w.pkl", lambda: pickle.dumps({"w": [1.0]}), "a Python pickle that torch.save did not write"),
    "tensorrt": ("w.engine", lambda: b"\xff\xfe\x00ftrt" + bytes(40), "a TensorRT engine.*ONNX"),
    "onnx": ("w.pt", onnx_model, "an ONNX model; rename it to .onnx"),
    "onnx named": ("w.pth", lambda: onnx_model(producer_name="pytorch"), "an ONNX model"),
    "export": ("w.pt2", lambda: archive(a__models__model_dot_json="{}"), "a program of torch.export"),
    "npz": ("w.npz", npz, "an archive of NumPy arrays"),
    "zip": ("w.zip", lambda: archive(model_dot_pt="x", readme="y"), "a zip archive; unpack it"),
    "gzip": ("w.pt.gz", lambda: gzip.compress(torch_file()), "a compressed archive; unpack it"),
    "tar": ("w.pth.tar", lambda: tar(torch_file()), "a tar archive; unpack it"),
    "text": ("w.txt", lambda: "fc.weight: 1.0\nä".encode(), "a text file"),
    "zeros": ("w.pt", lambda: bytes(9000), "a file of zeros, as a broken download leaves it"),
    "noise": ("w.pt", lambda: np.random.default_rng(0).bytes(5000), "of no format that is known here"),
}


@pytest.mark.parametrize("name, make, message", OTHERS.values(), ids=OTHERS)
def test_other_format_is_named_with_the_way_on(name, make, message, tmp_path):
    (tmp_path / name).write_bytes(make())
    with pytest.raises(UserError, match=f"cannot read weights from .*{name}: it is {message}") as error:
        load_encoder(tmp_path / name, "r18")
    assert "damaged" not in str(error.value) and "\n" not in str(error.value)


def test_torchscript_is_named_and_the_advice_works(tmp_path):
    torchscript(tmp_path)
    with pytest.raises(UserError, match="script.pt: it is a TorchScript program.*ONNX.*torch.jit.load"):
        read_state_dict(tmp_path / "script.pt")
    assert list(torch.jit.load(tmp_path / "script.pt").state_dict()) == ["weight", "bias"]


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_torch_file_that_is_cut_off_is_damaged(old, share, tmp_path):
    content = torch_file(_use_new_zipfile_serialization=not old)
    (tmp_path / "w.pt").write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=r"w.pt: it is damaged.*get it again") as error:
        read_state_dict(tmp_path / "w.pt")
    assert "\n" not in str(error.value)


def test_kinds_that_are_read_are_recognised_whatever_their_name(tmp_path):
    from safetensors.torch import save

    files = {"a.onnx": torch_file(), "b.bin": torch_file(_use_new_zipfile_serialization=False), "c.pt": onnx_model()}
    files["d.ckpt"] = save({"a": torch.ones(2)})
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert [kind_of_file(tmp_path / name) for name in files] == [TORCH_ZIP, TORCH_OLD, ONNX, SAFETENSORS]


@pytest.mark.parametrize(
    "make, message",
    [
        (torch_file, "a file of torch.save, no ONNX model: rename it to .pt"),
        (lambda: b"<html>", "a web page"),
        (lambda: b"version https://git-lfs.github.com/spec/v1", "a pointer of Git LFS"),
    ],
)
def test_file_that_is_only_called_onnx_is_named(make, message, tmp_path):
    (tmp_path / "w.onnx").write_bytes(make())
    with pytest.raises(UserError, match=f"w.onnx is {message}"):
        load_encoder(tmp_path / "w.onnx")


def test_empty_unreadable_and_missing_files_are_not_called_damaged(tmp_path, monkeypatch):
    (tmp_path / "w.pt").touch()
    with pytest.raises(UserError, match="w.pt: it is empty; get it again"):
        read_state_dict(tmp_path / "w.pt")
    with pytest.raises(UserError, match=f"{tmp_path} is a folder: give a file of weights"):
        read_state_dict(tmp_path)
    with pytest.raises(UserError, match="not found: .*none.pt"):
        read_state_dict(tmp_path / "none.pt")

    def refuse(path, *args):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(UserError, match="cannot read .*w.pt: Permission denied"):
        read_state_dict(tmp_path / "w.pt")


def test_folder_of_another_program_says_which_file_to_give(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["ViTModel"]}')
    (tmp_path / "model.safetensors").touch()
    hint = f"if {tmp_path}/model.safetensors is the model, give that file and name its network"
    with pytest.raises(UserError, match=f"has no 'embedding_size': it is not the config of a run; {hint}"):
        load_encoder(tmp_path, "r18")
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=f"config of the run folder not found: .*config.json; {hint}"):
        load_encoder(tmp_path)
    shutil.rmtree(tmp_path)


def test_valid_onnx_models_are_recognised():
    assert onnx.load_from_string(onnx_model()).graph.node
