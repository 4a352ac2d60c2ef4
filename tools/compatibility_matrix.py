"""Which of several models, one after another in service, can search whose galleries: all pairs on IJB-B or IJB-C.

    python tools/compatibility_matrix.py --models work_dirs/old work_dirs/new work_dirs/newer \
        --data-path datasets/glyphs/eval --out work_dirs/matrix

The order of --models is that of the upgrades, the oldest first. Each model embeds the images once. A pair of a newer
query model and an older gallery model is compatible if the newer one finds more in that gallery than the gallery's own
model does. Writes matrix.csv, matrix.png and results.json to --out, and prints the matrices and the verdicts.
"""

import json
from argparse import Namespace
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from command_line import ArgumentParser, add_run_arguments, check_run_arguments

from core.errors import UserError, run_program
from core.evaluation.compatibility_matrix import UpdateMatrix, write_matrices
from core.evaluation.ijb import FARS, FPIRS, RANKS
from core.evaluation.ijb_embeddings import CACHE
from core.evaluation.ijb_meta import SUBSETS, require_meta
from core.evaluation.model_pairs import PairResults, evaluate_pairs
from core.evaluation.plots import plot_matrices
from core.evaluation.tables import format_table
from core.files import replaced_atomically
from core.logs import set_up_logging
from core.models.encoder import Encoder, load_encoder

TASKS = {
    **{f"top{rank}": "1:N" for rank in RANKS},
    **{f"tpir@fpir={fpir}": "1:N" for fpir in FPIRS},
    **{f"tar@far={far:.0e}": "1:1" for far in FARS},
    "auc": "1:1",
}
"""The task of each metric."""


def main() -> None:
    """Parse, evaluate, print, write."""
    set_up_logging()
    args = parse_arguments()
    require_meta(args.data_path, args.subset, one_to_n=True)
    networks = args.networks or [None] * len(args.models)
    encoders = [load_encoder(path, network, args.device) for path, network in zip(args.models, networks)]
    pairs = {
        f"{q}/{g}": (q, g)
        for q, query in enumerate(encoders)
        for g, gallery in enumerate(encoders)
        if query.embedding_size == gallery.embedding_size
    }
    results = evaluate_pairs(
        {str(i): encoder for i, encoder in enumerate(encoders)},
        pairs, args.data_path, args.subset, args.batch_size, args.num_workers, args.cache,
    )  # fmt: skip
    found = {pairs[pair]: result for pair, result in results.items()}
    names = name_models(encoders, args.models)
    matrices = {metric: UpdateMatrix(names, read_rates(found, metric, len(names))) for metric in args.metric}
    for metric, matrix in matrices.items():
        print(f"{metric} (%)\n{matrix.table()}\n")
    print(make_verdicts(matrices))
    args.out.mkdir(exist_ok=True)
    write_matrices(matrices, args.out / "matrix.csv")
    title = "{}, {} (%), \N{CHECK MARK} compatible"
    panels = {title.format(args.subset, metric): (m.rates, m.texts()) for metric, m in matrices.items()}
    plot_matrices(panels, names, args.out / "matrix.png")
    write_results(args, encoders, matrices)


def parse_arguments() -> Namespace:
    """The command line, with the mistakes in it that need no other file reported."""
    parser = ArgumentParser("Test each model's queries in each model's gallery, and tell which pairs are compatible.")
    parser.add_argument(
        "--models", nargs="+", required=True, metavar="MODEL",
        help="run folders, .pt state dicts or .onnx files in the order of the upgrades, the oldest first",
    )  # fmt: skip
    parser.add_argument(
        "--networks", nargs="+", metavar="NET", help="network of each model, where they are bare state dicts"
    )
    parser.add_argument("--data-path", required=True, help="folder that contains IJBC/ or IJBB/, or that folder")
    parser.add_argument("--subset", choices=sorted(SUBSETS, reverse=True), default="IJBC", help="data set")
    parser.add_argument(
        "--metric", nargs="+", choices=TASKS, default=["top1", "tar@far=1e-04"], metavar="NAME", help=", ".join(TASKS)
    )
    add_run_arguments(parser, batch_size=128, cache=CACHE)
    args = parser.parse_args()
    if len(args.models) < 2:
        raise UserError("--models needs at least two models, the oldest first")
    if args.networks and len(args.networks) != len(args.models):
        raise UserError(
            f"--networks names {len(args.networks)} networks for {len(args.models)} models: name one for each"
        )
    check_run_arguments(args)
    return args


def name_models(encoders: Sequence[Encoder], paths: Sequence[str]) -> list[str]:
    """The models' names, and the paths of those that share theirs with another."""
    counts = Counter(encoder.name for encoder in encoders)
    return [encoder.name if counts[encoder.name] == 1 else path for encoder, path in zip(encoders, paths)]


def read_rates(found: Mapping[tuple[int, int], PairResults], metric: str, num_models: int) -> np.ndarray:
    """The metric of each pair (query, gallery), NaN for a pair without results or a rate that is not resolved."""
    rates = np.full((num_models, num_models), np.nan)
    for pair, results in found.items():
        value = results[TASKS[metric]].metrics[metric]
        rates[pair] = np.nan if value is None else value
    return rates


def make_verdicts(matrices: Mapping[str, UpdateMatrix]) -> str:
    """A line for each pair of a newer query and an older gallery model: whether it is compatible, by each metric."""
    first = next(iter(matrices.values()))
    rows = [
        [f"{first.names[query]} / {first.names[gallery]}", *(m.verdict(query, gallery) for m in matrices.values())]
        for query, gallery in first.updates()
    ]
    return format_table(["compatible (query / gallery)", *matrices], rows)


def write_results(args: Namespace, encoders: Sequence[Encoder], matrices: Mapping[str, UpdateMatrix]) -> None:
    """Write results.json: the models, the matrices, and for each pair of newer and older model whether it is
    compatible by each metric.
    """
    first = next(iter(matrices.values()))
    content = {
        "task": f"{args.subset.lower()}-matrix",
        "models": [
            {
                "name": name,
                "path": path,
                "fingerprint": encoder.fingerprint,
                "network": encoder.network,
                "embedding_size": encoder.embedding_size,
            }
            for name, path, encoder in zip(first.names, args.models, encoders)
        ],
        "metrics": {
            metric: [[None if np.isnan(rate) else float(rate) for rate in rates] for rates in matrix.rates]
            for metric, matrix in matrices.items()
        },
        "compatible": [
            {
                "query": first.names[query],
                "gallery": first.names[gallery],
                **{metric: matrix.is_compatible(query, gallery) for metric, matrix in matrices.items()},
            }
            for query, gallery in first.updates()
        ],
    }
    with replaced_atomically(args.out / "results.json") as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    run_program(main)
