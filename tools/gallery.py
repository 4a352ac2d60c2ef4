"""A live gallery: stored vectors by the model that made them, and the upgrade from one model to the next.

    python tools/gallery.py create G --vectors old.npy --ids ids.txt --model OLD --images images.txt
    python tools/gallery.py plan G --new NEW --sample people.txt --out plan
    python tools/gallery.py backfill G --plan plan --share 0.25
    python tools/gallery.py search G --queries queries.npy --model NEW -k 10 --max-far 1e-4 --out hits.parquet
    python tools/gallery.py commit G

A gallery is a folder or, with --store milvus --uri URI, one of that name in Milvus. A model argument is a run folder,
an .onnx file, a .pt state dict, or name:TEXT for a model that is not at hand, whose vectors come as files. The exit
status is 0, after an error 2, and 1 where plan --require is not met or verify finds faults. backfill also runs under
torchrun. docs/upgrade.md tells the whole story.
"""

import json
import logging
import sys
from argparse import Namespace
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from command_line import ArgumentParser, add_preprocessing_arguments, choose_device, preprocessing

from core.arrays import open_vector_array
from core.errors import UserError, run_program
from core.evaluation.tables import format_rate, format_table
from core.gallery import Gallery
from core.gallery.backfill import FAILED, MOST_LISTED, BackfillOptions
from core.gallery.backfill import backfill as embed_again
from core.gallery.exports import FORMATS
from core.gallery.model_versions import NAMED, key_of
from core.gallery.planning.plan import parse_requirement
from core.gallery.planning.plan_upgrade import plan_from_images, plan_from_pairs
from core.gallery.planning.report import FILE as REPORT
from core.gallery.search import INDEXES
from core.gallery.store import BLOCK
from core.gallery.text_lists import read_ids, read_image_list, read_labels
from core.gallery.upgrade import ROADS
from core.gallery.vector_files import open_vectors
from core.logs import set_up_logging
from core.models.encoder import load_encoder
from core.outputs import replaced_atomically, require_replaceable
from core.parallel.ranks import LONG_PATIENCE, process_group

logger = logging.getLogger(__name__)
MODEL = f"run folder, .pt state dict, .onnx file, or {NAMED}TEXT for a model that is not at hand"
NETWORK = "network of a .pt state dict"
VECTORS = ".npy, .parquet or faiss file"
MOST_SHOWN = 5


def main() -> None:
    """Parse the command line, do what it asks for, and print what came of it."""
    args = parse_arguments()
    set_up_logging()
    sys.exit(args.do(args))


def parse_arguments() -> Namespace:
    """The command line, with the mistakes in it that need no other file reported."""
    parser = ArgumentParser("A live gallery: stored vectors, search across models, and the upgrade to a new model.")
    calls = parser.add_subparsers(metavar="CALL", required=True, parser_class=ArgumentParser)
    for name, (description, add_arguments, do) in CALLS.items():
        call = calls.add_parser(name, description=description, help=description)
        call.add_argument("gallery", metavar="GALLERY", help="its folder, or with --store milvus its name there")
        add_arguments(call)
        call.add_argument("--store", choices=("folder", "milvus"), default="folder", help="where the gallery lies")
        call.add_argument("--uri", help="of Milvus: http://host:port of a server, or a file that ends in .db")
        call.add_argument("--json", action="store_true", help="print JSON, for scripts")
        call.set_defaults(do=do)
    args = parser.parse_args()
    if (args.store == "milvus") != (args.uri is not None):
        raise UserError("--store milvus needs --uri, the server or the file, and --uri needs --store milvus")
    return args


def place_of(args: Namespace) -> str:
    """Path of the gallery's folder, or its URI."""
    return args.gallery if args.uri is None else f"{args.uri}/{args.gallery}"


def words_of(args: Namespace) -> list[str]:
    """How the command line names the gallery."""
    return [args.gallery, *([] if args.uri is None else ["--store", "milvus", "--uri", args.uri])]


def show(args: Namespace, result: dict[str, Any], text: str) -> None:
    """Print the result of a call, as JSON or in words."""
    print(json.dumps(result, ensure_ascii=False) if args.json else text)


def add_list_arguments(parser: ArgumentParser) -> None:
    """What belongs to vectors."""
    parser.add_argument("--ids", help="of the vectors, one a line; .parquet and faiss files have their own")
    parser.add_argument("--labels", help="class of each, one a line")
    parser.add_argument("--images", help="where the images lie: lines `path id`")


