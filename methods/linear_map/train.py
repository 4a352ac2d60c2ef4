"""Maps between the spaces of two finished models, fitted on their embeddings of the same images, most in closed form.

With v_i and u_i the embeddings of image i by the model that the map leads from and by the one that it leads to, both of
length 1, x -> x W + b is

    procrustes  min sum_i |v_i W - u_i|²,  W orthogonal, b = 0 (Schönemann, Psychometrika 1966)
    ridge       min sum_i |v_i W + b - u_i|² + penalty |W|²    (Hoerl and Kennard, Technometrics 1970)
    low_rank    the same among all W of a rank (Mukherjee and Zhu, Statistical Analysis and Data Mining 2011)
    mlp         a ridge and a hidden layer, trained to classify u's space by its class means

Drift-Adapter (arXiv 2509.23471) has such maps, from new queries to an old gallery. Here the usual direction is the one
that was better: an old gallery mapped by a ridge, new queries by Procrustes.

    python train.py configs/OPclass_ms1mv3_r18_to_r50_LinearMap_softmax_to_arc_f128.py
    python train.py configs/glyphs.py kind=procrustes output=work_dirs/glyphs_procrustes
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from core.engine.map_method import FittedMap, Fitting, MapMethod
from core.errors import UserError, run_program
from core.models.map_run import NEW_TO_OLD, OLD_TO_NEW
from core.models.maps import fit_map
from core.models.maps.fit import require_options
from core.program import map_program
from core.settings import MapSettings, key


@dataclass(frozen=True, kw_only=True)
class LinearMapSettings(MapSettings):
    """The kind and its options; those that are None are the kind's own."""

    kind: Literal["ridge", "procrustes", "low_rank", "mlp"] = key("ridge", "of the map", heading="The kind of map")
    centred: bool = key(False, "procrustes: about the means, which are mapped too")
    penalty: float | None = key(None, "ridge, low_rank; None: chosen by cross-validation", minimum=0)
    rank: int | None = key(None, "low_rank; None: 64, or the smaller embedding size", minimum=1)
    hidden: int | None = key(None, "mlp: hidden units; None: 256", minimum=1)
    scale: float | None = key(None, "mlp: of the cosines with the class means; None: 12", above=0)
    num_epoch: int | None = key(None, "mlp: epochs of the training; None: 10", minimum=1)
    pairs_per_step: int | None = key(None, "mlp: pairs in a step; None: 256", minimum=1)
    lr: float | None = key(None, "mlp: learning rate of Adam; None: 1e-3", above=0)

    @property
    def options(self) -> dict[str, Any]:
        """Those that are set, as `fit_map` names them."""
        named = {
            "centred": self.centred or None,
            "penalty": self.penalty,
            "rank": self.rank,
            "hidden": self.hidden,
            "scale": self.scale,
            "num_epoch": self.num_epoch,
            "batch_size": self.pairs_per_step,
            "lr": self.lr,
            "seed": self.seed if self.kind == "mlp" else None,
        }
        return {name: value for name, value in named.items() if value is not None}


class LinearMap(MapMethod[LinearMapSettings]):
    """Fits a map of the kind that the settings name."""

    settings_type = LinearMapSettings

    def usual_direction(self, settings: LinearMapSettings) -> str:
        """A rotation keeps all that queries hold; other maps suit a gallery."""
        return NEW_TO_OLD if settings.kind == "procrustes" else OLD_TO_NEW

    def check(self, run: Fitting[LinearMapSettings]) -> None:
        """`UserError` for options that the kind does not have, and a rank above the sizes."""
        settings, smaller = run.settings, min(run.old.size, run.new.size)
        require_options(settings.kind, settings.options)
        if settings.rank is not None and settings.rank > smaller:
            raise UserError(f"rank={settings.rank} is above {smaller}, the smaller embedding size: set it lower")

    def check_labels(self, run: Fitting[LinearMapSettings], labels: np.ndarray) -> None:
        """`UserError` where an mlp has no classes to tell apart."""
        if run.settings.kind == "mlp" and len(np.unique(labels)) < 2:
            raise UserError(f"all images of {run.settings.rec} have one label: kind=mlp needs two or more classes")

    def fit(self, run: Fitting[LinearMapSettings]) -> dict[str, FittedMap]:
        """The map in the direction asked for."""
        assert run.direction is not None, "a linear map has a direction"
        base, other = (run.old, run.new) if run.direction == OLD_TO_NEW else (run.new, run.old)
        labels = np.asarray(base.features.labels())
        fitted = fit_map(run.settings.kind, base.features, other.features, labels, **run.settings.options)
        return {"": FittedMap(fitted, base, run.direction)}


def main() -> None:
    """Fit a map between the spaces of two models: ridge, Procrustes, low rank, or with a hidden layer."""
    map_program(LinearMap(), __file__, main.__doc__)


if __name__ == "__main__":
    run_program(main)
