import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score, roc_curve

from core.evaluation import identification, ijb
from core.evaluation.identification import evaluate_1_n
from core.evaluation.ijb import evaluate_1_1, template_features, template_means
from core.evaluation.ijb_embeddings import ImageEmbeddings
from core.evaluation.ijb_meta import IdentificationLists, IjbImages, Pairs, Subjects
from core.evaluation.roc import rates_at, receiver_operating_characteristic

FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def random_images(rng, num_images=200, num_templates=23):
    """Members in random order, some images in two templates, media ids shared between templates."""
    member_image = np.concatenate([rng.permutation(num_images), rng.integers(0, num_images, 30)])
    member_template = rng.integers(0, num_templates, len(member_image))
    member_template[:num_templates] = np.arange(num_templates)
    media = rng.integers(0, 5, len(member_image))
    keys = list(zip(member_template, media))
    media_size = np.array([keys.count(key) for key in keys])
    scores = rng.uniform(0.1, 1, num_images)
    names = [str(i) for i in range(num_images)]
    images = IjbImages(
        None, "IJBC", names, None, scores, member_image, member_template, media_size, np.arange(num_templates)
    )
    return images, media


@pytest.mark.parametrize("block", [7, 8192])
@pytest.mark.parametrize(("flip", "detector", "normalize"), [(1, 1, 0), (0, 1, 0), (1, 0, 0), (1, 1, 1), (0, 0, 1)])
def test_template_features_equal_a_loop_over_templates_and_media(monkeypatch, block, flip, detector, normalize):
    monkeypatch.setattr(ijb, "MEMBER_BLOCK", block)
    rng = np.random.default_rng(0)
    images, media = random_images(rng)
    plain, mirrored = rng.standard_normal((2, 200, 6)).astype(np.float32)
    features = plain.astype(float) + (mirrored if flip else 0)
    if normalize:
        features /= np.linalg.norm(features, axis=1, keepdims=True)
    if detector:
        features = features * images.detector_scores[:, None]
    expected = []
    for template in range(23):
        in_template = images.member_template == template
        parts = [
            features[images.member_image[in_template & (media == m)]].mean(0) for m in np.unique(media[in_template])
        ]
        expected.append(np.sum(parts, 0))
    result = template_features(
        ImageEmbeddings(plain, mirrored), images, bool(flip), bool(detector), normalize_embeddings=bool(normalize)
    )
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, unit(np.array(expected)), atol=1e-6)


@pytest.mark.parametrize("block", [7, 8192])
def test_template_means_are_weighted_means_of_which_the_features_are_the_directions(monkeypatch, block):
    monkeypatch.setattr(ijb, "MEMBER_BLOCK", block)
    rng = np.random.default_rng(0)
    images, _ = random_images(rng)
    views = ImageEmbeddings(*rng.standard_normal((2, 200, 6)).astype(np.float32))
    means = template_means(views, images)
    for template in range(23):
        own = images.member_template == template
        rows = images.member_image[own]
        weights = images.detector_scores[rows] / images.media_size[own]
        both = np.concatenate([views.plain[rows], views.mirrored[rows]]).astype(float)
        np.testing.assert_allclose(means[template], np.average(both, axis=0, weights=np.tile(weights, 2)), atol=1e-9)
    np.testing.assert_allclose(unit(means), template_features(views, images), atol=1e-6)


def test_embeddings_of_zero_give_a_zero_template_not_nan():
    images, _ = random_images(np.random.default_rng(0))
    zeros = ImageEmbeddings(*np.zeros((2, 200, 4), np.float32))
    assert not template_features(zeros, images, normalize_embeddings=True).any()


def reference_tar(labels, scores, far):
    """From scikit-learn's curve: the point nearest in FPR, the largest TPR of equally near ones."""
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    distance = np.abs(fpr - far)
    return tpr[distance <= distance.min() + 1e-12].max()


