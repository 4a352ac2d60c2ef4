"""The class `Gallery`, over a folder."""

import numpy as np
import pytest
from gallery_helpers import unit, vectors
from tiny import write_run_folder

from core.errors import UserError
from core.evaluation.calibration import ScoreCalibration
from core.gallery import Gallery
from core.gallery.documents import calibrations_to_document, map_to_document
from core.gallery.folder.store import FolderStore
from core.gallery.store import Version
from core.gallery.upgrade import Upgrade
from core.models.encoder import load_encoder
from core.models.maps import fit_map

COUNT = 50
NAMES = [f"person {row}" for row in range(COUNT)]
STORED = vectors(COUNT, seed=1)
QUERIES = vectors(6, seed=2)
CALIBRATION = ScoreCalibration(0.0, 1.0, np.array([-1.0]), np.array([0.0]), 0.2)


def files(folder, rows=STORED, names=NAMES):
    """Paths of vectors, ids, labels and images."""
    np.save(folder / "v.npy", rows)
    (folder / "ids.txt").write_text("".join(f"{name}\n" for name in names))
    (folder / "labels.txt").write_text("".join(f"class {row % 7}\n" for row in range(len(names))))
    (folder / "images.txt").write_text("".join(f"pictures/{name}.jpg\t{name}\n" for name in names[::2]))
    return [folder / name for name in ("v.npy", "ids.txt", "labels.txt", "images.txt")]


def make(folder, model="name:vendor-v1"):
    path, ids, labels, images = files(folder)
    return Gallery.create(folder / "gallery", path, model, ids, labels, images)


def upgrade(gallery, road="direct", **documents):
    """Begin one to the model "new" of size 8."""
    store = gallery.store
    mapped = "mapped" if road == "gallery_map" else None
    for key in ("new", *([mapped] if mapped else [])):
        store.add_version(Version(key, key, 8))
    old = next(iter(store.versions()))
    state = Upgrade(old, "new", mapped, road, "random", "0" * 64, len(store))
    store.set_documents({"upgrade": state.to_json(), **documents})


def entries(gallery):
    """(id, label, image) of all."""
    return [each for block in gallery.store.entries() for each in zip(block.ids, block.labels, block.images)]


def test_created_from_files_and_opened_again(tmp_path):
    make(tmp_path).close()
    with Gallery.open(tmp_path / "gallery") as gallery:
        assert entries(gallery) == [
            (name, f"class {row % 7}", None if row % 2 else f"{tmp_path}/pictures/{name}.jpg")
            for row, name in enumerate(NAMES)
        ]
        hits = gallery.search(QUERIES, "name:vendor-v1", 4).hits
        products = unit(QUERIES) @ unit(STORED).T
        best = np.argsort(-products, axis=1)[:, :4]
        assert hits["id"].to_list() == [NAMES[row] for row in best.ravel()]
        np.testing.assert_allclose(hits["score"], np.take_along_axis(products, best, 1).ravel(), atol=1e-6)
        assert gallery.search(QUERIES, "vendor-v1", 4).hits.equals(hits)
        assert gallery.verify() == []
        assert gallery.info() == {
            "vectors": 50, "versions": {"vendor-v1": 50}, "names": {"vendor-v1": "vendor-v1"}, "size": 8,
            "upgrade": None,
        }  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("format", ["npy", "parquet", "faiss"])
def test_exported_and_imported_again_it_answers_the_same(tmp_path, format, dtype):
    path, ids, labels, images = files(tmp_path, STORED.astype(dtype))
    with Gallery.create(tmp_path / "first", path, "name:m", ids, labels, images) as first:
        assert first.export(tmp_path / "out", format) == COUNT
        expected, before = first.search(QUERIES, "m", 9).hits, entries(first)
        vectors_before = first.store.vectors("m", np.arange(COUNT))
    out = tmp_path / "out"
    lists = () if format == "parquet" else (out / "ids.txt", out / "labels.txt", out / "images.txt")
    with Gallery.create(
        tmp_path / "second", out if format == "parquet" else out / f"vectors.{format}", "name:m", *lists
    ) as second:
        found = second.search(QUERIES, "m", 9).hits
        assert found["id"].to_list() == expected["id"].to_list() and entries(second) == before
        np.testing.assert_allclose(found["score"], expected["score"], atol=1e-6 if format == "faiss" else 0)
        again = second.store.vectors("m", np.arange(COUNT))
        assert format == "faiss" or (again.dtype == dtype and np.array_equal(again, vectors_before))


def test_parquet_that_is_stamped_otherwise_is_refused(tmp_path):
    with make(tmp_path) as gallery:
        gallery.export(tmp_path / "v.parquet", "parquet")
    with pytest.raises(UserError, match="says that its vectors are of vendor-v1, not of other"):
        Gallery.create(tmp_path / "second", tmp_path / "v.parquet", "name:other")
    assert not (tmp_path / "second").exists()


