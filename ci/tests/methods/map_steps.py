"""What the tests of the maps share: a small store of each model's features, and a method set up on them."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from tiny import projection_encoder

from core.embeddings.store import EmbeddingStore, StoreInfo
from core.engine.map_method import Fitting, MapMethod, Model
from core.engine.map_training import PairBatch
from core.files import ROOT
from core.program import load_method
from core.settings import load_settings

LABELS = np.array([0, 1, 5, 0, 2, 2, 4, 0, 1, 1, 0, 4, 1, 3, 3, 1, 5, 0, 4, 1, 0, 2, 3, 5])
NUM_CLASSES = 6


def make_model(folder: Path, which: str, seed: int, size: int, shared: np.ndarray, settings) -> Model:
    """A model whose stored features depend on `shared` (N, k), of lengths from 0.1 to 10."""
    rng = np.random.default_rng(seed)
    features = shared @ rng.normal(size=(shared.shape[1], size)) + 0.2 * rng.normal(size=(len(shared), size))
    features *= rng.uniform(0.1, 10, (len(shared), 1))
    encoder = projection_encoder(seed, embedding_size=size)
    path = folder / which
    path.mkdir()
    np.save(path / "features.npy", features.astype(np.float32))
    np.save(path / "labels.npy", LABELS)
    info = StoreInfo("data", encoder.fingerprint, len(LABELS), size, "train", encoder.name)
    (path / "store.json").write_text(json.dumps(asdict(info)))
    (argument,) = (argument for argument in settings.models if argument.which == which)
    return Model(argument, path, encoder, EmbeddingStore.open(path))


def make_fitting(
    name: str, folder: Path, ranks, sizes: tuple[int, ...] = (6, 10), *overrides: str
) -> tuple[MapMethod, Fitting]:
    """A method, and what it may use: models with embeddings of these sizes, the third for side information."""
    method = load_method(ROOT / "methods" / name / "train.py")
    side = ["side_model=side"] if len(sizes) > 2 else []
    config = ROOT / "configs" / "maps" / "glyphs.py"
    settings = load_settings(config, [f"output={folder / 'run'}", *side, *overrides], method.settings_type)
    rng = np.random.default_rng(4)
    shared = rng.normal(size=(NUM_CLASSES, 4))[LABELS] + 0.3 * rng.normal(size=(len(LABELS), 4))
    models = [
        make_model(folder, which, seed, size, shared, settings)
        for seed, (which, size) in enumerate(zip(("old", "new", "side"), sizes))
    ]
    return method, Fitting(settings, name, settings.direction or method.usual_direction(settings), ranks, *models)


def make_batch(run: Fitting, rows: np.ndarray) -> PairBatch:
    """Some of the pairs, in float64."""
    old, new = (torch.from_numpy(array).double() for array in (run.unit_sources(rows), run.new.unit_features(rows)))
    return PairBatch(old, new, torch.from_numpy(LABELS[rows]))


def set_up(method: MapMethod, run: Fitting) -> MapMethod:
    """The method as its training begins, in float64."""
    torch.manual_seed(0)
    method.setup(run)
    return method.double()


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1, float64."""
    vectors = np.asarray(vectors, np.float64)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