@pytest.mark.parametrize("decimals", [6, 1])
@pytest.mark.parametrize(("num_genuine", "num_impostor"), [(50, 10), (400, 1000), (1, 15), (30, 25000)])
def test_tar_and_auc_equal_scikit_learns_curve_with_and_without_ties(num_genuine, num_impostor, decimals):
    rng = np.random.default_rng(num_genuine)
    genuine = rng.normal(1.5, 1, num_genuine).round(decimals).astype(np.float32)
    impostor = rng.normal(0, 1, num_impostor).round(decimals).astype(np.float32)
    labels, scores = np.repeat([1, 0], [num_genuine, num_impostor]), np.concatenate([genuine, impostor])
    result = receiver_operating_characteristic(genuine, impostor)
    metrics = result.metrics
    assert list(metrics) == [f"tar@far=1e-0{i}" for i in (6, 5, 4, 3, 2, 1)] + ["auc"]
    for far, value in zip(FARS, metrics.values()):
        if far * num_impostor < 1 - 1e-9:
            assert value is None
        else:
            assert value == pytest.approx(reference_tar(labels, scores, far), abs=1e-12)
            fpr, tpr, thresholds = roc_curve(labels, scores, drop_intermediate=False)
            accepted = result.thresholds[f"far={far:.0e}"]
            point = np.flatnonzero(
                (tpr == tpr[tpr >= value - 1e-12].min()) & (np.abs(fpr - far) == np.abs(fpr - far).min())
            )
            assert accepted == thresholds[point[-1]] or np.isinf(thresholds[point[-1]]) and accepted > scores.max()
    assert metrics["auc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-9)


@pytest.mark.parametrize(("far", "num_impostor"), [(0.1, 10), (0.01, 100), (1e-3, 1000), (1e-4, 10**4), (1e-5, 10**5)])
def test_far_of_exactly_one_impostor_pair_is_resolved(far, num_impostor):
    name = f"tar@far={far:.0e}"
    impostor = np.linspace(-1, 0, num_impostor)
    assert receiver_operating_characteristic(np.array([-0.0001 / num_impostor]), impostor).metrics[name] == 1.0
    assert receiver_operating_characteristic(np.array([1.0]), impostor[1:]).metrics[name] is None


def test_curve_points_are_the_largest_tpr_at_or_below_each_fpr():
    rng = np.random.default_rng(0)
    genuine, impostor = rng.normal(1, 1, 80).round(1), rng.normal(0, 1, 300).round(1)
    result = receiver_operating_characteristic(genuine, impostor)
    fpr, tpr, _ = roc_curve(np.repeat([1, 0], [80, 300]), np.concatenate([genuine, impostor]))
    np.testing.assert_allclose(result.tpr, [tpr[fpr <= point + 1e-12].max() for point in result.fpr])
    assert result.fpr[0] == 1 / 300 and result.fpr[-1] == 1


def test_pairs_of_one_kind_only_have_no_rates():
    for genuine, impostor in (([0.5], []), ([], [0.5])):
        metrics = receiver_operating_characteristic(np.array(genuine), np.array(impostor)).metrics
        assert set(metrics.values()) == {None}


def test_in_a_pair_the_gallery_model_embeds_the_first_template_and_the_query_model_the_second():
    old, new = unit(np.random.default_rng(0).standard_normal((2, 3, 4)))
    pairs = Pairs(np.array([0, 1], np.int32), np.array([2, 0], np.int32), np.array([True, False]))
    scores = ijb.pair_scores(old, new, pairs)
    np.testing.assert_allclose(scores, [old[0] @ new[2], old[1] @ new[0]], atol=1e-6)
    expected = receiver_operating_characteristic(scores[:1], scores[1:]).metrics
    assert evaluate_1_1(query_templates=new, gallery_templates=old, pairs=pairs).metrics == expected


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("order", ["sorted", "by first", "random", "repeated", "one first"])
def test_pair_scores_equal_float64_products_in_any_order_of_the_list(monkeypatch, order, threads):
    monkeypatch.setattr(ijb, "ROW_BLOCK", 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    rng = np.random.default_rng(0)
    templates, others = unit(rng.standard_normal((2, 30, 512)))
    first, second = (each.ravel() for each in np.meshgrid(np.arange(30), np.arange(30), indexing="ij"))
    if order == "repeated":  # more pairs than there are different ones
        first, second = np.repeat([first, second], 3, axis=1)
    if order == "one first":
        first, second = np.full(2000, 7), rng.integers(0, 30, 2000)
    shuffled = rng.permutation(len(first))
    if order == "by first":
        shuffled = shuffled[np.argsort(first[shuffled], kind="stable")]
    if order != "sorted":
        first, second = first[shuffled], second[shuffled]
    pairs = Pairs(first.astype(np.int32), second.astype(np.int32), first == second)
    expected = np.einsum("pd,pd->p", templates[first], others[second], dtype=np.float64)
    found = ijb.pair_scores(templates, others, pairs)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-7)
    same = ijb.pair_scores(templates[:1].repeat(30, 0), others[:1].repeat(30, 0), pairs)
    assert len(np.unique(same)) == 1, "equal templates have equal scores"


def test_without_a_pair_there_are_no_scores():
    nothing = np.empty(0, np.int32)
    assert ijb.pair_scores(*np.ones((2, 3, 4), np.float32), Pairs(nothing, nothing, nothing > 0)).shape == (0,)


def naive_identification(query, gallery_features, gallery, probes):
    """One probe at a time; a subject's score is that of its best template; ties are lost."""
    ranks, mate_scores, tops = [], [], []
    for template, subject in zip(probes.templates, probes.subjects):
        scores = {}
        for t, s in zip(gallery.templates, gallery.subjects):
            value = np.float32(query[template].astype(float) @ gallery_features[t].astype(float))
            scores[s] = max(scores.get(s, -2), value)
        if subject in scores:
            mate = scores.pop(subject)
            ranks.append(1 + sum(value >= mate for value in scores.values()))
            mate_scores.append(mate)
        else:
            tops.append(max(scores.values()))
    metrics = {f"top{k}": np.mean([rank <= k for rank in ranks]) for k in (1, 5, 10)}
    for fpir in (0.01, 0.1):
        threshold = sorted(tops, reverse=True)[max(1, int(fpir * len(tops))) - 1]
        hits = [rank == 1 and mate > threshold for rank, mate in zip(ranks, mate_scores)]
        metrics[f"tpir@fpir={fpir}"] = np.mean(hits)
    return metrics


def random_lists(rng, templates_per_subject=1):
    """Subjects 0-19 in the first gallery, 20-39 in the second, 40-59 in neither; template = row."""
    gallery_subjects = np.repeat(rng.permutation(40), templates_per_subject)
    gallery_templates = np.arange(len(gallery_subjects))
    probe_subjects = rng.integers(0, 60, 300)
    probe_templates = len(gallery_subjects) + np.arange(300)
    galleries = {
        name: Subjects(gallery_templates[chosen], gallery_subjects[chosen])
        for name, chosen in (("g1", gallery_subjects < 20), ("g2", gallery_subjects >= 20))
    }
    centres = rng.standard_normal((60, 8))
    subjects = np.concatenate([gallery_subjects, probe_subjects])
    features = unit(centres[subjects] + 0.8 * rng.standard_normal((len(subjects), 8)))
    return IdentificationLists(galleries, Subjects(probe_templates, probe_subjects)), features


@pytest.mark.parametrize("templates_per_subject", [1, 3])
def test_identification_equals_a_loop_over_probes(monkeypatch, templates_per_subject):
    monkeypatch.setattr(identification, "PROBE_BLOCK", 64)
    lists, new = random_lists(np.random.default_rng(0), templates_per_subject)
    old = unit(new + 0.2 * np.random.default_rng(1).standard_normal(new.shape))
    metrics = evaluate_1_n(query_templates=new, gallery_templates=old, lists=lists).metrics
    expected = {
        name: naive_identification(new, old, gallery, lists.probes) for name, gallery in lists.galleries.items()
    }
    for name in ("g1", "g2"):
        assert metrics[name] == pytest.approx(expected[name])
    for metric in expected["g1"]:
        assert metrics[metric] == pytest.approx((expected["g1"][metric] + expected["g2"][metric]) / 2)
    both = Subjects(
        *(np.concatenate(parts) for parts in zip(*((g.templates, g.subjects) for g in lists.galleries.values())))
    )
    mixed = naive_identification(new, old, both, lists.probes)
    assert metrics["mixed"] == pytest.approx({key: mixed[key] for key in ("top1", "top5", "top10")})
    assert 0.2 < metrics["top1"] < metrics["top10"] < 1, "a test set that tells something"


@pytest.mark.parametrize("templates_per_subject", [1, 3])
@pytest.mark.parametrize("block", [64, 1024])
def test_blocks_that_are_counted_while_others_are_multiplied_keep_their_bits(monkeypatch, templates_per_subject, block):
    monkeypatch.setattr(identification, "PROBE_BLOCK", block)
    lists, new = random_lists(np.random.default_rng(0), templates_per_subject)
    old = unit(new + 0.2 * np.random.default_rng(1).standard_normal(new.shape))
    galleries, probes = [*lists.galleries.values()], lists.probes
    both = Subjects(*(np.concatenate([getattr(g, part) for g in galleries]) for part in ("templates", "subjects")))
    found = identification._search(new, old, [*galleries, both], probes)
    for gallery, search in zip((*galleries, both), found, strict=True):
        subjects = np.unique(gallery.subjects)
        scores = []
        for start in range(0, len(probes.templates), block):  # one after the other, ranks as sums of booleans
            products = new[probes.templates[start : start + block]].astype(float) @ old[both.templates].astype(float).T
            products = products.astype(np.float32)
            best = [products[:, both.subjects == subject].max(axis=1) for subject in subjects]
            scores.append(np.stack(best, axis=1))
        scores, mated = np.concatenate(scores), np.isin(probes.subjects, subjects)
        mates = np.searchsorted(subjects, probes.subjects[mated])
        own = scores[mated, mates]
        np.testing.assert_array_equal(search.mate_scores, own)
        np.testing.assert_array_equal(search.ranks, (scores[mated] >= own[:, None]).sum(axis=1))
        np.testing.assert_array_equal(search.top_scores, scores[~mated].max(axis=1))
        assert search.ranks.dtype == np.int64 and search.mate_scores.dtype == np.float32


def test_a_rank_is_counted_in_a_gallery_of_more_subjects_than_small_numbers_hold():
    subjects = np.arange(40_000)
    search = identification.GallerySearch(Subjects(subjects, subjects), Subjects(np.array([0]), np.array([0])))
    search.count(slice(0, 1), np.linspace(0, 1, len(subjects), dtype=np.float32)[None])
    assert search.result().ranks.tolist() == [len(subjects)]


def test_curves_go_through_the_metrics():
    lists, features = random_lists(np.random.default_rng(3))
    result = evaluate_1_n(features, features, lists)
    curve = result.curves["g1"]
    assert [curve.cmc[rank - 1] for rank in (1, 5, 10)] == [result.metrics["g1"][f"top{k}"] for k in (1, 5, 10)]
    at = np.argmin(np.abs(curve.fpir - 0.1))
    assert curve.tpir[at] == pytest.approx(result.metrics["g1"]["tpir@fpir=0.1"])
    assert np.isnan(curve.tpir[0]) and curve.cmc[-1] == 1
    np.testing.assert_allclose(result.curves["mean"].cmc, (curve.cmc + result.curves["g2"].cmc) / 2)


@pytest.mark.parametrize("size", [8, 512])
def test_model_that_maps_everything_to_one_point_finds_nothing(size):
    lists, features = random_lists(np.random.default_rng(0))
    point = unit(np.random.default_rng(1).standard_normal((1, size)))
    metrics = evaluate_1_n(*[np.repeat(point, len(features), axis=0)] * 2, lists).metrics
    assert metrics["top1"] == metrics["top10"] == metrics["mixed"]["top1"] == metrics["tpir@fpir=0.1"] == 0
    pairs = Pairs(*np.random.default_rng(0).integers(0, 40, (2, 500)).astype(np.int32), np.arange(500) % 2 == 0)
    metrics = evaluate_1_1(*[np.repeat(point, 40, axis=0)] * 2, pairs).metrics
    assert metrics["auc"] == 0.5 and metrics["tar@far=1e-01"] == 0


def test_rates_without_a_probe_to_count_are_null():
    lists, features = random_lists(np.random.default_rng(0))
    gallery = lists.galleries["g1"]
    all_mated = Subjects(gallery.templates, gallery.subjects)
    metrics = evaluate_1_n(features, features, IdentificationLists({"g1": gallery, "g2": gallery}, all_mated)).metrics
    assert metrics["top1"] == 1.0 and metrics["tpir@fpir=0.1"] is None
    strangers = Subjects(gallery.templates, gallery.subjects + 1000)
    metrics = evaluate_1_n(features, features, IdentificationLists({"g1": gallery, "g2": gallery}, strangers)).metrics
    assert metrics["top1"] is None and metrics["g1"]["tpir@fpir=0.01"] is None and metrics["mixed"]["top10"] is None


def test_far_between_two_impostor_pairs_takes_the_nearer_one():
    impostor = np.arange(19) / 19  # 0.1 of them is 1.9: two may pass
    genuine = np.array([0.0, 16.5 / 19])  # the second lies below the two best impostors and above the third
    assert receiver_operating_characteristic(genuine, impostor).metrics["tar@far=1e-01"] == 0.5


def test_rates_at_the_thresholds_of_another_model_by_hand():
    genuine, impostor = np.array([0.9, 0.5, 0.3, 0.3]), np.array([0.6, 0.3, 0.2, 0.1, 0.0])
    found = rates_at(genuine, impostor, {"far=1e-01": 0.3, "far=1e-02": 0.7, "far=1e-03": None})
    assert found == {"far=1e-01": {"tar": 1.0, "far": 0.4}, "far=1e-02": {"tar": 0.25, "far": 0.0}, "far=1e-03": None}
    assert rates_at(genuine, np.empty(0), {"far=1e-01": 0.3}) == {"far=1e-01": None}


def test_own_thresholds_give_the_own_rates_and_a_cross_test_has_those_of_the_old_model():
    rng = np.random.default_rng(0)
    templates = unit(rng.standard_normal((40, 8)))
    new = unit(templates + 0.3 * rng.standard_normal(templates.shape))
    first, second = np.triu_indices(40, 1)
    pairs = Pairs(first, second, rng.random(len(first)) < 0.2)
    old = evaluate_1_1(templates, templates, pairs)
    again = evaluate_1_1(templates, templates, pairs, before=old).at_old_threshold
    for far in ("1e-01", "1e-02"):
        rates = again[f"far={far}"]
        assert rates["tar"] == old.metrics[f"tar@far={far}"] and rates["far"] == pytest.approx(float(far), abs=2e-3)
    cross = evaluate_1_1(new, templates, pairs, before=old)
    scores = (new[second].astype(float) * templates[first]).sum(axis=1)
    least = old.thresholds["far=1e-01"]
    assert cross.at_old_threshold["far=1e-01"]["far"] == pytest.approx((scores[~pairs.same] >= least).mean(), abs=2e-3)
    assert cross.all_thresholds() == {**cross.thresholds, "at_old_threshold": cross.at_old_threshold}
    assert old.all_thresholds() == old.thresholds
