"""lambda-orthogonality: B is orthogonal or nearly so, terms are those of the formula, the folders share a space."""

import numpy as np
import pytest
import torch
from launching import load_program
from map_steps import LABELS, make_batch, make_fitting, set_up, unit

from core.files import ROOT
from core.models.map_run import mapped_fingerprint
from core.models.maps import fit_map, load_map

ROWS = np.array([0, 5, 1, 6, 2, 9, 19, 3, 7, 13])
PROGRAM = load_program(ROOT / "methods" / "lambda_orthogonality" / "train.py")
EVERY = np.arange(len(LABELS))


def plain_contrast(a: np.ndarray, b: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    losses = []
    for row, label in zip(unit(a), labels):
        cosines = unit(b) @ row / temperature
        log_shares = cosines - np.log(np.exp(cosines - cosines.max()).sum()) - cosines.max()
        losses.append(-log_shares[labels == label].mean())
    return float(np.mean(losses))


@pytest.mark.parametrize(
    "labels", [LABELS[:9], np.arange(9), np.zeros(9, np.int64)], ids=["classes", "no classes", "one class"]
)
def test_contrast_is_the_cross_entropy_with_all_images_of_the_class(labels):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 9, 5))
    found = PROGRAM.contrast(torch.from_numpy(a), torch.from_numpy(b), torch.from_numpy(labels), 0.2)
    np.testing.assert_allclose(found, plain_contrast(a, b, labels, 0.2), rtol=1e-6)


@pytest.mark.parametrize(("threshold", "sharpness"), [(0.5, 3.0), (12.0, 1.0), (0.0, 10.0)])
def test_relaxed_orthogonality_is_that_of_the_formula(threshold, sharpness):
    weight = np.random.default_rng(0).normal(size=(5, 5))
    distance = np.sqrt(((weight @ weight.T - np.eye(5)) ** 2).sum())
    expected = distance / (1 + np.exp(-sharpness * (distance - threshold)))
    found = PROGRAM.relaxed_orthogonality(torch.from_numpy(weight), threshold, sharpness)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_relaxed_orthogonality_is_soft_orthogonality_at_0_and_nothing_at_infinity():
    weight = torch.from_numpy(np.random.default_rng(1).normal(size=(4, 4)))
    distance = torch.linalg.matrix_norm(weight @ weight.T - torch.eye(4))
    torch.testing.assert_close(PROGRAM.relaxed_orthogonality(weight, 0.0, 100.0), distance)
    assert PROGRAM.relaxed_orthogonality(weight, 1e6, 10.0) == 0
    turn = torch.linalg.qr(weight)[0]
    assert PROGRAM.relaxed_orthogonality(turn, 0.0, 100.0) < 1e-6


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 4), (1, 6)])
def test_completed_matrix_is_orthogonal_and_begins_with_the_given_one(shape):
    rows, columns = shape
    square = torch.linalg.qr(torch.randn(max(shape), max(shape), generator=torch.Generator().manual_seed(0)))[0]
    weight = square[:rows, :columns]
    found = PROGRAM.completed(weight)
    torch.testing.assert_close(found @ found.T, torch.eye(max(shape)), rtol=0, atol=1e-5)
    torch.testing.assert_close(found[:rows, :columns], weight, rtol=0, atol=1e-5)


@pytest.mark.parametrize("sizes", [(6, 10), (10, 6), (6, 6)])
@pytest.mark.parametrize("relaxed", [False, True])
def test_terms_are_those_of_the_formula(sizes, relaxed, tmp_path, ranks):
    weights = "forward_weight=0.5", "backward_weight=2", "contrastive_weight=0.3", "temperature=0.2"
    method, run = make_fitting(
        "lambda_orthogonality", tmp_path, ranks, sizes, f"relaxed={relaxed}", "threshold=0.4", "sharpness=2", *weights
    )
    set_up(method, run)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
        if not relaxed:
            method.backward_map.bias.zero_()
        terms = method.loss(make_batch(run, ROWS))
        weight, bias = method.backward_map.weight.numpy(), method.backward_map.bias.numpy()
        lift, shift = method.forward_map.weight.numpy(), method.forward_map.bias.numpy()
    old, new, labels = unit(run.old.features[ROWS]), unit(run.new.features[ROWS]), LABELS[ROWS]
    width, old_size = max(sizes), sizes[0]
    filled = np.hstack((new, np.zeros((len(ROWS), width - sizes[1]))))
    aligned, lifted = filled @ weight.T + bias, old @ lift.T + shift
    expected = {
        "forward": 0.5 * ((lifted - aligned) ** 2).sum(axis=1).mean(),
        "backward": 2 * ((aligned[:, :old_size] - old) ** 2).sum(axis=1).mean(),
        "contrastive": 0.3 * plain_contrast(lifted, aligned, labels, 0.2)
        + 0.3 * plain_contrast(lifted[:, :old_size], old, labels, 0.2),
    }
    distance = np.sqrt(((weight @ weight.T - np.eye(width)) ** 2).sum())
    if relaxed:
        expected["orthogonality"] = distance / (1 + np.exp(-2 * (distance - 0.4)))
    else:
        assert distance < 1e-5
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(terms[name], value, rtol=2e-5, err_msg=name)


