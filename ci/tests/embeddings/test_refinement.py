"""UniBCT's refinement against the matrix formula, class by class, and what it leaves behind."""

import numpy as np
import pytest
import torch
from launching import load_program
from test_statistics import LABELS, write_store
from tiny import projection_encoder
from torch import nn

import core.embeddings.refinement as refinement
from core.backbones import build_backbone
from core.data.records import RecordDataset
from core.embeddings.refinement import refined_prototypes
from core.engine.current_features import current_features
from core.engine.method import Run
from core.files import ROOT
from core.images.transforms import NORMALIZATIONS, normalize
from core.settings import Settings

unibct = load_program(ROOT / "methods" / "unibct" / "train.py")
D = 6
CLASSES = np.arange(8)  # 0 first, 7 last, 3 with one image, 4 with none, 6 with two


def weights(propagation: float, temperature: float, edge_softmax: str):
    """UniBCT's rule."""
    return lambda new: unibct.structural_weights(new, propagation, temperature, edge_softmax)


ROWS = weights(0.9, 0.05, "rows")


@pytest.fixture
def stores(tmp_path):
    """Features of the new and the old model, of very different lengths; one new one is zero."""
    rng = np.random.default_rng(5)
    made = []
    for name in ("new", "old"):
        centres = rng.normal(size=(8, D))[LABELS]
        features = (centres + 0.5 * rng.normal(size=(len(LABELS), D))) * rng.uniform(0.1, 10, (len(LABELS), 1))
        if name == "new":
            features[np.flatnonzero(LABELS == 5)[0]] = 0
        made.append(write_store(tmp_path / name, features, LABELS))
    return made


def plain_prototype(new: np.ndarray, old: np.ndarray, propagation: float, temperature: float, axis: int) -> np.ndarray:
    """Mean of the rows of A O, in float64, with the inverse as the paper writes it. `axis` of E sums to 1."""
    if len(new) == 1:
        return old[0]
    unit = new / np.maximum(np.linalg.norm(new, axis=1, keepdims=True), 1e-12)
    edges = np.exp(unit @ unit.T / temperature - 1 / temperature)
    np.fill_diagonal(edges, 0)
    edges /= edges.sum(axis=axis, keepdims=True)
    a = (1 - propagation) * np.linalg.inv(np.eye(len(new)) - propagation * edges)
    return (a @ old).mean(axis=0)


@pytest.mark.parametrize("edge_softmax, axis", [("columns", 0), ("rows", 1)])
@pytest.mark.parametrize("propagation, temperature", [(0.9, 0.05), (0.5, 1.0), (0.0, 0.05)])
@pytest.mark.parametrize("elements", [2**23, 300])
def test_prototypes_are_those_of_the_formula(
    stores, monkeypatch, edge_softmax, axis, propagation, temperature, elements
):
    monkeypatch.setattr(refinement, "BLOCK_ELEMENTS", elements)
    actual = refined_prototypes(*stores, CLASSES, weights(propagation, temperature, edge_softmax))
    new, old = (store.features.astype(np.float64) for store in stores)
    for label in CLASSES:
        own = label == LABELS
        expected = plain_prototype(new[own], old[own], propagation, temperature, axis) if own.any() else np.zeros(D)
        np.testing.assert_allclose(actual[label].double(), expected, rtol=1e-5, atol=1e-5)


def test_released_softmax_gives_plain_means_whatever_the_new_features_are_and_rows_do_not(stores):
    """Columns of E that sum to 1 make those of A sum to 1."""
    old = stores[1].features.astype(np.float64)
    means = torch.stack([torch.from_numpy(old[label == LABELS].mean(0)) for label in (0, 1, 2, 5)])
    columns, rows = (
        refined_prototypes(*stores, CLASSES, weights(0.9, 0.05, kind))[[0, 1, 2, 5]] for kind in ("columns", "rows")
    )
    torch.testing.assert_close(columns.double(), means, rtol=1e-5, atol=1e-5)
    assert ((rows - means).norm(dim=1) > 0.05 * means.norm(dim=1)).all()


def test_weights_sum_to_1_and_favour_the_image_in_the_middle_with_rows():
    new = torch.tensor([[[1.0, 0.0], [0.9, 0.1], [0.8, 0.3], [-1.0, 0.2]]])
    of_images = ROWS(new)
    assert of_images.sum().item() == pytest.approx(1, abs=1e-5)
    assert of_images.argmax() == 1 and of_images.argmin() == 3


def test_classes_that_ranks_share_out_are_those_of_one(stores):
    whole = refined_prototypes(*stores, CLASSES, ROWS)
    parts = [refined_prototypes(*stores, part, ROWS) for part in (CLASSES[:3], CLASSES[3:], CLASSES[8:])]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-6, atol=1e-6)


@pytest.fixture
def run(tiny_records, tmp_path, ranks) -> Run:
    settings = Settings(network="r18", embedding_size=8, batch_size=16, num_workers=0, output=str(tmp_path / "run"))
    return Run(settings, RecordDataset(tiny_records), ranks)


def test_current_features_are_those_of_evaluation_and_leave_model_generator_and_folder_as_they_were(run, tmp_path):
    torch.manual_seed(0)
    backbone = build_backbone("r18", 8, image_size=16, width=8, depth=1, dropout=0.4)
    backbone(torch.randn(8, 3, 16, 16))  # batch statistics of its own
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    state = torch.get_rng_state()
    with current_features(run, backbone) as store:
        features, labels = np.array(store.features), np.array(store.labels())
    assert backbone.training and all(module.training for module in backbone.modules())
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(dict(backbone.state_dict()), before, rtol=0, atol=0)
    assert not (tmp_path / "run" / "new_features").exists()
    images, expected_labels = run.data.batch(range(72))
    backbone.eval()
    expected = backbone(normalize(torch.from_numpy(images), *NORMALIZATIONS["face"])).detach()
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)
    assert np.array_equal(labels, expected_labels)


def test_features_that_a_killed_run_left_are_not_used(run, tmp_path):
    (tmp_path / "run" / "new_features").mkdir(parents=True)
    (tmp_path / "run" / "new_features" / "store.json").write_text("{}")
    module: nn.Module = projection_encoder().module
    with current_features(run, module) as store:
        assert len(store.features) == 72


def test_one_class_larger_than_a_block_is_solved(monkeypatch, tmp_path):
    monkeypatch.setattr(refinement, "BLOCK_ELEMENTS", 1)
    rng = np.random.default_rng(0)
    stores = [write_store(tmp_path / name, rng.normal(size=(5, D)), [0] * 5) for name in ("a", "b")]
    assert refined_prototypes(*stores, np.arange(1), ROWS).isfinite().all()
