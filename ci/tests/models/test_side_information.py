"""Maps with side information as model arguments: two models embed an image, each fed its own way, then the map."""

import json
import shutil

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from onnx_graphs import Graph
from tiny import noise, write_map_run, write_run_folder

from core.errors import UserError
from core.images.transforms import normalize
from core.models.encoder import load_encoder
from core.models.export import export_onnx
from core.models.map_run import model_chain, model_paths
from core.models.maps import load_map
from core.models.shared_space import require_shared_space

BGR = {"network": "r18", "mean": "100 110 120", "std": "50 60 70", "channel_order": "BGR"}
IMAGENET = {"network": "r18", "mean": "imagenet", "std": "imagenet"}


def images(count=5, size=16):
    return noise(np.random.default_rng(1), count, size)


def joined(*embeddings):
    """Embeddings by several models, each of length 1, one behind the other."""
    units = [np.float64(rows) / np.linalg.norm(np.float64(rows), axis=1, keepdims=True) for rows in embeddings]
    return np.hstack(units).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Run folders old (8 numbers), side (6) and new (12), a map of old and side, and bare weights of the two."""
    folder = tmp_path_factory.mktemp("models")
    old, side = write_run_folder(folder / "old", 0, 8), write_run_folder(folder / "side", 1, 6)
    new = write_run_folder(folder / "new", 2, 12)
    write_map_run(folder / "sided", old, new, "old_to_new", side=side)
    for path in (old, side):
        shutil.copy(path / "model.pt", folder / f"{path.name}.pt")
    return folder


@pytest.fixture
def copies(folder, tmp_path):
    """The same, to be damaged."""
    shutil.copytree(folder, tmp_path / "models")
    for entry, name in (("base", "old"), ("side", "side")):
        edit(tmp_path / "models" / "sided", entry, path=str(tmp_path / "models" / name))
    return tmp_path / "models"


def edit(run, entry, **changes):
    """Change what a config says of base or side."""
    config = json.loads((run / "config.json").read_text())
    config[entry] = {**(config.get(entry) or {}), **changes}
    (run / "config.json").write_text(json.dumps(config))


def put(run, entry, value):
    """Replace an entry of a config."""
    (run / "config.json").write_text(json.dumps({**json.loads((run / "config.json").read_text()), entry: value}))


@pytest.mark.parametrize(("told", "side_told"), [
    ({}, {}), ({}, BGR), (BGR, {}), (BGR, IMAGENET), (IMAGENET, BGR), (BGR, BGR),
])  # fmt: skip
def test_each_model_is_fed_as_it_is_by_itself(folder, tmp_path, told, side_told):
    base, side = (folder / (f"{name}.pt" if about else name) for name, about in (("old", told), ("side", side_told)))
    run = write_map_run(tmp_path / "run", base, folder / "new", "old_to_new", side=side, side_told=side_told, **told)
    encoder, models = load_encoder(run), (load_encoder(base, **told), load_encoder(side, **side_told))
    vectors = joined(*(model(images()) for model in models))
    np.testing.assert_allclose(encoder(images()), load_map(run)(vectors, normalized=False), atol=1e-6)
    assert [model.fingerprint for model in encoder.sources] == [model.fingerprint for model in models]
    assert encoder.preprocessing == "; ".join(model.preprocessing for model in models)


def test_a_side_model_that_takes_bytes_is_given_whole_pixels(folder, tmp_path):
    Graph().step("Cast", to=TensorProto.FLOAT).write(tmp_path / "bytes.onnx", ("N", 3, 16, 16), TensorProto.UINT8)
    old, new, side = folder / "old.pt", folder / "new", tmp_path / "bytes.onnx"
    encoder = load_encoder(write_map_run(tmp_path / "run", old, new, "old_to_new", side=side, **IMAGENET))
    every = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    found = encoder.module[0](normalize(torch.from_numpy(every), encoder.mean, encoder.std))
    np.testing.assert_allclose(found[:, 8:], joined(load_encoder(side)(every)), atol=1e-7)


def test_facts(folder, tmp_path):
    encoder, old, side = (load_encoder(folder / name) for name in ("sided", "old", "side"))
    assert (encoder.name, encoder.network, encoder.embedding_size) == ("old,side+ridge", "r18,r18+ridge", 12)
    assert (encoder.image_size, encoder.any_size, encoder.maps_gallery) == (16, False, True)
    assert encoder.gallery_model is encoder.base and encoder.chain == [encoder, encoder.base]
    assert [model.name for model in encoder.models] == ["old,side+ridge", "old", "side"]
    assert encoder.trained == encoder.sources == [encoder.base, encoder.side]
    assert model_chain(folder / "sided") == [folder / "sided", folder / "old"]
    assert model_paths(folder / "sided") == [folder / "sided", folder / "old", folder / "side"]
    plain = write_map_run(tmp_path / "plain", folder / "old", folder / "new", "old_to_new")
    turned = write_map_run(tmp_path / "turned", folder / "side", folder / "new", "old_to_new", side=folder / "old")
    found = {load_encoder(path).fingerprint for path in (plain, turned, folder / "sided")}
    assert len({*found, old.fingerprint, side.fingerprint}) == 5
    assert "side" not in json.loads((plain / "config.json").read_text()) and load_encoder(plain).side is None


def test_rows_of_both_models_are_joined_and_mapped_as_they_are_read(folder):
    encoder, wanted = load_encoder(folder / "sided"), load_encoder(folder / "sided")(images(11)).numpy()
    stored = [model(images(11)).numpy() for model in encoder.sources]
    for rows in stored:
        rows.flags.writeable = False  # as in a memory map
    taken, rows = encoder.joined(*stored), encoder.mapped(*stored)
    assert (taken.shape, taken.dtype, rows.shape, len(rows)) == ((11, 14), np.float32, (11, 12), 11)
    for index in (slice(None), slice(2, 7), np.array([5, 0, 5]), np.array([[1, 2], [10, 0]]), 3, slice(4, 4)):
        np.testing.assert_allclose(taken[index], joined(*stored)[index], atol=1e-6)
        np.testing.assert_allclose(rows[index], wanted[index], atol=1e-6)
    units = wanted / np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(encoder.mapped(*stored, normalized=True), units, atol=1e-6)


def test_a_map_follows_one_with_side_information_and_may_be_one(folder, tmp_path):
    newer = write_run_folder(tmp_path / "newer", 5, 7)
    behind = write_map_run(tmp_path / "behind", folder / "sided", newer, "old_to_new")
    beside = write_map_run(tmp_path / "beside", folder / "side", newer, "old_to_new", side=folder / "sided")
    old, side = (load_encoder(folder / name)(images()) for name in ("old", "side"))
    mapped = load_map(folder / "sided")(joined(old, side), normalized=False)
    found = load_encoder(behind)
    np.testing.assert_allclose(found(images()), load_map(behind)(mapped, normalized=False), atol=1e-6)
    assert found.gallery_model.name == "old" and found.name == "old,side+ridge+ridge"
    assert found.preprocessing == load_encoder(folder / "sided").preprocessing
    found, wanted = load_encoder(beside), load_map(beside)(joined(side, mapped), normalized=False)
    np.testing.assert_allclose(found(images()), wanted, atol=1e-6)
    assert [model.name for model in found.trained] == ["side", "old", "side"] and found.gallery_model.name == "side"
    assert model_paths(beside) == [beside, folder / "side", folder / "sided", folder / "old", folder / "side"]


def test_a_map_is_compared_with_neither_of_its_models(folder):
    sided = load_encoder(folder / "sided")
    for name in ("old", "side"):
        with pytest.raises(UserError, match=f"^old,side.ridge and {name} cannot be compared: the map leads from old,s"):
            require_shared_space(load_encoder(folder / name), sided)
    require_shared_space(load_encoder(folder / "new"), sided)


@pytest.mark.parametrize(("damage", "message"), [
    (lambda f: put(f / "sided", "side", 3), r".*sided/config.json does not say which model gives the map's side "
     r"information \(side: path, fingerprint\): the run folder is damaged, fit the map again"),
    (lambda f: put(f / "sided", "side", []), ".*sided/config.json does not say which model gives .*"),
    (lambda f: put(f / "sided", "side", {"fingerprint": "x"}), ".*sided/config.json does not say which model gives .*"),
    (lambda f: edit(f / "sided", "side", fingerprint=7), ".*sided/config.json does not say which model gives .*"),
    (lambda f: put(f / "sided", "side", None), r"this map takes vectors of size 14, got size 8: .*"),
    (lambda f: put(f / "sided", "base", None), ".*sided/config.json does not say whose embeddings the map takes .*"),
    (lambda f: shutil.rmtree(f / "side"), "the side model of the map .*sided is not at .*models/side: put it there, "
     "or correct side of .*sided/config.json"),
    (lambda f: edit(f / "sided", "side", path=str(f / "new")), r"the model at .*new \(fingerprint \w{12}\) is not the "
     r"side model of the map .*sided \(fingerprint \w{12}\): put that model there, correct side of .*, or fit .*"),
    (lambda f: edit(f / "sided", "side", network="r50"), ".* holds network r18, not .*"),
    (lambda f: edit(f / "sided", "side", path=str(f / "sided")), r"the base models of the map (.*sided) lead in a "
     r"circle \(\1 > \1\): write .* into side of \1/config.json"),
    (lambda f: [shutil.copytree(f / "sided", f / "b"), edit(f / "sided", "base", path=str(f / "b")),
                edit(f / "b", "side", path=str(f / "sided"))],
     r"the base models of the map (.*)/sided lead in a circle \(\1/sided > \1/b > \1/sided\): .* side of \1/b/.*"),
    (lambda f: [edit(f / "sided", "base", path=str(f / "side"), fingerprint=load_encoder(f / "side").fingerprint),
                edit(f / "sided", "side", path=str(f / "old"), fingerprint=load_encoder(f / "old").fingerprint)],
     "these vectors are of side,old .*"),
])  # fmt: skip
def test_what_is_wrong_with_the_run_folder_is_one_line(copies, damage, message):
    damage(copies)
    with pytest.raises(UserError, match=f"^{message}$"):
        load_encoder(copies / "sided")


def test_models_of_images_of_two_sizes_are_one_line(folder, tmp_path):
    large = write_run_folder(tmp_path / "large", 3, 6, image_size=24)
    run = write_map_run(tmp_path / "run", folder / "old", folder / "new", "old_to_new", side=large)
    with pytest.raises(
        UserError, match=r"^the base model of the map .*run takes images of 16 pixels, its side model 24: fit the map"
    ):
        load_encoder(run)


def test_both_models_and_the_map_are_one_onnx_file(folder, tmp_path):
    run = write_map_run(
        tmp_path / "run", folder / "old", folder / "new", "old_to_new", "mlp", folder / "side.pt", BGR
    )  # fmt: skip
    encoder = load_encoder(run)
    assert export_onnx(encoder, tmp_path / "map.onnx") < 1e-5
    found = load_encoder(tmp_path / "map.onnx")
    np.testing.assert_allclose(found(images()), encoder(images()), atol=1e-5)
    assert [value.name for value in onnx.load(tmp_path / "map.onnx").graph.input] == ["input"]


def test_models_one_of_which_is_an_onnx_file_are_not_exported(folder, tmp_path):
    Graph().write(tmp_path / "foreign.onnx", ("N", 3, 16, 16), mean="127.5", std="127.5", channel_order="RGB")
    for base, side in (("foreign.onnx", folder / "side"), (folder / "old", "foreign.onnx")):
        run = tmp_path / f"run_{base == 'foreign.onnx'}"
        write_map_run(run, tmp_path / base, folder / "new", "old_to_new", side=tmp_path / side)
        with pytest.raises(UserError, match=r"^.* of several models, one of them the ONNX file .*foreign.onnx, which"):
            export_onnx(load_encoder(run), tmp_path / "map.onnx")
    assert not (tmp_path / "map.onnx").exists()
