"""Every reader of files in the project: small honest files for it, and how the program reads them."""

import io
import json
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ci.tests.evaluation.conftest import write_tree
from ci.tests.evaluation.landmark_trees import write_gldv2_lists, write_revisited_tree
from ci.tests.models.onnx_graphs import Graph, channels
from ci.tests.tiny import write_map_run, write_records, write_run_folder, write_verification_set
from core.backbones.state_dicts import read_state_dict
from core.backbones.weight_files import read_weight_file
from core.builtin.gldv2_lists import read_index, read_solution, read_train
from core.data.lists import ListDataset
from core.data.record_index import write_index
from core.data.recordio import RecordReader
from core.data.records import RecordDataset
from core.data.shard_index import write_shard_index
from core.data.shards import ShardDataset
from core.embeddings.credible_rows import prepare_credible_mask
from core.embeddings.statistics import class_means, prepare_class_means
from core.embeddings.store import EmbeddingStore, StoreInfo
from core.engine.checkpoint import Position, read_position
from core.engine.run_classifier import read_run_classifier
from core.engine.run_folder import MetricsLog, RunFolder
from core.errors import UserError
from core.evaluation.calibration import fit_calibration
from core.evaluation.comparison import Comparison, Entry, read_csv
from core.evaluation.gldv2 import read_gldv2
from core.evaluation.ijb_meta import read_identification, read_images, read_pairs, require_meta
from core.evaluation.results import (
    Evaluation,
    Model,
    read_evaluations,
    write_evaluation,
    write_evaluations,
)
from core.evaluation.revisited_files import read_revisited
from core.evaluation.verification import VerificationImages
from core.gallery import Gallery
from core.gallery.documents import calibrations_to_document, map_to_document
from core.gallery.planning.plan import Cost, Plan, Road, SampleFacts
from core.gallery.planning.sample import pair_sample
from core.gallery.planning.sample_images import SampleImages
from core.gallery.store import Version
from core.gallery.upgrade import ROADS, Upgrade
from core.gallery.vector_files import open_vectors
from core.heads.class_weights import read_class_weights
from core.images.codec import decode_image, read_image
from core.models.encoder import load_encoder
from core.models.map_run import read_map_run
from core.models.maps import Space, fit_map, load_map
from core.parallel.ranks import Ranks
from core.restricted_pickle import load_plain_pickle
from core.settings import load_settings

__all__ = ["READERS", "Reader"]


@dataclass(frozen=True)
class Reader:
    """A way that files come into the project."""

    name: str
    write: Callable[[Path], object]
    """Makes the honest files: each folder in the one that it is given is a case of its own."""
    read: Callable[[Path], object]
    """Reads the files of a folder as the program does."""
    weight: int = 4
    """Its share of the inputs: as many as it reads in a moment."""


def _rows(count: int = 40, size: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, size)).astype(np.float32)


def _folder(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


def _picture(seed: int = 0, side: int = 16) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3)).astype(np.uint8))


def write_pickles(folder: Path) -> None:
    arrays = [np.arange(12).reshape(3, 4), np.zeros((0, 3)), np.array(["a", "bc"]), np.array([[1, "x"]], object)]
    gnd = [{"bbx": [0.0, 1.0, 5.0, 9.0], "easy": [1, 2], "hard": np.array([3]), "junk": []}] * 2
    content = {
        "imlist": ["a", b"b", "c", "d"], "gnd": gnd, "numbers": [1, -2.5, 2**70, None, True, 1 + 2j],
        "sets": ({1, 2}, frozenset(["x"]), bytearray(b"\0\xff")), "arrays": arrays,
        "scalars": [np.float32(1), np.bytes_(b"a")],
    }  # fmt: skip
    for protocol in range(6):
        (_folder(folder / str(protocol)) / "data.pkl").write_bytes(pickle.dumps(content, protocol))


def read_pickle(folder: Path) -> None:
    repr(load_plain_pickle(folder / "data.pkl"))  # a walk over all of it


def write_revisited(folder: Path) -> None:
    for protocol in (0, 2, 4):
        write_revisited_tree(folder / str(protocol) / "roxford5k", protocol=protocol)
    for path in folder.rglob("*.jpg"):
        path.write_bytes(b"")  # no image is read


def read_revisited_tree(folder: Path) -> None:
    test = read_revisited(folder, "roxford5k")
    test.evaluate(np.tile(np.arange(len(test.database)), (len(test.queries), 1)))


