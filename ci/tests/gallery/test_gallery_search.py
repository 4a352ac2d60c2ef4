import math

import numpy as np
import pytest
from gallery_helpers import MemoryStore, unit, vectors

from core.errors import UserError
from core.evaluation.calibration import ScoreCalibration, fit_calibration
from core.gallery.documents import calibrations_to_document, map_from_document, map_to_document
from core.gallery.folder.store import FolderStore
from core.gallery.search import search
from core.gallery.store import Hits, Version
from core.gallery.upgrade import Upgrade
from core.models.maps import fit_map

OLD, NEW, MAPPED = Version("old", "old model", 8), Version("new", "new model", 8), Version("mapped", "old, mapped", 8)


def line(slope, start=-1.0):
    """FAR 1 up to the score `start`, then log FAR = -slope (score - start)."""
    return ScoreCalibration(0.0, 1.0, np.array([start]), np.array([0.0]), 1 / slope)


CALIBRATIONS = {
    "old/old": line(2.0),
    "new/new": line(5.0, -0.9),
    "new/old": line(9.0, -0.4),
    "query_map/old": line(3.0, -0.6),
    "new/gallery_map": line(4.0),
}
STORED = {"old": vectors(60, seed=1), "new": vectors(60, seed=2), "mapped": vectors(60, seed=3)}
QUERIES, OLD_QUERIES = vectors(7, seed=4), vectors(7, seed=5)
REFRESHED = np.arange(60) % 3 == 0


def gallery(road="direct", refreshed=REFRESHED, calibrations=None, failed=0, old=OLD, stored=None, store=None):
    """Entries "0", "1" and so on with old vectors, the `refreshed` also with new ones; all mapped by that road."""
    store, stored = MemoryStore() if store is None else store, stored or STORED
    names = [str(row) for row in range(len(refreshed))]
    mapped = MAPPED.key if road == "gallery_map" else None
    for version in [old, NEW, *([MAPPED] if mapped else [])]:
        store.add_version(version)
    store.enrol(names, {"old": stored["old"]})
    if mapped:
        store.add_vectors("mapped", np.arange(len(names)), stored["mapped"])
    rows = np.flatnonzero(refreshed)
    store.add_vectors("new", rows, stored["new"][rows])
    upgrade = Upgrade("old", "new", mapped, road, "random", "0" * 64, len(names), failed)
    chosen = CALIBRATIONS if calibrations is None else calibrations
    store.set_documents({"upgrade": upgrade.to_json(), "calibrations": calibrations_to_document(chosen)})
    return store


def one_model(calibrations=None, count=60):
    store = MemoryStore()
    store.add_version(OLD)
    store.enrol([str(row) for row in range(count)], {"old": STORED["old"][:count]})
    store.set_documents({"calibrations": calibrations and calibrations_to_document(calibrations)})
    return store


def by_hand(parts, k, max_far=1.0):
    """Lists (id, score, far, version) for each query, from parts (queries, vectors, entries, version, calibration).

    Every product in float64; one after another, smallest far first, among equal ones the earlier part, then the larger
    score, then the lower row.
    """
    answers = []
    for query in range(len(parts[0][0])):
        found = []
        for place, (queries, stored, entries, version, calibration) in enumerate(parts):
            for row in np.flatnonzero(entries).tolist():
                score = float(unit(queries)[query] @ unit(stored)[row])
                excess = max(0.0, score - calibration.scores[0])
                found.append((-excess / calibration.decay, place, -score, row, version))
        found.sort()
        hits = [(str(row), -score, math.exp(far), version) for far, _, score, row, version in found[:k]]
        answers.append([hit for hit in hits if hit[2] <= max_far])
    return answers


def assert_hits(found, expected):
    rows = found.hits.rows()
    assert [(query, rank) for query, rank, *_ in rows] == [
        (query, place) for query, hits in enumerate(expected) for place in range(1, len(hits) + 1)
    ]
    flat = [hit for hits in expected for hit in hits]
    assert [(name, version) for _, _, name, _, _, version in rows] == [(hit[0], hit[3]) for hit in flat]
    np.testing.assert_allclose(found.hits["score"], [hit[1] for hit in flat], atol=1e-6)
    np.testing.assert_allclose(found.hits["far"], [hit[2] for hit in flat], rtol=1e-5)


def fitted_map(source=8, target=8):
    return fit_map("ridge", vectors(40, source, seed=8), vectors(40, target, seed=9))


@pytest.fixture(params=["memory", "folder"])
def store(request, tmp_path):
    """An empty one."""
    opened = MemoryStore() if request.param == "memory" else FolderStore.create(tmp_path / "gallery")
    yield opened
    opened.close()


