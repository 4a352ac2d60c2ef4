"""Plans as a whole: made-up upgrades, encoders that have nothing in common, and what is written down."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from tiny import noise, write_records, write_run_folder

from ci.benchmarks import gallery_plan
from core.errors import UserError
from core.gallery.planning.cost import Holdings, Rate, measure_rate
from core.gallery.planning.cross_fitting import cross_fit, cross_fitted_priorities, deal_identities
from core.gallery.planning.make_plan import make_plan
from core.gallery.planning.pair_scores import MappedGallery, MappedQueries
from core.gallery.planning.plan import Plan
from core.gallery.planning.sample import Sample, pair_sample
from core.gallery.planning.sample_calibration import impostor_pairs
from core.gallery.planning.sample_images import SampleImages, embed_sample
from core.gallery.store import Version
from core.gallery.upgrade import ROADS
from core.models.encoder import load_encoder
from core.models.maps import fit_map

GALLERY = Holdings(entries=1000, images=900, vector_bytes=1000 * 64)


def seen(people: int, images: int, size: int, noise: float, seed: int) -> np.ndarray:
    """Vectors of people in a space of its own, without anything in common with another seed's."""
    rng = np.random.default_rng(seed)
    rows = np.repeat(rng.standard_normal((people, size)), images, axis=0)
    return (rows + noise * rng.standard_normal(rows.shape)).astype(np.float32)


def plan_of(old: np.ndarray, new: np.ndarray, images: int, gallery: Holdings = GALLERY, **options: object) -> Plan:
    sample = Sample.of(old, new, [f"person {row // images}" for row in range(len(old))])
    versions = [Version(name, name, side.shape[1]) for name, side in (("old", old), ("new", new))]
    return make_plan(sample, *versions, gallery, **options)


@pytest.fixture(scope="module")
def plan() -> Plan:
    rng = np.random.default_rng(0)
    rows = np.repeat(rng.standard_normal((40, 12)), 4, axis=0)
    old, new = (rows + spread * rng.standard_normal(rows.shape) for spread in (0.9, 0.4))
    turned = np.linalg.qr(rng.standard_normal((12, 12)))[0]
    return plan_of(old, new @ turned, 4, rate=Rate(50.0, "made up"))


@pytest.mark.parametrize(("images", "sizes", "spread"), [(900, (128, 192), (2.2, 0.6)), (0, (16, 24), (0.9, 0.3))])
def test_unrelated_encoders_and_few_pairs_advise_against_maps(images, sizes, spread):
    old, new = (seen(28, 10, sizes[side], spread[side], side) for side in (0, 1))
    plan = plan_of(old, new, 10, replace(GALLERY, images=images))
    assert plan.roads["direct"] is None and all(str(size) in plan.impossible["direct"] for size in sizes)
    old = plan.roads["stay"].top1
    for road in ("query_map", "gallery_map"):
        assert plan.roads[road].top1 < old - 0.2
    assert plan.sample.enough and plan.sample.identities == 28 and plan.sample.images == 280
    if images:
        assert plan.recommendation == "full_backfill" and plan.roads["full_backfill"].top1 > old + 0.1
        assert plan.roads["full_backfill"].images_to_embed == 900
    else:
        assert plan.recommendation == "stay" and plan.roads["full_backfill"] is None
        assert "images" in plan.impossible["full_backfill"] and "images" in plan.reason


def test_plans_take_the_best_road_of_made_cases_and_their_thresholds_hold():
    cases = [replace(case, people=60, sizes=(32, 32)) for case in gallery_plan.make_cases(20)[::4]]
    outcomes = [gallery_plan.measure(case, population=180, seed=number) for number, case in enumerate(cases)]
    losses = [outcome.loss(outcome.sample_size) for outcome in outcomes]
    assert sum(loss <= 0.02 for loss in losses) >= 4, losses
    ratios = np.concatenate([outcome.ratios for outcome in outcomes])
    assert np.median(np.maximum(ratios, 1 / ratios)) < 1.25


