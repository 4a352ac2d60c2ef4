"""The plan of an upgrade as one HTML file for people: it needs no network, no other file and no program but a browser.

The page is made by the templates beside this module. All text that comes from the user (names, paths, identities) is
escaped by them; the page's content security policy forbids it to load anything.
"""

import base64
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeGuard

import jinja2
import numpy as np
import simplejpeg

from core.errors import UserError
from core.gallery.orders import ORACLE
from core.gallery.planning.plan import Flip, Plan, Shown
from core.gallery.planning.report_charts import draw_curves, draw_forest, orders_of
from core.gallery.planning.sample_calibration import PAIRS
from core.gallery.upgrade import ROADS
from core.images.codec import resize_image
from core.images.source import ImageSource
from core.outputs import replaced_atomically

__all__ = ["FILE", "write_report"]

FILE = "report.html"
TEMPLATES = Path(__file__).parent / "templates"
THUMBNAIL = 128
"""Pixels: twice what is shown on a desk, so that it is sharp on dense displays."""
JPEG_QUALITY = 85
DASH = "–"
BYTES = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "PB": 1e15}
SECONDS: dict[str, float] = {"s": 1, "min": 60, "h": 3600, "days": 86400}


@dataclass(frozen=True)
class RoadText:
    """A road in words."""

    name: str
    advice: str
    """As a headline."""
    how: str


ROAD_TEXTS = {
    "stay": RoadText("Stay", "Stay with the old model", "The old model embeds the queries; nothing changes."),
    "direct": RoadText(
        "Direct",
        "Let the new model search the stored vectors as they are",
        "The new model embeds the queries, which are compared with the old model's stored vectors.",
    ),
    "query_map": RoadText(
        "Query map",
        "Let the new model search the stored vectors through a map of its queries",
        "The new model embeds the queries, and a map leads them to the old model's space.",
    ),
    "gallery_map": RoadText(
        "Gallery map",
        "Map the stored vectors to the new model's space, and let the new model search them",
        "All stored vectors are mapped once, without an image; the new model embeds the queries.",
    ),
    "side_by_side": RoadText(
        "Side by side",
        "Let both models search, each its own vectors, until everything is embedded again",
        "Both models embed each query. The old one searches the stored vectors, the new one what is embedded again.",
    ),
    "full_backfill": RoadText(
        "Full backfill",
        "Embed the whole gallery again",
        "Everything is embedded again. Until that is done, both models search side by side.",
    ),
}
ORDER_TEXTS = {
    "random": "any order, for comparison",
    "predicted_error": "first where the map of the gallery is expected to err most",
    "length": "first where the map of the gallery gives short vectors, as it does where it is not sure",
    "class_distance": "the farthest from the mean of their class first",
    ORACLE: "first where old and new vector differ most, for comparison: this is known only afterwards",
}


@dataclass(frozen=True)
class Picture:
    """An image of the sample with its JPEG, base64; None if it cannot be read."""

    shown: Shown | Flip
    jpeg: str | None


@dataclass(frozen=True)
class Threshold:
    """What becomes of a wanted false accept rate. Rates and scores are None where the sample cannot tell."""

    wanted: float
    score: float | None
    far: float | None
    tar: float | None
    impostors: float | None
    """Pairs of two identities that were compared."""
    far_at_old: float | None
    tar_at_old: float | None


def write_report(
    plan: Plan, path: str | Path, gallery: Sequence[str], folder: str | Path, images: ImageSource | None = None
) -> None:
    """Write the page to `path`.

    `gallery`: the words of a command line that name the gallery, and `folder` the plan's folder, for the commands that
    the page tells to type. `images`: the sample in the order of the plan's rows, for the pictures of flips; without it,
    or for images that cannot be read, there are none. Memory: the page, with 3 JPEGs of a few kB for each flip.
    """
    page = _template().render(
        plan=plan,
        texts=ROAD_TEXTS,
        roads=ROADS,
        chosen=plan.roads[plan.recommendation],
        stay=plan.roads["stay"],
        full=plan.roads["full_backfill"],
        forest=draw_forest(plan),
        charts=draw_curves(plan),
        orders=orders_of(plan),
        order_texts=ORDER_TEXTS,
        flips=_pictures(plan.flips, images),
        has_pictures=images is not None,
        thresholds=_thresholds(plan),
        gallery=gallery[0],
        commands=_commands(plan, gallery, folder),
    )
    with replaced_atomically(path) as temporary:
        temporary.write_text(page, "utf-8", errors="backslashreplace")  # names may be bytes that are no UTF-8


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "bytes": format_bytes,
        "count": format_count,
        "duration": format_duration,
        "exp": math.exp,
        "far": format_far,
        "percent": format_percent,
        "points": format_points,
    }
    return environment.get_template(FILE)


