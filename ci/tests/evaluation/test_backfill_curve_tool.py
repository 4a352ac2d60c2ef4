import json
import sys

import numpy as np
import pytest
from landmark_trees import write_revisited_tree
from launching import load_program
from tiny import write_map_run, write_records, write_run_folder

from core.engine.map_fitting import fit_maps
from core.errors import UserError
from core.evaluation import backfill_orders, backfill_roads
from core.evaluation.backfill_orders import class_distances, margins, mean_over_members
from core.evaluation.identification import evaluate_1_n
from core.evaluation.ijb import template_features
from core.evaluation.ijb_embeddings import ImageEmbeddings, embed_images
from core.evaluation.ijb_meta import read_identification, read_images, require_meta
from core.files import ROOT
from core.models.encoder import load_encoder
from core.program import load_method
from core.settings import load_settings

TOOL = ROOT / "tools" / "backfill_curve.py"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Run folders: old, new of another size, and maps both ways; `sided` has side information by `side`."""
    folder = tmp_path_factory.mktemp("models")
    old, new = write_run_folder(folder / "old", 0, 8), write_run_folder(folder / "new", 1, 12)
    write_map_run(folder / "query", new, old, kind="procrustes")
    write_map_run(folder / "gallery", old, new, "old_to_new")
    side = write_run_folder(folder / "side", 2, 6)
    write_map_run(folder / "sided", old, new, "old_to_new", side=side)
    return folder


@pytest.fixture
def draw(monkeypatch, models, tmp_path):
    tool = load_program(TOOL)
    monkeypatch.setattr(tool, "set_up_logging", lambda: None)

    def run(data, *arguments):
        fixed = ["-m", models / "new", "-m_old", models / "old", "--data-path", data, "--out", tmp_path / "out"]
        fixed += ["--cache", tmp_path / "cache", "--num-workers", 0, "--steps", 3, "--repeats", 2]
        monkeypatch.setattr(sys, "argv", ["backfill_curve.py", *map(str, [*fixed, *arguments])])
        tool.main()
        return json.loads((tmp_path / "out" / "results.json").read_text())

    return run


def test_roads_of_models_of_two_sizes_end_where_the_single_tests_do(draw, models, tree_writer, tmp_path, capsys):
    tree = tree_writer(tmp_path / "data", num_subjects=36)
    results = draw(tree, "--query-map", models / "query", "--gallery-map", models / "gallery")
    assert results["task"] == "backfill-ijbc" and results["share"] == [0, 0.5, 1]
    assert list(results["roads"]) == ["gallery_map", "query_map", "side_by_side"], "no direct road between two sizes"
    assert (results["road"], results["scores"]) == ("gallery_map", "far")
    assert set(results["orders"]) == {"random", "class_distance", "predicted_error", "length", "margin", "oracle"}
    images = read_images(require_meta(tree, "IJBC", True), "IJBC")
    lists = read_identification(images)
    features = {
        name: template_features(embed_images(load_encoder(models / name), images, 8, 0, tmp_path / "cache"), images)
        for name in ("old", "new", "query", "gallery")
    }
    for road, (query, gallery) in {
        "gallery_map": ("new", "gallery"), "query_map": ("query", "old"), "side_by_side": ("old", "old"),
    }.items():  # fmt: skip
        for curve in results["roads"][road]["raw"].values():
            ends = [
                evaluate_1_n(features[q], features[g], lists).metrics["top1"]
                for q, g in ((query, gallery), ("new", "new"))
            ]
            assert [curve["top1"][0], curve["top1"][-1]] == pytest.approx(ends)
    assert results["roads"]["side_by_side"]["far"]["random"]["nfr"][0] == 0
    assert (tmp_path / "out" / "backfill.png").stat().st_size > 10_000
    assert "predicted_error" in capsys.readouterr().out


def test_retrieval_has_raw_scores_and_with_other_images_calibrated_ones(draw, models, tmp_path):
    write_revisited_tree(tmp_path / "roxford5k")
    data = ("--dataset", "roxford5k", "--gallery-map", models / "gallery")
    results = draw(tmp_path, *data)
    assert results["task"] == "backfill-roxford5k" and set(results["roads"]["gallery_map"]) == {"raw"}
    assert set(results["orders"]) == {"random", "predicted_error", "length", "oracle"}
    records = write_records(tmp_path / "train", sorted(list(range(6)) * 5))
    calibrated = draw(tmp_path, *data, "--calibration", records)
    assert set(calibrated["roads"]["gallery_map"]) == {"raw", "z-score", "far"}
    assert calibrated["roads"]["gallery_map"]["raw"] == results["roads"]["gallery_map"]["raw"]
    assert len(calibrated["orders"]["oracle"]["map_medium"]) == 3


def test_mistakes_are_one_line(draw, models, tree_writer, tmp_path):
    tree = tree_writer(tmp_path / "data")
    for arguments, message in (
        (("--query-map", models / "gallery"), "takes embeddings of old, not of new: name a map that leads from new to"),
        (("--gallery-map", models / "old"), "gallery map old is a model without a map"),
        (("--orders", "predicted_error"), "not to be had here, only random, class_distance, margin.* --gallery-map"),
        (("--calibration", "x"), "each gallery of IJB is calibrated on the other"),
        (("--steps", "1"), "--steps must be 2 or more"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            draw(tree, *arguments)
        assert not (tmp_path / "out").exists()


def test_a_gallery_map_may_take_side_information_but_must_be_the_old_models(draw, models, tree_writer, tmp_path):
    tree = tree_writer(tmp_path / "data", num_subjects=36)
    results = draw(tree, "--gallery-map", models / "sided")
    images = read_images(require_meta(tree, "IJBC", True), "IJBC")
    features = {
        name: template_features(embed_images(load_encoder(models / name), images, 8, 0, tmp_path / "cache"), images)
        for name in ("new", "sided")
    }
    first = evaluate_1_n(features["new"], features["sided"], read_identification(images)).metrics["top1"]
    curves = results["roads"]["gallery_map"]["raw"]
    assert all(curve["top1"][0] == pytest.approx(first) for curve in curves.values())
    assert {"predicted_error", "length"} <= set(results["orders"])
    with pytest.raises(UserError, match="gallery map old,side.ridge takes embeddings of old, not of side"):
        draw(tree, "--gallery-map", models / "sided", "-m_old", models / "side")
    write_revisited_tree(tmp_path / "roxford5k")
    results = draw(tmp_path, "--dataset", "roxford5k", "--gallery-map", models / "sided")
    assert set(results["orders"]) == {"random", "predicted_error", "length", "oracle"}


@pytest.mark.parametrize("size", [6, 8, 12])
def test_lambda_orthogonality_refreshes_a_gallery_in_the_space_of_its_own(
    size, draw, models, tree_writer, tmp_path, ranks
):
    tree = tree_writer(tmp_path / "data", num_subjects=36)
    new = write_run_folder(tmp_path / "new", 1, size)
    method = load_method(ROOT / "methods" / "lambda_orthogonality" / "train.py")
    words = [
        f"rec={write_records(tmp_path / 'train', sorted(list(range(6)) * 5))}", f"old_model={models / 'old'}",
        f"new_model={new}", f"output={tmp_path / 'maps'}", "num_epoch=1", "device=cpu", "num_workers=0",
    ]  # fmt: skip
    settings = load_settings(ROOT / "configs" / "maps" / "glyphs.py", words, method.settings_type)
    fit_maps(settings, method, "lambda_orthogonality", ranks)
    turned = tmp_path / "maps" / ("new_to_wide" if size > 8 else "new_to_old")
    gallery = ("--gallery-map", tmp_path / "maps" / "old_to_new")
    results = draw(tree, "-m", turned, *gallery)
    direct = [] if size > 8 else ["direct"]
    assert list(results["roads"]) == [*direct, "gallery_map", "side_by_side"]
    assert set(results["orders"]) == {"random", "class_distance", "predicted_error", "length", "margin", "oracle"}
    with pytest.raises(UserError, match=r"gallery map .* leads to .*, not to new \(size"):
        draw(tree, "-m", new, *gallery)


def test_orders_of_templates_equal_loops(tree, pixel_model, tmp_path):
    images = read_images(require_meta(tree, "IJBC", True), "IJBC")
    lists = read_identification(images)
    vectors = np.random.default_rng(0).standard_normal((len(images.names), 5)).astype(np.float32)
    found = class_distances(ImageEmbeddings(vectors, vectors), images, lists)
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for gallery in lists.galleries.values():
        for template in gallery.templates:
            own = units[images.member_image[images.member_template == template]]
            assert found[template] == pytest.approx(np.linalg.norm(own - own.mean(axis=0), axis=1).mean(), rel=1e-5)
    means = mean_over_members(np.arange(len(images.names), dtype=float), images)
    for template in range(images.num_templates):
        assert means[template] == pytest.approx(images.member_image[images.member_template == template].mean())


@pytest.mark.parametrize("block", [1, 3, 1024])
def test_margins_equal_a_loop_over_pairs_of_classes(monkeypatch, block):
    monkeypatch.setattr(backfill_orders, "BLOCK", block)
    rng = np.random.default_rng(0)
    stored, classes = rng.standard_normal((11, 4)), rng.integers(0, 5, 11)
    units = stored / np.linalg.norm(stored, axis=1, keepdims=True)
    expected = [
        own @ unit - max(own @ other for other, theirs in zip(units, classes) if theirs != of)
        for own, unit, of in zip(stored, units, classes)
    ]
    np.testing.assert_allclose(margins(stored, classes), expected, atol=1e-6)
    twins = margins(np.array([[1.0, 0], [1, 0], [0, 2]]), np.array([0, 1, 2]))
    np.testing.assert_allclose(twins, [0, 0, 2], atol=1e-7)


@pytest.mark.parametrize("name", ["gallery", "sided"])
def test_templates_go_by_the_mean_of_what_the_map_gives_for_their_images(
    name, draw, models, tree_writer, tmp_path, monkeypatch
):
    tree = tree_writer(tmp_path / "data", num_subjects=36)
    asked, curves = [], backfill_roads.identification_curves
    monkeypatch.setattr(
        backfill_roads, "identification_curves", lambda *given: asked.append(given[3]) or curves(*given)
    )
    draw(tree, "--gallery-map", models / name, "--orders", "predicted_error", "length", "margin")
    images = read_images(require_meta(tree, "IJBC", True), "IJBC")
    fitted = load_encoder(models / name).map
    sources = [load_encoder(models / each) for each in (["old", "side"] if name == "sided" else ["old"])]
    embedded = [embed_images(each, images, 8, 0, tmp_path / "cache") for each in sources]
    old = embedded[0]

    def taken(view: str) -> np.ndarray:
        vectors = [np.float64(getattr(each, view)) for each in embedded]
        return np.hstack([each / np.linalg.norm(each, axis=1, keepdims=True) for each in vectors]).astype(np.float32)

    plain, mirrored = taken("plain"), taken("mirrored")
    faces = (fitted(plain, normalized=False).astype(float) + fitted(mirrored, normalized=False)) / 2
    errors = fitted.predicted_error(plain)
    means, predicted = np.empty((images.num_templates, 12)), np.empty(images.num_templates)
    for template in range(images.num_templates):
        own = images.member_template == template
        rows = images.member_image[own]
        means[template] = np.average(faces[rows], axis=0, weights=images.detector_scores[rows] / images.media_size[own])
        predicted[template] = errors[rows].mean()
    by_road = dict(zip(("gallery_map", "side_by_side"), asked, strict=True))
    for orders in by_road.values():
        np.testing.assert_allclose(orders["predicted_error"][0], predicted, rtol=1e-5)
        np.testing.assert_allclose(orders["length"][0], -np.linalg.norm(means, axis=1), rtol=1e-5)
    for road, stored in (("gallery_map", means), ("side_by_side", template_features(old, images))):
        for gallery in read_identification(images).galleries.values():
            expected = -margins(stored[gallery.templates], gallery.subjects)
            np.testing.assert_allclose(by_road[road]["margin"][0, gallery.templates], expected, atol=1e-5)
