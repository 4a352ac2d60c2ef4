"""The negative flips of a road that are worst: probes that old/old answers rightly and the road most surely wrongly."""

from collections.abc import Mapping

import numpy as np

from core.gallery.planning.plan import Flip, Shown
from core.gallery.planning.sample import Sample
from core.gallery.planning.sample_calibration import PAIRS
from core.gallery.planning.trials import Draws, Found
from core.gallery.upgrade import Calibrations

__all__ = ["worst_flips"]

MOST = 12


def worst_flips(
    road: str, sample: Sample, draws: Draws, found: Mapping[str, Found], calibrations: Calibrations
) -> list[Flip]:
    """At most twelve, of different queries, the worst first.

    The worst is that whose wrong hit has the smallest FAR, relative to the FAR of the right image.
    """
    before, after = found[PAIRS["stay"]], found[PAIRS[road]]
    log_far = {name: calibrations[PAIRS[name]].log_false_accept_rate for name in ("stay", road)}
    gaps = log_far[road](after.right) - log_far[road](after.wrong)
    gaps = np.where(draws.probes & before.is_right & ~after.is_right, gaps, -np.inf)
    draw_of = gaps.argmax(axis=0)
    worst = gaps.max(axis=0)
    flips = []
    for row in np.argsort(-worst, kind="stable")[:MOST].tolist():
        if np.isneginf(worst[row]):
            break
        draw = int(draw_of[row])
        own = int(draws.enrolled[draw, sample.identities[row]])

        def shown(image: int, score: float, road: str) -> Shown:
            name, identity = _named(sample, image)
            return Shown(image, name, identity, float(score), float(log_far[road](np.array(score))))

        flips.append(
            Flip(
                road,
                row,
                *_named(sample, row),
                before=shown(own, before.right[draw, row], "stay"),
                wrong=shown(int(after.hit[draw, row]), after.wrong[draw, row], road),
                right=shown(own, after.right[draw, row], road),
            )
        )
    return flips


def _named(sample: Sample, row: int) -> tuple[str, str]:
    return sample.names[row], sample.identity_names[sample.identities[row]]