def add_create_arguments(parser: ArgumentParser) -> None:
    """Of `create`."""
    parser.add_argument("--vectors", required=True, help=VECTORS)
    parser.add_argument("--model", required=True, help=f"that made them: {MODEL}")
    parser.add_argument("-net", "--network", help=NETWORK)
    add_list_arguments(parser)


def create(args: Namespace) -> None:
    """Import stored vectors."""
    lists = args.ids, args.labels, args.images
    with Gallery.create(place_of(args), args.vectors, args.model, *lists, args.network) as gallery:
        info = gallery.info()
    show(args, info, f"{args.gallery}: {info['vectors']} vectors of {', '.join(info['names'].values())}")


def add_insert_arguments(parser: ArgumentParser) -> None:
    """Of `insert`."""
    each = "; during an upgrade once for the old and once for the new model"
    parser.add_argument("--vectors", action="append", help=f"{VECTORS}{each}; without it the images are embedded")
    parser.add_argument("--model", action="append", help=f"that made them, or embeds the images: {MODEL}{each}")
    parser.add_argument("-net", "--network", action="append", help=f"{NETWORK}; once for each of them")
    add_list_arguments(parser)
    add_embedding_arguments(parser, batch_size=None)


def insert(args: Namespace) -> None:
    """Enrol entries, or put them in the place of those with the same ids."""
    if args.vectors is None:
        insert_images(args)
        return
    if len(args.vectors) != len(args.model or ()):
        raise UserError(
            f"{len(args.vectors)} times --vectors and {len(args.model or ())} times --model: give each together"
        )
    files = [open_vectors(vectors, args.ids, args.labels, args.images) for vectors in args.vectors]
    for path, file in zip(args.vectors, files):
        if not file.ids.equals(files[0].ids):
            raise UserError(f"{path} does not have the ids of {args.vectors[0]} in their order: give both of the same")
    with Gallery.open(place_of(args)) as gallery:
        keys = [key_of(gallery.store, model, network) for model, network in with_networks(args)]
        left = len(files[0])
        for blocks in zip(*(file.blocks() for file in files)):
            vectors = {key: block.vectors for key, block in zip(keys, blocks)}
            gallery.store.require_room(left * sum(block.vectors[0].nbytes for block in blocks))
            gallery.enrol(blocks[0].ids, vectors, blocks[0].labels, blocks[0].images)
            left -= len(blocks[0].ids)
    show(args, {"inserted": len(files[0]), "failed": {}}, f"{len(files[0])} entries are in the gallery")


def insert_images(args: Namespace) -> None:
    """Enrol the images of a list, embedded by the models of the gallery."""
    if args.images is None or args.ids is not None:
        raise UserError("give --vectors with their --ids, or --images alone, a list of lines `path id`, to be embedded")
    table = read_image_list(args.images)
    labels = None if args.labels is None else read_labels(args.labels)
    if labels is not None and len(labels) != len(table):
        raise UserError(f"{args.labels} has {len(labels)} classes and {args.images} {len(table)} images: one for each")
    options = BackfillOptions(batch_size=args.batch_size, num_workers=args.num_workers)
    device = choose_device(args.device)
    encoders = [load_encoder(model, network, device) for model, network in with_networks(args)]
    with Gallery.open(place_of(args)) as gallery:
        failed = gallery.enrol_images(
            table["id"].to_list(), table["image"].to_list(), None if labels is None else labels.to_list(),
            encoders=encoders, options=options, device=str(device),
        )  # fmt: skip
    text = f"{len(table) - len(failed)} entries are in the gallery"
    if failed:
        text += f"; {len(failed)} images cannot be used, and are not in it:{listed(failed)}"
    show(args, {"inserted": len(table) - len(failed), "failed": failed}, text)


def with_networks(args: Namespace) -> list[tuple[str, str | None]]:
    """Each --model with its network, those of the .pt state dicts in their order."""
    models, networks = args.model or [], list(args.network or [])
    bare = [model for model in models if Path(model).suffix == ".pt"]
    if len(networks) > len(bare):
        raise UserError(f"{len(networks)} times -net and {len(bare)} times a .pt state dict: give one for each")
    of_bare = dict(zip(bare, networks))
    return [(model, of_bare.get(model)) for model in models]


