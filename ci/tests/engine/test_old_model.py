"""The old model of a training: what it is fed, and maps in its place."""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
from tiny import write_map_run, write_run_folder

from core.data.records import RecordDataset
from core.embeddings.extraction import default_store_path, extract_embeddings
from core.engine.old_model import load_old_model, open_old_features
from core.errors import UserError
from core.models.encoder import load_encoder
from core.settings import Settings


def test_config_says_what_the_old_model_is_fed(tiny_records, ranks, tmp_path):
    path, data = write_run_folder(tmp_path / "old"), RecordDataset(tiny_records)
    shared = {"old_model": str(path), "embedding_size": 8, "features": str(tmp_path / "store"), "num_workers": 0}
    told = {"old_mean": (100.0, 110.0, 120.0), "old_std": 60.0, "old_channel_order": "BGR"}
    settings = Settings(**shared, **told)
    encoder, old = load_old_model(settings, ranks)
    features = open_old_features(encoder, settings, data, ranks)
    assert old.preprocessing == "16 pixels, mean (100.0, 110.0, 120.0), std (60.0, 60.0, 60.0), BGR"
    images, _ = data.batch(range(5))
    wanted = load_encoder(path, mean="100 110 120", std=60, channel_order="BGR")
    np.testing.assert_allclose(features[np.arange(5)], wanted(images), rtol=1e-4, atol=1e-5)
    assert old.fingerprint == wanted.fingerprint == features.info.model_fingerprint
    with pytest.raises(UserError, match="made with another model or preprocessing .*BGR.* than old"):
        open_old_features(load_old_model(Settings(**shared), ranks)[0], Settings(**shared), data, ranks)


@pytest.fixture
def mapped(tmp_path):
    """The run folder of a map of an old model with 8 numbers into the space of a newer one with 12."""
    old, newer = write_run_folder(tmp_path / "old", 0, 8), write_run_folder(tmp_path / "newer", 1, 12)
    config = json.loads((old / "config.json").read_text())
    (old / "config.json").write_text(json.dumps({**config, "num_classes": 6}))
    return write_map_run(tmp_path / "mapped", old, newer, "old_to_new")


def test_old_model_may_be_a_map_and_its_embeddings_are_made_from_its_bases_store(
    mapped, tiny_records, ranks, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr("core.embeddings.extraction.ROOT", tmp_path)
    monkeypatch.setattr("core.embeddings.extraction.BLOCK", 16)
    data = RecordDataset(tiny_records)
    settings = Settings(old_model=str(mapped), embedding_size=12, features=str(tmp_path / "plain"), num_workers=0)
    encoder, old = load_old_model(settings, ranks)
    assert (old.name, old.embedding_size, old.num_classes) == ("old+ridge", 12, 6)
    plain = open_old_features(encoder, settings, data, ranks)
    np.testing.assert_allclose(plain[np.arange(72)], encoder(data.batch(range(72))[0]), atol=1e-6)
    extract_embeddings(encoder.base, data, default_store_path(encoder.base, data), ranks)
    monkeypatch.setattr(RecordDataset, "read", None)  # no image is read any more
    caplog.set_level(logging.INFO)
    settings = Settings(old_model=str(mapped), embedding_size=12)
    made = open_old_features(encoder, settings, data, ranks)
    assert made.path.parent == tmp_path / "features" and "stored embeddings are mapped" in caplog.text
    np.testing.assert_allclose(made.features, plain.features, atol=1e-6)
    assert np.array_equal(made.labels(), data.labels()) and made.info.model_fingerprint == encoder.fingerprint


def test_embeddings_of_a_map_with_side_information_are_made_from_both_models_stores(
    mapped, tiny_records, ranks, tmp_path, monkeypatch
):
    monkeypatch.setattr("core.embeddings.extraction.ROOT", tmp_path)
    data, side = RecordDataset(tiny_records), write_run_folder(tmp_path / "side", 2, 6)
    sided = write_map_run(tmp_path / "sided", tmp_path / "old", tmp_path / "newer", "old_to_new", side=side)
    settings = Settings(old_model=str(sided), embedding_size=12, num_workers=0)
    encoder, old = load_old_model(settings, ranks)
    assert (old.name, old.num_classes) == ("old,side+ridge", 6)
    wanted = encoder(data.batch(range(72))[0])
    read = []
    real = RecordDataset.read
    monkeypatch.setattr(RecordDataset, "read", lambda self, rows: read.extend(rows) or real(self, rows))
    extract_embeddings(encoder.base, data, default_store_path(encoder.base, data), ranks)
    plain = open_old_features(encoder, replace(settings, features=str(tmp_path / "plain")), data, ranks)
    assert len(read) == 2 * 72, "of the side model there is no store yet"
    extract_embeddings(encoder.side, data, default_store_path(encoder.side, data), ranks)
    assert len(read) == 3 * 72
    made = open_old_features(encoder, settings, data, ranks)
    assert len(read) == 3 * 72
    for store in (plain, made):
        np.testing.assert_allclose(store.features, wanted, atol=1e-6)


def test_what_a_map_cannot_be_in_a_training_is_one_line(mapped, ranks):
    with pytest.raises(UserError, match=r"has embeddings of size 12, the new one 8: set embedding_size=12"):
        load_old_model(Settings(old_model=str(mapped), embedding_size=8), ranks)
    with pytest.raises(UserError, match=r"which knows its base model, .* leave network, mean"):
        load_old_model(Settings(old_model=str(mapped), embedding_size=12, old_network="r18"), ranks)
    _, old = load_old_model(Settings(old_model=str(mapped), embedding_size=12), ranks)
    with pytest.raises(UserError, match=r"mapped is the run folder of a map, which has no classifier: .*=means$"):
        old.require(["classifier"])
