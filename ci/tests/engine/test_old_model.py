"""The old model of a training is fed what the config says."""

import numpy as np
import pytest
from tiny import write_run_folder

from core.data.records import RecordDataset
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
