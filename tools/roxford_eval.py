"""Evaluate a model, or new queries against an old database, on ROxford5k, RParis6k or GLDv2-test.

    python tools/roxford_eval.py --dataset roxford5k --data-path datasets -m work_dirs/new --out work_dirs/new/roxford5k
    python tools/roxford_eval.py --dataset roxford5k --data-path datasets -m work_dirs/new -m_old work_dirs/old \
        --pictures --out work_dirs/cross_roxford5k
    python tools/roxford_eval.py --dataset gldv2 --data-path datasets/gldv2 -m work_dirs/new --out work_dirs/new/gldv2

With -m_old the queries are embedded by the new model and the database by the old one. Writes results.json, the
precision-recall curves as PNG and, with --pictures, a picture for each query to --out, and a table to the terminal.
"""

import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
from command_line import ArgumentParser, add_arguments, check_arguments, load_models

from core.errors import UserError, run_program
from core.evaluation.descriptors import CACHE
from core.evaluation.flips import flip_rates
from core.evaluation.gldv2 import read_gldv2
from core.evaluation.plots import plot_hits, plot_precision_recall
from core.evaluation.results import Evaluation, Model, write_evaluation
from core.evaluation.retrieval import RetrievalOptions, RetrievalTest, found_first, rank_database
from core.evaluation.retrieval_images import RetrievalImages, read_image_list
from core.evaluation.revisited import KAPPAS, SETUPS
from core.evaluation.revisited_files import read_revisited
from core.evaluation.tables import format_rate, format_table
from core.logs import set_up_logging
from core.outputs import make_folder
from core.progress import track

NUM_HITS = 10


def parse_arguments() -> Namespace:
    """The command line, with the mistakes in it that need no other file reported."""
    parser = ArgumentParser("Evaluate landmark retrieval; with -m_old, new queries against an old database.")
    parser.add_argument("--dataset", choices=("roxford5k", "rparis6k", "gldv2"), default="roxford5k", help="data set")
    parser.add_argument("--data-path", required=True, help="folder of the data set, or the folder that contains it")
    add_arguments(parser, batch_size=32, cache=CACHE)
    parser.add_argument("--no-crop", action="store_true", help="embed whole query images, not the boxes in them")
    parser.add_argument("--image-size", type=int, help="side that images are resized to, if not the model's own")
    parser.add_argument(
        "--scales", type=float, nargs="+", default=[1.0], metavar="S", help="average descriptors at these scales"
    )
    parser.add_argument("--whiten", action="store_true", help="PCA whitening learned on the database")
    parser.add_argument(
        "--query-expansion",
        type=int,
        default=0,
        metavar="N",
        help="add the first N results to each query, search again",
    )
    parser.add_argument("--distractors", type=Path, help="list of more database images, such as revisitop1m.txt")
    parser.add_argument("--distractor-root", type=Path, help="their folder, if not jpg/ beside the list")
    parser.add_argument("--image-root", type=Path, help="gldv2: folder of the images, if not beside the lists")
    parser.add_argument(
        "--pictures", type=int, nargs="?", const=sys.maxsize, default=0, metavar="N",
        help="draw the first hits of the first N queries, or of all",
    )  # fmt: skip
    args = parser.parse_args()
    check_arguments(args)
    if not all(0 < scale < np.inf for scale in args.scales) or (args.image_size is not None and args.image_size < 1):
        raise UserError("--scales must be above 0 and finite and --image-size 1 or more")
    if args.query_expansion < 0 or args.pictures < 0:
        raise UserError("--query-expansion and --pictures must be 0 or more")
    if args.distractors and args.dataset == "gldv2":
        raise UserError("--distractors belong to roxford5k and rparis6k, not to gldv2: leave them out")
    if args.distractor_root and not args.distractors:
        raise UserError("--distractor-root is the folder of distractors, but there is no --distractors")
    if args.image_root and args.dataset != "gldv2":
        raise UserError(f"--image-root is for gldv2: the images of {args.dataset} lie in jpg/ below --data-path")
    return args


