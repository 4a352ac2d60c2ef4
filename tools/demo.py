"""The whole way on built-in data: old model, MixBCT, an independent new model, maps, tests, ONNX, an upgrade.

python tools/demo.py --dataset glyphs --seed 0 --out work_dirs/demo

Each step is a command of this repository, printed before it runs. A demo that was interrupted goes on where it was.
"""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from command_line import ArgumentParser
from commands import Commands
from demo_gallery import FOLDERS, upgrade_gallery

from core.data.records import RecordDataset
from core.engine.run_folder import code_version
from core.errors import UserError, run_program
from core.evaluation.ijb_embeddings import AlignedImages
from core.evaluation.ijb_meta import read_identification, read_images, require_meta
from core.evaluation.model_pairs import PairResult, evaluate_pairs
from core.evaluation.plots import image_grid, plot_identification, plot_roc
from core.evaluation.results import write_pairs
from core.evaluation.tables import format_markdown, format_rate, format_table
from core.files import ROOT
from core.json_files import read_json
from core.logs import set_up_logging
from core.models.encoder import load_encoder
from core.outputs import make_folder, remove, replaced_atomically, require_writable
from core.progress import format_seconds
from core.temporary_names import is_temporary

MODELS = ("old", "new", "independent")
MAPS = {
    "old_to_new": ("ridge", "new"),
    "old_to_independent": ("ridge", "independent"),
    "independent_to_old": ("procrustes", "independent"),
}
"""By folder: the kind of the map, and the new model whose space it joins to the old one's."""
PAIRS = {
    "old/old": ("old", "old"),
    "new/new": ("new", "new"),
    "new/old": ("new", "old"),
    "new/old+ridge": ("new", "old_to_new"),
    "independent/independent": ("independent", "independent"),
    "independent/old": ("independent", "old"),
    "independent/old+ridge": ("independent", "old_to_independent"),
    "independent+procrustes/old": ("independent_to_old", "old"),
}
"""By query model / gallery model: their folders."""
ROADS = {
    "new/old": "MixBCT queries in the old gallery as it is",
    "new/old+ridge": "MixBCT queries in the old gallery, mapped to the space of the MixBCT model",
    "independent/old+ridge": "queries of the independent model in the old gallery, mapped to its space",
    "independent+procrustes/old": "queries of the independent model, mapped to the old space, in the old gallery",
}
"""The pairs for which no image of the gallery is embedded again, in words."""
PARTS = {
    "glyphs": ("class", "train_part_70_class", "30 % of the identities", "the other 70 %"),
    "orl": (
        "data",
        "train",
        "30 % of the photographs of each person, just as they are",
        "all photographs of these 28 people, also in poor light, noisy or partly covered, as the probes are",
    ),
}
"""How the data is split, the new models' records, and both parts in words. ORL has too few people to share them."""
SHOWN = {"1:N": ("top1", "nfr", "pfr", "top5", "tpir@fpir=0.1"), "1:1": ("tar@far=1e-03", "tar@far=1e-02", "auc")}


def main() -> None:
    """Run the steps that are not done yet, then evaluate, report and export."""
    parser = ArgumentParser("Show on built-in data what backward-compatible training does.")
    parser.add_argument("--dataset", choices=("glyphs", "orl"), default="glyphs", help="glyphs, or real faces (ORL)")
    parser.add_argument("--seed", type=int, default=0, help="seed of data and trainings")
    parser.add_argument("--out", type=Path, default=ROOT / "work_dirs" / "demo", help="folder of all results")
    args = parser.parse_args()
    set_up_logging()
    started = time.monotonic()
    out = Path(os.path.realpath(args.out))
    start_folder(out, {"dataset": args.dataset, "seed": args.seed, "version": code_version()})
    commands = Commands()
    train_models(out, args.dataset, args.seed, commands)
    fit_maps(out, args.dataset, args.seed, commands)
    results = evaluate(out)
    commands.run("tools/export_onnx.py", "-m", out / "new", "-o", out / "new.onnx")
    found, upgrade = upgrade_gallery(out, commands)
    table = write_report(out, args.dataset, args.seed, results, found)
    print(f"\n{table}\n\nreport: {out / 'report.md'}   (took {format_seconds(time.monotonic() - started)})")
    print(f"The upgrade of the old gallery: open {upgrade} in a browser.")


