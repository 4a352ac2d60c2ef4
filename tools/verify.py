"""Evaluate a model, or a new model against an old one, on verification sets: lfw.bin, cfp_fp.bin, agedb_30.bin ...

    python tools/verify.py -m work_dirs/new --data-path datasets/ms1m-retinaface-t1 --out work_dirs/new/verification
    python tools/verify.py -m r50.pt -net r50 --data-path lfw.bin cfp_fp.bin --out work_dirs/r50

Accuracy is that of the field: ten folds, the threshold of each chosen on the nine others, embeddings of image and
mirrored image summed. Scores are cosines: a pair is accepted if its score is at least the threshold. With -m_old the
first image of a pair is embedded by the old model and the second by the new one. Writes results.json and roc.png to
--out, and tables to the terminal.
"""

from argparse import Namespace
from collections.abc import Mapping

from command_line import ArgumentParser, add_arguments, check_arguments, load_models

from core.errors import run_program
from core.evaluation.plots import plot_roc
from core.evaluation.results import VERIFICATION, Evaluation, Model, write_evaluation, write_evaluations
from core.evaluation.roc import RocResult
from core.evaluation.tables import format_rate, format_table
from core.evaluation.verification import (
    CACHE,
    embed_pairs,
    evaluate_pairs,
    find_verification_sets,
    read_verification_set,
)
from core.logs import set_up_logging
from core.outputs import make_folder

EMBEDS = ("second image of each pair", "first image of each pair")
"""What the query model and the gallery model embed."""


def parse_arguments() -> Namespace:
    """The command line, with the mistakes in it that need no other file reported."""
    parser = ArgumentParser("Accuracy, TAR at FAR, and thresholds on verification sets such as lfw.bin.")
    parser.add_argument("--data-path", nargs="+", required=True, help=".bin files, or folders that hold some")
    add_arguments(parser, batch_size=128, cache=CACHE)
    args = parser.parse_args()
    check_arguments(args)
    return args


def main() -> None:
    """Parse, evaluate, print, write."""
    set_up_logging()
    args = parse_arguments()
    sets = find_verification_sets(args.data_path)
    query, gallery = load_models(args)
    for path in sets.values():
        read_verification_set(path)  # a damaged file is reported now, not after others were embedded
    results = {}
    for name, path in sets.items():
        embeddings, same = embed_pairs(query, path, args.batch_size, args.num_workers, args.cache)
        first = embeddings
        if gallery is not query:
            first, _ = embed_pairs(gallery, path, args.batch_size, args.num_workers, args.cache)
        results[name] = evaluate_pairs(embeddings, first, same)
    print(make_tables(results))
    make_folder(args.out)
    title = query.name if query is gallery else f"{query.name} / {gallery.name}"
    plot_roc({name: (one.fpr, one.tpr) for name, one in results.items()}, args.out / "roc.png", title)
    query_model, gallery_model = (
        Model.of(encoder, path, part)
        for encoder, path, part in zip((query, gallery), (args.model, args.model_old or args.model), EMBEDS)
    )
    evaluations = [
        Evaluation(VERIFICATION + name, query_model, gallery_model, one.metrics, {"flip": True}, one.thresholds)
        for name, one in results.items()
    ]
    if len(evaluations) == 1:
        write_evaluation(args.out / "results.json", evaluations[0])
    else:
        write_evaluations(args.out / "results.json", evaluations)


def make_tables(results: Mapping[str, RocResult]) -> str:
    """The metrics in per cent, and the thresholds, a line a set; without the FARs that no set resolves."""
    metrics = _resolved([one.metrics for one in results.values()])
    thresholds = _resolved([one.thresholds for one in results.values()])
    rates = [[name, *(format_rate(one.metrics[key]) for key in metrics)] for name, one in results.items()]
    scores = [[name, *(_score(one.thresholds[key]) for key in thresholds)] for name, one in results.items()]
    return f"{format_table(['%', *metrics], rates)}\n\n{format_table(['threshold', *thresholds], scores)}"


def _resolved(columns: list[dict[str, float | None]]) -> list[str]:
    return [key for key in columns[0] if any(column[key] is not None for column in columns)]


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


if __name__ == "__main__":
    run_program(main)