def format_percent(rate: float | None, digits: int = 1) -> str:
    """A rate in [0, 1] as per cent without the sign; a dash where it is not known."""
    return f"{100 * rate:.{digits}f}" if _known(rate) else DASH


def format_points(difference: float | None) -> str:
    """A difference of rates, in points, with its sign."""
    return f"{100 * difference:+.1f}".replace("-", "\N{MINUS SIGN}") if _known(difference) else DASH


def format_far(far: float | None) -> str:
    """A false accept rate such as 1e-3 or 1.2e-3."""
    if not _known(far):
        return DASH
    if far == 0:
        return "0"
    mantissa, exponent = f"{far:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def format_count(count: float | None) -> str:
    """A whole number with its thousands set apart."""
    return f"{count:,.0f}" if _known(count) else DASH


def format_bytes(count: float | None) -> str:
    """A number of bytes in the unit that gives it one to three digits before the point."""
    return _in_units(count, BYTES) if _known(count) else DASH


def format_duration(hours: float | None) -> str:
    """A time in the unit that suits it."""
    return _in_units(3600 * hours, SECONDS) if _known(hours) else DASH


def _known(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _in_units(value: float, units: dict[str, float]) -> str:
    unit = max((unit for unit in units if value >= units[unit]), key=units.__getitem__, default=next(iter(units)))
    scaled = value / units[unit]
    return f"{scaled:.0f} {unit}" if scaled >= 10 or scaled == int(scaled) else f"{scaled:.1f} {unit}"


def _thresholds(plan: Plan) -> dict[str, list[Threshold]]:
    """By road, for each wanted rate of which the sample can tell anything; no row if there is none.

    Side by side has no scores of its own.
    """
    own = {name: road for name, road in plan.roads.items() if road is not None and name != "side_by_side"}
    wanted = {far for name in own for far, found in plan.realised[PAIRS[name]].items() if found["far"] is not None}
    rows = {
        name: [
            Threshold(
                wanted=float(far.partition("=")[2]),
                score=road.thresholds.get(far),
                far=found["far"],
                tar=found["tar"],
                impostors=found["impostors"],
                far_at_old=found.get("far_at_old"),
                tar_at_old=found.get("tar_at_old"),
            )
            for far, found in plan.realised[PAIRS[name]].items()
            if far in wanted
        ]
        for name, road in own.items()
    }
    return rows if wanted else {}


def _pictures(flips: Sequence[Flip], images: ImageSource | None) -> list[tuple[Flip, list[Picture]]]:
    """With each flip, the pictures of the query, of the wrong hit and of the right one."""
    rows = {shown.row for flip in flips for shown in (flip, flip.wrong, flip.right)}
    jpegs = {row: _thumbnail(images, row) for row in rows} if images else {}
    return [
        (flip, [Picture(shown, jpegs.get(shown.row)) for shown in (flip, flip.wrong, flip.right)]) for flip in flips
    ]


def _thumbnail(images: ImageSource, row: int) -> str | None:
    """An image as the models saw it, as a small JPEG in base64; None if it cannot be read."""
    try:
        (image,) = images.read(np.array([row]))["image"]
    except UserError:
        return None
    if max(image.shape[:2]) > THUMBNAIL:
        image = resize_image(image, THUMBNAIL)
    jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(image), JPEG_QUALITY, "RGB", "420")
    return base64.b64encode(jpeg).decode("ascii")


def _commands(plan: Plan, gallery: Sequence[str], folder: str | Path) -> dict[str, str]:
    """What to type next, by what it does."""
    model = plan.new.model or f"name:{plan.new.key}"

    def command(verb: str, *words: str) -> str:
        return f"python tools/gallery.py {verb} {shlex.join([*gallery, *words])}"

    if not plan.sample.enough:
        return {
            "Measure again, on a larger sample": command(
                "plan", "--new", model, "--sample", "LIST", "--out", f"{folder}-larger"
            )
        }
    search = ("--queries", "QUERIES.npy", "--model", model, "-k", "10", "--max-far", "1e-4", "--out", "HITS.parquet")
    return {
        "Begin, or go on after a break; --share 0.25 stops at a quarter": command("backfill", "--plan", str(folder)),
        "Search, at any time": command("search", *search),
        "See how far it is": command("info"),
        "Finish: check that every entry is embedded again, and free the old vectors": command("commit"),
        "Or take everything back, at any time before commit": command("rollback"),
    }
