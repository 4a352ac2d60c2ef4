import numpy as np
import pytest

from core.evaluation import backfill, identification
from core.evaluation.backfill import (
    Features,
    identification_curves,
    retrieval_curves,
    steps,
)
from core.evaluation.backfill_orders import random_order
from core.evaluation.calibration import fit_calibration
from core.evaluation.identification import evaluate_1_n
from core.evaluation.ijb_meta import IdentificationLists, Subjects
from core.evaluation.revisited import evaluate_revisited


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def faces():
    """20 subjects in each gallery, with two templates each, 20 in neither, 400 probes; the new space is larger."""
    rng = np.random.default_rng(0)
    enrolled = np.repeat(rng.permutation(40), 2)
    probes = rng.integers(0, 60, 400)
    subjects = np.concatenate([enrolled, probes])
    galleries = {
        name: Subjects(np.flatnonzero(chosen), enrolled[chosen])
        for name, chosen in (("g1", enrolled < 20), ("g2", enrolled >= 20))
    }
    old, new = (
        unit(rng.standard_normal((60, d))[subjects] + noise * rng.standard_normal((len(subjects), d)))
        for d, noise in ((6, 0.9), (12, 0.7))
    )
    return IdentificationLists(galleries, Subjects(len(enrolled) + np.arange(400), probes)), old, new


def naive(features, lists, priorities, share, scale, calibrations, old):
    """Rank-1, NFR and PFR, means of the galleries, probe by probe."""
    rows = []
    for name, gallery in lists.galleries.items():
        order = np.argsort(-priorities[gallery.templates], kind="stable")
        refreshed = set(gallery.templates[order[: round(share * len(order))]].tolist())
        right, right_before = [], []
        for template, subject in zip(lists.probes.templates, lists.probes.subjects):
            if subject not in gallery.subjects:
                continue
            best, best_before = {}, {}
            for entry, owner in zip(gallery.templates.tolist(), gallery.subjects.tolist()):
                part = 1 if entry in refreshed else 0
                queries, vectors = (
                    (features.stored_queries, features.stored_gallery),
                    (features.refreshed_queries, features.refreshed_gallery),
                )[part]
                score = queries[template].astype(float) @ vectors[entry].astype(float)
                if scale != "raw":
                    score = float(calibrations[name][part](np.array([score]), scale)[0])
                best[owner] = max(best.get(owner, -np.inf), score)
                before = old[template].astype(float) @ old[entry].astype(float)
                best_before[owner] = max(best_before.get(owner, -np.inf), before)
            right.append(max(best, key=best.get) == subject)
            right_before.append(max(best_before, key=best_before.get) == subject)
        right, before = np.array(right), np.array(right_before)
        rows.append((right.mean(), (before & ~right).mean(), (right & ~before).mean()))
    return np.mean(rows, axis=0)


@pytest.mark.parametrize("scale", ["raw", "z-score", "far"])
def test_identification_equals_a_loop_over_probes(faces, scale, monkeypatch):
    monkeypatch.setattr(identification, "PROBE_BLOCK", 64)
    lists, old, new = faces
    features = Features(old, old, new, new)  # side by side
    orders = {"random": random_order(len(old), 1, 0), "by_row": -np.arange(len(old), dtype=float)[None]}
    shares = steps(5)
    curves = identification_curves(features, old, lists, orders, shares)[scale]
    calibrations = {}
    for name, other in (("g1", "g2"), ("g2", "g1")):
        gallery = lists.galleries[other]
        own = np.isin(lists.probes.subjects, gallery.subjects)
        different = lists.probes.subjects[own][:, None] != gallery.subjects
        calibrations[name] = [
            fit_calibration(
                (f[lists.probes.templates[own]].astype(float) @ f[gallery.templates].T.astype(float))[different]
            )
            for f in (old, new)
        ]
    for order, priorities in orders.items():
        for place, share in enumerate(shares):
            expected = naive(features, lists, priorities[0], share, scale, calibrations, old)
            curve = curves[order]
            found = (curve.metrics["top1"][place], curve.nfr[place], curve.pfr[place])
            assert found == pytest.approx(expected, abs=1e-12)


def test_curve_begins_and_ends_with_the_tests_of_the_whole_gallery(faces):
    lists, old, new = faces
    curves = identification_curves(Features(old, old, new, new), old, lists, {"o": np.ones((2, len(old)))}, steps(3))
    for place, vectors in ((0, old), (-1, new)):
        metrics = evaluate_1_n(vectors, vectors, lists).metrics
        for name in ("top1", "top5", "tpir@fpir=0.1"):
            assert curves["raw"]["o"].metrics[name][place] == pytest.approx(metrics[name])
    assert curves["raw"]["o"].nfr[0] == curves["raw"]["o"].pfr[0] == 0
    assert curves["raw"]["o"].area("top1", steps(3)) == pytest.approx(
        np.array([0.25, 0.5, 0.25]) @ curves["raw"]["o"].metrics["top1"]
    )


def test_retrieval_begins_and_ends_with_the_test_of_the_whole_database():
    rng = np.random.default_rng(0)
    landmark = np.repeat(np.arange(8), 10)
    annotations = [
        {"easy": rows[:4], "hard": rows[4:9], "junk": rows[9:]}
        for rows in (np.flatnonzero(landmark == query) for query in range(8))
    ] + [{"easy": np.array([], int), "hard": np.array([], int), "junk": np.array([], int)}]
    queries, database = np.arange(9) % 8, landmark
    old, new = (
        [unit(centres[rows] + noise * rng.standard_normal((len(rows), 12))) for rows in (queries, database)]
        for centres, noise in ((rng.standard_normal((8, 12)), 1.2), (rng.standard_normal((8, 12)), 0.8))
    )
    features = Features(old[0], old[1], new[0], new[1])
    calibrations = tuple(fit_calibration((v[1] @ v[1].T)[landmark[:, None] != landmark]) for v in (old, new))
    curves = retrieval_curves(
        features, tuple(old), annotations, {"random": random_order(80, 3, 0)}, steps(4), calibrations
    )
    assert set(curves) == {"raw", "z-score", "far"}
    for curve in (curves[scale]["random"] for scale in curves):
        for place, (q, g) in ((0, old), (-1, new)):
            ranks = np.argsort(-(q.astype(float) @ g.T.astype(float)), axis=1).T
            metrics = evaluate_revisited(ranks, annotations).metrics
            assert curve.metrics["map_medium"][place] == pytest.approx(metrics["map_medium"])
            assert curve.metrics["mp@1_medium"][place] == pytest.approx(metrics["mp@1_medium"])
        assert curve.nfr[0] == curve.pfr[0] == 0
        gained = curve.metrics["mp@1_medium"] - curve.metrics["mp@1_medium"][0]
        assert curve.pfr - curve.nfr == pytest.approx(gained), "a query that counts is right if its first result is"


def test_a_share_refreshes_the_entries_of_the_highest_priority():
    masks = backfill._refreshed(np.array([[0.1, 0.9, 0.5, 0.5]]), np.array([0, 0.25, 0.5, 1]))
    assert masks[0].astype(int).tolist() == [[0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [1, 1, 1, 1]]