ALL = np.ones(60, bool)
NEW_PART = (QUERIES, STORED["new"], REFRESHED, "new", CALIBRATIONS["new/new"])


@pytest.mark.parametrize("k", [1, 5, 200])
@pytest.mark.parametrize(
    ("road", "stored"),
    [
        ("direct", (QUERIES, STORED["old"], ~REFRESHED, "old", CALIBRATIONS["new/old"])),
        ("gallery_map", (QUERIES, STORED["mapped"], ~REFRESHED, "mapped", CALIBRATIONS["new/gallery_map"])),
    ],
)
def test_roads_of_new_queries_rank_both_parts_by_their_rates(store, road, stored, k):
    found = search(gallery(road, store=store), QUERIES, "new", k)
    assert_hits(found, by_hand([NEW_PART, stored], k))
    assert found.recall is None


@pytest.mark.parametrize("road", ["stay", "side_by_side", "full_backfill", "direct", "gallery_map"])
def test_old_queries_beside_new_ones_search_what_has_no_new_vector(store, road):
    found = search(gallery(road, store=store), QUERIES, "new", 5, old_queries=OLD_QUERIES)
    stored = (OLD_QUERIES, STORED["old"], ~REFRESHED, "old", CALIBRATIONS["old/old"])
    assert_hits(found, by_hand([NEW_PART, stored], 5))


def test_query_map_is_read_from_the_documents_and_may_lead_to_another_size(store):
    old = Version("old", "old model", 5)
    stored = {**STORED, "old": vectors(60, 5, seed=1)}
    mapping = fitted_map(8, 5)
    gallery("query_map", old=old, stored=stored, store=store)
    store.set_documents({"query_map": map_to_document(mapping)})
    weight, bias = (mapping.module.state_dict()[name].double().numpy() for name in ("weight", "bias"))
    mapped = unit(QUERIES) @ weight.T + bias
    part = (mapped, stored["old"], ~REFRESHED, "old", CALIBRATIONS["query_map/old"])
    assert_hits(search(store, QUERIES, "new", 5), by_hand([NEW_PART, part], 5))


@pytest.mark.parametrize("road", ["stay", "full_backfill", "gallery_map", "query_map"])
def test_queries_of_the_old_model_search_all_old_vectors(road):
    found = search(gallery(road), OLD_QUERIES, "old", 4)
    assert_hits(found, by_hand([(OLD_QUERIES, STORED["old"], ALL, "old", CALIBRATIONS["old/old"])], 4))


@pytest.mark.parametrize("max_far", [1e-4, 2e-5, 1e-9])
def test_hits_above_the_largest_rate_are_dropped_and_a_query_may_have_none(max_far):
    stored = (QUERIES, STORED["old"], ~REFRESHED, "old", CALIBRATIONS["new/old"])
    expected = by_hand([NEW_PART, stored], 5, max_far)
    found = search(gallery(), QUERIES, "new", 5, max_far=max_far)
    assert_hits(found, expected)
    counts = {len(hits) for hits in expected}
    assert counts == {0} if max_far < 1e-8 else len(counts) > 1


def test_rates_of_measured_scores_rank_as_the_calibration_says():
    impostor = np.random.default_rng(0).normal(0.1, 0.2, 5000)
    calibrations = {"new/new": fit_calibration(impostor), "new/old": fit_calibration(0.5 * impostor - 0.3)}
    hits = search(gallery(calibrations=calibrations), QUERIES, "new", 60).hits
    of_part = {"new": calibrations["new/new"], "old": calibrations["new/old"]}
    rates = [np.exp(of_part[row[5]].log_false_accept_rate(np.float64(row[3]))) for row in hits.rows()]
    np.testing.assert_allclose(hits["far"], rates, rtol=1e-12)
    assert all(np.diff(hits["far"].to_numpy().reshape(7, 60), axis=1).ravel() >= 0)
    assert any(np.diff(hits["score"].to_numpy().reshape(7, 60), axis=1).ravel() > 0)


@pytest.mark.parametrize("share", [0, 60])
def test_at_either_end_of_the_backfill_one_version_answers(share):
    found = search(gallery(refreshed=np.arange(60) < share), QUERIES, "new", 3)
    part = ("new", "new/new") if share else ("old", "new/old")
    assert_hits(found, by_hand([(QUERIES, STORED[part[0]], ALL, part[0], CALIBRATIONS[part[1]])], 3))