def add_delete_arguments(parser: ArgumentParser) -> None:
    """Of `delete`."""
    parser.add_argument("id", nargs="*", metavar="ID", help="of an entry to remove with all its vectors")
    parser.add_argument("--ids", help="file of more, one a line")


def delete(args: Namespace) -> None:
    """Remove entries with all their vectors."""
    ids = [*args.id, *([] if args.ids is None else read_ids(args.ids).to_list())]
    if not ids:
        raise UserError("no entry is named: give ids, or a file of them with --ids")
    with Gallery.open(place_of(args)) as gallery:
        deleted = gallery.delete(ids)
    show(args, {"deleted": deleted}, f"{deleted} of {len(ids)} entries were there and are deleted")


def add_info_arguments(parser: ArgumentParser) -> None:
    """Of `info`."""


def info(args: Namespace) -> None:
    """Say what the gallery holds."""
    with Gallery.open(place_of(args)) as gallery:
        found = gallery.info()
        failed = gallery.store.document(FAILED) or {}
    rows = [[found["names"][key], key, str(count)] for key, count in found["versions"].items()]
    text = f"{args.gallery}: {found['vectors']} entries\n" + format_table(["model", "key", "vectors"], rows)
    upgrade = found["upgrade"]
    if upgrade is not None:
        names = (found["names"][upgrade[which]] for which in ("old", "new"))
        text += f"\nupgrade from {' to '.join(names)} by the road {upgrade['road']}, in the order {upgrade['order']}: "
        text += f"{upgrade['done']} of {upgrade['total']} embedded, {upgrade['failed']} images cannot be used"
        text += listed(failed)
    show(args, {**found, "failed": failed}, text)


def listed(failed: dict[str, str]) -> str:
    """A line for each of the first images that cannot be used."""
    lines = [f"\n  {name}: {reason}" for name, reason in list(failed.items())[:MOST_SHOWN]]
    return "".join(lines) + ("\n  ..." if len(failed) > MOST_SHOWN else "")


def add_plan_arguments(parser: ArgumentParser) -> None:
    """Of `plan`."""
    parser.add_argument("--new", required=True, help=f"new model: {MODEL}")
    parser.add_argument("-net", "--network", help=NETWORK)
    add_preprocessing_arguments(parser, model="--new")
    parser.add_argument("--sample", help="images: lines `path identity`, folders of identities, or records")
    parser.add_argument("--pairs", nargs=2, metavar=("OLD.npy", "NEW.npy"), help="vectors of the same images instead")
    parser.add_argument("--labels", help="identities of the pairs, one a line")
    parser.add_argument("--images", help="list, folder or records of the gallery's images, if it does not know them")
    parser.add_argument("--out", type=Path, required=True, help="folder of the plan; made if its parent exists")
    parser.add_argument("--require", metavar="top1=X", help="status 1 if the road that is advised has a lower rate")
    parser.add_argument("--far", type=float, default=1e-3, help="lowest false accept rate that needs a threshold")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of enrolled images, folds and resamples")
    add_embedding_arguments(parser, batch_size=128)


def plan(args: Namespace) -> int:
    """Measure every road on a sample, and advise one."""
    if (args.pairs is None) != (args.labels is None) or (args.pairs is None) == (args.sample is None):
        raise UserError("give --sample, images with identities, or --pairs together with --labels")
    if args.require is not None:
        parse_requirement(args.require)
    if args.batch_size < 1 or args.num_workers < 0:
        raise UserError("--batch-size must be 1 or more and --num-workers 0 or more")
    device = choose_device(args.device)
    new = None
    if not args.new.startswith(NAMED):
        new = load_encoder(args.new, args.network, device, **preprocessing(args))
    if not 1e-12 <= args.far <= 1:
        raise UserError(f"--far must be from 1e-12 to 1, got {args.far}")
    if args.seed < 0:
        raise UserError(f"--seed must be 0 or more, got {args.seed}")
    words, common = words_of(args), {"place": args.images, "far": args.far, "seed": args.seed}
    with Gallery.open(place_of(args)) as gallery:
        if args.pairs is not None:
            made = plan_from_pairs(gallery.store, new, args.new, args.pairs, args.labels, args.out, words, **common)
        elif new is None:
            raise UserError(f"{args.new} is not at hand and embeds no images: give --pairs and --labels")
        else:
            made = plan_from_images(
                gallery.store, new, args.new, args.sample, args.out, words,
                batch_size=args.batch_size, num_workers=args.num_workers, **common,
            )  # fmt: skip
    rows = [
        [name, *([""] * 4 if road is None else map(format_rate, (road.top1, road.top1_std, road.nfr, road.pfr)))]
        for name, road in made.roads.items()
    ]
    table = format_table(["rank-1 (%)", "top1", "std", "nfr", "pfr"], rows)
    text = f"{table}\n\n{made.recommendation}: {made.reason}\n{args.out / REPORT}"
    show(args, made.to_json(), text)
    return int(args.require is not None and not made.meets(args.require))