@pytest.mark.parametrize("sizes", [(6, 10), (10, 6), (6, 6)])
def test_training_begins_at_procrustes_and_the_ridge_onto_it(sizes, tmp_path, ranks):
    method, run = make_fitting("lambda_orthogonality", tmp_path, ranks, sizes)
    set_up(method, run)
    rotation = fit_map("procrustes", run.new.features, run.old.features).module.weight
    ridge = fit_map("ridge", run.old.features, run.new.features)
    weight = method.backward_map.weight.float()[: sizes[0], : sizes[1]]
    torch.testing.assert_close(weight, rotation, rtol=0, atol=1e-5)
    old = run.old.unit_features(EVERY)
    aligned = ridge(old, normalized=False) @ method.backward_map.weight.float()[:, : sizes[1]].detach().numpy().T
    np.testing.assert_allclose(method.forward_map.float()(torch.from_numpy(old)).detach(), aligned, atol=1e-5)


@pytest.mark.parametrize("sizes", [(6, 10), (10, 6), (6, 6)])
@pytest.mark.parametrize("relaxed", [False, True])
def test_run_folders_hold_b_and_f_in_one_space(sizes, relaxed, tmp_path, ranks):
    overrides = "num_epoch=10", "pairs_per_step=8", "lr=1e-2", f"relaxed={relaxed}", "threshold=0.3", "device=cpu"
    method, run = make_fitting("lambda_orthogonality", tmp_path, ranks, sizes, *overrides)
    maps = {}
    for name, fitted in method.fit(run).items():
        fitted.map.save(tmp_path / name)
        maps[name] = load_map(tmp_path / name)
        base, direction = (run.old, "old_to_new") if name == "old_to_new" else (run.new, "new_to_old")
        assert fitted.base is base and fitted.direction == direction and maps[name].source == base.space
    wide = "new_to_wide" if sizes[1] > sizes[0] else "new_to_old"
    assert set(maps) == {"new_to_old", "old_to_new", wide}
    old, new = run.old.unit_features(EVERY), run.new.unit_features(EVERY)
    weight = method.backward_map.weight.detach()
    start = fit_map("procrustes", run.new.features, run.old.features).module.weight
    moved = float((weight[: sizes[0], : sizes[1]] - start).abs().max())
    distance = float(torch.linalg.matrix_norm(weight @ weight.T - torch.eye(len(weight))))
    assert moved > 1e-3 and (1e-3 < distance < 0.6 if relaxed else distance < 1e-5)
    aligned = new @ weight[:, : sizes[1]].numpy().T + method.backward_map.bias.detach().numpy()
    np.testing.assert_allclose(maps["new_to_old"](new, normalized=False), aligned[:, : sizes[0]], atol=1e-5)
    np.testing.assert_allclose(maps[wide](new, normalized=False), aligned, atol=1e-5)
    lifted = maps["old_to_new"](old, normalized=False)
    assert lifted.shape == aligned.shape and ((lifted - aligned) ** 2).sum(axis=1).mean() < 0.5
    assert maps["old_to_new"].target == maps[wide].target or sizes[0] >= sizes[1]
    turned = mapped_fingerprint(run.new.encoder.fingerprint, maps[wide].fingerprint)
    shared = turned if sizes[1] > sizes[0] else run.old.space.fingerprint
    assert maps["old_to_new"].target.fingerprint == shared
    assert all(fitted.predicted_error(vectors).min() > 0 for fitted, vectors in zip(maps.values(), (new, old, new)))