def start_folder(out: Path, demo: dict[str, object]) -> None:
    """Make the folder; empty it of what a demo with another data set, seed or version of this code left there."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: name a folder with OUT= or --out")
    require_writable(out)
    marker, text = out / "demo.json", json.dumps(demo) + "\n"
    if marker.exists() and marker.read_text() != text:
        print(f"{out} holds another demo ({marker.read_text().strip()}): starting over")
        for name in ("data", "embeddings", *MODELS, *MAPS, *FOLDERS):
            remove(out / name)
    elif out.exists() and not marker.exists() and not all(map(is_temporary, os.listdir(out))):
        raise UserError(f"{out} holds files that are not a demo's: name an empty folder with OUT= or --out")
    make_folder(out)
    with replaced_atomically(marker) as temporary:
        temporary.write_text(text)


def train_models(out: Path, dataset: str, seed: int, commands: Commands) -> None:
    """Data, split, and the three models, each in a folder of its name."""
    if not (out / "data" / "dataset.json").exists():
        commands.run("tools/make_dataset.py", dataset, "--out", out / "data", "--seed", seed)
    mode, new_records = PARTS[dataset][:2]
    if not (out / "data" / f"train_part_70_{mode}.idx").exists():
        commands.run(
            "tools/split_dataset.py", "--rec", out / "data" / "train", "--mode", mode, "--ratio", 0.3, "--seed", seed
        )
    old_part, new_part = (f"rec={out / 'data' / name}" for name in (f"train_part_30_{mode}", new_records))
    common = f"seed={seed}"
    commands.run("old_model/train.py", f"old_model/configs/{dataset}.py", old_part, f"output={out / 'old'}", common)
    independent = [f"old_model/configs/{dataset}_independent.py", new_part, f"output={out / 'independent'}", common]
    new = [
        f"methods/mixbct/configs/{dataset}.py",
        new_part,
        f"old_model={out / 'old'}",
        f"features={out / 'old' / 'features'}",
        f"output={out / 'new'}",
        common,
    ]
    commands.run_together([("old_model/train.py", independent), ("methods/mixbct/train.py", new)])


def fit_maps(out: Path, dataset: str, seed: int, commands: Commands) -> None:
    """The maps between the old model and the new ones, fitted on the images that the new ones were trained on."""
    for folder, (kind, model) in MAPS.items():
        commands.run(
            "methods/linear_map/train.py",
            f"methods/linear_map/configs/{dataset}.py",
            f"kind={kind}",
            f"rec={out / 'data' / PARTS[dataset][1]}",
            f"old_model={out / 'old'}",
            f"old_features={out / 'old' / 'features'}",
            f"new_model={out / model}",
            f"new_features={out / model / 'features'}",
            f"output={out / folder}",
            f"seed={seed}",
        )


def evaluate(out: Path) -> dict[str, PairResult]:
    """Self- and cross-tests of the pairs, 1:1 and 1:N; each model embeds the test images once."""
    encoders = {name: load_encoder(out / name) for name in (*MODELS, *MAPS)}
    pairs = ["/".join(folders) for folders in PAIRS.values()]
    results = evaluate_pairs(encoders, pairs, out / "data" / "eval", cache=out / "embeddings")
    return {name: results[pair] for name, pair in zip(PAIRS, pairs)}


def write_report(
    out: Path, dataset: str, seed: int, results: dict[str, PairResult], upgrade: Mapping[str, float]
) -> str:
    """Write results.json, the pictures and report.md; returns the table."""
    write_pairs(out / "results.json", {pair: result.metrics for pair, result in results.items()})
    verifications = {pair: result.verification for pair, result in results.items()}
    plot_roc({pair: (curve.fpr, curve.tpr) for pair, curve in verifications.items()}, out / "roc.png", "1:1")
    plot_identification(
        {pair: result.identification.curves["g1"] for pair, result in results.items()}, out / "identification.png"
    )
    draw_identities(out)
    draw_test(out)
    header = ["query/gallery", *(f"{task} {name}" for task, names in SHOWN.items() for name in names)]
    rows = [
        [pair, *(format_rate(result.metrics[task].get(name)) for task, names in SHOWN.items() for name in names)]
        for pair, result in results.items()
    ]
    credit = read_json(out / "data" / "dataset.json", "description of the data set").get("credit")
    with replaced_atomically(out / "report.md") as temporary:
        temporary.write_text(
            REPORT.format(
                dataset=dataset,
                old_part=PARTS[dataset][2],
                new_part=PARTS[dataset][3],
                seed=seed,
                table=format_markdown(header, rows),
                roads=compare_roads({pair: result.metrics["1:N"] for pair, result in results.items()}),
                upgrade=format_markdown(
                    ["gallery", "rank-1 (%)"], [[name, format_rate(rate)] for name, rate in upgrade.items()]
                ),
                credit=credit or "",
            )
        )
    return format_table(header, rows)


def compare_roads(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """In words, from the 1:N metrics of the pairs: what each road finds without embedding the gallery again."""
    found = {pair: 100 * values["top1"] for pair, values in metrics.items()}
    before, star = found["old/old"], found["independent/independent"]
    lines = [
        f"The service finds {before:.1f} % now; the independent model would find {star:.1f} % after embedding every "
        "image of the gallery again. Without embedding one of them:",
        "",
    ]
    for pair in sorted(ROADS, key=lambda pair: -found[pair]):
        gain = found[pair] - before
        share = f", {100 * gain / (star - before):.0f} % of the whole gain" if star > before and gain > 0 else ""
        verdict = f"{'pays at once' if gain > 0 else 'does not pay'}: {found[pair]:.1f} % ({gain:+.1f}{share})"
        lost = f"{100 * metrics[pair]['nfr']:.1f} % of the probes are found now and would be lost"
        lines.append(f"- **{pair}**, {ROADS[pair]}, {verdict}; {lost}.")
    return "\n".join(lines)


def draw_identities(out: Path) -> None:
    """A picture of six images each of eight training identities."""
    data = RecordDataset(out / "data" / "train")
    labels = data.labels()
    chosen = np.linspace(0, data.num_classes - 1, 8).astype(int)
    rows = np.concatenate([np.resize(np.flatnonzero(labels == label), 6) for label in chosen])
    images, _ = data.batch(rows)
    titles = [f"identity {label}" if column == 0 else "" for label in chosen for column in range(6)]
    image_grid(list(images), titles, out / "identities.png", columns=6)


def draw_test(out: Path) -> None:
    """A picture of four enrolled images and four probes each of up to six test identities."""
    images = read_images(require_meta(out / "data" / "eval", "IJBC", one_to_n=True), "IJBC")
    lists = read_identification(images)
    gallery, probes = lists.galleries["g1"], lists.probes
    rows, titles = [], []
    for place in np.linspace(0, len(gallery.subjects) - 1, min(6, len(gallery.subjects))).astype(int):
        of_subject = probes.templates[probes.subjects == gallery.subjects[place]]
        for kind, templates in (("enrolled", gallery.templates[[place]]), ("probes", of_subject)):
            rows += np.resize(images.member_image[np.isin(images.member_template, templates)], 4).tolist()
            titles += [kind, "", "", ""]
    shown = replace(images, names=[images.names[row] for row in rows], landmarks=images.landmarks[rows])
    image_size = RecordDataset(out / "data" / "train").image_size
    crops = AlignedImages(shown, image_size).read(np.arange(len(rows)))["image"]
    image_grid(list(crops), titles, out / "test.png", columns=8)


REPORT = """# Backward-compatible training on {dataset}, seed {seed}

