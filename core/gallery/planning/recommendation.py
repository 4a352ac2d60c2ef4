"""Which road to take, from what each gives on held-out identities, and whether the sample can tell.

Of the roads on which nothing is embedded first the best is taken, if it beats staying by more than the deviation of the
difference. Otherwise everything is embedded again before the new model searches, if that beats staying; else the old
model stays. The sample is large enough if, with 95 % confidence, no other road is more than two points better than the
one that is taken: where roads differ much few identities will do, where they are close many are needed.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from core.gallery.planning.plan import Road, SampleFacts

__all__ = ["FEWEST_IDENTITIES", "FREE", "Choice", "choose_road", "explain", "judge_sample"]

FREE = ("stay", "direct", "query_map", "gallery_map")
"""Nothing is embedded first."""
WORST_LOSS = 0.02
"""By which another road may be better."""
CONFIDENCE = 1.645
"""Deviations: one-sided 95 %."""
FEWEST_IDENTITIES = 20
"""With two images or more: of fewer no bootstrap can say how sure it is."""
COUNTED = 10
"""Impostor pairs that should reach a threshold, or it is not known to within a third."""
NAMES = {
    "stay": "the old model",
    "direct": "the new model's queries in the old gallery as it is",
    "query_map": "mapped queries in the old gallery",
    "gallery_map": "the new model's queries in the mapped gallery",
    "side_by_side": "both models side by side",
    "full_backfill": "the new model in a gallery that is embedded again",
}

Comparisons = Mapping[str, Mapping[str, Mapping[str, float]]]
"""[road][other]: `difference` of their top1 and its deviation `std`."""


@dataclass(frozen=True)
class Choice:
    """A road and, for each that could have been better, by how much it is (perhaps below 0), with the deviation."""

    road: str
    doubts: dict[str, tuple[float, float]]


def choose_road(roads: Mapping[str, Road | None], comparisons: Comparisons) -> Choice:
    """By the rule above."""
    free = [road for road in FREE if roads.get(road) is not None]
    best = max(free, key=lambda road: comparisons[road]["stay"]["difference"])  # the first of equal ones
    if best != "stay" and _beats(comparisons[best]["stay"]):
        return Choice(best, {road: _pair(comparisons[road][best]) for road in free if road != best})
    doubts = {road: _pair(comparisons[road]["stay"]) for road in free if road != "stay"}
    if roads.get("full_backfill") is None:
        return Choice("stay", doubts)
    full = comparisons["full_backfill"]["stay"]
    if _beats(full):
        return Choice("full_backfill", {**doubts, "stay": (-full["difference"], full["std"])})
    return Choice("stay", {**doubts, "full_backfill": _pair(full)})


def judge_sample(choice: Choice, identities: int, images: int, impostors: int, far: float) -> SampleFacts:
    """Whether a sample of so many identities with two images or more, images and impostor pairs is enough.

    `far`: the lowest FAR at which a threshold is wanted.
    """
    needed, why = FEWEST_IDENTITIES, []
    if identities < FEWEST_IDENTITIES:
        why.append(
            f"at least {FEWEST_IDENTITIES} identities with two images or more are needed, there are {identities}"
        )
    for road, (difference, deviation) in choice.doubts.items():
        if difference + CONFIDENCE * deviation > WORST_LOSS:
            wanted = max(WORST_LOSS - max(difference, 0.0), WORST_LOSS / 2) / CONFIDENCE
            needed = max(needed, identities + 1, math.ceil(identities * (deviation / wanted) ** 2))
            why.append(
                f"{NAMES[road]} may be better or worse by {100 * CONFIDENCE * deviation:.1f} points than measured, "
                f"which leaves open whether it is more than {100 * WORST_LOSS:.0f} points better than "
                f"{NAMES[choice.road]}"
            )
    needed_images = math.ceil(math.sqrt(COUNTED / far))
    if impostors * far < COUNTED:
        needed_images = max(needed_images, math.ceil(images * math.sqrt(COUNTED / far / max(impostors, 1))))
        why.append(f"thresholds at a FAR of {far:.0e} need {needed_images} images, there are {images}")
    return SampleFacts(identities, images, not why, needed, needed_images, "; ".join(why))


def explain(
    choice: Choice, facts: SampleFacts, roads: Mapping[str, Road | None], comparisons: Comparisons, top1_of_new: float
) -> str:
    """The reason, in plain sentences; `top1_of_new` is that of a gallery embedded again, whether it can be or not."""
    if not facts.enough:
        return (
            f"The sample is too small to recommend a road: {facts.missing}. Give about {facts.needed_identities} "
            f"identities with two images or more, and {facts.needed_images} images in all. Until then the old model "
            "stays."
        )
    stay, road = roads["stay"], roads[choice.road]
    assert stay is not None and road is not None, "what is chosen can be had"
    before = f"the old model finds {_percent(stay.top1)} of the probes first"
    others = [other for other in FREE[1:] if roads.get(other) is not None]
    lead = max(others, key=lambda other: comparisons[other]["stay"]["difference"], default=None)
    if choice.road in FREE[1:]:
        return (
            f"{_capital(NAMES[choice.road])}: {_percent(road.top1)} of the probes are found first, "
            f"{_points(comparisons[choice.road]['stay'])} more than now ({before}), and nothing has to be embedded "
            f"first. {_percent(road.nfr)} of the probes are found now and would not be found any more. Embedded again, "
            f"the gallery gives {_percent(top1_of_new)}: the backfill can follow in the order of the plan."
        )
    no_road = "No road without embedding first can be had" if lead is None else (
        f"No road without embedding first is better than staying by more than chance: the best, {NAMES[lead]}, "
        f"changes it by {_points(comparisons[lead]['stay'])}"
    )  # fmt: skip
    if choice.road == "full_backfill":
        return (
            f"{_capital(before)}, the new model {_percent(road.top1)} in a gallery that is embedded again, "
            f"{_points(comparisons['full_backfill']['stay'])} more. {no_road}. So embed everything again, and let both "
            "models search side by side until it is done."
        )
    return f"{_capital(before)}, the new model {_percent(top1_of_new)} in a gallery embedded again. {no_road}." + (
        " The gallery cannot be embedded again, since the images of its entries are not known."
        if roads.get("full_backfill") is None
        else " Embedding it again does not pay either."
    )


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f} %"


def _points(comparison: Mapping[str, float]) -> str:
    return f"{100 * comparison['difference']:.1f} points (deviation {100 * comparison['std']:.1f})"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _beats(comparison: Mapping[str, float]) -> bool:
    return comparison["difference"] > comparison["std"]


def _pair(comparison: Mapping[str, float]) -> tuple[float, float]:
    return comparison["difference"], comparison["std"]
