"""The state of an upgrade, as it is kept with the gallery in the document "upgrade"."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from core.errors import UserError
from core.evaluation.calibration import ScoreCalibration

__all__ = ["ROADS", "Calibrations", "Upgrade", "calibration_from_json", "calibration_to_json"]

ROADS = ("stay", "direct", "query_map", "gallery_map", "side_by_side", "full_backfill")
"""stay           the old model goes on, nothing is embedded
direct         the new model's queries search the old vectors as they are (compatible training)
query_map      a map leads the new model's queries to the old space
gallery_map    a map leads the old vectors to the new space
side_by_side   queries are embedded by both models, and each searches the vectors of its own
full_backfill  everything is embedded again before the new model searches; until then the old one does
"""

Calibrations = dict[str, ScoreCalibration]
"""By "query/gallery", whose names are "old", "new", "query_map" (mapped queries) and "gallery_map" (mapped vectors):
"old/old", "new/new", "new/old" (direct), "query_map/old", "new/gallery_map"."""


@dataclass(frozen=True)
class Upgrade:
    """What `backfill` began and `commit` or `rollback` ends.

    Calibrations are the document "calibrations", maps the documents "query_map" and "gallery_map"; the order of the
    entries is computed from their old vectors (`core.gallery.backfill_order`).
    """

    old: str
    """Keys of the two versions."""
    new: str
    mapped: str | None
    """Key of the version of mapped old vectors, of the road gallery_map."""
    road: str
    """One of ROADS: how the part that is not embedded yet is searched."""
    order: str
    plan: str
    """SHA-256 of plan.json: the backfill goes on with the same plan alone."""
    total: int
    """Entries when it began."""
    failed: int = 0
    """Entries that the last backfill could not embed; their old vectors stay and are searched."""

    def to_json(self) -> dict[str, Any]:
        """As a document."""
        return asdict(self)


def calibration_to_json(calibration: ScoreCalibration) -> dict[str, Any]:
    """As plain numbers and lists."""
    return {
        name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in vars(calibration).items()
    }


def calibration_from_json(value: Mapping[str, Any]) -> ScoreCalibration:
    """The reverse of `calibration_to_json`; `UserError` for anything that is no finite curve."""
    try:
        scores, log_far = (np.asarray(value[name], dtype=np.float64) for name in ("scores", "log_far"))
        mean, deviation, decay = (float(value[name]) for name in ("mean", "deviation", "decay"))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"a calibration is damaged ({error!r:.200}): plan the upgrade again") from error
    whole = scores.ndim == 1 and scores.shape == log_far.shape and len(scores) > 0 and decay > 0
    if not whole or not np.isfinite([*scores, *log_far, mean, deviation, decay]).all():
        raise UserError("a calibration is damaged (its curve is no curve of finite numbers): plan the upgrade again")
    return ScoreCalibration(mean, deviation, scores, log_far, decay)
