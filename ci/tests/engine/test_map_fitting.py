"""Programs that fit maps: from images to run folders that are model arguments, on any number of ranks, resumable."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import Launch, launch_with_long_work
from tiny import write_records, write_run_folder

import core.engine.map_fitting
from core.data.records import RecordDataset
from core.embeddings.store import EmbeddingStore
from core.engine.map_fitting import fit_maps
from core.engine.map_training import _Training
from core.errors import UserError
from core.files import ROOT
from core.models.encoder import load_encoder
from core.models.maps import fit_map, load_map
from core.program import load_method
from core.settings import load_settings

SHORT = ["hidden=8", "num_epoch=4", "warmup_epoch=1", "pairs_per_step=20", "frequent=2"]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A folder with run folders of 8, 5 and 8 numbers an embedding; `large` takes images of 24 pixels."""
    folder = tmp_path_factory.mktemp("models")
    write_run_folder(folder / "old", seed=0)
    write_run_folder(folder / "new", seed=1, embedding_size=5)
    write_run_folder(folder / "other", seed=2)
    write_run_folder(folder / "large", seed=3, embedding_size=5, image_size=24)
    return folder


@pytest.fixture
def fit(tmp_path, tiny_records, models, ranks):
    """Fit a method's maps in this process, with stores that the tests share; returns the run folder."""

    def run(name: str, *overrides: str, output: str = "run", new: str = "new") -> Path:
        method = load_method(ROOT / "methods" / name / "train.py")
        words = arguments(tiny_records, models, tmp_path / output, new=new)
        settings = load_settings(ROOT / "configs" / "maps" / "glyphs.py", [*words, *overrides], method.settings_type)
        fit_maps(settings, method, name, ranks)
        return tmp_path / output

    return run


def arguments(rec: Path, models: Path, output: Path, old: str = "old", new: str = "new") -> list[str]:
    return [
        f"rec={rec}", f"old_model={models / old}", f"new_model={models / new}", "num_workers=0", "device=cpu",
        f"old_features={models / f'{old}_features'}", f"new_features={models / f'{new}_features'}", f"output={output}",
    ]  # fmt: skip


def assert_same_map(*folders: Path) -> None:
    one, other = (torch.load(folder / "map.pt", weights_only=True) for folder in folders)
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def images_of(rec: Path, image_size: int = 16) -> np.ndarray:
    return RecordDataset(rec, image_size).batch(range(72))[0]


@pytest.mark.parametrize("direction", ["old_to_new", "new_to_old"])
def test_run_folder_is_a_model_argument_that_ends_in_the_other_space(direction, fit, models, tiny_records):
    folder = fit("linear_map", f"direction={direction}")
    base, target = ("old", "new") if direction == "old_to_new" else ("new", "old")
    encoders = {name: load_encoder(models / name) for name in (base, target)}
    images = images_of(tiny_records)
    vectors = {name: encoder(images).numpy() for name, encoder in encoders.items()}
    expected = fit_map("ridge", vectors[base], vectors[target])(vectors[base], normalized=False)
    mapped = load_encoder(folder)
    np.testing.assert_allclose(mapped(images), expected, atol=1e-4)
    assert mapped.embedding_size == encoders[target].embedding_size and mapped.maps_gallery == (base == "old")
    config = json.loads((folder / "config.json").read_text())
    assert (config["method"], config["direction"], config["kind"]) == ("linear_map", direction, "ridge")
    assert config["base"]["path"] == str(models / base)
    assert config["base"]["fingerprint"] == encoders[base].fingerprint == config[f"{base}_model_fingerprint"]
    assert config["map"]["target"]["fingerprint"] == encoders[target].fingerprint
    assert config["num_images"] == 72 and config["data_fingerprint"] == RecordDataset(tiny_records).fingerprint
    assert config["version"].startswith("0.") and config["map"]["num_pairs"] == 72