def test_every_entry_is_served_once_and_by_its_newest_vector(store):
    hits = search(gallery("gallery_map", store=store), QUERIES, "new", 100).hits
    assert hits.height == 7 * 60
    for query in range(7):
        of_query = hits.filter(hits["query"] == query)
        assert sorted(map(int, of_query["id"])) == list(range(60))
        served = dict(zip(of_query["id"], of_query["version"]))
        assert all(served[str(row)] == ("new" if REFRESHED[row] else "mapped") for row in range(60))


class Moving(MemoryStore):
    """A store in which every entry gets its new vector when the old ones have been searched."""

    def search(self, key, queries, k, without=(), index="exact"):
        hits = super().search(key, queries, k, without, index)
        if key == "old":
            self.add_vectors("new", np.arange(60), STORED["new"])
        return hits


def test_an_entry_that_moves_during_the_search_is_found_once():
    store = gallery()
    store.__class__ = Moving
    hits = search(store, QUERIES, "new", 60).hits
    assert hits.height == 7 * 60 and hits.group_by("query").len()["len"].to_list() == [60] * 7
    assert hits.select("query", "id").is_unique().all()


class Committed(MemoryStore):
    """A store whose upgrade is committed while it is searched for the first time."""

    def search(self, key, queries, k, without=(), index="exact"):
        if key == "old":
            self.drop_version(
                "old", {"upgrade": None, "calibrations": {"old/old": self.document("calibrations")["new/new"]}}
            )
            raise UserError("there is no version old")
        return super().search(key, queries, k, without, index)


def test_a_commit_during_the_search_is_no_error():
    store = gallery(refreshed=ALL)
    store.__class__ = Committed
    found = search(store, QUERIES, "new", 3)
    assert_hits(found, by_hand([(QUERIES, STORED["new"], ALL, "new", CALIBRATIONS["new/new"])], 3))


def test_equal_rates_keep_the_order_of_scores_and_new_vectors_come_first():
    flat = {name: ScoreCalibration(0.0, 1.0, np.array([2.0]), np.array([0.0]), 1.0) for name in ("new/new", "new/old")}
    found = search(gallery(calibrations=flat), QUERIES, "new", 60)
    parts = [
        (QUERIES, STORED["new"], REFRESHED, "new", flat["new/new"]),
        (QUERIES, STORED["old"], ~REFRESHED, "old", flat["new/old"]),
    ]
    assert_hits(found, by_hand(parts, 60))
    assert found.hits["version"].to_list()[:20] == ["new"] * 20


def test_one_model_without_calibration_has_no_rates():
    found = search(one_model(), QUERIES, "old", 3)
    expected = by_hand([(QUERIES, STORED["old"], ALL, "old", line(1.0))], 3)
    assert found.hits["id"].to_list() == [hit[0] for hits in expected for hit in hits]
    assert found.hits["far"].is_null().all() and found.hits["rank"].to_list() == [1, 2, 3] * 7
    with pytest.raises(UserError, match="no false accept rates are known.*plan an upgrade"):
        search(one_model(), QUERIES, "old", 3, max_far=0.1)


def test_one_model_with_its_own_calibration_has_rates():
    found = search(one_model(CALIBRATIONS), QUERIES, "old", 3, max_far=0.2)
    assert_hits(found, by_hand([(QUERIES, STORED["old"], ALL, "old", CALIBRATIONS["old/old"])], 3, 0.2))


@pytest.mark.parametrize("old_queries", [None, OLD_QUERIES])
def test_empty_galleries_and_no_queries_have_no_hits(store, old_queries):
    nothing = {name: each[:0] for name, each in STORED.items()}
    empty = gallery(refreshed=np.zeros(0, bool), stored=nothing, store=store)
    hits = search(empty, QUERIES, "new", 3, old_queries=old_queries, max_far=0.1).hits
    assert hits.height == 0 and hits.columns == ["query", "rank", "id", "score", "far", "version"]
    assert search(one_model(count=0), QUERIES, "old", 3).hits.height == 0
    none = None if old_queries is None else OLD_QUERIES[:0]
    assert search(gallery(), QUERIES[:0], "new", 3, old_queries=none, index="ivf").hits.height == 0


class Blind(MemoryStore):
    """A store whose index overlooks the best entry of every second query."""

    def search(self, key, queries, k, without=(), index="exact"):
        hits = super().search(key, queries, k + 1, without)
        first = (np.arange(len(queries)) % 2 if index == "hnsw" else np.zeros(len(queries), int))[:, None]
        columns = first + np.arange(k)
        return Hits(np.take_along_axis(hits.scores, columns, 1), np.take_along_axis(hits.ids, columns, 1))


