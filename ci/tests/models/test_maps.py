"""Maps between embedding spaces: closed forms against float64 references, odd inputs, run folders."""

import json
import logging
from dataclasses import asdict

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from sklearn.linear_model import Ridge, RidgeCV

import core.models.maps.moments as moments_module
from core.embeddings.store import EmbeddingStore, StoreInfo
from core.errors import UserError
from core.models.maps import Map, Space, fit_map, load_map
from core.models.maps.linear import RidgeProblem
from core.models.maps.moments import compute_moments
from core.models.maps.vectors import BLOCK_ROWS, open_pairs

KINDS = ("procrustes", "ridge", "low_rank", "mlp")
GRID = np.logspace(-3, 3, 25)


def unit(vectors):
    vectors = np.asarray(vectors, np.float64)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def make_pairs(count=400, sizes=(12, 12), seed=0, noise=0.3, num_classes=20, centre=0.0):
    """Two views of noisy images of classes; `centre` is the length of a part that all vectors of a side share."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, count)
    seen = rng.standard_normal((num_classes, 8))[labels] + 0.5 * rng.standard_normal((count, 8))
    views = []
    for size in sizes:
        view = np.tanh(seen @ rng.standard_normal((8, size))) + noise * rng.standard_normal((count, size))
        lengths = rng.uniform(0.2, 30, (count, 1))
        views.append(((view + centre * rng.standard_normal(size)) * lengths).astype(np.float32))
    return *views, labels


def make_store(folder, vectors, model="old", data="data"):
    folder.mkdir()
    np.save(folder / "features.npy", vectors)
    info = StoreInfo(f"{data}-print", f"{model}-print", *vectors.shape, data, model, labelled=False)
    (folder / "store.json").write_text(json.dumps(asdict(info)))
    return EmbeddingStore.open(folder)


def weights(fitted):
    """W (D_s, D_t) and b of a linear map."""
    return fitted.module.weight.numpy().T, fitted.module.bias.numpy()


@pytest.mark.parametrize("sizes", [(12, 12), (16, 9), (9, 16)])
@pytest.mark.parametrize("seed", [0, 1])
def test_procrustes_is_scipys_with_the_smaller_side_padded(sizes, seed):
    source, target, _ = make_pairs(sizes=sizes, seed=seed)
    larger = max(sizes)
    padded = [np.pad(unit(side), ((0, 0), (0, larger - side.shape[1]))) for side in (source, target)]
    rotation = orthogonal_procrustes(*padded)[0][: sizes[0], : sizes[1]]
    weight, bias = weights(fit_map("procrustes", source, target))
    np.testing.assert_allclose(weight, rotation, atol=1e-6)
    assert not bias.any()


@pytest.mark.parametrize("sizes", [(12, 12), (16, 9), (9, 16)])
def test_centred_procrustes_is_that_of_the_vectors_minus_their_means(sizes):
    source, target, _ = make_pairs(sizes=sizes, centre=1.0)
    sides = [unit(side) for side in (source, target)]
    means = [side.mean(axis=0) for side in sides]
    larger = max(sizes)
    padded = [np.pad(side - mean, ((0, 0), (0, larger - side.shape[1]))) for side, mean in zip(sides, means)]
    rotation = orthogonal_procrustes(*padded)[0][: sizes[0], : sizes[1]]
    fitted = fit_map("procrustes", source, target, centred=True)
    expected = (sides[0] - means[0]) @ rotation + means[1]
    np.testing.assert_allclose(fitted(source, normalized=False), expected, atol=1e-6)
    plain = fit_map("procrustes", source, target)
    errors = [((f(source, normalized=False) - sides[1]) ** 2).sum() for f in (fitted, plain)]
    assert errors[0] < errors[1]


@pytest.mark.parametrize("sizes", [(12, 12), (24, 9), (9, 24)])
@pytest.mark.parametrize(("seed", "noise", "centre"), [(0, 0.3, 0.0), (1, 1.0, 2.0), (2, 0.02, 0.5)])
def test_ridge_is_scikit_learns_on_the_same_grid(sizes, seed, noise, centre):
    source, target, _ = make_pairs(sizes=sizes, seed=seed, noise=noise, centre=centre)
    reference = RidgeCV(alphas=GRID).fit(unit(source), unit(target))
    fitted = fit_map("ridge", source, target, penalty=GRID)
    assert fitted.penalty == pytest.approx(reference.alpha_)
    weight, bias = weights(fitted)
    np.testing.assert_allclose(weight, reference.coef_.T, atol=1e-5)
    np.testing.assert_allclose(bias, reference.intercept_, atol=1e-5)
    np.testing.assert_allclose(fitted(source, normalized=False), reference.predict(unit(source)), atol=1e-5)
    np.testing.assert_allclose(fitted(source), unit(reference.predict(unit(source))), atol=1e-5)


@pytest.mark.parametrize(("count", "sizes"), [(30, (6, 4)), (12, (16, 5))])
def test_errors_that_choose_the_penalty_are_those_of_refits_and_of_the_hat_matrix(count, sizes):
    source, target, _ = make_pairs(count, sizes=sizes)
    pairs, penalties = open_pairs(source, target), np.array([0.01, 0.3, 4.0])
    problem = RidgeProblem(compute_moments(pairs, with_gram=True))
    left, right = unit(source), unit(target)
    refits, generalised = [], []
    for penalty in penalties:
        errors = []
        for row in range(count):
            others = np.arange(count) != row
            model = Ridge(alpha=penalty).fit(left[others], right[others])
            errors.append(((model.predict(left[[row]]) - right[row]) ** 2).sum())
        refits.append(np.mean(errors))
        model = Ridge(alpha=penalty).fit(left, right)
        centred = left - left.mean(axis=0)
        hat = centred @ np.linalg.inv(centred.T @ centred + penalty * np.eye(sizes[0])) @ centred.T + 1 / count
        generalised.append(count * ((model.predict(left) - right) ** 2).sum() / np.trace(np.eye(count) - hat) ** 2)
    np.testing.assert_allclose(problem.leave_one_out_errors(penalties, *pairs.unit_rows()), refits, rtol=1e-6)
    np.testing.assert_allclose(problem.gcv_errors(penalties), generalised, rtol=1e-6)


@pytest.mark.parametrize("count", [40, 400, 3000])
def test_generalised_cross_validation_chooses_nearly_what_leaving_out_does(count, monkeypatch):
    source, target, _ = make_pairs(count, sizes=(20, 14))
    exact = fit_map("ridge", source[:2000], target[:2000], penalty=GRID)
    monkeypatch.setattr("core.models.maps.fit.LEFT_OUT_PAIRS", 0)
    general = fit_map("ridge", source[:2000], target[:2000], penalty=GRID)
    assert abs(np.log10(general.penalty / exact.penalty)) < 0.26  # a step of the grid at most


@pytest.mark.parametrize("alphas", [(0.1, 1.0, 10.0), GRID], ids=["RidgeCV's own grid", "a fine grid"])
@pytest.mark.parametrize("count", [40, 150, 2000])
def test_ridge_with_its_own_grid_is_never_worse_on_new_vectors(alphas, count):
    source, target, _ = make_pairs(count + 1000, sizes=(24, 16), seed=count)
    seen, new = slice(0, count), slice(count, None)
    reference = RidgeCV(alphas=alphas).fit(unit(source[seen]), unit(target[seen])).predict(unit(source[new]))
    fitted = fit_map("ridge", source[seen], target[seen])(source[new], normalized=False)
    errors = [((output - unit(target[new])) ** 2).sum(axis=1).mean() for output in (fitted, reference)]
    assert errors[0] < (1.01 if count < 100 else 1.001) * errors[1]


@pytest.mark.parametrize("penalty", [0.01, 3.0])
@pytest.mark.parametrize("sizes", [(12, 9), (9, 12)])
def test_low_rank_is_the_best_of_its_rank(penalty, sizes):
    """The penalised problem is least squares on rows added to the pairs, whose best fit of a rank is a cut SVD."""
    source, target, _ = make_pairs(sizes=sizes)
    left, right = (unit(side) - unit(side).mean(axis=0) for side in (source, target))
    left = np.vstack((left, np.sqrt(penalty) * np.eye(sizes[0])))
    right = np.vstack((right, np.zeros((sizes[0], sizes[1]))))
    full = np.linalg.lstsq(left, right, rcond=None)[0]
    basis = np.linalg.svd(left @ full, full_matrices=False)[2][:4]
    fitted = fit_map("low_rank", source, target, rank=4, penalty=penalty)
    inner, outer = fitted.module
    np.testing.assert_allclose((outer.weight @ inner.weight).T, full @ basis.T @ basis, atol=1e-5)
    expected = (unit(source) - unit(source).mean(axis=0)) @ full @ basis.T @ basis + unit(target).mean(axis=0)
    np.testing.assert_allclose(fitted(source, normalized=False), expected, atol=1e-5)
    whole = fit_map("low_rank", source, target, penalty=penalty)
    ridge = fit_map("ridge", source, target, penalty=penalty)
    np.testing.assert_allclose(whole(source), ridge(source), atol=1e-5)
    assert whole.options == {"rank": 9}


@pytest.mark.parametrize("kind", KINDS[:3])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_stream_over_a_file_in_float32_gives_what_float64_gives_at_once(kind, threads, tmp_path, monkeypatch):
    count = 3 * BLOCK_ROWS + 77
    source, target, _ = make_pairs(count, sizes=(20, 14), centre=3.0)
    at_once = fit_map(kind, source, target, penalty=0.5) if kind != "procrustes" else fit_map(kind, source, target)
    np.save(tmp_path / "source.npy", source)
    np.save(tmp_path / "target.npy", target)
    monkeypatch.setattr(moments_module, "EXACT_PAIRS", 0)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        files = (np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("source", "target"))
        streamed = fit_map(kind, *files, **at_once.options, **({"penalty": 0.5} if at_once.penalty else {}))
    finally:
        torch.set_num_threads(before)
    np.testing.assert_allclose(streamed(source, normalized=False), at_once(source, normalized=False), atol=1e-4)


def test_float32_sums_lose_no_digits_where_all_vectors_point_the_same_way(monkeypatch):
    source, target, _ = make_pairs(5 * BLOCK_ROWS, sizes=(16, 12), centre=15.0)
    left, right = unit(source), unit(target)
    assert (left.mean(axis=0) ** 2).sum() > 0.98
    monkeypatch.setattr(moments_module, "EXACT_PAIRS", 0)
    found = compute_moments(open_pairs(source, target), with_gram=True)
    left, right = left - left.mean(axis=0), right - right.mean(axis=0)
    scale = np.trace(left.T @ left) / 16
    np.testing.assert_allclose(found.gram, left.T @ left, atol=2e-6 * scale)
    np.testing.assert_allclose(found.cross, left.T @ right, atol=5e-6 * scale)
    assert found.target_scatter == pytest.approx((right**2).sum(), rel=1e-4)


def with_repeated_columns(source):
    return np.concatenate((source[:, :6], source[:, :6]), axis=1)


@pytest.mark.parametrize("penalty", [1e-3, 1.0])
@pytest.mark.parametrize(
    ("count", "change"),
    [(10, lambda s: s), (40, with_repeated_columns), (40, lambda s: np.repeat(s[:10], 4, axis=0))],
    ids=["fewer pairs than dimensions", "dependent dimensions", "repeated pairs"],
)
def test_ridge_of_pairs_that_span_less_than_the_space(count, change, penalty):
    source, target, _ = make_pairs(count, sizes=(12, 9))
    source = change(source)
    reference = Ridge(alpha=penalty, solver="svd").fit(unit(source), unit(target))
    weight, bias = weights(fit_map("ridge", source, target, penalty=penalty))
    np.testing.assert_allclose(weight, reference.coef_.T, atol=1e-5)
    np.testing.assert_allclose(bias, reference.intercept_, atol=1e-5)
    left, right = (unit(side) - unit(side).mean(axis=0) for side in (source, target))
    shortest = np.linalg.pinv(left, rcond=1e-7) @ right
    np.testing.assert_allclose(weights(fit_map("ridge", source, target, penalty=0))[0], shortest, rtol=1e-4, atol=1e-4)
    chosen = fit_map("ridge", source, target)
    assert np.isfinite(chosen(source)).all() and chosen.penalty > 0


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("kind", ["ridge", "low_rank"])
def test_sources_that_are_all_the_same_are_mapped_to_the_mean(kind, exact, monkeypatch):
    monkeypatch.setattr(moments_module, "EXACT_PAIRS", 1 << 15 if exact else 0)
    _, target, _ = make_pairs(3000, sizes=(6, 5))
    source = np.repeat(np.random.default_rng(3).standard_normal((1, 6)).astype(np.float32), 3000, axis=0)
    found = fit_map(kind, source, target)(source[:1], normalized=False)
    np.testing.assert_allclose(found[0], unit(target).mean(axis=0), atol=1e-5)


@pytest.mark.parametrize("sizes", [(24, 24), (30, 24), (24, 30)])
def test_procrustes_of_few_pairs_is_orthogonal_says_what_they_determine_and_fits_as_well_as_scipys(sizes, caplog):
    source, target, _ = make_pairs(15, sizes=sizes)
    with caplog.at_level(logging.WARNING):
        weight, _ = weights(fit_map("procrustes", source, target))
    assert "15 pairs determine 15 of 24 directions" in caplog.text
    product = weight.T @ weight if sizes[0] >= sizes[1] else weight @ weight.T
    np.testing.assert_allclose(product, np.eye(24), atol=1e-5)
    padded = [np.pad(unit(side), ((0, 0), (0, max(sizes) - side.shape[1]))) for side in (source, target)]
    assert np.trace(weight.T @ unit(source).T @ unit(target)) == pytest.approx(orthogonal_procrustes(*padded)[1])


def test_ridge_of_a_relation_without_noise_finds_it(monkeypatch):
    rng = np.random.default_rng(0)
    source, weight = unit(rng.standard_normal((500, 10))), rng.standard_normal((10, 10)) / 4
    target = unit(source @ np.linalg.qr(weight)[0])  # a rotation: unit vectors stay unit vectors
    for exact in (1 << 15, 0):
        monkeypatch.setattr(moments_module, "EXACT_PAIRS", exact)
        np.testing.assert_allclose(fit_map("ridge", source, target)(source), target, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [0, 1, 9])
def test_too_few_pairs_are_counted(kind, count):
    source, target, labels = make_pairs(count)
    with pytest.raises(UserError, match=f"^{count} pairs are too few to fit a map: at least 10 are needed$"):
        fit_map(kind, source, target, labels)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0])
@pytest.mark.parametrize(("side", "row"), [(0, 0), (1, 29), (0, 29)])
def test_a_row_without_direction_is_named(value, side, row):
    sides = list(make_pairs(30, sizes=(5, 7))[:2])
    if value == 0:
        sides[side][row] = 0
    else:
        sides[side][row, 3] = value
    problem = "zero" if value == 0 else "not finite"
    name = ("source", "target")[side]
    for kind in KINDS[:3]:
        with pytest.raises(UserError, match=f"^row {row} of the {name} vectors is {problem}, it has no direction"):
            fit_map(kind, *sides)
    good, other, _ = make_pairs(30, sizes=(sides[side].shape[1], 4))
    with pytest.raises(UserError, match=f"^row {row} of the vectors is {problem}, it has no direction"):
        fit_map("ridge", good, other)(sides[side])


def test_a_row_without_direction_is_named_in_a_later_block_of_a_long_file(monkeypatch):
    source, target, _ = make_pairs(3 * BLOCK_ROWS)
    monkeypatch.setattr(moments_module, "EXACT_PAIRS", 0)
    fitted = fit_map("ridge", source, target)
    source[2 * BLOCK_ROWS + 5, 1] = np.nan
    with pytest.raises(UserError, match=f"row {2 * BLOCK_ROWS + 5} of the source vectors is not finite"):
        fit_map("ridge", source, target)
    with pytest.raises(UserError, match=f"row {2 * BLOCK_ROWS + 5} of the vectors is not finite"):
        fitted(source)


@pytest.mark.parametrize("exact", [True, False])
def test_lengths_do_not_matter_however_extreme(exact, monkeypatch):
    monkeypatch.setattr(moments_module, "EXACT_PAIRS", 1 << 15 if exact else 0)
    source, target, _ = make_pairs(300, sizes=(6, 8))
    expected = fit_map("ridge", unit(source), unit(target))
    lengths = np.array([1e-30, 1e30, 1e-10, 3.0, 1e18])[np.arange(300) % 5, None]
    scaled = [(unit(side) * lengths).astype(np.float32) for side in (source, target)]
    fitted = fit_map("ridge", *scaled)
    np.testing.assert_allclose(fitted(scaled[0]), expected(source), atol=1e-4)
    np.testing.assert_allclose(fit_map("procrustes", *scaled)(scaled[0]), fit_map("procrustes", source, target)(source),
                               atol=1e-4)  # fmt: skip


@pytest.mark.parametrize("change", [
    lambda a: a.astype(np.float16), lambda a: a.astype(np.float64), np.asfortranarray, lambda a: a.tolist(),
    lambda a: np.repeat(a, 2, axis=1)[:, ::2], torch.from_numpy,
], ids=["float16", "float64", "columns in memory", "lists", "strided", "tensors"])  # fmt: skip
def test_other_arrays_of_numbers_are_taken(change):
    source, target, _ = make_pairs(100)
    expected = fit_map("ridge", source, target, penalty=0.1)
    fitted = fit_map("ridge", change(source), change(target), penalty=0.1)
    np.testing.assert_allclose(fitted(change(source)), expected(source), atol=5e-3)
    assert fitted(change(source)).dtype == np.float32


@pytest.mark.parametrize("wrong", [np.zeros(5), np.zeros((3, 4, 5)), np.zeros((20, 0)), np.full((20, 3), 1j),
                                   np.full((20, 3), "a")])  # fmt: skip
def test_what_is_no_array_of_vectors_is_refused(wrong):
    source, target, _ = make_pairs(20)
    with pytest.raises(UserError, match=r"^target vectors must be an array \(N, D\) of real numbers"):
        fit_map("procrustes", source, wrong)
    with pytest.raises(UserError, match=r"^vectors must be an array \(N, D\) of real numbers"):
        fit_map("procrustes", source, target)(wrong)


def test_rows_that_are_no_pairs_are_refused(tmp_path):
    source, target, _ = make_pairs(30)
    with pytest.raises(UserError, match="^30 source vectors and 29 target vectors are no pairs: "):
        fit_map("ridge", source, target[:29])
    stores = make_store(tmp_path / "a", source, "old", "faces"), make_store(tmp_path / "b", target, "new", "others")
    with pytest.raises(UserError, match=r"^the stores are no pairs: old's was made from faces .* new's from others "):
        fit_map("ridge", *stores)


def test_a_map_of_stores_knows_its_spaces_and_refuses_others(tmp_path):
    source, target, _ = make_pairs(30, sizes=(6, 4))
    old, new = make_store(tmp_path / "a", source, "old"), make_store(tmp_path / "b", target, "new")
    fitted = fit_map("ridge", old, new)
    assert (fitted.source, fitted.target) == (Space(6, "old", "old-print"), Space(4, "new", "new-print"))
    assert np.array_equal(fitted(old), fitted(source))
    with pytest.raises(UserError, match=r"takes vectors of size 6, got size 4: it leads from old \(size 6, finger"):
        fitted(target)
    other = make_store(tmp_path / "c", source, "third")
    with pytest.raises(UserError, match=r"^these vectors are of third \(size 6, fingerprint third-print\), but the map "
                       r"leads from old \(size 6, fingerprint old-print\) to new"):  # fmt: skip
        fitted(other)
    named = fit_map("ridge", source, target, spaces=(Space(6, "vendor", "v"), Space(4, "ours")))
    assert named.source.name == "vendor"
    with pytest.raises(UserError, match="but the map leads from vendor"):
        named(old)
    with pytest.raises(UserError, match="^vectors of size 4 are not of the space of ours"):
        fit_map("ridge", source, target, spaces=(Space(6, "vendor", "v"), Space(5, "ours")))


@pytest.mark.parametrize(("kind", "options", "message"), [
    ("linear", {}, "there is no kind of map 'linear': choose one of procrustes, ridge, low_rank, mlp"),
    ("procrustes", {"penalty": 1}, "a procrustes map has no option 'penalty': its options are centred"),
    ("ridge", {"alpha": 1}, "a ridge map has no option 'alpha': its options are penalty"),
    ("ridge", {"penalty": -1.0}, "penalty must be a number of at least 0, or several above 0 to choose from, got -1.0"),
    ("ridge", {"penalty": (0.0, 1.0)}, "penalty must be .*"),
    ("ridge", {"penalty": float("nan")}, "penalty must be .*"),
    ("ridge", {"penalty": float("inf")}, "penalty must be .*"),
    ("ridge", {"penalty": "auto"}, "penalty must be .*"),
    ("ridge", {"penalty": ()}, "penalty must be .*"),
    ("low_rank", {"rank": 13}, "rank must be a whole number from 1 to 12, the smaller embedding size, got 13"),
    ("low_rank", {"rank": 0}, "rank must be .*"),
    ("mlp", {"hidden": 0}, "hidden must be a whole number of at least 1, got 0"),
    ("low_rank", {"rank": True}, "rank must be .*"),
    ("mlp", {"lr": 0}, "lr must be a number above 0, got 0"),
    ("mlp", {"seed": 1.5}, r"seed must be a whole number from 0 to 2\*\*63 - 1, got 1.5"),
    ("mlp", {"seed": 2**70}, "seed must be .*"),
])  # fmt: skip
def test_options_that_make_no_sense(kind, options, message):
    with pytest.raises(UserError, match=f"^{message}$"):
        fit_map(kind, *make_pairs(50), **options)


@pytest.mark.parametrize(("labels", "message"), [
    (None, "an mlp map is trained on the classes of the images: give their labels, or fit another kind"),
    (np.zeros(50, int), "all labels are the same: an mlp map needs pairs of two or more classes"),
    (np.arange(49), r"labels must be 50 whole numbers, one a pair: got int64 \(49,\)"),
    (np.linspace(0, 1, 50), r"labels must be 50 whole numbers, one a pair: got float64 \(50,\)"),
])  # fmt: skip
def test_labels_that_a_network_cannot_be_trained_on(labels, message):
    with pytest.raises(UserError, match=f"^{message}$"):
        fit_map("mlp", *make_pairs(50)[:2], labels)


def accuracy(vectors, target, labels):
    """How many of the vectors have the mean of their own class nearest, of the target's class means."""
    means = unit(np.stack([unit(target)[labels == label].mean(axis=0) for label in np.unique(labels)]))
    return ((vectors @ means.T).argmax(axis=1) == labels).mean()


