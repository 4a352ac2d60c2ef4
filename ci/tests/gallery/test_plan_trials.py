"""Searches on a sample, their deviations, and curves, against loops in float64 over a few hand-made vectors."""

import numpy as np
import pytest

from core.evaluation.calibration import fit_calibration
from core.gallery.orders import class_distances
from core.gallery.planning.pair_scores import Plain
from core.gallery.planning.sample_calibration import Calibrator, impostor_pairs
from core.gallery.planning.sample_curves import SHARES, area, backfill_curves
from core.gallery.planning.trials import Draws, Resampling, search_draws

IDENTITIES = np.array([0, 1, 1, 2, 0, 2, 2, 3, 1, 0, 4, 4])  # 3 has one image only


def unit(count: int, size: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, size))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def vectors_of(identities: np.ndarray, size: int, noise: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((identities.max() + 1, size))[identities]
    rows = rows + noise * rng.standard_normal(rows.shape)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_each_draw_enrols_one_image_of_each_identity_and_all_are_drawn():
    draws = Draws.of(IDENTITIES, 40, seed=0)
    assert (IDENTITIES[draws.enrolled] == np.arange(5)).all()
    for enrolled, probes in zip(draws.enrolled, draws.probes):
        assert sorted([*enrolled, *np.flatnonzero(probes)]) == list(range(len(IDENTITIES)))
    assert {tuple(rows) for rows in draws.enrolled[:, [3]]} == {(7,)}
    assert set(draws.enrolled[:, 2]) == {3, 5, 6}


def test_search_equals_a_loop_in_float64_and_a_tie_is_not_right():
    queries, gallery = unit(12, 4, 0), unit(12, 4, 1)
    gallery[7] = gallery[0]  # of two identities
    queries[9] = gallery[0]
    draws = Draws.of(IDENTITIES, 25, seed=3)
    found = search_draws(Plain(queries, gallery), draws)
    ties = 0
    for draw, enrolled in enumerate(draws.enrolled):
        for row in np.flatnonzero(draws.probes[draw]):
            scores = [float(queries[row].astype(float) @ gallery[each].astype(float)) for each in enrolled]
            own = IDENTITIES[row]
            others = [(score, each) for each, score in enumerate(scores) if each != own]
            best = max(score for score, _ in others)
            ties += abs(best - scores[own]) < 1e-7
            assert found.right[draw, row] == pytest.approx(scores[own], abs=1e-6)
            assert found.wrong[draw, row] == pytest.approx(best, abs=1e-6)
            assert scores[IDENTITIES[found.hit[draw, row]]] == pytest.approx(best, abs=1e-6)
            if abs(best - scores[own]) > 1e-6:
                assert found.is_right[draw, row] == (scores[own] > best)
                above = sum(score > scores[own] for score, _ in others)
                assert found.alone[draw, row] == (above == 1)
    assert ties
    tied = draws.enrolled[:, 0] == 0
    assert tied.any() and not found.is_right[tied, 9].any()


def test_rates_and_sums_count_probes_alone():
    draws = Draws.of(IDENTITIES, 6, seed=1)
    values = np.random.default_rng(0).random(draws.probes.shape) < 0.5
    sums = [
        sum(values[draw, row] for draw in range(6) for row in np.flatnonzero(draws.probes[draw] & (IDENTITIES == each)))
        for each in range(5)
    ]
    assert draws.by_identity(values).tolist() == sums
    assert draws.rate(values) == pytest.approx(sum(sums) / draws.probes.sum())
    assert draws.by_identity(np.ones_like(values))[3] == 0


def test_influences_take_off_what_an_entry_spoils():
    # 0 and 1 are found; the probe of 2 is nearest to the entry of 1, which alone is above its own.
    identities = np.array([0, 0, 1, 1, 2, 2])
    gallery = np.eye(3, dtype=np.float32)[identities]
    queries = gallery.copy()
    queries[4:] = [0.0, 0.8, 0.6]
    draws = Draws.of(identities, 3, seed=0)
    found = search_draws(Plain(queries, gallery), draws)
    influences = draws.influences(found)
    assert influences == pytest.approx([3 + 1, 3 - 3 + 1, 0 + 1])
    assert influences.sum() == draws.by_identity(found.is_right).sum()


def test_bootstrap_deviation_is_that_of_a_binomial_and_differences_are_paired():
    trials = np.full(400, 30)
    right = np.zeros(400)
    right[:100] = 30
    better = right.copy()
    better[100:104] = 30
    rates = Resampling(trials, seed=0).rates(np.stack([right, better]))
    assert rates.mean(axis=0) == pytest.approx([0.25, 0.26], abs=3e-3)
    assert rates.std(axis=0)[0] == pytest.approx(np.sqrt(0.25 * 0.75 / 400), rel=0.08)
    assert (rates[:, 1] - rates[:, 0]).std() == pytest.approx(np.sqrt(0.01 * 0.99 / 400), rel=0.08)


def test_curves_equal_a_loop_over_states_of_the_gallery():
    identities = np.repeat(np.arange(24), 3)
    vectors = {"old": vectors_of(identities, 5, 0.5, 0), "new": vectors_of(identities, 6, 0.3, 1)}
    scores = {f"{name}/{name}": Plain(each, each) for name, each in vectors.items()}
    draws = Draws.of(identities, 2, seed=5)
    halves = identities % 2
    calibrator = Calibrator.of(scores, identities, halves, seed=0)
    calibrations = {pair: calibrator.of_other_halves(pair) for pair in ("old/old", "new/new")}
    rng = np.random.default_rng(2)
    priorities = {"random": rng.random((2, len(identities))), "class_distance": rng.random(len(identities))}
    before = search_draws(scores["old/old"], draws)
    curves = backfill_curves(
        scores, {"side_by_side": "old/old"}, {"side_by_side": priorities}, calibrations, draws, halves, before
    )["side_by_side"]
    for order, values in priorities.items():
        for step, share in enumerate(SHARES):
            right, lost = [], []
            for draw, enrolled in enumerate(draws.enrolled):
                of_draw = (values[draw] if values.ndim == 2 else values)[enrolled]
                first = np.argsort(-of_draw)[: round(share * 24)]
                for row in np.flatnonzero(draws.probes[draw]):
                    half = halves[row]
                    scaled = []
                    for each, entry in enumerate(enrolled):
                        side = "new" if each in first else "old"
                        score = vectors[side][row].astype(float) @ vectors[side][entry].astype(float)
                        scaled.append(float(calibrations[f"{side}/{side}"][half](np.array(score))))
                    own = scaled.pop(identities[row])
                    right.append(own > max(scaled))
                    lost.append(before.is_right[draw, row] and not right[-1])
            assert curves[order]["top1"][step] == pytest.approx(np.mean(right), abs=1e-9), (order, share)
            assert curves[order]["nfr"][step] == pytest.approx(np.mean(lost), abs=1e-9)
        assert curves[order]["auc"] == [area(curves[order]["top1"])]
    assert curves["random"]["top1"][0] == pytest.approx(draws.rate(before.is_right))
    assert curves["random"]["top1"][10] == pytest.approx(draws.rate(search_draws(scores["new/new"], draws).is_right))


def test_area_is_the_mean_over_the_share():
    assert area([0.5] * 11) == pytest.approx(0.5)
    assert area(SHARES.tolist()) == pytest.approx(0.5)
    assert area([0.0] * 10 + [1.0]) == pytest.approx(0.05)


def test_thresholds_are_counted_on_the_other_half():
    identities = np.repeat(np.arange(40), 3)
    vectors = {"old": vectors_of(identities, 6, 0.6, 0), "new": vectors_of(identities, 6, 0.3, 1)}
    halves = (np.arange(40) % 3 == 0).astype(int)[identities]
    pairs = {f"{name}/old": Plain(each, vectors["old"]) for name, each in vectors.items()}
    calibrator = Calibrator.of(pairs, identities, halves, seed=0)
    calibrations = {pair: calibrator.of_other_halves(pair) for pair in pairs}
    realised = calibrator.realised("new/old", calibrations)
    counted = np.zeros(4)
    totals = np.zeros(2)
    for half in (0, 1):
        scores = {
            pair: [
                (
                    float(vectors[pair[0]][i].astype(float) @ vectors["old"][j].astype(float)),
                    identities[i] == identities[j],
                )
                for i in np.flatnonzero(halves == which)
                for j in np.flatnonzero(halves == which)
                if i != j
            ]
            for pair, which in ((("new", half), half), (("new", 1 - half), 1 - half), (("old", 1 - half), 1 - half))
        }
        own = scores[("new", half)]
        impostor, genuine = ([score for score, same in own if same == which] for which in (False, True))
        totals += len(impostor), len(genuine)
        for place, name in enumerate(("new", "old")):
            others = np.array([score for score, same in scores[(name, 1 - half)] if not same])
            least = fit_calibration(others).threshold(0.01)
            counted[2 * place] += sum(score >= least for score in impostor)
            counted[2 * place + 1] += sum(score >= least for score in genuine)
    expected = counted / np.tile(totals, 2)
    names = ("far", "tar", "far_at_old", "tar_at_old")
    assert [realised["far=1e-02"][name] for name in names] == pytest.approx(expected, abs=2 / totals[0])
    assert realised["far=1e-02"]["impostors"] == totals[0]
    assert realised["far=1e-06"]["far"] is None, "below one impostor pair"
    assert set(calibrator.realised("old/old", calibrations)["far=1e-02"]) == {"far", "tar", "impostors"}
    thresholds = calibrator.thresholds(calibrator.of_all("new/old"))
    assert thresholds["far=1e-06"] is None and thresholds["far=1e-02"] > thresholds["far=1e-01"]
    assert impostor_pairs(identities) == 120 * 117


def test_threshold_is_the_reverse_of_the_rate():
    calibration = fit_calibration(np.random.default_rng(0).normal(0, 1, 5000))
    for far in (1e-6, 1e-3, 0.02, 0.5):
        least = calibration.threshold(far)
        assert np.exp(calibration.log_false_accept_rate(np.array(least))) == pytest.approx(far, rel=1e-6)


def test_class_distance_by_hand():
    vectors = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], np.float32)
    assert class_distances(vectors, np.array([0, 0, 1])) == pytest.approx([np.sqrt(0.5), np.sqrt(0.5), 0])
