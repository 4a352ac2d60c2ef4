"""Which of several models, one after another in service, can search whose galleries: all pairs on IJB-B or IJB-C.

    python tools/compatibility_matrix.py --models work_dirs/old work_dirs/new work_dirs/newer \
        --data-path datasets/glyphs/eval --out work_dirs/matrix

The order of --models is that of the upgrades, the oldest first. Each model embeds the images once. A pair of a newer
query model and an older gallery model is compatible if the newer one finds more in that gallery than the gallery's own
model does. Maps' run folders are models too; a mapped gallery is searched by the others, and compared with the search
before it was mapped. Writes matrix.csv, matrix.png and results.json to --out, and prints the matrices and the verdicts.
"""

from argparse import Namespace
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from command_line import ArgumentParser, add_run_arguments, check_run_arguments

from core.errors import UserError, run_program
from core.evaluation.compatibility_matrix import UpdateMatrix, write_matrices
from core.evaluation.identification import FPIRS, RANKS
from core.evaluation.ijb_embeddings import CACHE
from core.evaluation.ijb_meta import SUBSETS, require_meta
from core.evaluation.model_pairs import DEFAULT_SETTINGS, EMBEDS, PairResult, evaluate_pairs, search_before
from core.evaluation.plots import plot_matrices
from core.evaluation.results import Evaluation, Model, write_matrix
from core.evaluation.roc import FARS
from core.evaluation.tables import format_rate, format_table
from core.logs import set_up_logging
from core.models.encoder import Encoder, load_encoder
from core.models.map_run import model_chain
from core.outputs import make_folder

TASKS = {
    **{f"top{rank}": "1:N" for rank in RANKS},
    **{f"tpir@fpir={fpir}": "1:N" for fpir in FPIRS},
    **{f"tar@far={far:.0e}": "1:1" for far in FARS},
    "auc": "1:1",
}
"""The protocol of each metric."""
PER_MODEL = ("networks", "means", "stds", "channel_orders")
"""The options that have a value for each model."""
AUTO = "auto"
"""Such a value: what the model knows by itself."""


def main() -> None:
    """Parse, evaluate, print, write."""
    set_up_logging()
    args = parse_arguments()
    require_meta(args.data_path, args.subset, one_to_n=True)
    models = load_models(args)
    encoders = [model.encoder for model in models]
    num_models = len(args.models)
    pairs = {
        f"{q}/{g}": (q, g)
        for q, query in enumerate(encoders)
        for g, gallery in enumerate(encoders)
        if q == g
        or (query.embedding_size == gallery.embedding_size and max(q, g) < num_models and not query.maps_gallery)
    }
    results = evaluate_pairs(
        {str(i): encoder for i, encoder in enumerate(encoders)},
        pairs, args.data_path, args.subset, args.batch_size, args.num_workers, args.cache,
    )  # fmt: skip
    found = {pairs[pair]: result for pair, result in results.items()}
    names = name_models(models)
    places = {encoder.fingerprint: place for place, encoder in enumerate(encoders)}
    before = (search_before(encoder, encoders) for encoder in encoders[:num_models])
    searched = tuple(zip(*((places[query.fingerprint], places[gallery.fingerprint]) for query, gallery in before)))
    mapped = [place for place, encoder in enumerate(encoders[:num_models]) if encoder.maps_gallery]
    matrices = {}
    for metric in args.metric:
        rates = read_rates(found, metric, len(models))
        own = rates[:num_models, :num_models]
        matrices[metric] = UpdateMatrix(names[:num_models], own, rates[searched], mapped)
    for metric, matrix in matrices.items():
        print(f"{metric} (%)\n{matrix.table()}\n")
    print(make_verdicts(matrices, found))
    make_folder(args.out)
    write_matrices(matrices, args.out / "matrix.csv")
    title = "{}, {} (%), \N{CHECK MARK} compatible"
    panels = {title.format(args.subset, metric): (m.rates, m.texts()) for metric, m in matrices.items()}
    plot_matrices(panels, names[:num_models], args.out / "matrix.png")
    evaluations = make_evaluations(args, models, names, found)
    write_matrix(args.out / "results.json", evaluations, list_compatible(matrices))


def parse_arguments() -> Namespace:
    """The command line, with the mistakes in it that need no other file reported."""
    parser = ArgumentParser("Test each model's queries in each model's gallery, and tell which pairs are compatible.")
    parser.add_argument(
        "--models", nargs="+", required=True, metavar="MODEL",
        help="run folders, .pt state dicts or .onnx files in the order of the upgrades, the oldest first",
    )  # fmt: skip
    parser.add_argument(
        "--networks", nargs="+", metavar="NET", help="network of each bare state dict, auto for other models"
    )
    for what in ("mean", "std"):
        parser.add_argument(
            f"--{what}s", nargs="+", metavar="X",
            help=f"{what} of each model's input, 0 to 255: a number, three joined by commas, face, imagenet, or auto",
        )  # fmt: skip
    parser.add_argument("--channel-orders", nargs="+", metavar="ORDER", help="of each model's input: RGB, BGR or auto")
    parser.add_argument("--data-path", required=True, help="folder that contains IJBC/ or IJBB/, or that folder")
    parser.add_argument("--subset", choices=sorted(SUBSETS, reverse=True), default="IJBC", help="data set")
    parser.add_argument(
        "--metric", nargs="+", choices=TASKS, default=["top1", "tar@far=1e-04"], metavar="NAME", help=", ".join(TASKS)
    )
    add_run_arguments(parser, batch_size=128, cache=CACHE)
    args = parser.parse_args()
    if len(args.models) < 2:
        raise UserError("--models needs at least two models, the oldest first")
    for option in PER_MODEL:
        values = getattr(args, option)
        if values and len(values) != len(args.models):
            raise UserError(
                f"--{option.replace('_', '-')} names {len(values)} for {len(args.models)} models: name one for each"
            )
    check_run_arguments(args)
    return args