def write_gldv2(folder: Path) -> None:
    tree = write_gldv2_lists(write_revisited_tree(folder / "tree"))
    (tree / "gnd_roxford5k.pkl").unlink()
    for path in folder.rglob("*.jpg"):
        path.write_bytes(b"")


def read_gldv2_lists(folder: Path) -> None:
    test = read_gldv2(folder)
    test.evaluate(np.tile(np.arange(min(100, len(test.database))), (len(test.queries), 1)))


def write_gldv2_tables(folder: Path) -> None:
    ids = [f"{number:016x}" for number in range(9)]
    tables = {
        "train_clean.csv": ["landmark_id,images", f"7,{ids[0]} {ids[1]}", f"3,{ids[2]}"],
        "train.csv": ["id,url,landmark_id", *(f"{each},http://x/{each}.jpg,{n % 3}" for n, each in enumerate(ids))],
        "index.csv": ["id", *ids],
        "solution.csv": ["id,images,Usage", f"{ids[5]},{ids[1]} {ids[2]},Public", f"{ids[6]},,Ignored"],
    }
    for name, lines in tables.items():
        (_folder(folder / name) / name).write_text("\n".join(lines) + "\n")


def read_gldv2_table(folder: Path) -> None:
    for path in folder.iterdir():
        (read_train if path.name.startswith("train") else read_index if path.name == "index.csv" else read_solution)(
            path
        )


def write_verification(folder: Path) -> None:
    write_verification_set(_folder(folder / "set") / "set.bin")


def read_verification(folder: Path) -> None:
    images = VerificationImages(folder / "set.bin")
    images.read(np.arange(min(2, images.num_images)))


def write_record_files(folder: Path) -> None:
    write_records(_folder(folder / "header") / "train", [0, 0, 1, 2])


def read_records(folder: Path) -> None:
    records = RecordDataset(folder / "train")
    records.labels()
    _ = records.fingerprint
    records.batch(np.arange(min(4, len(records))))


def read_record_by_record(folder: Path) -> None:
    reader = RecordReader(folder / "train")
    try:
        for row in range(len(reader)):
            _ = reader[row]
    finally:
        reader.close()


def write_record_file(folder: Path) -> None:
    write_record_files(folder)
    (folder / "header" / "train.idx").unlink()


IMAGES = {
    "jpg": "JPEG",
    "png": "PNG",
    "webp": "WEBP",
    "bmp": "BMP",
    "gif": "GIF",
    "tif": "TIFF",
    "ppm": "PPM",
    "jp2": "JPEG2000",
}


def write_image_files(folder: Path) -> None:
    for suffix, name in IMAGES.items():
        _picture().save(_folder(folder / suffix) / "image", format=name)
    for mode in ("L", "P", "RGBA", "I;16", "1", "CMYK"):
        name = "TIFF" if mode == "CMYK" else "PNG"
        _picture().convert("L" if mode == "I;16" else mode).convert(mode).save(
            _folder(folder / f"mode{mode}") / "image", name
        )
    exif = Image.Exif()
    exif[0x0112] = 6
    _picture().save(_folder(folder / "exif") / "image", format="JPEG", exif=exif, progressive=True)


def read_image_file(folder: Path) -> None:
    read_image(folder / "image")
    try:
        decode_image((folder / "image").read_bytes(), min_side=4)
    except ValueError as error:  # which callers turn into the line that names the image
        raise UserError(str(error)) from error


def write_lists(folder: Path) -> None:
    lists = {
        "plain": "".join(f"{n}.png {n % 2}\n" for n in range(4)),
        "im2rec.lst": "".join(f"{n}\t{n % 2}.0\t{n}.png\n" for n in range(4)),
        "insightface": "".join(f"1\t{n}.png\t{n % 2}\n" for n in range(4)),
        "table.csv": "path,label\n" + "".join(f"{n}.png,{n % 2}\n" for n in range(4)),
    }
    for name, text in lists.items():
        case = _folder(folder / name)
        (case / "list.txt").write_text(text)
        for number in range(4):
            _picture(number).save(case / f"{number}.png")


def read_list(folder: Path) -> None:
    for skip_bad in (False, True):
        images = ListDataset(folder / "list.txt", skip_bad=skip_bad)
        images.labels()
        images.batch(np.arange(min(4, images.num_images)))


