"""The plan of an upgrade: every road measured on a sample of the owner's images, what each costs, and which to take.

A plan's folder has `plan.json`, below, and the maps that its roads need, `query_map/` and `gallery_map/`, as run
folders without a base model. All rates are shares in [0, 1].
"""

import json
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.files import reading
from core.gallery.store import Version
from core.gallery.upgrade import ROADS, Calibrations, calibration_from_json, calibration_to_json
from core.json_files import read_json
from core.models.maps import Map, load_map
from core.outputs import flush_folder, remove, replaced_atomically, writing

__all__ = ["Cost", "Flip", "Plan", "Road", "SampleFacts", "Shown", "parse_requirement", "road_of_curve"]

FILE = "plan.json"
MAPS = ("query_map", "gallery_map")
AGAIN = "make the plan again (tools/gallery.py plan)"


@dataclass(frozen=True)
class Road:
    """What a road gives on identities that neither its map nor its calibration has seen."""

    top1: float
    """Rank-1 rate: the share of probes whose first hit is of their identity, before anything is embedded again; of
    full_backfill, when everything is."""
    top1_std: float
    """Its standard deviation, by bootstrap over identities."""
    nfr: float
    """Share of probes that old/old answers rightly and this road does not."""
    pfr: float
    """The reverse."""
    thresholds: dict[str, float | None]
    """"far=1e-03": the score at which so many different people are accepted; None where the sample cannot tell."""
    images_to_embed: int
    """Before the road gives its `top1`."""


@dataclass(frozen=True)
class SampleFacts:
    """The sample that was measured, and whether it is large enough to recommend a road."""

    identities: int
    """With two images or more: those that are measured."""
    images: int
    """Of all identities; one of a single image is enrolled and has no probe."""
    enough: bool
    needed_identities: int
    """So many would do; at most `identities` if it is enough."""
    needed_images: int
    """So many, of any identities, are needed for the thresholds."""
    missing: str
    """What a larger sample is needed for; empty if it is enough."""


@dataclass(frozen=True)
class Shown:
    """An image of the sample."""

    row: int
    """In the sample, from 0."""
    name: str
    """Path of the image if there is one, else the row's number."""
    identity: str
    score: float
    """Of the query with this image, in the space in which the two were compared."""
    log_far: float
    """Natural logarithm of the false accept rate of this score."""


@dataclass(frozen=True)
class Flip:
    """A query that old/old answers rightly and the road `road` wrongly."""

    road: str
    row: int
    """Of the query, in the sample."""
    name: str
    identity: str
    before: Shown
    """The right image, which was the first hit, by old/old."""
    wrong: Shown
    """The first hit by the road."""
    right: Shown
    """The image of `before`, by the road."""


