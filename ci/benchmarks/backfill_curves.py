"""One table of several backfills: the areas of the orders over random ones, the largest fall of a step, the worst NFR.

    for seed in 0 1 2; do
        B=work_dirs/benchmark/glyphs/seed_$seed
        for model in independent mixbct bct; do
            M="rec=$B/data/train_part_70_class old_model=$B/old_class new_model=$B/opclass/$model seed=$seed"
            L="methods/linear_map/train.py methods/linear_map/configs/glyphs.py"
            O=work_dirs/curves/${model}_$seed
            python $L $M output=$O/gallery
            python $L $M output=$O/query kind=procrustes direction=new_to_old
            python tools/backfill_curve.py -m $B/opclass/$model -m_old $B/old_class --gallery-map $O/gallery \\
                --query-map $O/query --data-path $B/data/eval --repeats 20 --out $O/curve
        done
    done
    python ci/benchmarks/backfill_curves.py work_dirs/curves/*/curve

The new models are those of `tools/benchmark.py`. Models of the same name are taken as several seeds of one: means, and
the standard deviation of what an order gains. Areas and rates are of rank-1, in per cent.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from core.evaluation.tables import format_markdown

FALL = 0.5
"""Points; steps that fall by more are listed."""

Curves = dict[str, dict[str, Any]]
"""Of the orders, as `results.json` has them."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="where tools/backfill_curve.py wrote results.json")
    parser.add_argument("--metric", default="top1")
    args = parser.parse_args()
    runs: dict[tuple[str, str, str], list[tuple[Path, Curves]]] = defaultdict(list)
    for folder in args.folders:
        results = json.loads((folder / "results.json").read_text())
        for road, scales in results["roads"].items():
            for scale, orders in scales.items():
                runs[results["models"]["new"]["name"], road, scale].append((folder, orders))
    orders = list(dict.fromkeys(order for found in runs.values() for _, each in found for order in each))
    gains = [order for order in orders if order != "random"]
    header = ["new model", "road", "scores", "seeds", "from", "to", "random", *gains, "largest fall", "worst NFR"]
    rows = [
        [*key, str(len(found)), *summarise([each for _, each in found], gains, args.metric)]
        for key, found in runs.items()
    ]
    print(format_markdown(header, rows))
    print(f"\nSteps that fall by more than {FALL} points:\n")
    for (model, road, scale), found in runs.items():
        for folder, each in found:
            for order, curve in each.items():
                steps = 100 * np.diff(curve[args.metric])
                if steps.min() < -FALL:
                    step = int(steps.argmin())
                    print(f"  {model}, {road}, {scale}, {order}: {steps[step]:.2f} in step {step + 1} of {len(steps)} "
                          f"({folder})")  # fmt: skip


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


if __name__ == "__main__":
    main()
