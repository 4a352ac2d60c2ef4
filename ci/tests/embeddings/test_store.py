"""The embedding store on disk."""

import json
import pickle
from dataclasses import asdict

import numpy as np
import pytest

from core.embeddings.store import EmbeddingStore, StoreInfo
from core.errors import UserError


@pytest.fixture
def path(tmp_path):
    """A store of 10 rows of size 4."""
    folder = tmp_path / "store"
    folder.mkdir()
    np.save(folder / "features.npy", np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32))
    np.save(folder / "labels.npy", np.arange(10) // 3)
    (folder / "store.json").write_text(json.dumps(asdict(StoreInfo("data", "model", 10, 4, "train", "old"))))
    return folder


def test_rows_are_read_as_written_in_any_order_and_after_pickling(path):
    store = EmbeddingStore.open(path)
    expected = np.load(path / "features.npy")
    rows = np.array([7, 0, 7, 9])
    assert np.array_equal(store[rows], expected[rows]) and np.array_equal(store.labels(), np.arange(10) // 3)
    copied = pickle.loads(pickle.dumps(store))
    assert len(pickle.dumps(store)) < 1000  # the array itself does not travel to workers
    assert copied.info == store.info and np.array_equal(copied[rows], expected[rows])


def cut(path):
    (path / "features.npy").write_bytes((path / "features.npy").read_bytes()[:-7])


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        lambda path: (path / "features.npy").write_bytes(b"nonsense"),
        lambda path: (path / "features.npy").write_bytes(b""),
        lambda path: (path / "labels.npy").unlink(),
        lambda path: np.save(path / "labels.npy", np.arange(9)),
        lambda path: np.save(path / "features.npy", np.zeros((10, 5), np.float32)),
        lambda path: np.save(path / "features.npy", np.zeros((10, 4), np.float64)),
    ],
    ids=["cut", "nonsense", "empty", "no labels", "too few labels", "other size", "other type"],
)
def test_damaged_store_is_named_with_the_remedy(path, damage):
    damage(path)
    with pytest.raises(UserError, match=f"embedding store {path} is damaged: .*; delete it, extract it again"):
        EmbeddingStore.open(path)


def test_store_that_is_being_made_is_not_taken_for_a_finished_one(path):
    unfinished = path.rename(path.with_name("store.partial"))
    np.save(unfinished / "done.npy", np.zeros(1, bool))
    with pytest.raises(UserError, match=f"the extraction to {unfinished} has not ended: repeat its command"):
        EmbeddingStore.open(unfinished)


@pytest.mark.parametrize("text", [None, "", "[1, 2]", '{"num_images": 10}', "{"])
def test_error_for_a_folder_that_is_no_store_names_the_tool_that_makes_one(path, text):
    (path / "store.json").unlink()
    if text is not None:
        (path / "store.json").write_text(text)
    with pytest.raises(UserError, match=f"no embedding store in {path} .make one with tools/extract_features.py"):
        EmbeddingStore.open(path)


def test_labels_that_are_no_classes_are_a_line(path):
    for wrong, message in (
        (-1, "a label is -1; delete it"),
        (10**15, "a number for each class up to the label 10{15} "),
    ):
        np.save(path / "labels.npy", np.array([wrong, *range(9)]))
        with pytest.raises(UserError, match=message):
            EmbeddingStore.open(path).labels()
    info = StoreInfo("data", "model", 10, 4, "train", "old", labelled=False)
    (path / "store.json").write_text(json.dumps(asdict(info)))
    with pytest.raises(UserError, match="is of images without labels"):
        EmbeddingStore.open(path).labels()


@pytest.mark.parametrize(
    "changed",
    [{"num_images": -1}, {"num_images": "10"}, {"embedding_size": 4.0}, {"views": ["../other"]}, {"views": "features"},
     {"views": [7]}, {"model_fingerprint": 5}, {"num_images": 10**30}],
)  # fmt: skip
def test_a_description_without_sense_is_a_line(path, changed):
    info = json.loads((path / "store.json").read_text())
    (path / "store.json").write_text(json.dumps({**info, **changed}))
    with pytest.raises(UserError, match="no embedding store in|is damaged"):
        EmbeddingStore.open(path)


def test_a_store_that_is_cut_off_under_a_run_is_a_line(path):
    store = EmbeddingStore.open(path)
    with open(path / "features.npy", "r+b") as file:
        file.truncate(140)
    with pytest.raises(UserError, match=r"features.npy has changed while it was used: 140 bytes are left of 288"):
        store[np.array([9])]


def test_store_without_the_embeddings_that_are_asked_for_is_named(path):
    described = json.loads((path / "store.json").read_text()) | {"views": []}
    (path / "store.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match=f"embedding store {path} has no embeddings called features"):
        EmbeddingStore.open(path)[np.array([0])]