@dataclass(frozen=True)
class Cost:
    """Of embedding the whole gallery again, and of what is kept meanwhile."""

    images: int
    """That are to be embedded in the end."""
    images_per_second: float | None
    """That the new model embeds, reading included; None if it was not measured."""
    hours: float | None
    how: str
    """How it was measured, or why it was not."""
    bytes_first: dict[str, int]
    """By road: of vectors that must be written before it answers as `Road.top1` says."""
    bytes_peak: dict[str, int]
    """By road: of all vectors of the gallery when everything is embedded and the old ones are still kept."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What `plan.json` says, by the same names, and the maps beside it."""

    old: Version
    new: Version
    sample: SampleFacts
    roads: dict[str, Road | None]
    """By the names of `core.gallery.upgrade.ROADS`; None for one that cannot be had."""
    impossible: dict[str, str]
    """Why, by road."""
    comparisons: dict[str, dict[str, dict[str, float]]]
    """[road][other]: `difference` of their top1 (first minus other) and its paired bootstrap deviation `std`."""
    recommendation: str
    """One of ROADS; "stay" also where the sample is too small to recommend anything."""
    reason: str
    """In a few plain sentences."""
    order: str
    """In which the gallery is best embedded again, one of `core.gallery.orders`."""
    shares: list[float]
    """Of the gallery that is embedded again, at the points of the curves: 0, 0.1 ... 1."""
    curves: dict[str, dict[str, dict[str, list[float]]]]
    """[road][order]: `top1`, `nfr`, `pfr` at each share with calibrated scores, and `auc`, a list of one. Roads are
    direct, query_map, gallery_map and side_by_side, as far as they can be had; one order, "oracle", nobody has."""
    maps: dict[str, dict[str, Any]]
    """By "query_map" and "gallery_map", if there are maps: `kind`, `fingerprint`, and `tried`: top1 by kind."""
    calibrations: Calibrations
    """By pair (`core.gallery.upgrade`), of all identities of the sample; maps had not seen those they mapped."""
    realised: dict[str, dict[str, dict[str, float | None]]]
    """[pair]["far=1e-03"]: `far` and `tar` of identities at the threshold that other identities gave, the number of
    `impostors`, and of the pairs but old/old `far_at_old` and `tar_at_old` at old/old's threshold: what becomes of a
    threshold that is left as it is. None where the sample cannot tell."""
    flips: list[Flip]
    """The worst, of the recommended road; of the best other one if that is "stay"."""
    cost: Cost
    seed: int
    query_map: Map | None
    """From the new model's space to the old one's, fitted on all pairs."""
    gallery_map: Map | None
    """The reverse."""

    @property
    def curve(self) -> dict[str, list[list[float]]]:
        """By order [share, top1] at each point: of the recommended road; side_by_side for stay and full_backfill."""
        return {
            order: [list(point) for point in zip(self.shares, values["top1"])]
            for order, values in self.curves[road_of_curve(self.recommendation)].items()
        }

    def meets(self, requirement: str) -> bool:
        """Whether the recommended road reaches, for example, "top1=0.9"; `UserError` for another form."""
        name, least = parse_requirement(requirement)
        road = self.roads[self.recommendation]
        return road is not None and getattr(road, name) >= least

    def to_json(self) -> dict[str, Any]:
        """What is in `plan.json`."""
        plain = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name not in (*MAPS, "calibrations", "curves")
        }
        return {
            **_plain(plain),
            "curve": self.curve,
            "curves": self.curves,
            "calibrations": {pair: calibration_to_json(each) for pair, each in self.calibrations.items()},
        }

    def save(self, folder: str | Path) -> None:
        """Write the plan's folder, which is made if its parent exists; `plan.json` comes last.

        A plan that was there is replaced. `UserError` if the disk refuses.
        """
        folder = Path(folder)
        with writing(folder):
            folder.mkdir(exist_ok=True)
            flush_folder(folder.parent)
            remove(folder / FILE)  # its maps are about to go
        for name in MAPS:
            fitted = getattr(self, name)
            if fitted is not None:
                fitted.save(folder / name)
            else:
                with writing(folder / name):
                    for file in ("map.pt", "config.json"):
                        (folder / name / file).unlink(missing_ok=True)
        with replaced_atomically(folder / FILE) as temporary:
            temporary.write_text(json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> "Plan":
        """The plan of a folder; `UserError` if a file is missing, damaged, or not of the same plan."""
        folder = Path(folder)
        path = folder / FILE
        written = read_json(path, "plan", AGAIN)
        with reading(path, "plan of this version of the program", AGAIN):
            plan = _from_json(written)
        maps = {name: load_map(folder / name) for name in plan.maps}
        for name, fitted in maps.items():
            if fitted.fingerprint != plan.maps[name].get("fingerprint"):
                raise UserError(f"{folder / name} is not the map of {path}: {AGAIN}")
        return replace(plan, query_map=maps.get("query_map"), gallery_map=maps.get("gallery_map"))


def road_of_curve(road: str) -> str:
    """The road whose curve tells how the gallery is searched while it is embedded again."""
    return "side_by_side" if road in ("stay", "full_backfill") else road


def parse_requirement(requirement: str) -> tuple[str, float]:
    """The rate that is asked for, and the least value; `UserError` unless it is like "top1=0.9"."""
    name, _, value = requirement.partition("=")
    try:
        least = float(value)
    except ValueError:
        least = -1.0
    if name != "top1" or not 0 <= least <= 1:
        raise UserError(f"{requirement!r} is not a requirement: write top1= and a share from 0 to 1, such as top1=0.9")
    return name, least


def _plain(value: Any) -> Any:
    """Dataclasses as dicts, all the way down."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list) else value


def _from_json(written: dict[str, Any]) -> Plan:
    """The plan without its maps; an error of any kind if something is missing or of another kind."""
    known = {field.name: written[field.name] for field in fields(Plan) if field.name not in MAPS}
    if known["recommendation"] not in ROADS or set(known["roads"]) != set(ROADS) or not set(known["maps"]) <= set(MAPS):
        raise ValueError("these are not the roads")
    if not all(isinstance(described, dict) for described in known["maps"].values()):
        raise ValueError("these are not maps")
    built: dict[str, Any] = {
        "old": Version(**known["old"]),
        "new": Version(**known["new"]),
        "sample": SampleFacts(**known["sample"]),
        "roads": {name: None if road is None else Road(**road) for name, road in known["roads"].items()},
        "calibrations": {pair: calibration_from_json(each) for pair, each in known["calibrations"].items()},
        "flips": [_flip_from_json(flip) for flip in known["flips"]],
        "cost": Cost(**known["cost"]),
    }
    plan = Plan(**{**known, **built}, query_map=None, gallery_map=None)
    if plan.curve != written["curve"] or plan.roads[plan.recommendation] is None:
        raise ValueError("the parts are not of one plan")
    return plan


def _flip_from_json(written: dict[str, Any]) -> Flip:
    images: dict[str, Any] = {name: Shown(**written[name]) for name in ("before", "wrong", "right")}
    return Flip(**{**written, **images})
