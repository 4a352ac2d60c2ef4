"""Maps' run folders in every evaluation: the numbers of direct embedding, nothing embedded twice, both directions."""

import json
import logging
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from landmark_trees import write_revisited_tree
from launching import load_program
from tiny import write_map_run, write_run_folder, write_verification_set
from torch import nn

from core.engine.trainer import Trainer
from core.errors import UserError
from core.evaluation.descriptors import Whitening, describe_images
from core.evaluation.identification import evaluate_1_n
from core.evaluation.ijb import template_features
from core.evaluation.ijb_embeddings import AlignedImages, ImageEmbeddings, embed_images
from core.evaluation.ijb_meta import read_identification, read_images
from core.evaluation.model_pairs import evaluate_pairs, evaluate_retrieval_pairs, search_before
from core.evaluation.results import read_evaluations
from core.evaluation.retrieval import RetrievalOptions
from core.evaluation.retrieval_images import ResizedImages
from core.evaluation.revisited_files import read_revisited
from core.evaluation.verification import VerificationImages, embed_pairs
from core.files import ROOT
from core.models.encoder import Encoder, load_encoder
from core.models.mapped import UnitMap
from core.models.maps import Space, fit_map
from core.program import load_method
from core.settings import load_settings


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Run folders: old (8 numbers), new (12), a query map from new to old, gallery maps from old to new.

    `sided` has side information by `side` (6 numbers), which takes BGR.
    """
    folder = tmp_path_factory.mktemp("models")
    old, new = write_run_folder(folder / "old", 0, 8, 24), write_run_folder(folder / "new", 1, 12, 24)
    write_map_run(folder / "query", new, old)
    write_map_run(folder / "gallery", old, new, "old_to_new")
    write_map_run(folder / "turned", old, new, "old_to_new", "procrustes")
    side, told = write_run_folder(folder / "side", 2, 6, 24), {"mean": 110, "std": 60, "channel_order": "BGR"}
    write_map_run(folder / "sided", old, new, "old_to_new", side=side, side_told=told)
    return folder


@pytest.fixture
def run_tool(tmp_path, monkeypatch):
    """Runs a tool in this process; returns its results.json."""

    def run(name, *arguments, out="out"):
        tool = load_program(ROOT / "tools" / f"{name}.py")
        monkeypatch.setattr(tool, "set_up_logging", lambda: None)
        for plot in [attribute for attribute in vars(tool) if attribute.startswith("plot_")]:
            monkeypatch.setattr(tool, plot, lambda *_: None)
        shared = ["--cache", tmp_path / "cache", "--num-workers", 0, "--device", "cpu", "--out", tmp_path / out]
        monkeypatch.setattr(sys, "argv", [name, *map(str, [*arguments, *shared])])
        tool.main()
        return json.loads((tmp_path / out / "results.json").read_text())

    return run


def direct_templates(encoder, images):
    """Template features of embeddings that the encoder itself gives for the images."""
    crops = AlignedImages(images, encoder.image_size).read(np.arange(len(images.names)))["image"]
    mirrored = encoder(np.ascontiguousarray(crops[:, :, ::-1]))
    return template_features(ImageEmbeddings(encoder(crops).numpy(), mirrored.numpy()), images)


@pytest.mark.parametrize("name", ["query", "gallery", "turned"])
def test_faces_of_a_mapped_model_are_its_bases_read_through_the_map(models, tree, tmp_path, caplog, name):
    images, encoder = read_images(tree / "IJBC", "IJBC"), load_encoder(models / name)
    cache = {"num_workers": 0, "cache": tmp_path / "cache"}
    of_base = embed_images(encoder.base, images, **cache)
    caplog.set_level(logging.INFO)
    caplog.clear()
    found = embed_images(encoder, images, **cache)
    assert "embedding " not in caplog.text and "embeddings from the store" in caplog.text
    assert len(list((tmp_path / "cache").rglob("plain.npy"))) == 1
    assert found.plain.shape == (len(images.names), encoder.embedding_size) and isinstance(of_base.plain, np.memmap)
    np.testing.assert_allclose(template_features(found, images), direct_templates(encoder, images), atol=1e-6)


def test_faces_of_a_map_with_side_information_are_read_from_both_models_embeddings(models, tree, tmp_path, caplog):
    images, encoder = read_images(tree / "IJBC", "IJBC"), load_encoder(models / "sided")
    cache = {"num_workers": 0, "cache": tmp_path / "cache"}
    for model in encoder.sources:
        embed_images(model, images, **cache)
    caplog.set_level(logging.INFO)
    caplog.clear()
    found = embed_images(encoder, images, **cache)
    assert "embedding " not in caplog.text and len(list((tmp_path / "cache").rglob("plain.npy"))) == 2
    np.testing.assert_allclose(template_features(found, images), direct_templates(encoder, images), atol=1e-6)
    embed_images(load_encoder(models / "side"), images, **cache)
    assert len(list((tmp_path / "cache").rglob("plain.npy"))) == 3, "fed as RGB it is another model"


@pytest.fixture
def landmarks(tmp_path):
    return read_revisited(write_revisited_tree(tmp_path / "roxford5k"), "roxford5k")


def test_descriptors_of_a_mapped_model_are_its_bases_read_through_the_map(models, landmarks, tmp_path, caplog):
    encoder, images = load_encoder(models / "query"), landmarks.database
    describe_images(encoder.base, images, [24], num_workers=0, cache=tmp_path)
    caplog.set_level(logging.INFO)
    caplog.clear()
    found = describe_images(encoder, images, [24], num_workers=0, cache=tmp_path)
    assert "embedding " not in caplog.text
    wanted = encoder(ResizedImages(images, [24]).read(np.arange(len(images)))["image0"]).numpy()
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    np.testing.assert_allclose(Whitening(found)(found), Whitening(wanted)(wanted), atol=1e-4)


def test_descriptors_of_a_map_with_side_information_are_read_from_both_models(models, landmarks, tmp_path, caplog):
    images, encoder = landmarks.database, load_encoder(models / "sided")
    for model in encoder.sources:
        describe_images(model, images, [24], num_workers=0, cache=tmp_path)
    caplog.set_level(logging.INFO)
    caplog.clear()
    found = describe_images(encoder, images, [24], num_workers=0, cache=tmp_path)
    assert "embedding " not in caplog.text
    wanted = encoder(ResizedImages(images, [24]).read(np.arange(len(images)))["image0"]).numpy()
    np.testing.assert_allclose(found, wanted / np.linalg.norm(wanted, axis=1, keepdims=True), atol=1e-6)


class Pool(nn.Module):
    """Images of any size to means and largest values of their colours."""

    def forward(self, images):
        return torch.cat((images.mean((2, 3)), images.amax((2, 3)) - 1), 1)


def test_descriptors_at_several_scales_are_made_from_the_images(landmarks, tmp_path):
    face = (127.5,) * 3
    base = Encoder("pool", "pool", 6, 16, face, face, "b", torch.device("cpu"), Pool(), any_size=True)
    rng = np.random.default_rng(0)
    fitted = fit_map("ridge", rng.normal(size=(40, 6)), rng.normal(size=(40, 4)), spaces=(Space(6), Space(4)))
    module = nn.Sequential(base.module, UnitMap(fitted))
    mapped = replace(base, name="pool+ridge", embedding_size=4, fingerprint="m", module=module, base=base, map=fitted)
    found = describe_images(mapped, landmarks.database, [16, 23], num_workers=0, cache=tmp_path)
    batch = ResizedImages(landmarks.database, [16, 23]).read(np.arange(len(landmarks.database)))
    units = [nn.functional.normalize(mapped(batch[name])) for name in ("image0", "image1")]
    np.testing.assert_allclose(found, nn.functional.normalize(units[0] + units[1]), atol=1e-6)


@pytest.mark.parametrize(
    ("query", "gallery", "before"), [("query", "old", "old"), ("new", "gallery", "old"), ("new", "sided", "old")]
)
def test_identification_with_a_map_on_either_side(models, tree, run_tool, query, gallery, before):
    found = run_tool("ijbc_eval", "-m", models / query, "-m_old", models / gallery, "-N", "--data-path", tree)
    names = {"query": "new+ridge", "gallery": "old+ridge", "sided": "old,side+ridge"}
    sides = found["models"]["query"], found["models"]["gallery"]
    assert [side["name"] for side in sides] == [names.get(query, query), names.get(gallery, gallery)]
    old = load_encoder(models / "old").fingerprint
    assert [side["mapped_from"] for side in sides] == ["", "" if gallery == "old" else old]
    assert [side["base"] for side in sides] == [load_encoder(models / "new").fingerprint * (query == "query"), ""]
    images = read_images(tree / "IJBC", "IJBC")
    lists = read_identification(images)
    templates = {name: direct_templates(load_encoder(models / name), images) for name in (query, gallery, before)}
    wanted = evaluate_1_n(templates[query], templates[gallery], lists)
    own = evaluate_1_n(templates[before], templates[before], lists)
    assert {key: found["metrics"][key] for key in wanted.metrics} == wanted.metrics
    lost = [np.mean(own.found[name] & ~wanted.found[name]) for name in own.found]
    assert found["metrics"]["nfr"] == pytest.approx(np.mean(lost))
    change = wanted.metrics["top1"] - own.metrics["top1"]
    assert found["metrics"]["pfr"] - found["metrics"]["nfr"] == pytest.approx(change)


def test_verification_and_retrieval_with_a_map_on_either_side(models, run_tool, tmp_path, landmarks, tree):
    path = write_verification_set(tmp_path / "lfw.bin")
    for query, gallery in (("query", "old"), ("new", "turned"), ("new", "sided")):
        pair = "-m", models / query, "-m_old", models / gallery
        found = run_tool("verify", *pair, "--data-path", path)["metrics"]
        assert 0.3 < found["auc"] <= 1
        found = run_tool("ijbc_eval", *pair, "--data-path", tree)["metrics"]
        assert 0.3 < found["auc"] <= 1
        found = run_tool("roxford_eval", *pair, "--data-path", tmp_path)["metrics"]
        encoders = {name: load_encoder(models / name) for name in (query, gallery, "old")}
        options = RetrievalOptions(num_workers=0, cache=tmp_path / "cache", use_gpu=False)
        wanted = evaluate_retrieval_pairs(encoders, [f"{query}/{gallery}", "old/old"], landmarks, options)
        assert found == wanted[f"{query}/{gallery}"]
        assert found["pfr"] - found["nfr"] == pytest.approx(found["mp@1_medium"] - wanted["old/old"]["mp@1_medium"])
    encoder = load_encoder(models / "query")
    sums, _ = embed_pairs(encoder, path, num_workers=0, cache=tmp_path / "cache")
    images = torch.from_numpy(VerificationImages(path, 24).read(np.arange(40))["image"])
    np.testing.assert_allclose(sums, encoder(images) + encoder(images.flip(2)), atol=1e-6)


def test_pairs_of_models_with_maps_as_the_benchmark_asks_for_them(models, tree, tmp_path):
    encoders = {
        "old": load_encoder(models / "old"),
        "new": load_encoder(models / "new"),
        "new+ridge": load_encoder(models / "query"),
        "old+ridge": load_encoder(models / "gallery"),
    }
    pairs = ["old/old", "new/new", "new+ridge/old", "new/old+ridge", "old+ridge/old+ridge"]
    found = evaluate_pairs(encoders, pairs, tree, cache=tmp_path / "cache")
    top1 = {pair: result.metrics["1:N"]["top1"] for pair, result in found.items()}
    for pair in ("new+ridge/old", "new/old+ridge"):
        flips = found[pair].flips
        assert flips["pfr"] - flips["nfr"] == pytest.approx(top1[pair] - top1["old/old"])
    assert found["old+ridge/old+ridge"].flips == {} and 0 < top1["old+ridge/old+ridge"] < 1


@pytest.mark.parametrize(("query", "gallery"), [("query", "new"), ("old", "gallery")])
def test_a_map_on_the_wrong_side_is_one_line(models, tree, tmp_path, run_tool, query, gallery):
    far = write_map_run(tmp_path / "far", models / "new", write_run_folder(tmp_path / "other", 3, 12, 24))
    with pytest.raises(UserError, match="gives .* numbers an embedding, .*; fit a map between them"):
        run_tool("ijbc_eval", "-m", models / query, "-m_old", models / gallery, "--data-path", tree)
    with pytest.raises(UserError, match=r"^new\+ridge and new cannot be compared: the map leads from new .* to other "):
        run_tool("ijbc_eval", "-m", far, "-m_old", models / "new", "--data-path", tree)
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_not_known_to_share_the_maps_space_is_told(models, tree, tmp_path, run_tool, caplog):
    stranger = write_run_folder(tmp_path / "stranger", 4, 8, 24)
    run_tool("ijbc_eval", "-m", models / "query", "-m_old", stranger, "--data-path", tree)
    assert "new+ridge leads to the space of old (size 8" in caplog.text and "that stranger embeds" in caplog.text
    caplog.clear()
    config = json.loads((stranger / "config.json").read_text())
    config["old_model_fingerprint"] = load_encoder(models / "old").fingerprint
    (stranger / "config.json").write_text(json.dumps(config))
    run_tool("ijbc_eval", "-m", models / "query", "-m_old", stranger, "--data-path", tree)
    assert "nothing says" not in caplog.text


def test_chain_of_three_models_through_a_map_and_a_method(
    tmp_path, tree, tiny_records, tiny_settings, ranks, run_tool, monkeypatch, capsys
):
    """A; B, another model mapped into A's space; C, trained to be compatible with B; and A's gallery mapped for C."""
    first, unrelated = write_run_folder(tmp_path / "A", 0, 8), write_run_folder(tmp_path / "unrelated", 1, 12)
    second = write_map_run(tmp_path / "B", unrelated, first)
    method = load_method(ROOT / "methods" / "l2" / "train.py")
    words = [f"rec={tiny_records}", f"output={tmp_path / 'C'}", *tiny_settings, "num_epoch=1", f"old_model={second}"]
    words.append(f"features={tmp_path / 'features'}")
    Trainer(load_settings(ROOT / "configs" / "base.py", words, method.settings_type), method, "l2", ranks).train()
    third, mapped = load_encoder(tmp_path / "C"), write_map_run(tmp_path / "D", first, tmp_path / "C", "old_to_new")
    assert third.old_model_fingerprint == load_encoder(second).fingerprint
    paths = [first, second, tmp_path / "C", mapped]
    found = run_tool("compatibility_matrix", "--models", *paths, "--data-path", tree, "--metric", "top1", "auc")
    names = ["A", "unrelated+ridge", "C", "A+ridge"]
    assert {(e["models"]["query"]["name"], e["models"]["gallery"]["name"]) for e in found["evaluations"]} == {
        (query, gallery) for query in names for gallery in names if query != "A+ridge" or gallery == query
    }
    evaluations = read_evaluations(tmp_path / "out" / "results.json")
    top1 = {(e.query.name, e.gallery.name): e.metrics["top1"] for e in evaluations if e.task == "ijbc-1:N"}
    verdicts = {(e["query"], e["gallery"]): e["top1"] for e in found["compatible"]}
    assert verdicts["C", "unrelated+ridge"] == (
        top1["C", "unrelated+ridge"] > top1["unrelated+ridge", "unrelated+ridge"]
    )
    assert verdicts["unrelated+ridge", "A"] == (top1["unrelated+ridge", "A"] > top1["A", "A"])

    scores = load_program(ROOT / "tools" / "compatibility_scores.py")
    monkeypatch.setattr(scores, "set_up_logging", lambda: None)
    chosen = [
        "--models",
        "A+ridge",
        "C",
        "C",
        "--metric",
        "top1",
        "--metric",
        "auc",
        str(tmp_path / "out" / "results.json"),
    ]
    monkeypatch.setattr(sys, "argv", ["compatibility_scores.py", *chosen])
    capsys.readouterr()
    scores.main()
    text = capsys.readouterr().out
    cells = next(line for line in text.splitlines() if line.startswith("ijbc-1:N top1")).split()[2:6]
    wanted = [top1["A", "A"], top1["C", "C"], top1["C", "C"], top1["C", "A+ridge"]]
    assert cells == [f"{100 * rate:.2f}" for rate in wanted]
    assert text.rstrip().endswith("old: A, new: C, star: C")


def test_matrix_tests_the_model_that_embedded_a_mapped_gallery_where_it_is_not_named(models, tree, run_tool, tmp_path):
    found = run_tool("compatibility_matrix", "--models", models / "gallery", models / "new", "--data-path", tree)
    sides = [one["models"] for one in found["evaluations"] if one["task"] == "ijbc-1:N"]
    pairs = [(side["query"]["name"], side["gallery"]["name"]) for side in sides]
    assert pairs == [("old+ridge", "old+ridge"), ("new", "old+ridge"), ("new", "new"), ("old", "old")]
    assert sides[-1]["query"]["path"] == str(models / "old")
    top1 = dict(zip(pairs, [one["metrics"]["top1"] for one in found["evaluations"] if one["task"] == "ijbc-1:N"]))
    assert found["compatible"][0]["top1"] == (top1["new", "old+ridge"] > top1["old", "old"])
    header = (tmp_path / "out" / "matrix.csv").read_text().splitlines()[0]
    assert header == "metric,query,old+ridge,new"


def test_matrix_of_a_gallery_that_is_mapped_with_side_information(models, tree, run_tool):
    paths = [models / name for name in ("sided", "side", "new")]
    found = run_tool("compatibility_matrix", "--models", *paths, "--data-path", tree, "--metric", "top1")
    sides = [one for one in found["evaluations"] if one["task"] == "ijbc-1:N"]
    pairs = {(one["models"]["query"]["name"], one["models"]["gallery"]["name"]): one["metrics"] for one in sides}
    top1, flips = {pair: rates["top1"] for pair, rates in pairs.items()}, pairs["new", "old,side+ridge"]
    assert ("old", "old") in top1, "the search before the update is the old model's"
    change = top1["new", "old,side+ridge"] - top1["old", "old"]
    assert flips["pfr"] - flips["nfr"] == pytest.approx(change)
    verdicts = {(each["query"], each["gallery"]): each["top1"] for each in found["compatible"]}
    assert verdicts["new", "old,side+ridge"] == (change > 0)


def test_a_gallery_that_is_mapped_again_is_compared_with_the_search_of_the_first_mapped_one(
    models, tree, run_tool, tmp_path, capsys
):
    newer = write_run_folder(tmp_path / "newer", 2, 12, 24)
    again = write_map_run(tmp_path / "again", models / "gallery", newer, "old_to_new")
    once = write_map_run(tmp_path / "once", models / "new", newer, "old_to_new")
    paths = [models / "old", models / "gallery", models / "new", again, once, newer]
    found = run_tool("compatibility_matrix", "--models", *paths, "--data-path", tree, "--metric", "top1")
    metrics = {
        (one["models"]["query"]["name"], one["models"]["gallery"]["name"]): one["metrics"]
        for one in found["evaluations"]
        if one["task"] == "ijbc-1:N"
    }
    top1 = {pair: rates["top1"] for pair, rates in metrics.items()}
    before = {"old+ridge+ridge": ("new", "old+ridge"), "old+ridge": ("old", "old"), "new+ridge": ("new", "new")}
    lines = capsys.readouterr().out.splitlines()
    for gallery, search in before.items():
        cross, own = top1["newer", gallery], top1[search]
        verdict = next(line for line in lines if line.split()[:3] == ["newer", "/", gallery])
        assert f" {'yes' if cross > own else 'no'} ({100 * cross:.2f} against {100 * own:.2f})" in verdict
        flips = metrics["newer", gallery]
        assert flips["pfr"] - flips["nfr"] == pytest.approx(cross - own), "flips are of the same two searches"
    searching = {each["query"] for each in found["compatible"]}
    assert searching == {"new", "newer"}, "nobody makes queries with a mapped gallery"
    rows = [line.split(",") for line in (tmp_path / "out" / "matrix.csv").read_text().splitlines()]
    assert rows[4][:5] == ["top1", "old+ridge+ridge", "", "", ""], "nor is it tested with them, but by itself"
    assert float(rows[4][5]) == pytest.approx(top1["old+ridge+ridge", "old+ridge+ridge"], abs=1e-6)
    # without the model that searched in between: the one that embedded the gallery
    found = run_tool("compatibility_matrix", "--models", again, newer, "--data-path", tree, "--metric", "top1")
    assert found["compatible"][0]["top1"] == (top1["newer", "old+ridge+ridge"] > top1["old", "old"])


def test_search_before_is_that_of_the_space_that_a_gallery_was_mapped_into_first(models, tmp_path):
    newer = write_run_folder(tmp_path / "newer", 2, 8, 24)
    again = write_map_run(tmp_path / "again", models / "gallery", newer, "old_to_new")
    paths = (models / "old", models / "gallery", models / "new", newer, again)
    old, gallery, new, newest, chain = map(load_encoder, paths)
    known = [newest, chain, new, gallery, old]
    before = {newest: (newest, newest), chain: (new, gallery), new: (new, new), gallery: (old, old), old: (old, old)}
    for model, expected in before.items():
        found = search_before(model, known)
        assert [each.fingerprint for each in found] == [each.fingerprint for each in expected]
    for lacking in ([newest, chain, gallery, old], [newest, chain, new, old]):
        assert [each.fingerprint for each in search_before(chain, lacking)] == [old.fingerprint] * 2