@pytest.mark.parametrize("count", [8, 400])
def test_recall_of_another_index_is_measured_against_the_exact_search(caplog, count):
    store = one_model()
    store.__class__ = Blind
    with caplog.at_level("INFO"):
        recall = search(store, vectors(count, seed=7), "old", 4, index="hnsw").recall
    sampled = np.unique(np.linspace(0, count - 1, 100).astype(int))
    assert recall == pytest.approx(1 - np.mean(sampled % 2) / 4)
    assert f"recall of hnsw: {recall:.4f}" in caplog.text
    assert search(store, vectors(count, seed=7), "old", 4, index="ivf").recall == 1.0


def test_a_road_that_is_none_for_new_queries_needs_the_old_model_or_the_end():
    for road in ("stay", "side_by_side", "full_backfill"):
        with pytest.raises(UserError, match=f"40 entries have no vector of new yet, and by the road {road}"):
            search(gallery(road), QUERIES, "new", 3)
    complete = gallery("full_backfill", refreshed=ALL)
    part = (QUERIES, STORED["new"], ALL, "new", CALIBRATIONS["new/new"])
    assert_hits(search(complete, QUERIES, "new", 3), by_hand([part], 3))


def test_entries_whose_images_cannot_be_read_do_not_block_a_full_backfill(caplog):
    found = search(gallery("full_backfill", refreshed=np.arange(60) > 1, failed=2), QUERIES, "new", 3)
    assert set(found.hits["version"]) == {"new"}
    assert "2 entries, whose images could not be read, are found by queries of old model only" in caplog.text


def test_vectors_that_are_not_mapped_yet_are_not_overlooked(store):
    gallery("gallery_map", store=store)
    store.enrol(["late"], {"new": vectors(1)})
    search(store, QUERIES, "new", 3)
    store.enrol(["later"], {"old": vectors(1)})
    with pytest.raises(UserError, match="not all of its vectors are mapped to the space of new"):
        search(store, QUERIES, "new", 3)


@pytest.mark.parametrize(
    ("queries", "model", "options", "message"),
    [
        (QUERIES, "other", {}, r"no vectors of the model other, only of old \(old model\) and new \(new model\)"),
        (QUERIES, "mapped", {}, "no vectors of the model mapped"),
        (QUERIES[:, :5], "new", {}, "the queries have size 5, vectors of new model have size 8"),
        (QUERIES[0], "new", {}, "queries must be numbers"),
        (np.full((2, 8), np.nan), "new", {}, "row 0 of the queries is not finite"),
        (np.zeros((2, 8)), "new", {}, "row 0 of the queries is zero"),
        (QUERIES, "new", {"k": 0}, "ask for 1 to 1,000,000"),
        (QUERIES, "new", {"max_far": 0.0}, "between 0 and 1"),
        (QUERIES, "new", {"max_far": math.nan}, "between 0 and 1"),
        (QUERIES, "new", {"index": "tree"}, "choose one of exact, hnsw, ivf"),
        (QUERIES, "new", {"old_queries": OLD_QUERIES[:3]}, "7 queries by new and 3 by old"),
        (QUERIES, "new", {"old_queries": OLD_QUERIES[:, :3]}, "the old model's queries have size 3"),
        (OLD_QUERIES, "old", {"old_queries": OLD_QUERIES}, "give those of old only"),
    ],
)
def test_mistakes_are_told_in_one_line(queries, model, options, message):
    with pytest.raises(UserError, match=message) as caught:
        search(gallery("gallery_map"), queries, model, **{"k": 3, **options})
    assert "\n" not in str(caught.value)


def test_a_mixture_without_a_calibration_is_not_ranked():
    with pytest.raises(UserError, match="the calibration of the scores of old is missing"):
        search(gallery(calibrations={"new/new": line(1.0)}), QUERIES, "new", 3)


def test_a_map_survives_its_document(tmp_path):
    mapping = fitted_map()
    mapping.save(tmp_path / "map")
    for document in (map_to_document(mapping), map_to_document(tmp_path / "map")):
        restored = map_from_document(document)
        assert restored.fingerprint == mapping.fingerprint
        np.testing.assert_array_equal(restored(QUERIES), mapping(QUERIES))
        np.testing.assert_array_equal(restored.predicted_error(QUERIES), mapping.predicted_error(QUERIES))


@pytest.mark.parametrize(
    "damaged", [None, {}, {"map.pt": "!", "config.json": ""}, {"map.pt": "AAAA", "config.json": ""}]
)
def test_a_damaged_map_is_told(damaged):
    with pytest.raises(UserError, match="the map that is kept with the gallery is damaged"):
        map_from_document(damaged)