@pytest.mark.parametrize("sizes", [(16, 16), (16, 10), (10, 16)])
def test_a_network_trained_on_classes_tells_them_apart(sizes):
    source, target, labels = make_pairs(3000, sizes=sizes, noise=1.0)
    seen, new = slice(0, 2000), slice(2000, None)
    fitted = fit_map("mlp", source[seen], target[seen], labels[seen] * 7 - 30, num_epoch=5)
    ridge = fit_map("ridge", source[seen], target[seen])
    found, plain = (accuracy(f(source[new]), target[new], labels[new]) for f in (fitted, ridge))
    chance = accuracy(unit(np.random.default_rng(0).standard_normal((1000, sizes[1]))), target[new], labels[new])
    assert found > plain + 0.01 and plain > 3 * chance


def test_a_network_with_more_classes_than_take_part_in_a_step(monkeypatch):
    monkeypatch.setattr("core.models.maps.network.MAX_CLASSES", 8)
    source, target, labels = make_pairs(2000, sizes=(16, 16), noise=1.0)
    fitted = fit_map("mlp", source, target, labels, num_epoch=3, batch_size=32)
    ridge = fit_map("ridge", source, target)
    assert accuracy(fitted(source), target, labels) > accuracy(ridge(source), target, labels)


def test_the_same_seed_gives_the_same_network_and_draws_nothing_from_others():
    source, target, labels = make_pairs(200)
    torch.manual_seed(5)
    first = fit_map("mlp", source, target, labels, num_epoch=2, hidden=8)
    drawn = torch.rand(3)
    second = fit_map("mlp", source, target, labels, num_epoch=2, hidden=8)
    other = fit_map("mlp", source, target, labels, num_epoch=2, hidden=8, seed=1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))
    assert first.fingerprint == second.fingerprint != other.fingerprint


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [(12, 12), (12, 7), (7, 12)])
def test_a_saved_map_is_loaded_as_it_was(kind, sizes, tmp_path):
    source, target, labels = make_pairs(60, sizes=sizes)
    options = {"num_epoch": 1, "hidden": 8} if kind == "mlp" else {}
    fitted = fit_map(kind, source, target, labels, spaces=(Space(sizes[0], "a", "x"), Space(sizes[1])), **options)
    fitted.save(tmp_path / "map", {"rec": "datasets/faces"})
    loaded = load_map(tmp_path / "map")
    assert np.array_equal(loaded(source, normalized=False), fitted(source, normalized=False))
    for name in ("kind", "source", "target", "num_pairs", "options", "penalty", "fingerprint"):
        assert getattr(loaded, name) == getattr(fitted, name), name
    assert sorted(path.name for path in (tmp_path / "map").iterdir()) == ["config.json", "map.pt"]
    assert json.loads((tmp_path / "map" / "config.json").read_text())["rec"] == "datasets/faces"
    heads = {"error_head.weight", "error_head.bias"}
    assert set(torch.load(tmp_path / "map" / "map.pt", weights_only=True)) == set(fitted.module.state_dict()) | heads