@pytest.mark.parametrize("kind", ["ridge", "procrustes", "low_rank"])
def test_pairs_are_compared_through_a_map_that_has_seen_the_identities_of_neither(kind):
    old, new = (
        rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (seen(20, 4, 6, 0.5, 0), seen(20, 4, 5, 0.5, 1))
    )
    identities = np.repeat(np.arange(20), 4)
    folds = deal_identities(identities, 5, seed=3)
    assert (folds.reshape(20, 4) == folds[::4, None]).all() and (np.bincount(folds) == 16).all()
    fitted = fit_map(kind, old, new, **({"rank": 3} if kind == "low_rank" else {}))
    mapped = cross_fit(fitted, old, new, folds)
    rows = np.arange(80)
    queries, gallery = MappedQueries(mapped, new)(rows, rows), MappedGallery(new, mapped)(rows, rows)
    for first in range(5):
        for second in range(5):
            others = (folds != first) & (folds != second)
            options = dict(fitted.options)
            if fitted.penalty is not None:
                options["penalty"] = fitted.penalty * others.mean()
            of_others = fit_map(kind, old[others], new[others], **options)
            expected = of_others(old[folds == first]) @ new[folds == second].T
            assert queries[np.ix_(folds == first, folds == second)] == pytest.approx(expected, abs=1e-5)
            assert gallery[np.ix_(folds == second, folds == first)] == pytest.approx(expected.T, abs=1e-5)
            if first == second:
                assert mapped.vectors[folds == first] == pytest.approx(of_others(old[folds == first]), abs=1e-5)
                lengths = np.linalg.norm(of_others(old[folds == first], normalized=False), axis=1)
                priorities = cross_fitted_priorities(fitted, old, new, folds)
                assert priorities["length"][folds == first] == pytest.approx(-lengths, abs=1e-5)


def test_what_a_plan_holds(plan, tmp_path):
    assert set(plan.roads) == set(ROADS) and plan.recommendation in ("query_map", "gallery_map")
    assert plan.roads["side_by_side"].top1 == plan.roads["stay"].top1 and plan.roads["stay"].nfr == 0
    for road, measured in plan.roads.items():
        difference = measured.top1 - plan.roads["stay"].top1
        assert measured.pfr - measured.nfr == pytest.approx(difference)
        if road not in ("stay", "side_by_side"):
            assert plan.comparisons[road]["stay"]["difference"] == pytest.approx(difference)
    curves = plan.curves[plan.recommendation]
    assert plan.curve["random"][0] == pytest.approx([0, plan.roads[plan.recommendation].top1])
    assert plan.curve["random"][10] == pytest.approx([1, plan.roads["full_backfill"].top1])
    assert plan.order != "oracle" and curves[plan.order]["auc"] == max(
        curves[order]["auc"] for order in curves if order != "oracle"
    )
    cost = plan.cost
    assert cost.images == 900 and cost.hours == pytest.approx(900 / 50 / 3600)
    assert cost.bytes_first["gallery_map"] == 1000 * 12 * 4 and cost.bytes_first["query_map"] == 0
    assert cost.bytes_peak["full_backfill"] == 64_000 + 900 * 12 * 4
    for flip in plan.flips:
        assert flip.identity == flip.before.identity == flip.right.identity != flip.wrong.identity
        assert flip.wrong.score > flip.right.score and flip.wrong.log_far < flip.right.log_far
        assert flip.before.row == flip.right.row != flip.row and flip.row // 4 == flip.right.row // 4
    gaps = [flip.right.log_far - flip.wrong.log_far for flip in plan.flips]
    assert len(gaps) > 3 and gaps == sorted(gaps, reverse=True)
    assert plan.meets("top1=0.1") and not plan.meets("top1=1.0")
    for wrong in ("top5=0.5", "top1", "top1=2", "top1=x"):
        with pytest.raises(UserError, match="write top1="):
            plan.meets(wrong)