def add_embedding_arguments(parser: ArgumentParser, batch_size: int | None) -> None:
    """How images are read and embedded."""
    parser.add_argument("--batch-size", type=int, default=batch_size, help="images at a time; None: by the device")
    parser.add_argument("--num-workers", type=int, default=2, help="processes a rank that read images")
    parser.add_argument("--device", default="auto", help="auto, cuda or cpu")


def add_backfill_arguments(parser: ArgumentParser) -> None:
    """Of `backfill`."""
    parser.add_argument("--plan", help="folder of the plan; not needed to go on with an upgrade that was begun")
    parser.add_argument("--share", type=float, default=1.0, help="of the gallery that is to be embedded in the end")
    parser.add_argument("--road", choices=ROADS[1:], help="another one than the plan advises")
    parser.add_argument("--images", help="list of lines `path id`, folder, or records; without it the gallery's paths")
    parser.add_argument("--rate", type=float, help="images a second at most, to spare the machine")
    parser.add_argument("--block", type=int, default=BLOCK, help="entries written together: the most a kill repeats")
    parser.add_argument(
        "--failed", type=Path, help=f"file to write: id and reason of the first {MOST_LISTED:,} images that failed"
    )
    parser.add_argument("--new", help="new model, if it is not where the plan found it or needs what follows")
    parser.add_argument("-net", "--network", help=NETWORK)
    add_preprocessing_arguments(parser, model="--new")
    add_embedding_arguments(parser, batch_size=None)


def backfill(args: Namespace) -> None:
    """Begin an upgrade, and embed entries again until a share is done."""
    if args.new is None and (args.network is not None or any(preprocessing(args).values())):
        raise UserError("-net, --mean, --std and --channel-order are of the model --new, which is not given")
    if args.failed is not None:
        require_replaceable(args.failed)
    options = BackfillOptions(args.images, args.batch_size, args.num_workers, args.rate, args.block)
    with process_group(args.device, LONG_PATIENCE) as ranks, ExitStack() as opened:  # the first one maps and writes
        gallery = opened.enter_context(Gallery.open(place_of(args))) if ranks.is_first else None
        encoder = None
        if args.new is not None:
            encoder = load_encoder(args.new, args.network, ranks.device, **preprocessing(args))
        store = None if gallery is None else gallery.store
        done = embed_again(store, args.plan, args.share, ranks, options, road=args.road, encoder=encoder)
    if not ranks.is_first:
        return
    if args.failed is not None:
        with replaced_atomically(args.failed) as temporary:
            temporary.write_text("".join(f"{name}\t{reason}\n" for name, reason in done.reasons.items()), "utf-8")
        if more := done.failed - len(done.reasons):
            listing = f"{args.failed} lists the first {len(done.reasons)} images that cannot be used"
            logger.warning("%s; %d more are not in it: mend those and repeat the backfill", listing, more)
    text = f"{args.gallery}: {done.done} of {done.total} entries have new vectors, {done.embedded} of them since now"
    if done.failed:
        text += f"; {done.failed} images cannot be used, and their old vectors stay:{listed(done.reasons)}"
    show(args, asdict(done), text)


def add_commit_arguments(parser: ArgumentParser) -> None:
    """Of `commit`."""
    parser.add_argument("--delete-missing", action="store_true", help="delete entries that have no new vector")


def commit(args: Namespace) -> None:
    """Verify, and free the old vectors."""
    with Gallery.open(place_of(args)) as gallery:
        ended = gallery.commit(args.delete_missing)
    show(args, asdict(ended), f"{args.gallery}: {ended.total} vectors of {ended.version}; the old ones are freed")