def test_a_creation_that_fails_leaves_nothing(tmp_path):
    rows = STORED.copy()
    rows[40, 3] = np.nan
    path, ids, *_ = files(tmp_path, rows)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=r"v.npy: the vector in row 40 .*'person 40'\) is not finite"):
        Gallery.create(tmp_path / "gallery", path, "name:m", ids)
    assert sorted(tmp_path.iterdir()) == before


def test_a_model_at_hand_is_stamped_by_its_fingerprint(tmp_path):
    run = write_run_folder(tmp_path / "run")
    encoder = load_encoder(run)
    path, ids, *_ = files(tmp_path, vectors(COUNT, encoder.embedding_size))
    with Gallery.create(tmp_path / "gallery", path, run, ids) as gallery:
        version = gallery.store.versions()[encoder.fingerprint]
        assert version == Version(encoder.fingerprint, encoder.name, encoder.embedding_size, str(run))
        queries = vectors(2, encoder.embedding_size)
        assert gallery.search(queries, run, 3).hits.equals(gallery.search(queries, encoder.fingerprint, 3).hits)
        with pytest.raises(UserError, match=f"no vectors of the model vendor, only of {encoder.fingerprint}"):
            gallery.search(queries, "name:vendor", 3)
        with pytest.raises(UserError, match=f"model not found: nothing; .* has vectors of {encoder.fingerprint}"):
            gallery.search(queries, "nothing", 3)
    np.save(path, vectors(COUNT, 3))
    with pytest.raises(
        UserError, match=f"vectors have size 3, but .*run gives vectors of size {encoder.embedding_size}"
    ):
        Gallery.create(tmp_path / "second", path, run, ids)


@pytest.mark.parametrize("name", ["name:", "name: a", "name:a\nb"])
def test_a_name_is_a_line_of_text(tmp_path, name):
    with pytest.raises(UserError, match="is no name of a model"):
        make(tmp_path, name)


def test_entries_come_are_replaced_and_go(tmp_path):
    with make(tmp_path) as gallery:
        query = unit(QUERIES[:1]).astype(np.float32)
        gallery.enrol(["person 3", "late"], {"name:vendor-v1": np.stack([QUERIES[0], -QUERIES[0]])}, ["x", None])
        hits = gallery.search(query, "vendor-v1", 60).hits
        assert (hits["id"][0], hits["id"][-1], len(hits)) == ("person 3", "late", 51)
        assert entries(gallery)[-2:] == [("person 3", "x", None), ("late", None, None)]
        assert gallery.delete(["late", "nobody", "person 3"]) == 2
        assert len(gallery.search(query, "vendor-v1", 60).hits) == 49


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name:other": STORED[:1]}, "with vectors of vendor-v1, not of other"),
        ({}, "with vectors of vendor-v1, not of none"),
        ({"vendor-v1": STORED[:1] * np.nan}, "the vector of vendor-v1 for the id 'a' is not finite"),
        ({"vendor-v1": STORED[:1] * 0}, "the vector of vendor-v1 for the id 'a' is zero"),
        ({"vendor-v1": STORED[0]}, "vectors are float16 or float32 or float64"),
        ({"vendor-v1": np.ones((1, 8), int)}, "vectors are float16 or float32 or float64"),
    ],
)
def test_vectors_that_cannot_be_searched_are_not_enrolled(tmp_path, given, message):
    with make(tmp_path) as gallery, pytest.raises(UserError, match=message):
        gallery.enrol(["a"], given)


def test_during_an_upgrade_both_models_are_given(tmp_path, caplog):
    with make(tmp_path) as gallery:
        upgrade(gallery)
        gallery.enrol(["a"], {"vendor-v1": STORED[:1], "new": QUERIES[:1].astype(np.float64)})
        gallery.enrol(["b"], {"vendor-v1": STORED[:1]})
        assert gallery.info()["upgrade"] == {
            "done": 1, "total": 52, "order": "random", "road": "direct", "old": "vendor-v1", "new": "new", "failed": 0,
        }  # fmt: skip
        assert "rollback" not in caplog.text
        gallery.enrol(["c"], {"new": STORED[:1]})
        assert "entries without a vector of vendor-v1 stand in the way of a rollback" in caplog.text
        with pytest.raises(UserError, match="with vectors of vendor-v1 and new, not of other"):
            gallery.enrol(["d"], {"name:other": STORED[:1], "new": STORED[:1]})
        with pytest.raises(UserError, match="name the version to export, vendor-v1 or new"):
            gallery.export(tmp_path / "out", "npy")
        assert gallery.export(tmp_path / "out", "npy", "name:vendor-v1") == 52
        assert gallery.export(tmp_path / "out.parquet", "parquet") == 53


