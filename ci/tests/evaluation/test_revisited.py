import numpy as np
import pytest

from core.evaluation.revisited import evaluate_revisited, mean_average_precision

KAPPAS = (1, 2, 5)


def ranked(*lists):
    """ranks (database, queries) from one list a query."""
    return np.array(lists).T


def truth(ok, junk=None):
    return [{"ok": ok} if junk is None else {"ok": ok, "junk": junk}]


def restated(ranks, ground_truth, kappas):
    """The benchmark's rules in plain steps: walk down the list, skip junk, add a trapezoid at each positive."""
    aps, prs = [], []
    for column, query in zip(ranks.T.tolist(), ground_truth):
        if not query["ok"]:
            continue
        cleaned = [index for index in column if index not in query["junk"]]
        ap, hits, last = 0.0, 0, 0
        for place, index in enumerate(cleaned):
            if index in query["ok"]:
                before = 1.0 if place == 0 else hits / place
                hits += 1
                ap += (before + hits / (place + 1)) / 2 / len(query["ok"])
                last = place + 1
        aps.append(ap)
        depths = [min(last, k) for k in kappas]
        prs.append([sum(index in query["ok"] for index in cleaned[:depth]) / depth for depth in depths])
    return sum(aps) / len(aps), np.mean(prs, axis=0)


def test_all_positives_first_give_one():
    result = mean_average_precision(ranked([3, 1, 0, 2]), truth([1, 3], [0]), KAPPAS)
    assert result.map == 1.0 and result.aps.tolist() == [1.0]
    assert result.prs.tolist() == [[1.0, 1.0, 1.0]], "precision at 5 counts to the last positive, at 2"
    assert result.mp.tolist() == [1.0, 1.0, 1.0]
    np.testing.assert_array_equal(result.precision, 1.0)


def test_junk_before_positives_is_taken_out_before_ranks_are_counted():
    # junk 4, negative 0, junk 5, positive 2, negative 1, positive 3: without junk 0 2 1 3, positives at ranks 1 and 3
    result = mean_average_precision(ranked([4, 0, 5, 2, 1, 3]), truth([2, 3], [4, 5]), KAPPAS)
    expected = (0 / 1 + 1 / 2) / 2 / 2 + (1 / 3 + 2 / 4) / 2 / 2
    assert result.map == pytest.approx(expected, abs=1e-15)
    assert result.prs.tolist() == [[0.0, 0.5, 0.5]]


@pytest.mark.parametrize("junk", [None, [], np.empty(0)])
def test_without_junk_the_list_stays_as_it_is(junk):
    # positives at ranks 0 and 2: trapezoids (1 + 1) / 2 and (1/2 + 2/3) / 2, each half the recall
    result = mean_average_precision(ranked([7, 5, 6, 4]), truth([6, 7], junk), KAPPAS)
    assert result.map == pytest.approx(0.5 * 1 + 0.5 * (1 / 2 + 2 / 3) / 2, abs=1e-15)
    assert result.prs.tolist() == [[1.0, 0.5, 2 / 3]]


def test_queries_without_positives_are_left_out_of_the_means():
    ranks = ranked([0, 1, 2], [0, 1, 2], [2, 1, 0])
    result = mean_average_precision(ranks, [{"ok": [0]}, {"ok": [], "junk": [1]}, {"ok": [1]}], KAPPAS)
    assert np.isnan(result.aps[1]) and np.isnan(result.prs[1]).all()
    assert result.map == pytest.approx((1.0 + (0 + 1 / 2) / 2) / 2) and result.mp[0] == 0.5
    nothing = mean_average_precision(ranks[:, :1], [{"ok": []}], KAPPAS)
    assert np.isnan(nothing.map) and np.isnan(nothing.mp).all() and nothing.mp.shape == (3,)


def test_positives_beyond_the_end_of_a_list_count_as_never_found():
    result = mean_average_precision(ranked([3, 9], [8, 9]), [{"ok": [3, 5]}, {"ok": [5]}], KAPPAS)
    assert result.aps.tolist() == [0.5, 0.0]
    assert result.prs.tolist() == [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]


def test_random_lists_give_what_plain_steps_give():
    rng = np.random.default_rng(0)
    ranks, ground_truth = np.array([rng.permutation(60) for _ in range(40)]).T, []
    for _ in range(40):
        chosen = rng.permutation(60)[: rng.integers(0, 40)].tolist()
        cut = rng.integers(0, len(chosen) + 1)
        ground_truth.append({"ok": chosen[:cut], "junk": chosen[cut:]})
    result = mean_average_precision(ranks, ground_truth, KAPPAS)
    expected_map, expected_mp = restated(ranks, ground_truth, KAPPAS)
    assert result.map == pytest.approx(expected_map, abs=1e-12)
    np.testing.assert_allclose(result.mp, expected_mp, atol=1e-12)


def test_setups_count_easy_and_hard_as_the_protocol_says():
    # in the order of the list: hard 0, negative 1, junk 2, easy 3, negative 4
    result = evaluate_revisited(ranked([0, 1, 2, 3, 4]), [{"easy": [3], "hard": [0], "junk": [2]}])
    metrics = result.metrics
    assert metrics["map_easy"] == pytest.approx((0 + 1 / 2) / 2), "easy alone, at rank 1 once hard and junk are out"
    assert metrics["map_medium"] == pytest.approx(0.5 + 0.5 * (1 / 2 + 2 / 3) / 2)
    assert metrics["map_hard"] == 1.0
    assert [metrics[f"mp@1_{setup}"] for setup in ("easy", "medium", "hard")] == [0.0, 1.0, 1.0]
    names = [f"{name}_{setup}" for setup in ("easy", "medium", "hard") for name in ("map", "mp@1", "mp@5", "mp@10")]
    assert list(metrics) == names and list(result.curves) == ["easy", "medium", "hard"]


def test_setup_without_any_positive_is_none():
    metrics = evaluate_revisited(ranked([0, 1]), [{"easy": [1], "hard": [], "junk": []}]).metrics
    assert metrics["map_hard"] is None and metrics["mp@10_hard"] is None and metrics["map_medium"] == 0.25


def test_curve_is_the_best_precision_at_that_recall_or_more():
    # positives at ranks 1 and 2 of 3: precisions 1/2 and 2/3; the third is cut off
    precision = mean_average_precision(ranked([9, 0, 1]), truth([0, 1, 2]), KAPPAS).precision
    np.testing.assert_allclose(precision[:67], 2 / 3)
    np.testing.assert_array_equal(precision[67:], 0.0)


def test_number_of_queries_must_agree():
    with pytest.raises(ValueError, match="2 queries"):
        mean_average_precision(ranked([0, 1]), truth([0]) * 2, KAPPAS)