def main() -> None:
    """Parse, evaluate, print, write."""
    set_up_logging()
    args = parse_arguments()
    test = read_test(args)
    options = read_options(args)
    query, gallery = load_models(args)
    scores, rows = rank_database(query, gallery, test, options)
    result = test.evaluate(rows)
    if query is not gallery:
        before = gallery.gallery_model
        _, rows_before = rank_database(before, before, test, options)
        result.metrics.update(flip_rates(found_first(test, rows_before), found_first(test, rows)))
    name = query.name if query is gallery else f"{query.name} / {gallery.name}"
    print(make_table(name, result.metrics))
    make_folder(args.out)
    plot_precision_recall(result.curves, args.out / "precision_recall.png", f"{args.dataset}, {name}")
    draw_hits(args, test, options, scores, rows)
    query_model = Model.of(query, args.model, "queries")
    gallery_model = Model.of(gallery, args.model_old or args.model, "database")
    evaluation = Evaluation(test.task, query_model, gallery_model, result.metrics, settings(args, options))
    write_evaluation(args.out / "results.json", evaluation)


def read_test(args: Namespace) -> RetrievalTest:
    """Queries, database and ground truth of the data set."""
    if args.dataset == "gldv2":
        return read_gldv2(args.data_path, args.image_root)
    return read_revisited(args.data_path, args.dataset)


def read_options(args: Namespace) -> RetrievalOptions:
    """The switches of the command line, with the list of distractors read."""
    distractors = None
    if args.distractors:
        root = args.distractor_root or args.distractors.parent / "jpg"
        distractors = read_image_list(args.distractors, root, "list of distractors")
    return RetrievalOptions(
        crop=not args.no_crop,
        scales=tuple(args.scales),
        image_size=args.image_size,
        whiten=args.whiten,
        query_expansion=args.query_expansion,
        distractors=distractors,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        use_gpu=args.device.type == "cuda",
        cache=args.cache,
    )


def settings(args: Namespace, options: RetrievalOptions) -> dict[str, object]:
    """What results.json says about how the test was made."""
    return {
        "crop": options.crop,
        "image_size": options.image_size,
        "scales": options.scales,
        "whiten": options.whiten,
        "query_expansion": options.query_expansion,
        "distractors": str(args.distractors) if args.distractors else None,
        "num_distractors": len(options.distractors or ()),
    }


def make_table(name: str, metrics: dict[str, float | None]) -> str:
    """The metrics in per cent: a line for each setup of the revisited benchmarks, or for each part of GLDv2's."""
    if "map@100" in metrics:
        header, rows = (
            ("public and private", "public", "private"),
            {"mAP@100": [metrics[key] for key in metrics if key.startswith("map@100")]},
        )
    else:
        header = ("mAP", *(f"mP@{k}" for k in KAPPAS))
        rows = {setup: [value for key, value in metrics.items() if key.endswith(f"_{setup}")] for setup in SETUPS}
    lines = [[row, *map(format_rate, values)] for row, values in rows.items()]
    table = format_table([f"{name} (%)", *header], lines)
    if "nfr" not in metrics:
        return table
    nfr, pfr = (format_rate(metrics[flip]) for flip in ("nfr", "pfr"))
    return f"{table}\nfirst results against those of the old model's own search: NFR {nfr}, PFR {pfr}"


def draw_hits(
    args: Namespace, test: RetrievalTest, options: RetrievalOptions, scores: np.ndarray, rows: np.ndarray
) -> None:
    """Write pictures/NUMBER_QUERY.png: each query and its first ten hits, framed by what they are."""
    queries = range(min(args.pictures, len(test.queries)))
    if not queries:
        return
    folder = args.out / "pictures"
    folder.mkdir(exist_ok=True)
    shown = test.queries if options.crop else test.queries.cropped(None)
    for query in track(queries, "pictures", len(queries), "queries"):
        hits = rows[query, :NUM_HITS].tolist()
        positives, junk = test.judged(query)
        kinds = np.where(np.isin(hits, positives), "positive", np.where(np.isin(hits, junk), "junk", "negative"))
        plot_hits(
            shown.read(query),
            [read_hit(test.database, options.distractors, row) for row in hits],
            kinds.tolist(),
            scores[query, :NUM_HITS].tolist(),
            folder / f"{query + 1:04d}_{Path(test.queries.names[query]).stem}.png",
        )


def read_hit(database: RetrievalImages, distractors: RetrievalImages | None, row: int) -> np.ndarray:
    """The image of a row of the database, which the distractors follow."""
    if distractors is None or row < len(database):
        return database.read(row)
    return distractors.read(row - len(database))


if __name__ == "__main__":
    run_program(main)
