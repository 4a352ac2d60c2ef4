"""How a search gets better while its gallery is embedded again: accuracy and flips against the share that is done.

    python tools/backfill_curve.py -m NEW -m_old OLD --gallery-map MAP --data-path datasets/glyphs/eval --out curve
    python tools/backfill_curve.py -m NEW -m_old OLD --dataset roxford5k --data-path datasets \
        --calibration datasets/gldv2/train_clean.txt --out curve

The queries are the new model's. The part of the gallery that is not embedded again is searched by one road or several:
directly (models of one size), through a map of the gallery or of the queries (their run folders), and with the old
model's queries beside the new one's. Scores of both parts are ranked raw and calibrated; the calibration comes from
people that are not tested: those of the other gallery of IJB, and for the landmarks those of --calibration.
Writes results.json, a table to the terminal, and backfill.png.
"""

from argparse import Namespace

import numpy as np
from command_line import ArgumentParser, add_arguments, check_arguments, preprocessing

from core.data.open_dataset import open_dataset
from core.errors import UserError, run_program
from core.evaluation.backfill import steps
from core.evaluation.backfill_orders import ORDERS
from core.evaluation.backfill_roads import BackfillModels, BackfillOptions, Roads, run_ijb, run_retrieval
from core.evaluation.ijb_embeddings import CACHE
from core.evaluation.ijb_meta import SUBSETS, require_meta
from core.evaluation.plots import plot_backfill
from core.evaluation.results import Model, write_backfill
from core.evaluation.revisited_files import read_revisited
from core.evaluation.tables import format_rate, format_table
from core.logs import set_up_logging
from core.models.encoder import load_encoder
from core.outputs import make_folder

DATASETS = (*sorted(map(str.lower, SUBSETS), reverse=True), "roxford5k", "rparis6k")
METRICS = {"ijbc": "top1", "ijbb": "top1", "roxford5k": "map_medium", "rparis6k": "map_medium"}
"""What the curves are drawn of, and their area is taken of."""


def parse_arguments() -> Namespace:
    """The command line, with the mistakes in it that need no other file reported."""
    parser = ArgumentParser("Accuracy and flips of a search while its gallery is embedded again, by road and order.")
    parser.add_argument("--dataset", choices=DATASETS, default="ijbc", help="the tree below --data-path")
    parser.add_argument("--data-path", required=True, help="folder of the tree, or its parent")
    add_arguments(parser, batch_size=128, cache=CACHE)
    parser.add_argument("--query-map", help="run folder of a map of the new model's embeddings into the old space")
    parser.add_argument("--gallery-map", help="run folder of a map of the old model's embeddings into the new space")
    parser.add_argument("--orders", nargs="+", choices=ORDERS, help="default: all that the data and the maps allow")
    parser.add_argument("--steps", type=int, default=11, help="points of a curve, from nothing refreshed to all")
    parser.add_argument("--repeats", type=int, default=5, help="random orders that are averaged")
    parser.add_argument("--seed", type=int, default=0, help="of the random orders")
    parser.add_argument(
        "--calibration", help="records or list of other people or landmarks than those tested (roxford5k, rparis6k)"
    )
    args = parser.parse_args()
    if not args.model_old:
        raise UserError("-m_old is missing: the model that made the gallery")
    if args.steps < 2 or args.repeats < 1:
        raise UserError("--steps must be 2 or more and --repeats 1 or more")
    if args.calibration and args.dataset.upper() in SUBSETS:
        raise UserError("--calibration is for roxford5k and rparis6k: each gallery of IJB is calibrated on the other")
    check_arguments(args)
    return args


def main() -> None:
    """Parse, evaluate, print, write."""
    set_up_logging()
    args = parse_arguments()
    models = load_all(args)
    options = BackfillOptions(
        tuple(args.orders or ()),
        steps(args.steps),
        args.repeats,
        args.seed,
        args.batch_size,
        args.num_workers,
        args.cache,
    )
    if args.dataset.upper() in SUBSETS:
        subset = args.dataset.upper()
        roads = run_ijb(models, require_meta(args.data_path, subset, one_to_n=True), subset, options)
    else:
        data = open_dataset(args.calibration, models.new.image_size) if args.calibration else None
        roads = run_retrieval(models, read_revisited(args.data_path, args.dataset), data, options)
    metric = METRICS[args.dataset]
    print(make_table(roads, metric, options.shares))
    make_folder(args.out)
    title = f"{args.dataset}: {models.new.name} for the gallery of {models.old.name}"
    plot_backfill(roads, options.shares, metric, args.out / "backfill.png", title)
    described = {
        "new": Model.of(models.new, args.model, "queries and what is embedded again"),
        "old": Model.of(models.old, args.model_old, "the stored gallery"),
    }
    for name, path in (("query_map", args.query_map), ("gallery_map", args.gallery_map)):
        encoder = getattr(models, name)
        if encoder is not None:
            described[name] = Model.of(encoder, path, name.replace("_", " of the "))
    write_backfill(args.out / "results.json", f"backfill-{args.dataset}", described, options.shares, metric, roads)


def load_all(args: Namespace) -> BackfillModels:
    """The models that the command line names; `UserError` for a map that does not join their spaces."""
    new = load_encoder(args.model, args.network, args.device, **preprocessing(args))
    old = load_encoder(
        args.model_old, args.network_old, args.device, **preprocessing(args, "_old"), network_option="-old_net"
    )
    maps = [load_encoder(path, None, args.device) if path else None for path in (args.query_map, args.gallery_map)]
    return BackfillModels(new, old, *maps)


def make_table(roads: Roads, metric: str, shares: np.ndarray) -> str:
    """A line a road, scale and order: area, the metric at five shares, the largest fall of a step, the worst NFR."""
    shown = np.unique(np.rint(np.linspace(0, len(shares) - 1, 5)).astype(int))
    header = [
        f"{metric} (%)",
        "scores",
        "order",
        "AUC",
        *(f"{shares[i]:.0%}" for i in shown),
        "largest fall",
        "worst NFR",
    ]
    rows = []
    for road, scales in roads.items():
        for scale, curves in scales.items():
            for order, curve in curves.items():
                values = curve.metrics[metric]
                fall = max(0.0, -np.diff(values).min())
                numbers = (curve.area(metric, shares), *values[shown], fall, curve.nfr.max())
                rows.append([road, scale, order, *map(format_rate, numbers)])
    return format_table(header, rows)


if __name__ == "__main__":
    run_program(main)