def write_shards(folder: Path) -> None:
    """Shards as Python's tarfile writes them in its three formats, with both kinds of labels, and their index."""
    for kind, name in ((tarfile.USTAR_FORMAT, "ustar"), (tarfile.GNU_FORMAT, "gnu"), (tarfile.PAX_FORMAT, "pax")):
        case = _folder(folder / name)
        with tarfile.open(case / "a.tar", "w", format=kind) as tar:
            for number in range(3):
                image = io.BytesIO()
                _picture(number).save(image, "JPEG")
                label = (f"{number}.json", b'{"label": 1}') if number else ("folder/" * 12 + "é" * 30 + ".cls", b"1")
                for path, content in (label, (label[0].rpartition(".")[0] + ".jpg", image.getvalue())):
                    member = tarfile.TarInfo(path)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        write_shard_index([case / "a.tar"], case / "shards.npz")


def read_shards(folder: Path) -> None:
    """By the index that is there, and by a new one."""
    try:
        read_shard_rows(folder / "shards.npz")
    except UserError:
        write_shard_index([folder / "a.tar"], folder / "again.npz")
        read_shard_rows(folder / "again.npz")


def read_shard_rows(index: Path) -> None:
    for skip_bad in (False, True):
        images = ShardDataset(index, 16, skip_bad)
        images.batch(np.arange(min(4, images.num_images)))


def read_sample_list(folder: Path) -> None:
    sample = SampleImages(folder / "list.txt")
    sample.identities(sample.of_size(16))


def write_vectors(folder: Path) -> None:
    import faiss
    import polars as pl

    rows, ids = _rows(), [f"id {n}" for n in range(40)]

    def case(name: str) -> Path:
        path = _folder(folder / name)
        (path / "labels.txt").write_text("".join(f"class {n % 5}\n" for n in range(40)))
        return path

    for name, dtype in (("npy", np.float32), ("npy16", np.float16), ("npy64", np.float64)):
        path = case(name)
        np.save(path / "v.npy", rows.astype(dtype))
        (path / "ids.txt").write_text("".join(f"{each}\n" for each in ids))
        (path / "images.txt").write_text("".join(f"pictures/{each}.jpg\t{each}\n" for each in ids[::2]))
    table = pl.DataFrame({"id": ids, "vector": rows.tolist(), "label": [f"c{n % 5}" for n in range(40)]})
    table.with_columns(pl.col("vector").cast(pl.Array(pl.Float32, 8))).write_parquet(case("array") / "v.parquet")
    table.with_columns(pl.col("vector").cast(pl.List(pl.Float32))).write_parquet(case("list") / "v.parquet")
    flat, ivf = faiss.IndexFlatIP(8), faiss.IndexIVFFlat(faiss.IndexFlatL2(8), 8, 3)
    flat.add(rows)
    ivf.train(rows)
    ivf.add(rows)
    numbered = faiss.IndexIDMap2(faiss.IndexFlatL2(8))
    numbered.add_with_ids(rows, np.arange(40) * 7)
    for name, index in (("flat", flat), ("ivf", ivf), ("numbered", numbered)):
        path = case(name)
        faiss.write_index(index, str(path / "v.faiss"))
        if name != "numbered":
            (path / "ids.txt").write_text("".join(f"{each}\n" for each in ids))


def read_vectors(folder: Path) -> None:
    lists = {name: folder / f"{name}.txt" for name in ("ids", "labels", "images") if (folder / f"{name}.txt").exists()}
    vectors = next((path for path in sorted(folder.iterdir()) if path.name.startswith("v.")), folder / "v.npy")
    for _ in open_vectors(vectors, **lists).blocks():
        pass


def write_store(folder: Path) -> None:
    info = StoreInfo("data", "model", 40, 8, "images", "r18")
    case = _folder(folder / "store")
    (case / "store.json").write_text(json.dumps(asdict(info)))
    np.save(case / "features.npy", _rows())
    np.save(case / "labels.npy", np.arange(40) % 5)


def read_store(folder: Path) -> None:
    store = EmbeddingStore.open(folder)
    store.require(StoreInfo("data", "model", 40, 8, "images", "r18"))
    class_means(store)


def write_statistics(folder: Path) -> None:
    write_store(folder)
    np.save(folder / "store" / "class_means.npy", _rows(5))
    np.save(folder / "store" / "credible_0.9.npy", np.arange(40) % 9 > 0)


