import numpy as np
import pytest
from scipy.stats import norm

from core.evaluation.calibration import fit_calibration


def test_rate_of_gaussian_impostors_is_estimated_beyond_the_scores_seen():
    impostor = np.random.default_rng(0).normal(0.1, 0.2, 200_000)
    calibration = fit_calibration(impostor)
    assert calibration.mean == pytest.approx(0.1, abs=2e-3) and calibration.deviation == pytest.approx(0.2, abs=2e-3)
    scores = 0.1 + 0.2 * norm.isf([0.5, 0.1, 1e-2, 1e-3, 1e-4])
    assert np.exp(calibration.log_false_accept_rate(scores)) == pytest.approx(
        [0.5, 0.1, 1e-2, 1e-3, 1e-4], rel=0.17
    )  # the last is beyond the knots, and an exponential tail is heavier than a Gaussian one
    beyond = np.exp(calibration.log_false_accept_rate(np.array([0.1 + 0.2 * norm.isf(1e-6)])))
    assert 2e-7 < beyond[0] < 5e-6, "a twentieth of what 200,000 scores can count"


def test_every_knot_counts_the_impostors_that_reach_it():
    impostor = np.repeat(np.arange(50) / 100, 3)  # ties
    calibration = fit_calibration(impostor)
    rates = np.exp(calibration.log_false_accept_rate(calibration.scores))
    assert rates == pytest.approx([(impostor >= score).mean() for score in calibration.scores])


@pytest.mark.parametrize("scores", [20, 100, 1000])
def test_decay_of_exponential_scores_is_theirs_in_the_mean_however_few(scores):
    rng = np.random.default_rng(3)
    decays = [fit_calibration(rng.exponential(0.1, scores)).decay for _ in range(2000)]
    assert np.mean(decays) == pytest.approx(0.1, abs=4 * np.std(decays) / np.sqrt(2000))


@pytest.mark.parametrize("kind", ["z-score", "far"])
def test_scale_rises_with_the_score_without_end(kind):
    scores = np.linspace(0.0, 5.0, 400)
    scaled = fit_calibration(np.random.default_rng(1).uniform(0, 1, 1000))(scores, kind)
    assert (np.diff(scaled[5:]) > 0).all() and np.isfinite(scaled).all()


def test_two_spaces_with_other_means_and_deviations_become_alike():
    rng = np.random.default_rng(2)
    narrow, wide = rng.normal(0.5, 0.01, 50_000), rng.normal(-0.1, 0.3, 50_000)
    rates = np.array([1e-1, 1e-2, 1e-3])
    for kind in ("z-score", "far"):
        first = fit_calibration(narrow)(0.5 + 0.01 * norm.isf(rates), kind)
        assert fit_calibration(wide)(-0.1 + 0.3 * norm.isf(rates), kind) == pytest.approx(first, rel=0.06)


@pytest.mark.parametrize(("impostor", "reason"), [(np.arange(19.0), "19 scores"), (np.full(50, 0.25), "are 0.25")])
def test_too_few_or_equal_scores_are_refused(impostor, reason):
    with pytest.raises(ValueError, match=reason):
        fit_calibration(impostor)
