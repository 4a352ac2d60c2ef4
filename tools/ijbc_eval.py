"""Evaluate a model, or a new model against an old gallery, on IJB-B or IJB-C: 1:1 verification or 1:N identification.

    python tools/ijbc_eval.py -m work_dirs/new --data-path datasets --out work_dirs/new/ijbc
    python tools/ijbc_eval.py -m work_dirs/new -m_old work_dirs/old -N --data-path datasets --out work_dirs/cross_1n

With -m_old, the first template of a pair is embedded by the old model and the second by the new one; in 1:N the
galleries are the old model's and the probes the new model's. Writes results.json and the curves as PNG to --out, and
a table to the terminal.
"""

from argparse import Namespace
from collections.abc import Callable

import numpy as np
from command_line import ArgumentParser, add_arguments, check_arguments, load_models

from core.errors import run_program
from core.evaluation.flips import mean_flip_rates
from core.evaluation.identification import IdentificationResult, evaluate_1_n
from core.evaluation.ijb import evaluate_1_1, template_features
from core.evaluation.ijb_embeddings import CACHE, embed_images
from core.evaluation.ijb_meta import SUBSETS, IjbImages, read_identification, read_images, read_pairs, require_meta
from core.evaluation.model_pairs import EMBEDS
from core.evaluation.plots import plot_identification, plot_roc
from core.evaluation.results import Evaluation, Model, write_evaluation
from core.evaluation.roc import RocResult
from core.evaluation.tables import format_rate, format_table
from core.logs import set_up_logging
from core.models.encoder import Encoder
from core.outputs import make_folder


def parse_arguments() -> Namespace:
    """The command line, with the mistakes in it that need no other file reported."""
    parser = ArgumentParser("Evaluate on IJB-B or IJB-C, 1:1 or 1:N; with -m_old, new queries against an old gallery.")
    parser.add_argument("-N", "--one-to-n", action="store_true", help="1:N identification instead of 1:1 verification")
    parser.add_argument("--data-path", required=True, help="folder that contains IJBC/ or IJBB/, or that folder")
    parser.add_argument("--subset", choices=sorted(SUBSETS, reverse=True), default="IJBC", help="data set")
    add_arguments(parser, batch_size=128, cache=CACHE)
    parser.add_argument("--no-flip", action="store_true", help="leave out the mirrored images")
    parser.add_argument("--no-detector-score", action="store_true", help="do not weigh images by the detector's score")
    parser.add_argument(
        "--normalize-embeddings", action="store_true", help="make image features unit vectors before they are averaged"
    )
    args = parser.parse_args()
    check_arguments(args)
    return args


def main() -> None:
    """Parse, evaluate, print, write."""
    set_up_logging()
    args = parse_arguments()
    root = require_meta(args.data_path, args.subset, args.one_to_n)
    query, gallery = load_models(args)
    images = read_images(root, args.subset)
    evaluate = make_evaluation(args, images)
    query_templates = embed_templates(args, query, images)
    gallery_templates = query_templates if gallery is query else embed_templates(args, gallery, images)
    before = None
    if gallery is not query:
        before = gallery_templates
        if gallery.gallery_model is not gallery:
            before = embed_templates(args, gallery.gallery_model, images)
    result = evaluate(query_templates, gallery_templates, before)
    name = query.name if query is gallery else f"{query.name} / {gallery.name}"
    print(make_table(name, result))
    make_folder(args.out)
    if isinstance(result, IdentificationResult):
        plot_identification(result.curves, args.out / "identification.png", f"{args.subset} 1:N, {name}")
    else:
        plot_roc({name: (result.fpr, result.tpr)}, args.out / "roc.png", f"{args.subset} 1:1")
    protocol_name = "1:N" if args.one_to_n else "1:1"
    parts, task = EMBEDS[protocol_name], f"{args.subset.lower()}-{protocol_name}"
    query_model, gallery_model = (
        Model.of(encoder, path, part)
        for encoder, path, part in zip((query, gallery), (args.model, args.model_old or args.model), parts)
    )
    thresholds = result.all_thresholds() if isinstance(result, RocResult) else {}
    evaluation = Evaluation(task, query_model, gallery_model, result.metrics, settings(args), thresholds)
    write_evaluation(args.out / "results.json", evaluation)


def make_evaluation(
    args: Namespace, images: IjbImages
) -> Callable[[np.ndarray, np.ndarray, np.ndarray | None], RocResult | IdentificationResult]:
    """The protocol's evaluation, its lists read: mistakes in them are reported now.

    It takes the templates of the query model, of the gallery model and, in a cross-test, of the model that searched the
    gallery before: flips and rates at the old thresholds are against its self-test.
    """
    if args.one_to_n:
        lists = read_identification(images)

        def identify(query: np.ndarray, gallery: np.ndarray, old: np.ndarray | None) -> IdentificationResult:
            result = evaluate_1_n(query, gallery, lists)
            if old is not None:
                result.metrics.update(mean_flip_rates(evaluate_1_n(old, old, lists).found, result.found))
            return result

        return identify
    pairs = read_pairs(images)

    def verify(query: np.ndarray, gallery: np.ndarray, old: np.ndarray | None) -> RocResult:
        return evaluate_1_1(query, gallery, pairs, None if old is None else evaluate_1_1(old, old, pairs))

    return verify


def settings(args: Namespace) -> dict[str, bool]:
    """What results.json says about how the test was made."""
    return {
        "flip": not args.no_flip,
        "detector_score": not args.no_detector_score,
        "normalize_embeddings": args.normalize_embeddings,
    }


def embed_templates(args: Namespace, encoder: Encoder, images: IjbImages) -> np.ndarray:
    """Template features (T, D) of a model under the switches of the command line."""
    embeddings = embed_images(encoder, images, args.batch_size, args.num_workers, args.cache)
    return template_features(
        embeddings, images, not args.no_flip, not args.no_detector_score, args.normalize_embeddings
    )


def make_table(name: str, result: RocResult | IdentificationResult) -> str:
    """The metrics in per cent: one line for 1:1 and, in a cross-test, the rates at the old thresholds; a line a gallery
    for 1:N.
    """
    rows = {name: {key: value for key, value in result.metrics.items() if not isinstance(value, dict)}}
    header = list(rows[name])
    rows.update({key: value for key, value in result.metrics.items() if isinstance(value, dict)})
    table = format_table(["%", *header], [[row, *(format_rate(rows[row].get(key)) for key in header)] for row in rows])
    kept = result.at_old_threshold if isinstance(result, RocResult) else {}
    kept = {name: rates for name, rates in kept.items() if rates is not None}
    if not kept:
        return table
    lines = [[rate.upper(), *(format_rate(rates[rate]) for rates in kept.values())] for rate in ("tar", "far")]
    return f"{table}\n\n" + format_table(["at the old model's threshold for", *kept], lines)


if __name__ == "__main__":
    run_program(main)