def test_base_keeps_what_was_told_of_it(fit, models, tiny_records, tmp_path):
    shutil.copy(models / "old" / "model.pt", tmp_path / "bare.pt")
    told = [f"old_model={tmp_path / 'bare.pt'}", "old_network=iresnet18", "old_mean=100", "old_std=60"]
    with pytest.raises(UserError, match=r"bare\.pt is a bare state dict.*: name it with old_network="):
        fit("linear_map", told[0])
    folder = fit("linear_map", *told, "old_channel_order=BGR", f"old_features={tmp_path / 'features'}")
    base = json.loads((folder / "config.json").read_text())["base"]
    assert (base["network"], base["mean"], base["std"], base["channel_order"]) == ("iresnet18", 100, 60, "BGR")
    images = images_of(tiny_records)
    alone = load_encoder(tmp_path / "bare.pt", "r18", mean=100, std=60, channel_order="BGR")
    np.testing.assert_allclose(load_encoder(folder)(images), load_map(folder)(alone(images).numpy(), False), atol=1e-4)


def test_images_are_read_once_for_models_of_one_size_and_once_more_for_another(
    fit, models, tmp_path, monkeypatch, caplog
):
    read, counts = RecordDataset.read, []
    monkeypatch.setattr(RecordDataset, "read", lambda self, rows: counts.append(len(rows)) or read(self, rows))
    own = [f"old_features={tmp_path / 'a'}", f"new_features={tmp_path / 'b'}"]
    fit("linear_map", *own)
    assert sum(counts) == 72
    fit("linear_map", *own, output="again")
    assert sum(counts) == 72
    with caplog.at_level(logging.INFO):
        fit("linear_map", f"old_features={tmp_path / 'c'}", f"new_features={tmp_path / 'd'}", new="large")
    assert sum(counts) == 3 * 72
    assert "images are read once for each size that the models take: 16, 24 pixels" in caplog.text
    shapes = [EmbeddingStore.open(tmp_path / name).features.shape for name in "abcd"]
    assert shapes == [(72, 8), (72, 5), (72, 8), (72, 5)]


def test_each_mistake_is_told_before_those_that_take_longer_to_find(models, tiny_records, tmp_path, ranks, monkeypatch):
    wrong_and_right = {
        "direction": ("new_to_old", "old_to_new", "direction=new_to_old: this method's maps lead old_to_new alone"),
        "output": (str(models / "old"), str(tmp_path / "run"), "is the run folder of a model: name another one"),
        "old_model": (None, str(models / "old"), "config key 'old_model' is not set: name the run folder"),
        "new_model": ("/nowhere/new", str(models / "old"), "model not found: /nowhere/new"),
        "new_model ": (str(models / "old"), str(models / "new"), "old_model .* and new_model .* are the same model"),
        "new_features": ("/proc/features", str(tmp_path / "features"), "cannot write /proc/features: "),
        "": ("", "", r"the new model has no classifier of its own at .*new/classifier\.pt"),
    }
    method = load_method(ROOT / "methods" / "fastfill" / "train.py")
    present = {key.strip(): wrong for key, (wrong, _, _) in wrong_and_right.items() if key and key[-1] != " "}
    opened = []
    monkeypatch.setattr(core.engine.map_fitting, "open_images", lambda *arguments: opened.append(arguments))
    for key, (wrong, right, message) in wrong_and_right.items():
        if key:
            present[key.strip()] = wrong
        words = [f"{name}={value}" for name, value in present.items()]
        settings = load_settings(ROOT / "configs" / "maps" / "glyphs.py", words, method.settings_type)
        with pytest.raises(UserError, match=message):
            fit_maps(settings, method, "fastfill", ranks)
        assert not opened and not (tmp_path / "run").exists() and not (tmp_path / "features").exists()
        if key:
            present[key.strip()] = right


def test_too_few_images_and_stores_of_others_are_refused(fit, models, tmp_path, tiny_records):
    few = write_records(tmp_path / "few", [0, 0, 1, 1, 2, 2])
    with pytest.raises(UserError, match="few has 6 images: a map needs at least 10"):
        fit("linear_map", f"rec={few}")
    others = write_records(tmp_path / "others", sorted(list(range(6)) * 12), seed=5)
    fit("linear_map")
    with pytest.raises(
        UserError, match=r"embedding store .*old_features was made from other data \(.*train, 72 images"
    ):
        fit("linear_map", f"rec={others}")
    with pytest.raises(UserError, match="made with another model or preprocessing"):
        fit("linear_map", f"new_model={models / 'other'}")
    with pytest.raises(UserError, match="are to be kept in one folder"):
        fit("linear_map", f"new_features={models / 'old_features'}")
    with pytest.raises(UserError, match="direction=old_to_new: this method fits maps in both directions"):
        fit("lambda_orthogonality", "direction=old_to_new")