@pytest.fixture
def saved(tmp_path):
    source, target, _ = make_pairs(60, sizes=(12, 7))
    fitted = fit_map("ridge", source, target)
    fitted.save(tmp_path / "map")
    return tmp_path / "map"


def edited(**changes):
    def edit(folder):
        config = json.loads((folder / "config.json").read_text())
        config["map"].update(changes)
        (folder / "config.json").write_text(json.dumps(config))

    return edit


@pytest.mark.parametrize(("damage", "message"), [
    (lambda f: (f / "config.json").unlink(), "config of the map's run folder not found: .*config.json"),
    (lambda f: (f / "map.pt").unlink(), "weights of the map not found: .*map.pt"),
    (lambda f: (f / "config.json").write_text("{"), ".*config.json is not a readable .*"),
    (lambda f: (f / "config.json").write_text('{"network": "r18"}'), ".*config.json is not a readable .*"),
    (lambda f: (f / "config.json").write_text("[1]"), ".*config.json is not a readable .*"),
    (edited(kind="conformal"), ".*config.json is not a readable .*"),
    (edited(options={"rank": 3}, kind="low_rank"), ".*config.json is not a readable .*"),
    (edited(source={"size": 11}), ".*config.json is not a readable .*"),
    (edited(colour="red"), ".*config.json is not a readable .*"),
    (lambda f: (f / "map.pt").write_bytes((f / "map.pt").read_bytes()[:-40]), "cannot read .*map.pt: .*"),
    (lambda f: torch.save([torch.ones(3)], f / "map.pt"), ".*map.pt is not the state dict of a map: fit the map again"),
    (lambda f: torch.save({"weight": torch.ones(7, 12), "bias": torch.ones(7)}, f / "map.pt"),
     ".*map.pt is not the map that .*config.json describes: one of them is damaged, fit it again"),
])  # fmt: skip
def test_a_damaged_run_folder_is_named(saved, damage, message):
    damage(saved)
    with pytest.raises(UserError, match=f"^{message}$"):
        load_map(saved)