def add_rollback_arguments(parser: ArgumentParser) -> None:
    """Of `rollback`."""


def rollback(args: Namespace) -> None:
    """Free the new vectors: the gallery is as before the upgrade."""
    with Gallery.open(place_of(args)) as gallery:
        ended = gallery.rollback()
    show(args, asdict(ended), f"{args.gallery}: {ended.total} vectors of {ended.version}, as before the upgrade")


def add_search_arguments(parser: ArgumentParser) -> None:
    """Of `search`."""
    parser.add_argument("--queries", required=True, help=".npy file of query vectors (Q, D)")
    parser.add_argument("--model", required=True, help=f"that made them: {MODEL}, or a key as info shows it")
    parser.add_argument("-net", "--network", help=NETWORK)
    parser.add_argument("--old-queries", help="the same queries by the old model, for the roads that need both")
    parser.add_argument("-k", type=int, default=10, help="hits a query")
    parser.add_argument("--max-far", type=float, help="only hits of at most this estimated false accept rate")
    parser.add_argument("--index", choices=INDEXES, default="exact", help="how; the recall of others is measured")
    parser.add_argument("--out", type=Path, help="parquet file of the hits; without it they are printed")


def search(args: Namespace) -> None:
    """Find the best entries for each query, over all versions at once."""
    if args.out is not None:
        require_replaceable(args.out)
    queries = open_vector_array(args.queries, "file of queries")
    old_queries = None if args.old_queries is None else open_vector_array(args.old_queries, "file of queries")
    with Gallery.open(place_of(args)) as gallery:
        found = gallery.search(
            queries, args.model, args.k,
            old_queries=old_queries, max_far=args.max_far, index=args.index, network=args.network,
        )  # fmt: skip
    told = {"queries": len(queries), "hits": len(found.hits), "recall": found.recall}
    if args.out is None:
        rows = [[str(value) for value in row] for row in found.hits.iter_rows()]
        show(args, {**told, "found": found.hits.to_dicts()}, format_table(found.hits.columns, rows))
        return
    with replaced_atomically(args.out) as temporary:
        found.hits.write_parquet(temporary)
    show(args, told, f"{args.out}: {len(found.hits)} hits of {len(queries)} queries")


def add_export_arguments(parser: ArgumentParser) -> None:
    """Of `export`."""
    parser.add_argument("--format", choices=FORMATS, default="parquet", help="npy and faiss: a folder")
    parser.add_argument("--out", type=Path, required=True, help="file or folder to write")
    parser.add_argument("--version", help=f"model whose vectors are written, for galleries of several: {MODEL}")


def export(args: Namespace) -> None:
    """Write the gallery to files that `create` reads again."""
    with Gallery.open(place_of(args)) as gallery:
        count = gallery.export(args.out, args.format, args.version)
    show(args, {"exported": count}, f"{args.out}: {count} vectors")


def add_verify_arguments(parser: ArgumentParser) -> None:
    """Of `verify`."""


def verify(args: Namespace) -> int:
    """Check every checksum, and that every id is there once."""
    with Gallery.open(place_of(args)) as gallery:
        faults = gallery.verify()
    show(args, {"faults": faults}, "\n".join(faults) or f"{args.gallery}: no faults")
    return int(bool(faults))


CALLS = {
    "create": ("import stored vectors", add_create_arguments, create),
    "info": ("what a gallery holds, and the state of its upgrade", add_info_arguments, info),
    "plan": ("measure every road to a new model on a sample, and advise one", add_plan_arguments, plan),
    "search": ("find the best entries for each query, over all models at once", add_search_arguments, search),
    "backfill": ("begin an upgrade or go on with it: embed images again", add_backfill_arguments, backfill),
    "commit": ("end an upgrade: check it and free the old vectors", add_commit_arguments, commit),
    "rollback": ("take an upgrade back", add_rollback_arguments, rollback),
    "insert": ("add entries, or replace those with the same ids", add_insert_arguments, insert),
    "delete": ("remove entries", add_delete_arguments, delete),
    "export": ("write the vectors to files", add_export_arguments, export),
    "verify": ("check every checksum, and that every id is there once", add_verify_arguments, verify),
}


if __name__ == "__main__":
    run_program(main)
