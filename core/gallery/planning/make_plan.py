"""Making a plan: every road measured on a sample, on identities that neither its map nor its calibration has seen.

One image of each identity is enrolled, ten times another one, and the others are its probes. Maps are cross-fitted:
a probe and an entry are compared through a map that was fitted without the identities of both. Deviations come from a
bootstrap over identities. In what is said of FARs and of half-embedded galleries, the scores of an identity are
calibrated by identities of the other half of the sample. What the plan hands on, maps and calibrations, is of the whole
sample.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from core.errors import UserError
from core.evaluation.calibration import ScoreCalibration
from core.gallery.orders import ORACLE, class_distances
from core.gallery.planning.cost import Holdings, Rate, estimate_cost
from core.gallery.planning.cross_fitting import deal_identities
from core.gallery.planning.measurement import BOTH_WAYS, Measurement, measure
from core.gallery.planning.plan import Plan, Road, road_of_curve
from core.gallery.planning.recommendation import FREE, choose_road, explain, judge_sample
from core.gallery.planning.sample import Sample
from core.gallery.planning.sample_calibration import PAIRS, Calibrator, impostor_pairs
from core.gallery.planning.sample_curves import SHARES, backfill_curves
from core.gallery.planning.worst_flips import worst_flips
from core.gallery.store import Version
from core.gallery.upgrade import ROADS

__all__ = ["make_plan"]

DRAWS = 10


def make_plan(
    sample: Sample,
    old: Version,
    new: Version,
    gallery: Holdings,
    *,
    rate: Rate | None = None,
    far: float = 1e-3,
    seed: int = 0,
) -> Plan:
    """The plan for a `gallery` of the model `old` and the model `new`, from a sample embedded by both.

    `rate`: how fast the new model embeds, if it was measured. `far`: the lowest false accept rate at which a threshold
    is wanted. `seed` decides which images are enrolled, folds, halves and resamples. Memory: some forty times the
    sample's vectors, and what `Calibrator` and `search_draws` say. `UserError` if the sample is not of these models, or
    has too few identities to be measured at all.
    """
    _require(sample, old, new)
    measured = measure(sample, old, new, DRAWS, seed)
    impossible = _impossible(measured, old, new, gallery)
    possible = [road for road in ROADS if road not in impossible]
    deviations, comparisons = measured.deviations(possible)
    halves = deal_identities(sample.identities, 2, seed + 1)
    calibrator = Calibrator.of(measured.scores, sample.identities, halves, seed)
    calibrations = {pair: calibrator.of_all(pair) for pair in measured.found}
    roads: dict[str, Road | None] = dict.fromkeys(ROADS)
    for road in possible:
        pair = PAIRS[road]
        nfr, pfr = measured.flips(pair)
        roads[road] = Road(
            top1=measured.top1(pair),
            top1_std=deviations[road],
            nfr=nfr,
            pfr=pfr,
            thresholds=calibrator.thresholds(calibrations[pair]),
            images_to_embed=gallery.images if road == "full_backfill" else 0,
        )
    choice = choose_road(roads, comparisons)
    probed = int(np.count_nonzero(measured.resampling.trials))
    facts = judge_sample(choice, probed, len(sample.names), impostor_pairs(sample.identities), far)
    recommended = choice.road if facts.enough else "stay"
    of_halves = {pair: calibrator.of_other_halves(pair) for pair in measured.found}
    curves = _curves(sample, measured, halves, of_halves, gallery.labelled, seed)
    areas = {order: of_order["auc"][0] for order, of_order in curves[road_of_curve(recommended)].items()}
    others = [road for road in possible if PAIRS[road] != PAIRS["stay"]]
    shown = recommended
    if recommended == "stay" and others:
        shown = max(others, key=lambda road: comparisons[road]["stay"]["difference"])
    maps = measured.maps
    return Plan(
        old=old,
        new=new,
        sample=facts,
        roads=roads,
        impossible=impossible,
        comparisons=comparisons,
        recommendation=recommended,
        reason=explain(choice, facts, roads, comparisons, measured.top1("new/new")),
        order=max((order for order in areas if order != ORACLE), key=lambda order: areas[order]),
        shares=SHARES.tolist(),
        curves=curves,
        maps={
            name: {"kind": fitted.kind, "fingerprint": fitted.fingerprint, "tried": measured.kinds[name]}
            for name, fitted in maps.items()
        },
        calibrations=calibrations,
        realised={pair: calibrator.realised(pair, of_halves) for pair in calibrations},
        flips=worst_flips(shown, sample, measured.draws, measured.found, calibrations),
        cost=estimate_cost(gallery, new.size, rate),
        seed=seed,
        query_map=maps.get("query_map"),
        gallery_map=maps.get("gallery_map"),
    )


def _require(sample: Sample, old: Version, new: Version) -> None:
    for version, vectors in ((old, sample.old), (new, sample.new)):
        if vectors.shape[1] != version.size:
            raise UserError(
                f"the sample's vectors have {vectors.shape[1]} numbers, those of {version.name} {version.size}: give "
                "the vectors of that model"
            )
    probed = int((np.bincount(sample.identities) > 1).sum())
    if probed < 2:
        raise UserError(
            f"{probed} identities of the sample have two images or more: no road can be measured; give more images "
            "of more identities"
        )


def _impossible(measured: Measurement, old: Version, new: Version, gallery: Holdings) -> dict[str, str]:
    """Why roads cannot be had, by road."""
    found = {}
    if old.size != new.size:
        found["direct"] = f"the new model's vectors have {new.size} numbers, the stored ones {old.size}"
    pairs = len(measured.draws.identities)
    for name in set(BOTH_WAYS) - set(measured.maps):
        found[name] = f"{pairs} images are too few to fit a map and to try it on identities that it has not seen"
    if not gallery.images:
        for road in ("side_by_side", "full_backfill"):
            found[road] = "the images of the gallery's entries are not known, so none can be embedded again"
    return found


def _curves(
    sample: Sample,
    measured: Measurement,
    halves: np.ndarray,
    calibrations: Mapping[str, Sequence[ScoreCalibration]],
    labelled: bool,
    seed: int,
) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Of all roads whose stored part can be searched at all."""
    roads = {road: PAIRS[road] for road in (*FREE[1:], "side_by_side") if PAIRS[road] in measured.found}
    common = {"random": np.random.default_rng(seed).random(measured.draws.probes.shape)}
    common |= measured.priorities
    if labelled:
        common["class_distance"] = class_distances(sample.old, sample.identities)
    priorities: dict[str, dict[str, np.ndarray]] = {}
    for road in roads:
        priorities[road] = dict(common)
        spaces = {"direct": ("old", "new"), "query_map": ("old", "query_map"), "gallery_map": ("gallery_map", "new")}
        if road in spaces:
            stored, refreshed = (measured.vectors[name] for name in spaces[road])
            priorities[road][ORACLE] = np.linalg.norm(stored - refreshed, axis=1)
    return backfill_curves(
        measured.scores, roads, priorities, calibrations, measured.draws, halves, measured.found["old/old"]
    )