def test_a_map_is_not_saved_over_a_model_or_into_nowhere(tmp_path):
    source, target, _ = make_pairs(60)
    fitted = fit_map("ridge", source, target)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.pt").write_bytes(b"weights")
    with pytest.raises(UserError, match="is the run folder of a model, whose config would be lost"):
        fitted.save(tmp_path / "run")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="^cannot write .*file/map: "):
        fitted.save(tmp_path / "file" / "map")
    (tmp_path / "file").unlink()
    assert [path.name for path in tmp_path.rglob("*")] == ["run", "model.pt"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_module_is_the_map_of_unit_vectors_for_any_batch(kind):
    source, target, labels = make_pairs(60, sizes=(12, 7))
    fitted = fit_map(kind, source, target, labels, **({"num_epoch": 1} if kind == "mlp" else {}))
    whole = fitted(source, normalized=False)
    for rows in (slice(0, 1), slice(3, 8)):
        inputs = torch.from_numpy(unit(source[rows]).astype(np.float32))
        np.testing.assert_allclose(fitted.module(inputs), whole[rows], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(fitted(source), axis=1), 1, atol=1e-6)
    assert not fitted.module.training and not any(p.requires_grad for p in fitted.module.parameters())


def test_mapped_vectors_go_to_a_file_of_any_length(tmp_path):
    source, target, _ = make_pairs(2 * BLOCK_ROWS + 3, sizes=(6, 4))
    fitted = fit_map("ridge", source, target)
    out = np.lib.format.open_memmap(tmp_path / "out.npy", mode="w+", dtype=np.float32, shape=(len(source), 4))
    fitted(source, out=out)
    out.flush()
    assert np.array_equal(np.load(tmp_path / "out.npy"), fitted(source))
    assert fitted(source[:0]).shape == (0, 4)
    with pytest.raises(ValueError, match="out is float64"):
        fitted(source, out=np.empty((len(source), 4)))


def test_a_ridge_keeps_the_lengths_that_tell_how_sure_it_is():
    source, target, _ = make_pairs(2000, sizes=(16, 16), noise=1.0)
    fitted: Map = fit_map("ridge", source, target)
    plain = fitted(source, normalized=False)
    lengths = np.linalg.norm(plain, axis=1)
    assert lengths.max() < 1.01 and lengths.std() > 0.01
    np.testing.assert_allclose(plain / lengths[:, None], fitted(source), atol=1e-6)
    closeness = (fitted(source) * unit(target)).sum(axis=1)
    assert np.corrcoef(lengths, closeness)[0, 1] > 0.1