def test_plan_comes_back_from_its_folder_with_its_maps(plan, tmp_path):
    plan.save(tmp_path / "plan")
    loaded = Plan.load(tmp_path / "plan")
    assert loaded.to_json() == plan.to_json()
    rows = seen(3, 1, 12, 0, 4)
    assert np.array_equal(loaded.gallery_map(rows), plan.gallery_map(rows))
    assert (loaded.query_map.source.name, loaded.query_map.target.name) == ("new", "old")
    written = json.loads((tmp_path / "plan" / "plan.json").read_text())
    assert {"roads", "impossible", "recommendation", "reason", "curve", "sample"} <= set(written)
    assert {"identities", "images", "enough"} <= set(written["sample"])
    replace(plan, maps={}, query_map=None, gallery_map=None).save(tmp_path / "plan")
    assert Plan.load(tmp_path / "plan").gallery_map is None


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "plan.json").unlink(), "plan not found"),
        (lambda folder: (folder / "plan.json").write_text('{"roads": '), "damaged"),
        (lambda folder: (folder / "plan.json").write_text("[]"), "damaged"),
        (lambda folder: edit(folder, lambda plan: plan.pop("calibrations")), "damaged"),
        (lambda folder: edit(folder, lambda plan: plan.update(recommendation="fly")), "damaged"),
        (lambda folder: edit(folder, lambda plan: plan["roads"]["stay"].pop("nfr")), "damaged"),
        (lambda folder: edit(folder, lambda plan: plan["maps"].update(query_map=[])), "plan of this version"),
        (lambda folder: (folder / "gallery_map" / "map.pt").write_bytes(b"x"), "gallery_map"),
        (lambda folder: (folder / "query_map" / "config.json").unlink(), "not found"),
        (
            lambda folder: edit(folder, lambda plan: plan["maps"]["query_map"].update(fingerprint="0")),
            "is not the map of",
        ),
    ],
)
def test_damaged_plan_is_refused(plan, tmp_path, damage, message):
    plan.save(tmp_path / "plan")
    damage(tmp_path / "plan")
    with pytest.raises(UserError, match=message):
        Plan.load(tmp_path / "plan")


def edit(folder: Path, change) -> None:
    written = json.loads((folder / "plan.json").read_text())
    change(written)
    (folder / "plan.json").write_text(json.dumps(written))


def test_small_sample_is_refused_with_the_number_needed():
    plan = plan_of(seen(8, 3, 6, 0.8, 0), seen(8, 3, 6, 0.2, 1), 3)
    assert plan.recommendation == "stay" and not plan.sample.enough
    assert plan.sample.needed_identities >= 20 and str(plan.sample.needed_identities) in plan.reason
    plan = plan_of(seen(3, 3, 6, 0.8, 0), seen(3, 3, 6, 0.2, 1), 3)
    assert plan.roads["query_map"] is None and "too few to fit a map" in plan.impossible["query_map"]
    with pytest.raises(UserError, match="0 identities of the sample have two images"):
        plan_of(seen(30, 1, 6, 0.8, 0), seen(30, 1, 6, 0.2, 1), 1)


