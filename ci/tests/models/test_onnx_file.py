"""Files of an ONNX model: the fingerprint over all of them, and data that are missing, cut off or outside."""

import hashlib
import os
import shutil

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_graphs import SIDE, Graph

from core.errors import UserError
from core.models.encoder import load_encoder
from core.models.onnx_file import read_onnx_file


def pixels(count=2):
    return np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)


@pytest.fixture
def plain(tmp_path):
    return Graph().step("Sub", 127.5).step("Mul", 1 / 127.5).write(tmp_path / "plain.onnx")


@pytest.fixture(params=["one file", "a file a tensor", "a folder below"])
def split(request, plain):
    """The same model with its weights in other files."""
    folder = plain.parent / "split"
    folder.mkdir()
    (folder / "weights").mkdir()
    one = request.param != "a file a tensor"
    location = {"one file": "m.onnx.data", "a folder below": "weights/all"}.get(request.param)
    onnx.save_model(
        onnx.load(plain), folder / "m.onnx", save_as_external_data=True, all_tensors_to_one_file=one, location=location,
        size_threshold=0,
    )  # fmt: skip
    return folder / "m.onnx"


def data_files(model):
    return sorted(file for file in model.parent.rglob("*") if file.is_file() and file != model)


def test_fingerprint_of_a_model_in_one_file_is_that_file_s(plain):
    assert load_encoder(plain).fingerprint == hashlib.sha256(plain.read_bytes()).hexdigest()


def test_model_with_external_data_gives_the_plain_model_s_embeddings_and_is_looked_into(plain, split):
    encoder = load_encoder(split)
    np.testing.assert_array_equal(encoder(pixels()), load_encoder(plain)(pixels()))
    assert encoder.mean == (0.0,) * 3


def test_every_byte_of_every_data_file_belongs_to_the_fingerprint(split):
    found = {load_encoder(split).fingerprint}
    assert found != {hashlib.sha256(split.read_bytes()).hexdigest()}
    changes = 0
    for file in data_files(split):
        content = file.read_bytes()
        for place in (0, len(content) // 2, len(content) - 1):
            file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            found.add(read_onnx_file(split)[1])
            changes += 1
        file.write_bytes(content)
    assert len(found) == 1 + changes
    assert read_onnx_file(split)[1] in found


def test_copy_elsewhere_has_the_same_fingerprint(split, tmp_path):
    shutil.copytree(split.parent, tmp_path / "elsewhere")
    assert read_onnx_file(tmp_path / "elsewhere" / "m.onnx")[1] == read_onnx_file(split)[1]


def external(name, location, count=2):
    tensor = TensorProto(name=name, dims=[count], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", str(4 * count))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def in_sparse_initializer(model):
    sparse = model.graph.sparse_initializer.add(dims=[9])
    sparse.values.CopyFrom(external("s", "data"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.int64([1, 2]), "i"))


def in_attribute(model):
    model.graph.node.append(helper.make_node("Constant", [], ["k"], value=external("k", "data")))


def in_subgraph_of_a_subgraph(model):
    inner = helper.make_graph([], "inner", [], [], [external("deep", "data")])
    outer = helper.make_graph([helper.make_node("If", ["b"], ["o"], then_branch=inner)], "outer", [], [])
    model.graph.node.append(helper.make_node("If", ["b"], ["p"], then_branch=outer))


def in_function(model):
    node = helper.make_node("Constant", [], ["k"], value=external("k", "data"))
    model.functions.append(helper.make_function("own", "F", [], ["k"], [node], [helper.make_opsetid("", 17)]))


@pytest.mark.parametrize("place", [in_sparse_initializer, in_attribute, in_subgraph_of_a_subgraph, in_function])
def test_data_of_tensors_anywhere_in_the_model_belong_to_the_fingerprint(place, plain, tmp_path):
    model = onnx.load(plain)
    place(model)
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(UserError, match="m.onnx keeps weights in 'data', which is missing: put that file into"):
        read_onnx_file(tmp_path / "m.onnx")
    found = set()
    for value in (1, 2):
        (tmp_path / "data").write_bytes(np.float32([value, 0]).tobytes())
        found.add(read_onnx_file(tmp_path / "m.onnx")[1])
    assert len(found) == 2


def replace_location(path, location):
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    onnx.save(model, path)


@pytest.mark.parametrize("kind", ["absolute", "above", "link", "folder that is a link"])
def test_data_outside_the_model_s_folder_are_refused(kind, plain, tmp_path):
    folder, outside = tmp_path / "model", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    options = {"save_as_external_data": True, "location": "w", "size_threshold": 0}
    onnx.save_model(onnx.load(plain), folder / "m.onnx", **options)
    shutil.move(folder / "w", outside / "w")
    location = {"absolute": str(outside / "w"), "above": "../outside/w", "link": "w"}.get(kind, "below/w")
    if kind == "link":
        os.symlink(outside / "w", folder / "w")
    if kind == "folder that is a link":
        os.symlink(outside, folder / "below")
    replace_location(folder / "m.onnx", location)
    with pytest.raises(
        UserError, match="keeps weights outside its folder, in .*: copy the model and its data"
    ) as error:
        load_encoder(folder / "m.onnx")
    assert str(outside / "w") in str(error.value) and "\n" not in str(error.value)


def test_link_within_the_folder_is_followed(split):
    target = data_files(split)[0]
    target.rename(target.with_name("kept"))
    os.symlink("kept", target)
    assert load_encoder(split)(pixels()).shape == (2, 5)


def test_missing_and_cut_off_data_files_are_one_line_each(split):
    file = data_files(split)[-1]
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    with pytest.raises(
        UserError, match=f"{file.name} is cut off: the model .* needs {len(content)} bytes of it"
    ) as cut:
        load_encoder(split)
    file.unlink()
    with pytest.raises(UserError, match=f"keeps weights in '.*{file.name}', which is missing") as missing:
        load_encoder(split)
    file.mkdir()
    with pytest.raises(UserError, match="which is missing"):
        load_encoder(split)
    assert "\n" not in str(cut.value) + str(missing.value)


def test_places_that_are_no_numbers_and_files_that_are_no_models(split, tmp_path):
    model = onnx.load(split, load_external_data=False)
    next(entry for entry in model.graph.initializer[0].external_data if entry.key == "offset").value = "many"
    onnx.save(model, split)
    with pytest.raises(UserError, match="m.onnx is damaged: the place of 'c0_0' in .* is no number"):
        load_encoder(split)
    for content in (b"\xff\xff", b"{}", b""):
        (tmp_path / "bad.onnx").write_bytes(content)
        with pytest.raises(UserError, match="cannot (load|read) .*bad.onnx"):
            load_encoder(tmp_path / "bad.onnx")
