"""What maps predict of their own errors: a ridge on the log errors of the pairs, kept with the map."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import nn

import core.models.maps.error_head as error_head
from core.errors import UserError
from core.models.maps import Map, Space, fit_map, load_map
from core.models.maps.error_head import fit_error_head
from core.models.maps.vectors import Pairs

KINDS = ("procrustes", "ridge", "low_rank", "mlp")


def make_pairs(count=1500, sizes=(12, 12), seed=0):
    """Targets that are a turned source with noise, more of it the larger the source's first number is."""
    rng = np.random.default_rng(seed)
    source = rng.normal(size=(count, sizes[0])).astype(np.float32)
    turned = source @ rng.normal(size=sizes).astype(np.float32) / np.sqrt(sizes[0])
    strength = np.exp(2 * source[:, :1] / np.linalg.norm(source, axis=1, keepdims=True))
    target = turned + 0.5 * strength * rng.normal(size=turned.shape)
    return (
        source * rng.uniform(0.1, 9, (count, 1)).astype(np.float32),
        target.astype(np.float32),
        rng.integers(0, 9, count),
    )


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def errors(fitted, source, target):
    return ((fitted(source, normalized=False) - unit(target)) ** 2).sum(axis=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [(12, 12), (12, 8), (8, 12)])
def test_vectors_that_a_map_fails_on_are_foretold(kind, sizes):
    source, target, labels = make_pairs(sizes=sizes)
    seen, new = slice(0, 1000), slice(1000, None)
    options = {"num_epoch": 1, "hidden": 8} if kind == "mlp" else {}
    fitted = fit_map(kind, source[seen], target[seen], labels[seen], **options)
    predicted = fitted.predicted_error(source[new])
    assert predicted.shape == (500,) and predicted.dtype == np.float32 and (predicted > 0).all()
    assert np.corrcoef(np.log(predicted), np.log(errors(fitted, source[new], target[new])))[0, 1] > 0.3


def test_head_is_a_ridge_on_the_log_errors_with_a_penalty_by_cross_validation():
    source, target, _ = make_pairs(400)
    fitted = fit_map("ridge", source, target)
    logs = np.log(errors(fitted, source, target))
    candidates = [Ridge(alpha=a).fit(unit(source).astype(np.float64), logs) for a in np.logspace(-5, 3, 33) * 400 / 12]
    predicted = np.log(fitted.predicted_error(source))
    assert min(np.abs(model.predict(unit(source)) - predicted).max() for model in candidates) < 0.02
    assert abs(predicted.mean() - logs.mean()) < 1e-3


def test_of_many_pairs_some_that_are_spread_over_all_are_used(monkeypatch):
    source, target, _ = make_pairs(3000)
    module = nn.Linear(12, 12)
    pairs = Pairs(source, target, Space(12), Space(12))
    whole = fit_error_head(pairs, module)
    monkeypatch.setattr(error_head, "MAX_PAIRS", 1000)
    monkeypatch.setattr("core.models.maps.vectors.BLOCK_ROWS", 64)
    some = fit_error_head(pairs, module)
    rows = np.linspace(0, 2999, 1000).astype(int)
    same = fit_error_head(Pairs(source[rows], target[rows], Space(12), Space(12)), module)
    for name in ("weight", "bias"):
        torch.testing.assert_close(some[name], same[name], rtol=1e-4, atol=1e-5)
        assert not torch.equal(some[name], whole[name])


def test_prediction_of_an_exact_map_and_of_few_pairs_is_finite():
    rng = np.random.default_rng(0)
    source = unit(rng.normal(size=(200, 6)))
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    for count in (10, 200):
        fitted = fit_map("procrustes", source[:count], source[:count] @ turn)
        assert np.isfinite(fitted.predicted_error(source)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_prediction_is_saved_with_the_map_and_is_not_part_of_its_fingerprint(kind, tmp_path):
    source, target, labels = make_pairs(60)
    fitted = fit_map(kind, source, target, labels, **({"num_epoch": 1} if kind == "mlp" else {}))
    fitted.save(tmp_path / "map")
    loaded = load_map(tmp_path / "map")
    np.testing.assert_array_equal(loaded.predicted_error(source), fitted.predicted_error(source))
    assert loaded.fingerprint == fitted.fingerprint
    tensors = torch.load(tmp_path / "map" / "map.pt")
    torch.save({name: tensor for name, tensor in tensors.items() if "error_head" not in name}, tmp_path / "map/map.pt")
    without = load_map(tmp_path / "map")
    assert without.predicted_error(source) is None and without.fingerprint == fitted.fingerprint
    torch.save({**tensors, "error_head.weight": torch.zeros(1, 5)}, tmp_path / "map" / "map.pt")
    with pytest.raises(UserError, match="is not a readable description of a map"):
        load_map(tmp_path / "map")


class OwnPrediction(nn.Linear):
    """A network that predicts its log error by itself."""

    def log_error(self, units):
        """The first number of each vector."""
        return units[:, 0]


def test_a_network_may_predict_by_itself_and_vectors_are_checked():
    fitted = Map("own", Space(3, "a", "x"), Space(2), OwnPrediction(3, 2).requires_grad_(False), 10)
    vectors = np.array([[3.0, 0, 4], [0, 2, 0]])
    np.testing.assert_allclose(fitted.predicted_error(vectors), np.exp([0.6, 0]), rtol=1e-6)
    with pytest.raises(UserError, match="takes vectors of size 3, got size 4"):
        fitted.predicted_error(np.ones((2, 4)))
    with pytest.raises(UserError, match="row 1 of the vectors is zero"):
        fitted.predicted_error(np.array([[1.0, 2, 3], [0, 0, 0]]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [(12, 8), (8, 12)])
def test_lengths_are_those_of_the_plain_output_block_by_block(kind, sizes, monkeypatch):
    monkeypatch.setattr("core.models.maps.vectors.BLOCK_ROWS", 64)
    source, target, labels = make_pairs(300, sizes)
    fitted = fit_map(kind, source, target, labels, **({"num_epoch": 1, "hidden": 8} if kind == "mlp" else {}))
    lengths = fitted.lengths(source)
    assert lengths.shape == (300,) and lengths.dtype == np.float32
    with torch.inference_mode():
        plain = fitted.module.double()(torch.from_numpy(unit(source.astype(float)))).numpy()
    np.testing.assert_allclose(lengths, np.linalg.norm(plain, axis=1), rtol=1e-5)
    if kind == "procrustes" and sizes[0] < sizes[1]:
        np.testing.assert_allclose(lengths, 1, rtol=1e-5)


def test_a_ridge_is_short_where_it_is_wrong():
    """Its outputs are near the mean targets of its sources: the error is what is missing to the length 1."""
    source, target, _ = make_pairs(20_000)
    fitted = fit_map("ridge", source, target)
    lengths = fitted.lengths(source).astype(float)
    found = errors(fitted, source, target)
    assert found.mean() == pytest.approx((1 - lengths**2).mean(), rel=0.01)
    assert found[np.argsort(lengths)[:2000]].mean() > 1.1 * found.mean()


def test_lengths_of_vectors_of_another_size_or_without_direction_are_refused():
    source, target, _ = make_pairs(50)
    with pytest.raises(UserError, match="takes vectors of size 12, got size 4"):
        fit_map("ridge", source, target).lengths(np.ones((2, 4)))
    with pytest.raises(UserError, match="row 1 of the vectors is zero"):
        fit_map("ridge", source, target).lengths(np.array([np.ones(12), np.zeros(12)]))