def test_identities_of_one_image_are_enrolled_but_not_counted():
    old, new = seen(60, 2, 8, 0.4, 0), seen(60, 2, 8, 0.2, 1)
    single = np.r_[0:60, 60:120:2]
    names = [str(row // 2) for row in single]
    sample = Sample.of(old[single], new[single], names)
    plan = make_plan(sample, Version("a", "a", 8), Version("b", "b", 8), GALLERY)
    assert plan.sample.identities == 30 and plan.sample.images == 90
    assert impostor_pairs(sample.identities) == 90 * 89 - 60


def test_pairs_are_read_from_files(tmp_path):
    old, new = seen(5, 2, 4, 0.1, 0), seen(5, 2, 6, 0.1, 1)
    np.save(tmp_path / "old.npy", old)
    np.save(tmp_path / "new.npy", new.astype(np.float16))
    (tmp_path / "labels.txt").write_text("".join(f"Zoë {row // 2}\n" for row in range(10)))
    paths = [tmp_path / name for name in ("old.npy", "new.npy", "labels.txt")]
    sample = pair_sample(*paths)
    assert sample.old == pytest.approx(old / np.linalg.norm(old, axis=1, keepdims=True), abs=1e-6)
    assert sample.identities.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4] and sample.identity_names[3] == "Zoë 3"
    text = paths[2].read_text().replace(" ", "\u2028")  # no end of a line in any other list either
    paths[2].write_bytes(text.replace("\n", "\r\n").encode("utf-8-sig"))
    again = pair_sample(*paths)
    assert again.identities.tolist() == sample.identities.tolist() and again.identity_names[0] == "Zoë\u20280"
    for file, content, message in (
        ("labels.txt", "a\nb\n", "10 vectors of .*old.npy, but 2 identities"),
        ("labels.txt", "a\n\nb\n", "line 2 is empty"),
        ("new.npy", b"nothing", "not a readable .npy file"),
    ):
        path = tmp_path / file
        before = path.read_bytes()
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(UserError, match=message):
            pair_sample(*paths)
        path.write_bytes(before)
    np.save(tmp_path / "old.npy", np.where(np.arange(10)[:, None] == 3, 0, old))
    with pytest.raises(UserError, match="row 3 of the vectors of .*old.npy is zero"):
        pair_sample(*paths)


def test_images_of_a_list_a_folder_and_records_are_embedded_by_both_models(tmp_path):
    images = noise(np.random.default_rng(0), 6, 20)
    for row, image in enumerate(images):
        path = tmp_path / "people" / f"Ann {row // 2}" / f"{row} x.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(simplejpeg.encode_jpeg(image, quality=95))
    lines = [f"people/Ann {row // 2}/{row} x.jpg who-{row // 2}" for row in range(6)]
    (tmp_path / "list.txt").write_text("\n".join(lines) + "\n")
    write_records(tmp_path / "faces", [0, 0, 1, 1], image_size=16)
    old = load_encoder(write_run_folder(tmp_path / "old", image_size=16))
    new = load_encoder(write_run_folder(tmp_path / "new", seed=1, embedding_size=6, image_size=32))

    def embed(path: Path) -> Sample:
        return embed_sample(SampleImages(path), old, new, 4, 0, tmp_path / "cache")

    listed, folder, records = (embed(tmp_path / name) for name in ("list.txt", "people", "faces.rec"))
    assert listed.old.shape == (6, 8) and listed.new.shape == (6, 6)
    assert np.array_equal(listed.old, folder.old) and listed.identities.tolist() == [0, 0, 1, 1, 2, 2]
    assert listed.identity_names[2] == "who-2" and folder.identity_names[2] == "Ann 2"
    assert Path(folder.names[5]) == tmp_path / "people" / "Ann 2" / "5 x.jpg"
    assert records.identity_names == ["0", "1"] and len(records.names) == 4
    (tmp_path / "list.txt").write_text(lines[0] + "\nalone\n")
    with pytest.raises(UserError, match="line 2: 'alone' is not a path, a blank and an identity"):
        SampleImages(tmp_path / "list.txt")
    with pytest.raises(UserError, match="no folders with images"):
        (tmp_path / "empty").mkdir()
        SampleImages(tmp_path / "empty")


def test_rate_is_measured_on_the_images(tmp_path, monkeypatch):
    monkeypatch.setattr("core.gallery.planning.cost.SECONDS", 0.05)
    write_records(tmp_path / "faces", [0, 0, 1], image_size=16)
    encoder = load_encoder(write_run_folder(tmp_path / "old"))
    rate = measure_rate(encoder, SampleImages(tmp_path / "faces.rec").of_size(16), 2, 0)
    assert rate.images_per_second > 0 and "batches of 2" in rate.how and "CPU" in rate.how