The old model was trained on {old_part}, the two new ones, of a deeper network, on {new_part}. All are
tested on identities that none of them has seen. Rates in per cent; a name is query model / gallery model.

{table}

- **old/old** is the service before the update.
- **new/old** is the update without backfilling: MixBCT queries in the old gallery. Above old/old it pays at once.
- **independent/old** is the same without backward-compatible training: no better than chance.
- **old+ridge** is the old gallery mapped to the space of the queries' model, **independent+procrustes** queries mapped
  to the old space: maps fitted in seconds on embeddings of the new model's training images by both models.
- **new/new** and **independent/independent** are the galleries after backfilling: what compatibility costs.
- **nfr** is the share of probes that the service finds now and would not find any more, **pfr** the reverse.

## Which road pays

{roads}

Compatible training needs the old model while the new one is trained, and leaves the gallery as it is. A map needs two
finished models and images that both have embedded; mapping the gallery rewrites its vectors, mapping queries does not.
Both together need both. These three networks are of one family, which flatters maps: two models that have little in
common may not be mappable at all. Measure it on images of your own (docs/maps.md).

## The upgrade of a gallery

The enrolled images of the test are a gallery of single vectors of the old model. Its upgrade to the new model was
planned on the images of half of the people ([plan/report.html](plan/report.html)); the queries are single images of
others. Images were embedded again in the order of the plan, and both parts were searched together.

{upgrade}

![ROC of the pairs](roc.png)

![Identification in gallery 1](identification.png)

![Training identities, a row each](identities.png)

![Test identities, a row each](test.png)

The new encoder for a service: [new.onnx](new.onnx). {credit}
"""


if __name__ == "__main__":
    run_program(main)