@dataclass(frozen=True)
class NamedModel:
    """A model and its model argument."""

    encoder: Encoder
    path: str


def load_models(args: Namespace) -> list[NamedModel]:
    """The models, each with what the command line says of it, followed by those that embedded their mapped galleries.

    These are tested by themselves: an update of a mapped gallery is compared with the search before it.
    """
    columns = [getattr(args, option) or [AUTO] * len(args.models) for option in PER_MODEL]
    models = []
    for path, *values in zip(args.models, *columns):
        network, mean, std, order = (None if value == AUTO else value for value in values)
        encoder = load_encoder(
            path, network, args.device, mean=mean, std=std, channel_order=order, network_option="--networks"
        )
        models.append(NamedModel(encoder, path))
    for model in list(models):
        for encoder, path in zip(model.encoder.chain, model_chain(Path(model.path))):
            known = [other.encoder.fingerprint for other in models]
            if encoder is model.encoder.gallery_model and encoder.fingerprint not in known:
                models.append(NamedModel(encoder, str(path)))
    return models


def name_models(models: Sequence[NamedModel]) -> list[str]:
    """The models' names, and for those that share theirs with another the ends of their paths that tell them apart."""
    counts = Counter(model.encoder.name for model in models)
    sharing = [Path(model.path).parts for model in models if counts[model.encoder.name] > 1]

    def end(path: str) -> str:
        parts = Path(path).parts
        for length in range(1, len(parts)):
            if sum(other[-length:] == parts[-length:] for other in sharing) == 1:
                return str(Path(*parts[-length:]))
        return path

    return [model.encoder.name if counts[model.encoder.name] == 1 else end(model.path) for model in models]


def read_rates(found: Mapping[tuple[int, int], PairResult], metric: str, num_models: int) -> np.ndarray:
    """The metric of each pair (query, gallery), NaN for a pair without results or a rate that is not resolved."""
    rates = np.full((num_models, num_models), np.nan)
    for pair, results in found.items():
        value = results.metrics[TASKS[metric]][metric]
        rates[pair] = value if isinstance(value, int | float) else np.nan
    return rates


def make_verdicts(matrices: Mapping[str, UpdateMatrix], found: Mapping[tuple[int, int], PairResult]) -> str:
    """A line for each pair of a newer query and an older gallery model: whether it is compatible by each metric; flips.

    NFR and PFR are of rank-1 in 1:N, in per cent.
    """
    first = next(iter(matrices.values()))
    rows = []
    for query, gallery in first.updates():
        verdicts = [matrix.verdict(query, gallery) for matrix in matrices.values()]
        flips = found[query, gallery].flips if (query, gallery) in found else {}
        rates = [format_rate(flips.get(name)) for name in ("nfr", "pfr")]
        rows.append([f"{first.names[query]} / {first.names[gallery]}", *verdicts, *rates])
    return format_table(["compatible (query / gallery)", *matrices, "NFR", "PFR"], rows)


def make_evaluations(
    args: Namespace, models: Sequence[NamedModel], names: Sequence[str], found: Mapping[tuple[int, int], PairResult]
) -> list[Evaluation]:
    """Each pair of models that can be compared, 1:1 and 1:N, with all its metrics."""
    evaluations = []
    for (query, gallery), results in found.items():
        for protocol, embeds in EMBEDS.items():
            query_model, gallery_model = (
                Model.of(models[side].encoder, models[side].path, part, names[side])
                for side, part in zip((query, gallery), embeds)
            )
            task = f"{args.subset.lower()}-{protocol}"
            metrics = results.metrics[protocol]
            thresholds = results.verification.all_thresholds() if protocol == "1:1" else {}
            evaluations.append(Evaluation(task, query_model, gallery_model, metrics, DEFAULT_SETTINGS, thresholds))
    return evaluations


def list_compatible(matrices: Mapping[str, UpdateMatrix]) -> list[dict[str, object]]:
    """For each pair of newer query and older gallery model whether it is compatible by each metric."""
    first = next(iter(matrices.values()))
    return [
        {
            "query": first.names[query],
            "gallery": first.names[gallery],
            **{metric: matrix.is_compatible(query, gallery) for metric, matrix in matrices.items()},
        }
        for query, gallery in first.updates()
    ]


if __name__ == "__main__":
    run_program(main)