def test_a_map_in_closed_form_does_not_replace_one_that_was_trained(fit):
    folder = fit("fct", *SHORT)
    before = (folder / "map.pt").read_bytes()
    with pytest.raises(UserError, match=r"output .*run is the run folder of a training: name another one"):
        fit("linear_map")
    assert (folder / "map.pt").read_bytes() == before
    fit("lambda_orthogonality", "num_epoch=1", output="both", new="other")
    with pytest.raises(UserError, match=r"output .*old_to_new is the run folder of a training"):
        fit("linear_map", output="both/old_to_new", new="other")
    again = fit("linear_map", output="plain")
    assert fit("linear_map", output="plain") == again


def test_side_information_is_a_second_half_of_the_vectors_that_a_map_takes(fit, models, tmp_path, tiny_records):
    side = f"side_model={models / 'other'}", f"side_features={tmp_path / 'side'}"
    folder = fit("fct", *SHORT, *side)
    loaded, images = load_map(folder), images_of(tiny_records)
    vectors = [load_encoder(models / name)(images).numpy() for name in ("old", "other")]
    assert loaded(np.hstack(vectors)).shape == (72, 5)
    message = r"this map takes vectors of size 16 \(8 of the old model, then 8 of side information\), got size 8"
    with pytest.raises(UserError, match=message):
        loaded(vectors[0])


def test_run_folder_with_side_information_is_a_model_of_two(fit, models, tmp_path, tiny_records):
    shutil.copy(models / "old" / "model.pt", tmp_path / "bare.pt")
    write_run_folder(tmp_path / "side", seed=4, embedding_size=6)
    told = [f"side_model={tmp_path / 'side'}", "side_mean=100 110 120", "side_std=60", "side_channel_order=BGR"]
    old = [f"old_model={tmp_path / 'bare.pt'}", "old_network=r18", "old_mean=imagenet", "old_std=imagenet"]
    stores = [f"old_features={tmp_path / 'o'}", f"side_features={tmp_path / 's'}"]
    folder, images = fit("fct", *SHORT, *told, *old, *stores), images_of(tiny_records)
    encoder = load_encoder(folder)
    alone = [
        load_encoder(tmp_path / "bare.pt", "r18", mean="imagenet", std="imagenet"),
        load_encoder(tmp_path / "side", mean="100 110 120", std=60, channel_order="BGR"),
    ]
    units = [vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (a(images).numpy() for a in alone)]
    np.testing.assert_allclose(encoder(images), load_map(folder)(np.hstack(units), normalized=False), atol=1e-5)
    assert encoder.gallery_model.fingerprint == encoder.base.fingerprint == alone[0].fingerprint
    config = json.loads((folder / "config.json").read_text())
    side = {"path": str(tmp_path / "side"), "fingerprint": alone[1].fingerprint, "network": None}
    assert config["side"] == {**side, "mean": "100 110 120", "std": 60, "channel_order": "BGR"}
    assert config["map"]["source"]["name"] == "bare,side" and len(config["map"]["source"]["fingerprint"]) == 64
    # a folder from before base and side were written: no model, until the same command has completed it
    source = {**config["map"]["source"], "fingerprint": None}
    older = {key: value for key, value in config.items() if key != "side"}
    older |= {"base": None, "map": {**config["map"], "source": source}}
    (folder / "config.json").write_text(json.dumps(older))
    with pytest.raises(UserError, match="it maps stored vectors, but is no model"):
        load_encoder(folder)
    fit("fct", *SHORT, *told, *old, *stores)
    assert load_encoder(folder).fingerprint == encoder.fingerprint


def test_side_model_that_takes_images_of_another_size_is_refused_before_any_is_read(fit, models, monkeypatch):
    monkeypatch.setattr(core.engine.map_fitting, "open_images", None)
    with pytest.raises(
        UserError, match=r"^side_model .*large takes images of 24 pixels, old_model .*old of 16: name a"
    ):
        fit("fct", *SHORT, f"side_model={models / 'large'}")