def read_statistics(folder: Path) -> None:
    store, alone = EmbeddingStore.open(folder), Ranks(0, 1, torch.device("cpu"))
    np.asarray(prepare_class_means(store, alone)).sum()
    prepare_credible_mask(store, 0.9, False, alone)


def write_weights(folder: Path) -> None:
    run = write_run_folder(folder.parent / f"{folder.name}_run")
    state = torch.load(run / "model.pt", weights_only=True)
    for name, content in {
        "plain": state,
        "training": {"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}, "lr": [0.1]},
    }.items():
        torch.save(content, _folder(folder / name) / "model.pt")
        torch.save(content, _folder(folder / f"{name}_old") / "model.pt", _use_new_zipfile_serialization=False)


def write_safetensors(folder: Path) -> None:
    from safetensors.torch import save_file

    run = write_run_folder(folder.parent / f"{folder.name}_run")
    save_file(torch.load(run / "model.pt", weights_only=True), _folder(folder / "plain") / "model.safetensors")


def write_pieces(folder: Path) -> None:
    """Small files of tensors of all kinds, which are changed more often where it matters than large ones."""
    content = {
        "weight": torch.zeros(3, 4), "half": torch.ones(2).half(), "view": torch.arange(12.0).reshape(3, 4).T[1:],
        "nested": [{"a": torch.tensor(1)}, (1, "x", None)], "parameter": torch.nn.Parameter(torch.zeros(2)),
        "sparse": torch.eye(2).to_sparse(), "number": 1.5,
    }  # fmt: skip
    torch.save(content, _folder(folder / "new") / "model.pt")
    torch.save(content, _folder(folder / "old") / "model.pt", _use_new_zipfile_serialization=False)


def write_runs(folder: Path) -> None:
    write_run_folder(folder / "run")


def read_run(folder: Path) -> None:
    load_encoder(folder)(np.zeros((1, 16, 16, 3), np.uint8))


def write_maps(folder: Path) -> None:
    spaces = Space(8, "old", "a" * 64), Space(6, "new", "b" * 64)
    for kind in ("ridge", "procrustes", "mlp"):
        options = {"num_epoch": 1, "hidden": 8} if kind == "mlp" else {}
        fitted = fit_map(kind, _rows(), _rows(40, 6, 1), np.arange(40) % 5, spaces=spaces, **options)
        fitted.save(_folder(folder / kind))


def read_map(folder: Path) -> None:
    load_map(folder)(_rows(4))


def write_map_runs(folder: Path) -> None:
    old, new, side = (write_run_folder(folder.parent / f"{folder.name}_{seed}", seed) for seed in (0, 1, 2))
    write_map_run(_folder(folder / "map"), new, old, side=side)


RUN = {"network": "r18", "embedding_size": 8, "image_size": 16}


def write_classifiers(folder: Path) -> None:
    case = _folder(folder / "run")
    torch.save({"weight": torch.zeros(5, 8), "bias": torch.zeros(5)}, case / "classifier.pt")
    (case / "config.json").write_text(json.dumps({**RUN, "loss": "arcface", "margin_scale": 64.0, "margin": 0.5}))
    case = _folder(folder / "ranks")
    for rank in range(2):
        torch.save({"weight": torch.zeros(3, 8)}, case / f"softmax_fc_gpu_{rank}.pt")


def read_classifier(folder: Path) -> None:
    if (folder / "config.json").exists():
        read_run_classifier(folder, 8, "old", "or name another")
    else:
        read_class_weights(folder, 6, 8).tensors()


def write_onnx(folder: Path) -> None:
    Graph().write(_folder(folder / "plain") / "model.onnx")
    graph = Graph().step("Sub", channels(127.5, 127.5, 127.5)).step("Div", channels(127.5, 127.5, 127.5))
    graph.write(_folder(folder / "pixels") / "model.onnx", shape=(1, 3, 12, 12))


def read_onnx(folder: Path) -> None:
    load_encoder(folder / "model.onnx")(np.zeros((1, 12, 12, 3), np.uint8))


def write_positions(folder: Path) -> None:
    position = Position(20, 1, 320, 2, {"lr": 0.1, "rec": ["train", "0" * 64]}, {"scale": 2.0})
    (_folder(folder / "step") / "position.json").write_text(json.dumps(asdict(position)))


def write_run_configs(folder: Path) -> None:
    case = _folder(folder / "run")
    (case / "config.json").write_text(json.dumps({"network": "r18", "lr": 0.1, "rec": "train", "betas": [0.9, 0.99]}))
    (case / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": n, "loss": 1.0 / (n + 1)}) + "\n" for n in range(9))
    )


def read_run_config(folder: Path) -> None:
    run = RunFolder(folder)
    run.read_config()
    MetricsLog(run, 4).close()


def write_results(folder: Path) -> None:
    models = {
        name: Model(name, f"{n}" * 64, f"{name}.pt", "r18", 8, "aligned", "112")
        for n, name in enumerate(("old", "new"))
    }
    rates = {"tar@far=1e-04": 0.9, "tar@far=1e-06": None, "auc": 0.99}
    found = [
        Evaluation("ijbc-1:1", models[query], models[gallery], rates, {"flip": True}, {"far=1e-04": 0.5})
        for query, gallery in (("old", "old"), ("new", "new"), ("new", "old"))
    ]
    write_evaluation(_folder(folder / "one") / "results.json", found[0])
    write_evaluations(_folder(folder / "many") / "results.json", found)
    pairs = {pair: {"1:1": rates, "1:N": {"top1": 0.5}} for pair in ("old/old", "new/new", "new/old")}
    (_folder(folder / "demo") / "results.json").write_text(json.dumps(pairs))


def read_results(folder: Path) -> None:
    for evaluation in read_evaluations(folder / "results.json"):
        for name in evaluation.rates():
            if evaluation.metrics[name] is not None:
                evaluation.rate(name)


def write_comparisons(folder: Path) -> None:
    entries = [
        Entry(method, seed, {"A": self_test, "B": 50.0}, {"A": cross, "B": 40.0})
        for seed in (0, 1)
        for method, self_test, cross in (("old", 60.0, 60.0), ("independent", 80.0, 1.0), ("near", 80.0, 70.0))
    ]
    Comparison(entries).write_csv(_folder(folder / "table") / "results.csv")


def read_comparison(folder: Path) -> None:
    read_csv(folder / "results.csv").tables()


def write_plans(folder: Path) -> None:
    old, new = Version("a" * 64, "old", 8), Version("b" * 64, "new", 6)
    spaces = Space(8, "old", old.key), Space(6, "new", new.key)
    maps: dict[str, Any] = {
        "gallery_map": fit_map("ridge", _rows(), _rows(40, 6, 1), spaces=spaces),
        "query_map": fit_map("ridge", _rows(40, 6, 1), _rows(), spaces=spaces[::-1]),
    }
    Plan(
        old=old, new=new, sample=SampleFacts(10, 20, True, 5, 10, ""),
        roads={name: None if name == "direct" else Road(0.5, 0.1, 0.0, 0.0, {}, 0) for name in ROADS},
        impossible={"direct": "the sizes differ"}, comparisons={}, recommendation="gallery_map", reason="a test",
        order="random", shares=[0.0, 1.0],
        curves={name: {"random": {"top1": [0.5, 0.6], "nfr": [0, 0], "pfr": [0, 0], "auc": [0.5]}} for name in ROADS},
        maps={name: {"fingerprint": each.fingerprint} for name, each in maps.items()},
        calibrations={"old/old": fit_calibration(np.random.default_rng(0).normal(0, 0.1, 500))},
        realised={}, flips=[], cost=Cost(40, None, None, "not measured", {}, {}), seed=0, **maps,
    ).save(_folder(folder / "plan"))  # fmt: skip


def write_overrides(folder: Path) -> None:
    lines = [
        "lr=0.05",
        "batch_size=64",
        "network=r18",
        "network_options.width=8",
        "num_epoch=2",
        "schedule=step",
        "precision=fp16",
    ]
    for place, line in enumerate(lines):
        (_folder(folder / str(place)) / "overrides.txt").write_text(line)


def read_overrides(folder: Path) -> None:
    words = (folder / "overrides.txt").read_text("utf-8", "surrogateescape").split("\n")
    (folder / "config.py").write_text(
        "from easydict import EasyDict\n\nconfig = EasyDict(lr=0.1)\n"
    )  # a program: trusted
    load_settings(folder / "config.py", words)


def write_ijb(folder: Path) -> None:
    write_tree(folder / "tree", num_subjects=6)
    for path in folder.rglob("*.jpg"):
        path.write_bytes(b"")


def read_ijb(folder: Path) -> None:
    images = read_images(require_meta(folder, "IJBC", False), "IJBC")
    read_pairs(images)
    read_images(require_meta(folder, "IJBC", True), "IJBC")
    read_identification(images)


def write_galleries(folder: Path) -> None:
    case = _folder(folder / "gallery")
    np.save(case / "v.npy", _rows())
    (case / "ids.txt").write_text("".join(f"id {n}\n" for n in range(40)))
    (case / "labels.txt").write_text("".join(f"c{n % 5}\n" for n in range(40)))
    with Gallery.create(
        case / "gallery", case / "v.npy", "name:vendor", case / "ids.txt", case / "labels.txt"
    ) as gallery:
        store = gallery.store
        store.add_version(Version("new", "new", 8))
        old = next(iter(store.versions()))
        fitted = fit_map("ridge", _rows(), _rows(40, 8, 1), spaces=(Space(8, "old", old), Space(8, "new", "new")))
        upgrade = Upgrade(old, "new", None, "query_map", "random", "0" * 64, 40)
        calibration = fit_calibration(np.random.default_rng(0).normal(0, 0.1, 500))
        calibrations = calibrations_to_document(dict.fromkeys(("old/old", "new/new", "query_map/old"), calibration))
        documents = {"upgrade": upgrade.to_json(), "query_map": map_to_document(fitted), "calibrations": calibrations}
        store.set_documents(documents)
        store.add_vectors("new", np.arange(10), _rows(10, 8, 2))
    for name in ("v.npy", "ids.txt", "labels.txt"):
        (case / name).unlink()


def read_gallery(folder: Path) -> None:
    with Gallery.open(folder / "gallery") as gallery:
        gallery.info()
        gallery.verify()
        for block in gallery.store.entries():
            gallery.store.find(block.ids)
        gallery.search(_rows(2), "new", k=3)


def write_sample_pairs(folder: Path) -> None:
    case = _folder(folder / "pairs")
    np.save(case / "old.npy", _rows())
    np.save(case / "new.npy", _rows(40, 6, 1))
    (case / "labels.txt").write_text("".join(f"c{n % 5}\n" for n in range(40)))


READERS = {
    reader.name: reader
    for reader in (
        Reader("pickle", write_pickles, read_pickle, 20),
        Reader("revisited", write_revisited, read_revisited_tree, 6),
        Reader("verification", write_verification, read_verification, 10),
        Reader("gldv2", write_gldv2, read_gldv2_lists, 6),
        Reader("gldv2-tables", write_gldv2_tables, read_gldv2_table, 6),
        Reader("ijb", write_ijb, read_ijb, 1),
        Reader("records", write_record_files, read_records, 6),
        Reader("recordio", write_record_files, read_record_by_record, 10),
        Reader("record-index", write_record_file, lambda folder: write_index(folder / "train"), 12),
        Reader("image", write_image_files, read_image_file, 12),
        Reader("list", write_lists, read_list, 4),
        Reader("shards", write_shards, read_shards, 4),
        Reader("sample-list", write_lists, read_sample_list, 4),
        Reader(
            "sample-pairs", write_sample_pairs, lambda f: pair_sample(f / "old.npy", f / "new.npy", f / "labels.txt")
        ),
        Reader("vectors", write_vectors, read_vectors, 4),
        Reader("store", write_store, read_store, 6),
        Reader("statistics", write_statistics, read_statistics, 6),
        Reader("tensors", write_pieces, lambda folder: read_weight_file(folder / "model.pt"), 8),
        Reader("weights", write_weights, lambda folder: read_state_dict(folder / "model.pt"), 1),
        Reader("safetensors", write_safetensors, lambda folder: read_state_dict(folder / "model.safetensors"), 2),
        Reader("run", write_runs, read_run, 1),
        Reader("map", write_maps, read_map, 2),
        Reader("map-run", write_map_runs, read_map_run, 1),
        Reader("classifier", write_classifiers, read_classifier, 4),
        Reader("onnx", write_onnx, read_onnx, 1),
        Reader("position", write_positions, read_position, 2),
        Reader("run-config", write_run_configs, read_run_config, 2),
        Reader("results", write_results, read_results, 3),
        Reader("comparison", write_comparisons, read_comparison, 8),
        Reader("plan", write_plans, Plan.load, 1),
        Reader("overrides", write_overrides, read_overrides, 6),
        Reader("gallery", write_galleries, read_gallery, 1),
    )
}
"""By name."""
