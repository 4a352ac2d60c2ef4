import numpy as np
import pytest

from core.evaluation.flips import flip_rates, mean_flip_rates


def test_flips_by_hand():
    before = np.array([True, True, True, False, False])
    assert flip_rates(before, np.array([True, False, False, True, False])) == pytest.approx({"nfr": 0.4, "pfr": 0.2})


def test_difference_is_the_change_of_the_mean():
    before, after = np.random.default_rng(0).random((2, 500)) < 0.6
    rates = flip_rates(before, after)
    assert rates["pfr"] - rates["nfr"] == pytest.approx(after.mean() - before.mean())


def test_mean_over_galleries_and_a_gallery_without_mated_probes():
    yes, no = np.array([True, True]), np.array([False, True])
    assert mean_flip_rates({"g1": yes, "g2": no}, {"g1": no, "g2": yes}) == {"nfr": 0.25, "pfr": 0.25}
    empty = np.empty(0, bool)
    assert mean_flip_rates({"g1": yes, "g2": empty}, {"g1": no, "g2": empty}) == {"nfr": None, "pfr": None}