def test_an_old_model_at_hand_keeps_the_way_back_open(tmp_path):
    run = write_run_folder(tmp_path / "run")
    with make(tmp_path) as gallery:
        store = gallery.store
        store.add_version(Version("at hand", "at hand", 8, str(run)))
        store.add_vectors("at hand", np.arange(COUNT), STORED)
        store.drop_version("vendor-v1")
        upgrade(gallery)
        with pytest.raises(UserError, match="may still be rolled back: give each a vector of at hand too"):
            gallery.enrol(["c"], {"new": STORED[:1]})


def test_an_entry_of_the_old_model_alone_is_mapped_at_once_where_the_others_are(tmp_path):
    mapping = fit_map("ridge", vectors(40, seed=8), vectors(40, seed=9))
    with make(tmp_path) as gallery:
        upgrade(gallery, "gallery_map", gallery_map=map_to_document(mapping))
        gallery.store.add_vectors("mapped", np.arange(COUNT), mapping(STORED))
        gallery.enrol(["a", "b"], {"vendor-v1": QUERIES[:2]})
        gallery.enrol(["c"], {"vendor-v1": QUERIES[:1], "new": QUERIES[:1]})
        assert gallery.info()["versions"] == {"vendor-v1": 53, "new": 1, "mapped": 52}
        found = gallery.store.vectors("mapped", gallery.store.find(["a", "b"]))
        np.testing.assert_allclose(found, mapping(QUERIES[:2]), atol=1e-6)


def test_in_a_milvus_file_it_is_the_same(tmp_path):
    pytest.importorskip("milvus_lite", reason="milvus-lite is not installed")
    place, (path, ids, labels, images) = f"{tmp_path}/galleries.db/faces", files(tmp_path)
    with make(tmp_path) as folder:
        expected, before = folder.search(QUERIES, "vendor-v1", 5).hits, entries(folder)
    rows = STORED.copy()
    rows[40] = 0
    np.save(tmp_path / "zero.npy", rows)
    with pytest.raises(UserError, match="row 40 .* is zero"):
        Gallery.create(place, tmp_path / "zero.npy", "name:vendor-v1", ids)
    with pytest.raises(UserError, match="its creation was cut short: repeat that"):
        Gallery.open(place)
    with Gallery.create(place, path, "name:vendor-v1", ids, labels, images) as gallery:
        assert entries(gallery) == before
        hits = gallery.search(QUERIES, "vendor-v1", 5).hits
        assert hits["id"].to_list() == expected["id"].to_list()
        np.testing.assert_allclose(hits["score"], expected["score"], atol=1e-6)
    with pytest.raises(UserError, match="there is a gallery faces in .* already"):
        Gallery.create(place, path, "name:vendor-v1", ids)
    with Gallery.open(place) as gallery:
        upgrade(gallery, calibrations=calibrations_to_document({name: CALIBRATION for name in ("new/old", "new/new")}))
        gallery.store.add_vectors("new", gallery.store.find(NAMES[:20]), vectors(20, seed=7))
        hits = gallery.search(QUERIES, "new", 30, max_far=0.9).hits
        assert set(hits["version"]) == {"vendor-v1", "new"} and hits.select("query", "id").is_unique().all()
        assert gallery.export(tmp_path / "out", "npy", "new") == 20


def test_an_id_that_comes_twice_in_a_creation_is_told_at_its_end(tmp_path):
    with pytest.raises(UserError, match="gallery is not created: an id comes twice"):
        with FolderStore.creating(tmp_path / "gallery") as store:
            store.add_version(Version("m", "m", 8))
            for names in (["a", "b"], ["c", "a"]):
                store.enrol(names, {"m": STORED[:2]})
    assert not list(tmp_path.iterdir())


def test_plan_on_pairs_writes_its_folder_and_refuses_half_a_sample(tmp_path):
    rng = np.random.default_rng(0)
    people, width = np.repeat(np.arange(60), 4), STORED.shape[1]
    old, new = (rng.normal(size=(60, width))[people] + 0.6 * rng.normal(size=(240, width)) for _ in range(2))
    pairs = tmp_path / "old.npy", tmp_path / "new.npy"
    for path, each in zip(pairs, (old, new)):
        np.save(path, each.astype(np.float32))
    (tmp_path / "people.txt").write_text("".join(f"{person}\n" for person in people))
    with make(tmp_path) as gallery:
        plan = gallery.plan("name:next", tmp_path / "plan", pairs=pairs, labels=tmp_path / "people.txt", far=1e-2)
        assert plan.new.key == "next" and plan.sample.identities == 60
        assert (tmp_path / "plan" / "plan.json").exists() and (tmp_path / "plan" / "report.html").exists()
        for wrong in ({"pairs": pairs}, {"sample": tmp_path / "people.txt"}, {}):
            with pytest.raises(UserError, match="a plan needs images with identities and a model at hand, or pairs"):
                gallery.plan("name:next", tmp_path / "plan2", **wrong)
