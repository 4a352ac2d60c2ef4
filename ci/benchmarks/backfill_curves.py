"""One table of several backfills: the areas of the orders over random ones, the largest fall of a step, the worst NFR.

    for seed in 0 1 2; do
        B=work_dirs/benchmark/glyphs/seed_$seed
        for model in independent mixbct bct l2 unibct nccl advbct lce hot_refresh; do
            M="rec=$B/data/train_part_70_class old_model=$B/old_class new_model=$B/opclass/$model seed=$seed"
            L="methods/linear_map/train.py methods/linear_map/configs/glyphs.py"
            O=work_dirs/curves/${model}_$seed
            python $L $M output=$O/gallery
            python $L $M output=$O/query kind=procrustes direction=new_to_old
            python tools/backfill_curve.py -m $B/opclass/$model -m_old $B/old_class --gallery-map $O/gallery \\
                --query-map $O/query --data-path $B/data/eval --repeats 20 --out $O/curve
        done
    done
    python -m ci.benchmarks backfill_curves --curves work_dirs/curves/*/curve

The new models are those of `tools/benchmark.py`. Models of the same name are taken as several seeds of one: means, and
the standard deviation of what an order gains. Areas and rates are of rank-1, in per cent.
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from ci.benchmarks.harness.bench import Bench, SetUpError

FALL = 0.5
"""Points; steps that fall by more are listed."""

Curves = dict[str, dict[str, Any]]
"""Of the orders, as `results.json` has them."""


def run(bench: Bench, *, curves: tuple = (), metric: str = "top1") -> None:
    if not curves:
        raise SetUpError("backfill_curves needs --curves, folders of tools/backfill_curve.py with its results.json")
    runs: dict[tuple[str, str, str], list[tuple[Path, Curves]]] = defaultdict(list)
    for folder in map(Path, curves):
        results = json.loads((folder / "results.json").read_text())
        for road, scales in results["roads"].items():
            for scale, orders in scales.items():
                runs[results["models"]["new"]["name"], road, scale].append((folder, orders))
    orders = list(dict.fromkeys(order for found in runs.values() for _, each in found for order in each))
    gains = [order for order in orders if order != "random"]
    header = ["new model", "road", "scores", "seeds", "from", "to", "random", *gains, "largest fall", "worst NFR"]
    rows = [
        [*key, str(len(found)), *summarise([each for _, each in found], gains, metric)] for key, found in runs.items()
    ]
    bench.table("Backfills", header, rows)
    for (model, road, scale), found in runs.items():
        for folder, each in found:
            for order, curve in each.items():
                steps = 100 * np.diff(curve[metric])
                if steps.min() < -FALL:
                    step = int(steps.argmin())
                    bench.note(f"{model}, {road}, {scale}, {order}: a fall of {-steps[step]:.2f} in step {step + 1} of "
                               f"{len(steps)} ({folder})")  # fmt: skip


def summarise(found: list[Curves], orders: list[str], metric: str) -> list[str]:
    """The cells of one model, road and scale, of the curves of all seeds."""
    ends = [100 * np.mean([curves["random"][metric][end] for curves in found]) for end in (0, -1)]
    random = np.array([100 * curves["random"]["auc"] for curves in found])
    cells = [f"{value:.1f}" for value in ends] + [f"{random.mean():.1f}"]
    for order in orders:
        if any(order not in curves for curves in found):
            cells.append("-")
            continue
        gained = np.array([100 * curves[order]["auc"] for curves in found]) - random
        cells.append(f"{gained.mean():+.2f}" + (f" ± {gained.std(ddof=1):.2f}" if len(gained) > 1 else ""))
    curves = [curve for each in found for curve in each.values()]
    fall = max(0.0, *(-100 * np.diff(curve[metric]).min() for curve in curves))
    return [*cells, f"{fall:.2f}", f"{100 * max(max(curve['nfr']) for curve in curves):.1f}"]
