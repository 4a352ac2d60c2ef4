"""Evaluate a model, or a new model against an old gallery, on IJB-B or IJB-C: 1:1 verification or 1:N identification.

    python tools/ijbc_eval.py -m work_dirs/new --data-path datasets --out work_dirs/new/ijbc
    python tools/ijbc_eval.py -m work_dirs/new -m_old work_dirs/old -N --data-path datasets --out work_dirs/cross_1n

With -m_old, the first template of a pair is embedded by the old model and the second by the new one; in 1:N the
galleries are the old model's and the probes the new model's. Writes results.json and the curves as PNG to --out, and
a table to the terminal.
"""

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import torch

from core.encoder import Encoder, load_encoder
from core.errors import ArgumentParser, UserError, run_program
from core.evaluation.embedding_cache import CACHE, embed_images
from core.evaluation.ijb import (
    IdentificationResult,
    RocResult,
    evaluate_1_1,
    evaluate_1_n,
    template_features,
)
from core.evaluation.ijb_meta import SUBSETS, IjbImages, read_identification, read_images, read_pairs, require_meta
from core.evaluation.plots import plot_identification, plot_roc
from core.evaluation.tables import format_rate, format_table
from core.files import replaced_atomically
from core.logs import set_up_logging


def parse_arguments() -> Namespace:
    """The command line, with the mistakes in it that need no other file reported."""
    parser = ArgumentParser("Evaluate on IJB-B or IJB-C, 1:1 or 1:N; with -m_old, new queries against an old gallery.")
    parser.add_argument("-m", "--model", required=True, help="(new) model: run folder, .pt state dict or .onnx file")
    parser.add_argument("-net", "--network", help="network of -m, needed for a bare state dict")
    parser.add_argument("-m_old", "--model-old", help="old model, that made the gallery: a cross-test")
    parser.add_argument("-old_net", "--network-old", help="network of -m_old, needed for a bare state dict")
    parser.add_argument("-N", "--one-to-n", action="store_true", help="1:N identification instead of 1:1 verification")
    parser.add_argument("--data-path", required=True, help="folder that contains IJBC/ or IJBB/, or that folder")
    parser.add_argument("--subset", choices=sorted(SUBSETS, reverse=True), default="IJBC", help="data set")
    parser.add_argument("--batch-size", type=int, default=128, help="images embedded at a time")
    parser.add_argument("--num-workers", type=int, default=2, help="processes that read and align images")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, or cuda:1 and so on")
    parser.add_argument("--no-flip", action="store_true", help="leave out the mirrored images")
    parser.add_argument("--no-detector-score", action="store_true", help="do not weigh images by the detector's score")
    parser.add_argument(
        "--normalize-embeddings", action="store_true", help="make image features unit vectors before they are averaged"
    )
    parser.add_argument("--cache", type=Path, default=CACHE, help="where image embeddings are kept for later tests")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results; made if its parent exists")
    args = parser.parse_args()
    if args.network_old and not args.model_old:
        raise UserError("-old_net names the network of an old model, but there is no -m_old")
    if args.batch_size < 1 or args.num_workers < 0:
        raise UserError("--batch-size must be 1 or more and --num-workers 0 or more")
    if not args.out.parent.is_dir() or (args.out.exists() and not args.out.is_dir()):
        raise UserError(f"--out {args.out}: its parent is no folder, or it is a file; name a folder to make or to use")
    args.device = choose_device(args.device)
    return args


def choose_device(name: str) -> torch.device:
    """The device of that name; `UserError` if PyTorch does not know it or this machine does not have it."""
    num_gpus = torch.cuda.device_count()
    try:
        device = torch.device(name if name != "auto" else "cuda" if num_gpus else "cpu")
    except RuntimeError as error:
        raise UserError(f"unknown --device {name!r}: name auto, cpu or cuda") from error
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and (device.index or 0) >= num_gpus):
        raise UserError(f"--device {name} is not here: PyTorch sees {num_gpus} GPUs; name auto or cpu")
    return device


def main() -> None:
    """Parse, evaluate, print, write."""
    set_up_logging()
    args = parse_arguments()
    root = require_meta(args.data_path, args.subset, args.one_to_n)
    query = load_encoder(args.model, args.network, args.device)
    gallery = load_encoder(args.model_old, args.network_old, args.device) if args.model_old else query
    if query.embedding_size != gallery.embedding_size:
        raise UserError(
            f"the models cannot be compared: {args.model} gives {query.embedding_size} numbers an embedding, "
            f"{args.model_old} {gallery.embedding_size}"
        )
    images = read_images(root, args.subset)
    protocol = read_identification(images) if args.one_to_n else read_pairs(images)
    query_templates = embed_templates(args, query, images)
    gallery_templates = query_templates if gallery is query else embed_templates(args, gallery, images)
    evaluate = evaluate_1_n if args.one_to_n else evaluate_1_1
    result = evaluate(query_templates, gallery_templates, protocol)
    name = query.name if query is gallery else f"{query.name} / {gallery.name}"
    print(make_table(name, result))
    args.out.mkdir(exist_ok=True)
    if isinstance(result, IdentificationResult):
        plot_identification(result.curves, args.out / "identification.png", f"{args.subset} 1:N, {name}")
    else:
        plot_roc({name: (result.fpr, result.tpr)}, args.out / "roc.png", f"{args.subset} 1:1")
    write_results(args, query, gallery, result)


def embed_templates(args: Namespace, encoder: Encoder, images: IjbImages) -> np.ndarray:
    """Template features (T, D) of a model under the switches of the command line."""
    embeddings = embed_images(encoder, images, args.batch_size, args.num_workers, args.cache)
    return template_features(
        embeddings, images, not args.no_flip, not args.no_detector_score, args.normalize_embeddings
    )


def make_table(name: str, result: RocResult | IdentificationResult) -> str:
    """The metrics in per cent: one line for 1:1, a line a gallery for 1:N."""
    rows = {name: {key: value for key, value in result.metrics.items() if not isinstance(value, dict)}}
    header = list(rows[name])
    rows.update({key: value for key, value in result.metrics.items() if isinstance(value, dict)})
    return format_table(["%", *header], [[row, *(format_rate(rows[row].get(key)) for key in header)] for row in rows])


def write_results(args: Namespace, query: Encoder, gallery: Encoder, result: RocResult | IdentificationResult) -> None:
    """Write results.json: what was tested, with which models and switches, and the metrics."""
    gallery_path, parts = args.model_old or args.model, ("probes", "galleries")
    if not args.one_to_n:
        parts = ("second template of each pair", "first template of each pair")
    models = {
        side: {
            "name": encoder.name,
            "path": path,
            "fingerprint": encoder.fingerprint,
            "network": encoder.network,
            "embedding_size": encoder.embedding_size,
            "embeds": part,
        }
        for side, encoder, path, part in zip(("query", "gallery"), (query, gallery), (args.model, gallery_path), parts)
    }
    content = {
        "task": f"{args.subset.lower()}-{'1:N' if args.one_to_n else '1:1'}",
        "models": models,
        "metrics": result.metrics,
        "settings": {
            "flip": not args.no_flip,
            "detector_score": not args.no_detector_score,
            "normalize_embeddings": args.normalize_embeddings,
        },
    }
    with replaced_atomically(args.out / "results.json") as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    run_program(main)