def test_training_is_logged_and_goes_on_where_it_was_killed(fit, monkeypatch):
    whole = fit("fct", *SHORT, output="whole")
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 3, 4, 6, 8, 9, 10, 12]  # three steps an epoch
    assert all(line["loss"] == line["loss/distance"] for line in lines) and lines[-1]["loss"] < lines[0]["loss"]
    assert lines[-1]["epoch"] == 4 and 0 < lines[-1]["lr"] < lines[1]["lr"] == 5e-4
    train_epoch = _Training._train_epoch

    def killed(self, epoch: int, *arguments) -> None:
        if epoch == 2:
            raise KeyboardInterrupt
        train_epoch(self, epoch, *arguments)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(_Training, "_train_epoch", killed)
        fit("fct", *SHORT)
    with pytest.raises(UserError, match=r"holds a run with another lr \(0\.0005, now 0\.1\): name another output"):
        fit("fct", *SHORT, "lr=0.1")
    folder = fit("fct", *SHORT)
    assert (folder / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()
    assert_same_map(folder, whole)
    monkeypatch.setattr(_Training, "_train_epoch", killed)
    (folder / "map.pt").unlink()
    fit("fct", *SHORT)  # it is trained to the end: nothing is trained again
    assert_same_map(folder, whole)
    (folder / "checkpoint.pt").unlink()
    with pytest.raises(UserError, match="holds a map but no checkpoint.pt to go on from"):
        fit("fct", *SHORT)
    (folder / "checkpoint.pt").write_bytes(b"cut short")
    with pytest.raises(UserError, match="checkpoint.pt is damaged"):
        fit("fct", *SHORT)
    with pytest.raises(KeyboardInterrupt):
        fit("fct", *SHORT, "resume=false", "num_epoch=3")
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["epoch"] == 2


def test_loss_that_is_not_finite_and_rows_without_direction_are_one_line(fit, models, tmp_path):
    with pytest.raises(UserError, match="the loss is not finite at step . of .*run: lower lr"):
        fit("fct", *SHORT, "lr=1e30")
    fit("linear_map")
    shutil.copytree(models / "new_features", tmp_path / "zeros")
    features = np.load(tmp_path / "zeros" / "features.npy")
    features[41] = 0
    np.save(tmp_path / "zeros" / "features.npy", features)
    with pytest.raises(UserError, match="row 41 of the new embeddings is zero, it has no direction"):
        fit("fct", *SHORT, f"new_features={tmp_path / 'zeros'}", output="other")


def test_bfloat16_products_change_the_map_by_their_rounding(fit, tiny_records):
    maps = [load_map(fit("fct", *SHORT, f"precision={name}", output=name)) for name in ("fp32", "bf16")]
    vectors = np.random.default_rng(0).normal(size=(50, 8))
    exact, rounded = (fitted(vectors) for fitted in maps)
    assert 1e-5 < np.abs(exact - rounded).max() < 0.5
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in maps[1].module.state_dict().values())


@pytest.mark.parametrize(("method", "words"), [("fct", SHORT), ("linear_map", [])])
def test_two_ranks_give_the_maps_of_one(method, words, fit, models, tiny_records, tmp_path):
    alone = fit(method, *words)
    words = [*arguments(tiny_records, models, tmp_path / "two"), *words]
    words += [f"old_features={tmp_path / 'old2'}", f"new_features={tmp_path / 'new2'}"]
    config = ROOT / "configs" / "maps" / "glyphs.py"
    launch = Launch(ROOT / "methods" / method / "train.py", [config, *words], tmp_path / "logs", ranks=2)
    statuses, outputs = launch.wait()
    assert statuses == [0, 0], outputs
    assert_same_map(alone, tmp_path / "two")
    assert np.array_equal(*(EmbeddingStore.open(f).features for f in (models / "old_features", tmp_path / "old2")))


def test_ranks_wait_for_hours_while_the_first_one_trains(models, tiny_records, tmp_path):
    words = arguments(tiny_records, models, tmp_path / "run")
    launch = launch_with_long_work(
        ROOT / "methods" / "linear_map" / "train.py",
        "core.engine.map_fitting._save",
        [ROOT / "configs" / "maps" / "glyphs.py", *words],
        tmp_path,
    )
    statuses, outputs = launch.wait()
    assert statuses == [0, 0], outputs
    assert (tmp_path / "run" / "map.pt").exists()
