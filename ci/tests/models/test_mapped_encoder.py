"""Maps' run folders as model arguments: numbers, facts, chains, and a line for each way in which they can be broken."""

import json
import shutil
from dataclasses import asdict

import numpy as np
import pytest
import torch
from onnx_graphs import Graph
from tiny import noise, write_map_run, write_run_folder

from core.errors import UserError
from core.files import ROOT
from core.models.encoder import load_encoder
from core.models.map_run import BaseModel, is_map_run, model_chain
from core.models.maps import fit_map, load_map


def images(count, size, seed=1):
    return noise(np.random.default_rng(seed), count, size)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Run folders: old (8 numbers), new (12), and maps in both directions and of several kinds."""
    folder = tmp_path_factory.mktemp("models")
    old, new = write_run_folder(folder / "old", 0, 8), write_run_folder(folder / "new", 1, 12, image_size=24)
    write_map_run(folder / "query", new, old)
    write_map_run(folder / "gallery", old, new, "old_to_new", "procrustes")
    write_map_run(folder / "network", new, old, kind="mlp")
    write_map_run(folder / "narrow", old, new, "old_to_new", "low_rank")
    return folder


@pytest.fixture
def copies(folder, tmp_path):
    """The same, to be damaged."""
    shutil.copytree(folder, tmp_path / "models")
    for name in ("query", "gallery"):
        edit(tmp_path / "models" / name, base={"path": str(tmp_path / "models" / {"query": "new"}.get(name, "old"))})
    return tmp_path / "models"


def edit(run, **changes):
    """Change entries of a config.json, and of the dicts in it."""
    config = json.loads((run / "config.json").read_text())
    for name, value in changes.items():
        config[name] = {**config[name], **value} if isinstance(value, dict) and name in config else value
    (run / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(("name", "base", "target"), [
    ("query", "new", "old"), ("gallery", "old", "new"), ("network", "new", "old"), ("narrow", "old", "new"),
])  # fmt: skip
def test_embeddings_are_the_maps_plain_output_of_the_bases(folder, name, base, target):
    encoder, base, target = (load_encoder(folder / each) for each in (name, base, target))
    batch = images(5, base.image_size)
    wanted = load_map(folder / name)(base(batch).numpy(), normalized=False)
    np.testing.assert_allclose(encoder(batch).numpy(), wanted, atol=1e-6)
    assert encoder.embedding_size == target.embedding_size == wanted.shape[1]
    assert (encoder.image_size, encoder.preprocessing, encoder.any_size) == (base.image_size, base.preprocessing, False)
    assert encoder.base.fingerprint == base.fingerprint and encoder.map.target.fingerprint == target.fingerprint
    assert len({encoder.fingerprint, base.fingerprint, target.fingerprint}) == 3
    assert not encoder.module.training and not any(p.requires_grad for p in encoder.module.parameters())


def test_facts_of_both_directions(folder):
    query, gallery = load_encoder(folder / "query"), load_encoder(folder / "gallery")
    assert (query.name, query.network) == ("new+ridge", "r18+ridge")
    assert (gallery.name, gallery.network) == ("old+procrustes", "r18+procrustes")
    assert query.old_model_fingerprint == load_encoder(folder / "old").fingerprint
    assert gallery.old_model_fingerprint is None
    assert query.gallery_model is query and gallery.gallery_model is gallery.base


def test_fingerprint_is_of_base_and_map(folder, tmp_path):
    same = write_map_run(tmp_path / "same", folder / "new", folder / "old")
    other = write_map_run(tmp_path / "other", folder / "new", folder / "old", kind="procrustes")
    found = {load_encoder(path).fingerprint for path in (folder / "query", same, other)}
    assert len(found) == 2


def test_rows_of_the_base_are_mapped_as_they_are_read(folder):
    encoder = load_encoder(folder / "query")
    batch = images(11, 24)
    stored = encoder.base(batch).numpy()
    stored.flags.writeable = False  # as in a memory map
    rows, wanted = encoder.mapped(stored), encoder(batch).numpy()
    assert (rows.shape, rows.ndim, rows.dtype, len(rows)) == (wanted.shape, 2, np.float32, 11)
    for index in (slice(None), slice(2, 7), np.array([5, 0, 5]), np.array([[1, 2], [10, 0]]), 3, slice(4, 4)):
        np.testing.assert_allclose(rows[index], wanted[index], atol=1e-6)
    np.testing.assert_allclose(np.concatenate((rows, rows)), np.concatenate((wanted, wanted)), atol=1e-6)
    assert np.asarray(rows, np.float64).dtype == np.float64
    units = wanted / np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(encoder.mapped(stored, normalized=True)[:], units, atol=1e-6)


def test_base_may_be_a_map_and_its_base_too(folder, tmp_path):
    newer = write_run_folder(tmp_path / "newer", 5, 6)
    second = write_map_run(tmp_path / "second", folder / "gallery", newer, "old_to_new")
    third = write_map_run(tmp_path / "third", second, folder / "old")
    encoder, batch = load_encoder(third), images(4, 16)
    steps = load_encoder(folder / "old")(batch).numpy()
    for path in (folder / "gallery", second, third):
        steps = load_map(path)(steps, normalized=False)
    np.testing.assert_allclose(encoder(batch).numpy(), steps, atol=1e-6)
    assert encoder.name == "old+procrustes+ridge+ridge" and encoder.embedding_size == 8
    assert load_encoder(second).gallery_model.name == "old" and encoder.gallery_model is encoder
    assert model_chain(third) == [third, second, folder / "gallery", folder / "old"]
    stored = encoder.base.base.base(batch).numpy()
    rows = encoder.mapped(encoder.base.mapped(encoder.base.base.mapped(stored)))
    np.testing.assert_allclose(rows[1:3], steps[1:3], atol=1e-6)


def test_base_may_be_any_model_argument_fed_as_the_user_said(folder, tmp_path):
    torch.save(torch.load(folder / "new" / "model.pt"), tmp_path / "bare.pt")
    told = {"network": "r18", "mean": "imagenet", "std": "imagenet", "channel_order": "BGR"}
    bare = load_encoder(tmp_path / "bare.pt", **told)
    Graph().write(tmp_path / "foreign.onnx")
    for base, options, kind in ((tmp_path / "bare.pt", told, "ridge"), (tmp_path / "foreign.onnx", {}, "mlp")):
        path = write_map_run(tmp_path / f"{base.stem}_map", base, folder / "old", kind=kind, **options)
        encoder, plain = load_encoder(path), load_encoder(base, **options)
        batch = images(3, plain.image_size)
        np.testing.assert_allclose(
            encoder(batch).numpy(), load_map(path)(plain(batch).numpy(), normalized=False), atol=1e-6
        )
        assert encoder.preprocessing == plain.preprocessing
    assert "BGR" in bare.preprocessing and load_encoder(tmp_path / "bare_map").preprocessing == bare.preprocessing


def test_path_of_a_base_below_the_root_is_stored_relative_to_it(tmp_path):
    assert BaseModel.stored_path(ROOT / "work_dirs" / "new") == "work_dirs/new"
    assert BaseModel.stored_path(tmp_path / "new.pt") == str(tmp_path / "new.pt")


@pytest.mark.parametrize("options", [{"network": "r18"}, {"mean": "face", "std": "face"}, {"channel_order": "BGR"}])
def test_what_the_map_knows_cannot_be_said_again(folder, options):
    with pytest.raises(
        UserError, match=r"^.*query is the run folder of a map, .* leave network, mean, std and channel"
    ):
        load_encoder(folder / "query", **options)


def cut(path):
    path.write_bytes(path.read_bytes()[:-50])


def without(run, *names):
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({key: value for key, value in config.items() if key not in names}))


@pytest.mark.parametrize(("damage", "message"), [
    (lambda f: (f / "query/map.pt").unlink(), "weights of the map not found: .*query/map.pt"),
    (lambda f: cut(f / "query/map.pt"), "cannot read .*query/map.pt: .*"),
    (lambda f: (f / "query/map.pt").write_bytes(b""), "cannot read .*query/map.pt: .*"),
    (lambda f: shutil.copy(f / "gallery/map.pt", f / "query/map.pt"), ".*query/map.pt is not the map that .*"),
    (lambda f: (f / "query/config.json").unlink(), "config of the map's run folder not found: .*query/config.json"),
    (lambda f: cut(f / "query/config.json"), ".*query/config.json is not a readable .*"),
    (lambda f: without(f / "query", "base"), r".*query/config.json does not say whose embeddings the map takes .*"),
    (lambda f: edit(f / "query", base={"path": 7}), r".*query/config.json does not say whose embeddings .*"),
    (lambda f: edit(f / "query", direction="up"), ".*query/config.json: direction is 'up', not new_to_old or .*"),
    (lambda f: shutil.rmtree(f / "new"), "the base model of the map .*query is not at .*models/new: put it there, or "
     "correct base of .*query/config.json"),
    (lambda f: shutil.copy(f / "new/config.json", f / "query/config.json"), ".*query/config.json is not a readable .*"),
    (lambda f: edit(f / "query", base={"path": str(f / "old")}),
     r"the model at .*old \(fingerprint \w{12}\) is not the base model of the map .*query \(fingerprint \w{12}\): put "
     "that model there, correct base of .*query/config.json, or fit the map again"),
    (lambda f: edit(f / "query", map={"source": {"size": 12, "fingerprint": "other"}}), "these vectors are of new .*"),
    (lambda f: edit(f / "query", base={"path": str(f / "query")}),
     r"the base models of the map (.*query) lead in a circle \(\1 > \1\): write .* into base of \1/config.json"),
    (lambda f: [edit(f / a, base={"path": str(f / b)}) for a, b in (("query", "gallery"), ("gallery", "query"))],
     r"the base models of the map (.*)/query lead in a circle \(\1/query > \1/gallery > \1/query\): .*"),
])  # fmt: skip
def test_what_is_wrong_with_a_maps_run_folder_is_one_line(copies, damage, message):
    damage(copies)
    with pytest.raises(UserError, match=f"^{message}$"):
        load_encoder(copies / "query")


def test_a_map_alone_is_no_model(folder, tmp_path):
    with pytest.raises(UserError, match="map.pt holds a map alone, without the model .*: name .*query$"):
        load_encoder(folder / "query" / "map.pt")
    rng = np.random.default_rng(0)
    fit_map("ridge", rng.normal(size=(20, 3)), rng.normal(size=(20, 3))).save(
        tmp_path / "map", {"direction": "new_to_old"}
    )
    with pytest.raises(UserError, match="it maps stored vectors, but is no model$"):
        load_encoder(tmp_path / "map")
    assert load_map(tmp_path / "map").num_pairs == 20


def test_a_models_run_folder_is_no_map_whatever_lies_beside_its_files(copies):
    shutil.copy(copies / "query" / "map.pt", copies / "old" / "map.pt")
    assert not is_map_run(copies / "old") and load_encoder(copies / "old").map is None
    assert is_map_run(copies / "query") and not is_map_run(copies / "old" / "model.pt")
    assert asdict(BaseModel("new", "f")) == {
        "path": "new", "fingerprint": "f", "network": None, "mean": None, "std": None, "channel_order": None
    }  # fmt: skip
