"""Embedding a data set into a store: complete, in record order, resumable, on any number of ranks."""

import errno
import json
import logging
import os
import signal
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import Launch, load_program
from tiny import projection_encoder, write_records, write_run_folder

import core.claims as claims
import core.embeddings.extraction as extraction
from core.arrays import open_array
from core.data.recordio import RecordWriter
from core.data.records import RecordDataset
from core.embeddings.extraction import default_store_path, extract_embeddings, extract_together
from core.embeddings.store import EmbeddingStore
from core.errors import UserError
from core.files import ROOT
from core.models.encoder import load_encoder
from core.parallel.ranks import Ranks

LABELS = [3, 0, 1, 1, 2, 0, 3, 3] * 4 + [1, 2, 0]

TOOL = f"""
import runpy
import core.embeddings.extraction
core.embeddings.extraction.BLOCK = 4
runpy.run_path({str(ROOT / "tools" / "extract_features.py")!r}, run_name="__main__")
"""

SLOW_FIRST_RANK = """
import os, time
import core.embeddings.extraction as extraction

mark_done = extraction._mark_done

def mark_after_the_error(partial, *arguments):
    while os.environ["RANK"] == "0" and (partial / "plan.json").exists():
        time.sleep(0.01)
    time.sleep(0.5)
    mark_done(partial, *arguments)

extraction._mark_done = mark_after_the_error
"""


@pytest.fixture
def records(tmp_path) -> Path:
    """35 images in no order of classes."""
    return write_records(tmp_path / "train", LABELS)


@pytest.fixture
def data(records, monkeypatch) -> RecordDataset:
    """The records, embedded in blocks of 8 rows: four whole ones and a last one of 3."""
    monkeypatch.setattr(extraction, "BLOCK", 8)
    return RecordDataset(records)


def test_store_holds_what_direct_encoder_calls_give_in_record_order(data, ranks, tmp_path):
    encoder = projection_encoder()
    store = extract_embeddings(encoder, data, tmp_path / "store", ranks, batch_size=5)
    images, labels = data.batch(np.arange(35))
    expected = np.concatenate([encoder(image[None]).numpy() for image in images])
    assert store.features.dtype == np.float32 and np.allclose(store.features, expected, atol=1e-4)
    assert store.labels().dtype == np.int64 and store.labels().tolist() == labels.tolist() == LABELS
    assert sorted(path.name for path in store.path.iterdir()) == ["features.npy", "labels.npy", "store.json"]
    assert not (tmp_path / "store.partial").exists()
    assert json.loads((store.path / "store.json").read_text()) == {
        "data_fingerprint": data.fingerprint, "model_fingerprint": encoder.fingerprint, "num_images": 35,
        "embedding_size": 8, "data_name": str(data.prefix), "model_name": "projection0",
        "preprocessing": "16 pixels, mean (127.5, 127.5, 127.5), std (127.5, 127.5, 127.5)", "views": ["features"],
        "labelled": True, "settings": {},
    }  # fmt: skip


@pytest.mark.parametrize(("fail_at", "first"), [(1, 0), (6, 16), (9, 32)])
def test_interrupted_extraction_goes_on_without_embedding_finished_blocks_again(data, ranks, tmp_path, fail_at, first):
    whole = extract_embeddings(projection_encoder(), data, tmp_path / "whole", ranks, batch_size=4)
    encoder = projection_encoder()
    encoder.module.fail_at = fail_at  # two calls a block
    with pytest.raises(KeyboardInterrupt):
        extract_embeddings(encoder, data, tmp_path / "store", ranks, batch_size=4)
    assert not (tmp_path / "store").exists()
    encoder = projection_encoder()
    store = extract_embeddings(encoder, data, tmp_path / "store", ranks, batch_size=4)
    assert encoder.module.images == 35 - first
    assert np.array_equal(store.features, whole.features) and np.array_equal(store.labels(), whole.labels())


class CountingReads:
    """Images that count how often each is read."""

    def __init__(self, data: RecordDataset):
        self.data, self.counts = data, np.zeros(len(data), np.int64)

    def __getattr__(self, name: str) -> object:
        return getattr(self.data, name)

    def read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        self.counts[rows] += 1
        return self.data.read(rows)


class Deadly(CountingReads):
    """Images of which one ends the process that reads it, as a system without memory does."""

    def read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        if 20 in rows:
            time.sleep(1)  # what was read before is on its way
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(rows)


def test_killed_worker_is_told_and_the_extraction_goes_on_where_it_was(data, ranks, tmp_path):
    whole = extract_embeddings(projection_encoder(), data, tmp_path / "whole", ranks, batch_size=4)
    with pytest.raises(UserError, match=r"was killed, .* at a batch of 4 images, .*record 21 to .*record 24: "):
        extract_embeddings(projection_encoder(), Deadly(data), tmp_path / "store", ranks, batch_size=4, num_workers=1)
    encoder = projection_encoder()
    store = extract_embeddings(encoder, data, tmp_path / "store", ranks, batch_size=4)
    assert encoder.module.images == 35 - 16 and np.array_equal(store.features, whole.features)


def test_models_together_give_the_stores_of_each_alone_and_read_each_image_once(data, ranks, tmp_path):
    sizes = (8, 5, 12)
    alone = [
        extract_embeddings(projection_encoder(seed, embedding_size=size), data, tmp_path / f"alone{seed}", ranks, 5)
        for seed, size in enumerate(sizes)
    ]
    encoders = [projection_encoder(seed, embedding_size=size) for seed, size in enumerate(sizes)]
    source = CountingReads(data)
    models = [(encoder, tmp_path / f"together{3 - seed}") for seed, encoder in enumerate(encoders)]
    stores = extract_together(models, source, ranks, batch_size=5)
    assert source.counts.tolist() == [1] * 35 and [encoder.module.images for encoder in encoders] == [35] * 3
    for store, other, (_, path) in zip(stores, alone, models):
        assert store.path == path and store.info == other.info
        assert np.array_equal(store.features, other.features) and store.labels().tolist() == LABELS
    assert not list(tmp_path.glob("*.partial"))


def test_models_together_embed_only_what_each_lacks(data, ranks, tmp_path):
    wholes = [
        extract_embeddings(projection_encoder(seed), data, tmp_path / f"whole{seed}", ranks, 4) for seed in (0, 1)
    ]
    extract_embeddings(projection_encoder(2), data, tmp_path / "store2", ranks)
    broken = projection_encoder(1)
    broken.module.fail_at = 6  # two calls a block of 8: two blocks are done
    with pytest.raises(KeyboardInterrupt):
        extract_embeddings(broken, data, tmp_path / "store1", ranks, batch_size=4)
    encoders, source = [projection_encoder(seed) for seed in range(3)], CountingReads(data)
    models = [(encoder, tmp_path / f"store{seed}") for seed, encoder in enumerate(encoders)]
    stores = extract_together(models, source, ranks, batch_size=4)
    assert [encoder.module.images for encoder in encoders] == [35, 19, 0] and source.counts.tolist() == [1] * 35
    for whole, store in zip(wholes, stores):
        assert np.array_equal(store.features, whole.features)
    source.counts[:] = 0
    extract_together(models, source, ranks, batch_size=4)
    assert source.counts.sum() == 0


def test_store_of_another_model_among_several_is_found_before_any_image_is_read(data, ranks, tmp_path):
    extract_embeddings(projection_encoder(3), data, tmp_path / "store1", ranks)
    source = CountingReads(data)
    models = [(projection_encoder(seed), tmp_path / f"store{seed}") for seed in (0, 1)]
    with pytest.raises(UserError, match="made with another model or preprocessing .projection3"):
        extract_together(models, source, ranks)
    assert source.counts.sum() == 0 and not (tmp_path / "store0").exists()


def test_interrupted_extraction_of_another_model_is_not_gone_on_with(data, ranks, tmp_path):
    other, encoder = projection_encoder(seed=1), projection_encoder()
    other.module.fail_at = 4
    with pytest.raises(KeyboardInterrupt):
        extract_embeddings(other, data, tmp_path / "store", ranks, batch_size=4)
    store = extract_embeddings(encoder, data, tmp_path / "store", ranks, batch_size=4)
    assert encoder.module.images == 35 and store.info.model_fingerprint == encoder.fingerprint


def test_a_link_in_the_place_of_an_unfinished_extraction_is_refused_and_not_followed(data, ranks, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    (tmp_path / "store.partial").symlink_to("mine")
    with pytest.raises(UserError, match=r"store\.partial is a link, and is needed as a folder: remove it"):
        extract_embeddings(projection_encoder(), data, tmp_path / "store", ranks, batch_size=4)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "change",
    [lambda file: file.write_bytes(file.read_bytes()[:-50]), lambda file: np.save(file, np.load(file))],
    ids=["cut off", "whose blocks share pages"],  # the second as an earlier version made them
)
def test_interrupted_extraction_with_an_array_of_no_use_begins_again(data, ranks, tmp_path, change):
    broken, encoder = projection_encoder(), projection_encoder()
    broken.module.fail_at = 6
    with pytest.raises(KeyboardInterrupt):
        extract_embeddings(broken, data, tmp_path / "store", ranks, batch_size=4)
    change(tmp_path / "store.partial" / "features.npy")
    store = extract_embeddings(encoder, data, tmp_path / "store", ranks, batch_size=4)
    assert encoder.module.images == 35 and store.features.any(axis=1).all() and np.isfinite(store.features).all()


def test_embedding_that_is_not_finite_is_an_error_that_names_the_image_and_leaves_nothing(data, ranks, tmp_path):
    def embed(encoder, batch):
        return torch.where(batch["row"][:, None] == 21, torch.inf, encoder(batch["image"]))

    with pytest.raises(UserError, match=r"projection0 gives an embedding that is not finite .*train\.rec, record 22"):
        extract_embeddings(projection_encoder(), data, tmp_path / "store", ranks, 4, views={"features": embed})
    assert not list(tmp_path.glob("store*"))


def test_store_has_an_array_for_each_view_and_is_not_taken_for_one_with_other_settings(data, tmp_path):
    views = {
        "plain": lambda encoder, batch: encoder(batch["image"]),
        "double": lambda encoder, batch: 2 * encoder(batch["image"]),
    }
    alone = Ranks(0, 1, torch.device("cpu"))
    one = {"views": views, "settings": {"alignment": 1}}
    store = extract_embeddings(projection_encoder(), data, tmp_path / "store", alone, **one)
    assert np.array_equal(store.view("double"), 2 * store.view("plain"))
    assert np.array_equal(
        extract_embeddings(projection_encoder(), data, tmp_path / "store", alone, **one).view("plain"),
        store.view("plain"),
    )
    with pytest.raises(UserError, match=r"other settings \({'alignment': 1}; now {'alignment': 2}\)"):
        extract_embeddings(
            projection_encoder(), data, tmp_path / "store", alone, views=views, settings={"alignment": 2}
        )
    with pytest.raises(UserError, match=r"other views \(\['plain', 'double'\]; now \['features'\]\)"):
        extract_embeddings(projection_encoder(), data, tmp_path / "store", alone)


@pytest.mark.parametrize("outcome", ["finishes", "fails"])
def test_run_that_waits_for_another_one_takes_its_store_or_makes_its_own(data, ranks, tmp_path, outcome):
    """The first run is a thread that holds the claim until the second one has begun to wait."""
    waiting = threading.Event()

    def embed(encoder, batch):
        assert waiting.wait(60)
        return encoder(batch["image"]) * (1.0 if outcome == "finishes" else float("nan"))

    def first_run() -> None:
        with suppress(UserError):
            extract_embeddings(projection_encoder(), data, tmp_path / "store", ranks, views={"features": embed})

    class Listener(logging.Handler):
        def emit(self, record):
            if "waiting for another work" in record.getMessage():
                waiting.set()

    listener = Listener()
    claims.logger.addHandler(listener)
    claims.logger.setLevel(logging.INFO)
    first = threading.Thread(target=first_run)
    first.start()
    while not (tmp_path / "store.partial" / "plan.json").exists():
        time.sleep(0.01)
    encoder = projection_encoder()
    store = extract_embeddings(encoder, data, tmp_path / "store", ranks, wait=True)
    first.join()
    claims.logger.removeHandler(listener)
    assert encoder.module.images == (0 if outcome == "finishes" else 35) and np.isfinite(store.features).all()
    assert [path.name for path in tmp_path.glob("store*")] == ["store"]


def test_two_runs_do_not_make_one_store_at_once(data, ranks, tmp_path, monkeypatch):
    embed, seen = extraction._embed_missing_blocks, []

    def embed_while_another_run_starts(*arguments) -> None:
        if not seen:
            seen.append(True)
            with pytest.raises(UserError, match="another work holds .*extraction, process"):
                extract_embeddings(projection_encoder(), data, tmp_path / "store", ranks)
        embed(*arguments)

    monkeypatch.setattr(extraction, "_embed_missing_blocks", embed_while_another_run_starts)
    store = extract_embeddings(projection_encoder(), data, tmp_path / "store", ranks)
    assert seen and np.isfinite(store.features).all() and store.features.any()


def finish_before_the_claim(make_store, monkeypatch) -> None:
    """Another run's store appears between a run's look for one and its claim."""
    claimed = extraction.claimed_by_ranks

    def late(*arguments, **options):
        monkeypatch.setattr(extraction, "claimed_by_ranks", claimed)
        make_store()
        return claimed(*arguments, **options)

    monkeypatch.setattr(extraction, "claimed_by_ranks", late)


def test_store_that_another_run_finishes_before_the_claim_is_opened(data, ranks, tmp_path, monkeypatch):
    finish_before_the_claim(
        lambda: extract_embeddings(projection_encoder(), data, tmp_path / "store", ranks), monkeypatch
    )
    encoder = projection_encoder()
    store = extract_embeddings(encoder, data, tmp_path / "store", ranks)
    assert encoder.module.calls == 0 and store.info.num_images == 35
    assert [path.name for path in tmp_path.glob("store*")] == ["store"]
    finish_before_the_claim(
        lambda: extract_embeddings(projection_encoder(seed=1), data, tmp_path / "other", ranks), monkeypatch
    )
    with pytest.raises(UserError, match="another model"):
        extract_embeddings(encoder, data, tmp_path / "other", ranks)
    assert [path.name for path in tmp_path.glob("other*")] == ["other"]


def test_folder_is_claimed_until_it_has_its_name(data, ranks, tmp_path, monkeypatch):
    rename, seen = Path.rename, []

    def rename_while_another_run_starts(partial, path):
        seen.append(path)
        with pytest.raises(UserError, match="another work holds .*extraction, process"):
            extract_embeddings(projection_encoder(), data, path, ranks)
        rename(partial, path)

    monkeypatch.setattr(Path, "rename", rename_while_another_run_starts)
    store = extract_embeddings(projection_encoder(), data, tmp_path / "store", ranks)
    assert seen == [tmp_path / "store"] and store.info.num_images == 35


def test_rank_that_does_not_see_the_store_yet_takes_the_first_ones_answer(data, ranks, tmp_path, monkeypatch):
    monkeypatch.setattr(extraction, "broadcast_object", lambda value: True)
    with pytest.raises(UserError, match="no embedding store in"):
        extract_embeddings(projection_encoder(), data, tmp_path / "store", replace(ranks, rank=1))


def test_finished_store_is_opened_without_embedding_anything(data, ranks, tmp_path):
    extract_embeddings(projection_encoder(), data, tmp_path / "store", ranks)
    encoder = projection_encoder()
    store = extract_embeddings(encoder, data, tmp_path / "store", ranks)
    assert encoder.module.calls == 0 and store.info.num_images == 35


def test_store_of_other_data_is_an_error_that_names_both(data, ranks, tmp_path):
    extract_embeddings(projection_encoder(), data, tmp_path / "store", ranks)
    other = RecordDataset(write_records(tmp_path / "other", LABELS, seed=1))
    with pytest.raises(UserError) as caught:
        extract_embeddings(projection_encoder(), other, tmp_path / "store", ranks)
    message = str(caught.value)
    for part in (str(data.prefix), data.fingerprint[:12], str(other.prefix), other.fingerprint[:12], "store was"):
        assert part in message.replace(str(tmp_path / "store"), "store")


def test_store_of_the_same_weights_with_other_inputs_is_an_error(data, ranks, tmp_path):
    encoder = projection_encoder()
    extract_embeddings(encoder, data, tmp_path / "store", ranks)
    with pytest.raises(UserError, match=r"other preprocessing \(.*127.5.*; now .*123.675.*\)"):
        extract_embeddings(replace(encoder, mean=(123.675, 116.28, 103.53)), data, tmp_path / "store", ranks)


def test_store_of_another_model_is_an_error_that_names_both(data, ranks, tmp_path):
    encoder, other = projection_encoder(), projection_encoder(seed=1)
    extract_embeddings(encoder, data, tmp_path / "store", ranks)
    with pytest.raises(UserError) as caught:
        extract_embeddings(other, data, tmp_path / "store", ranks)
    for part in ("projection0", encoder.fingerprint[:12], "projection1", other.fingerprint[:12], "another model"):
        assert part in str(caught.value)


def test_folder_with_other_files_and_plain_file_are_refused_and_kept(data, ranks, tmp_path):
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder" / "thesis.txt", tmp_path / "file"):
        path.write_text("precious")
    for name in ("folder", "file"):
        with pytest.raises(UserError, match=f"{name} exists and is no embedding store"):
            extract_embeddings(projection_encoder(), data, tmp_path / name, ranks)
    assert (tmp_path / "folder" / "thesis.txt").read_text() == (tmp_path / "file").read_text() == "precious"


def test_empty_folder_is_taken(data, ranks, tmp_path):
    (tmp_path / "store").mkdir()
    assert len(extract_embeddings(projection_encoder(), data, tmp_path / "store", ranks).features) == 35


def test_undecodable_image_is_named_by_its_record_and_leaves_nothing(tmp_path, ranks):
    good = RecordDataset(write_records(tmp_path / "train", LABELS))
    with RecordWriter(tmp_path / "bad") as writer:
        for row in range(20):
            writer.write(row, 0.0, b"no image" if row == 13 else good.payload(row))
    with pytest.raises(UserError, match=r"bad\.rec: record 13 "):
        extract_embeddings(projection_encoder(), RecordDataset(tmp_path / "bad"), tmp_path / "store", ranks)
    assert not list(tmp_path.glob("store*"))


def test_full_disk_is_reported_before_anything_is_embedded_and_leaves_nothing(data, ranks, tmp_path, monkeypatch):
    calls = []

    def refuse_the_third(descriptor, start, size):
        calls.append(size)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", refuse_the_third)
    models = [(projection_encoder(number), tmp_path / f"store{number}") for number in range(2)]
    with pytest.raises(
        UserError, match=r"^cannot write .*store1\.partial: it needs more than the .* free .*; make room"
    ):
        extract_together(models, data, ranks)
    assert [encoder.module.calls for encoder, _ in models] == [0, 0] and not list(tmp_path.glob("store*"))


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL])
def test_file_system_that_cannot_reserve_room_is_accepted(data, ranks, tmp_path, monkeypatch, number):
    def refuse(descriptor, start, size):
        raise OSError(number, "no such thing")

    monkeypatch.setattr("os.posix_fallocate", refuse)
    assert len(extract_embeddings(projection_encoder(), data, tmp_path / "store", ranks).features) == 35


def test_room_for_the_whole_store_is_taken_at_once(tmp_path):
    extraction._reserve(tmp_path / "features.npy", np.float32, (100_000, 8))
    assert (tmp_path / "features.npy").stat().st_blocks * 512 >= 3_200_000


@pytest.mark.parametrize("size", [1, 5, 512])
def test_blocks_share_no_page(tmp_path, size):
    """On a network disk, a machine that writes a page writes all of it."""
    file = tmp_path / "features.npy"
    extraction._reserve(file, np.float32, (2 * extraction.BLOCK + 1, size))
    array = open_array(file, mode="r+")
    block = array[extraction.BLOCK : 2 * extraction.BLOCK]
    assert (block.ctypes.data - array.ctypes.data + array.offset) % 4096 == block.nbytes % 4096 == 0
    block[:] = 1.0
    array.flush()
    for mode in (None, "r"):
        read = np.load(file, mmap_mode=mode)
        assert read.dtype == np.float32 and read.shape == array.shape
        assert read.sum() == block.size and read[extraction.BLOCK :][:-1].all()


def test_label_that_is_no_class_is_named_by_its_record_and_leaves_nothing(tmp_path, ranks):
    with RecordWriter(tmp_path / "bad") as writer:
        writer.write(0, (2, 1), b"")
        writer.write(1, 0.5, b"no image")
    with pytest.raises(UserError, match=r"bad\.rec: record 1 has the label 0.5"):
        extract_embeddings(projection_encoder(), RecordDataset(tmp_path / "bad"), tmp_path / "store", ranks)
    assert not list(tmp_path.glob("store*"))


def test_default_path_depends_on_names_and_contents(data, tmp_path):
    path = default_store_path(projection_encoder(), data)
    assert path.parent == ROOT / "features" and path.name.startswith("projection0_train_")
    other = RecordDataset(write_records(tmp_path / "train", LABELS, seed=1))
    assert (
        len({path, default_store_path(projection_encoder(1), data), default_store_path(projection_encoder(), other)})
        == 3
    )


@pytest.mark.parametrize("told", [{"channel_order": "BGR"}, {"mean": "imagenet", "std": "imagenet"}])
def test_store_of_a_model_that_was_fed_otherwise_is_refused_and_has_another_name(told, data, ranks, tmp_path):
    path = write_run_folder(tmp_path / "old")
    own, other = load_encoder(path), load_encoder(path, **told)
    store = extract_embeddings(own, data, tmp_path / "store", ranks)
    assert extract_embeddings(load_encoder(path), data, tmp_path / "store", ranks).info == store.info
    with pytest.raises(UserError) as error:
        extract_embeddings(other, data, tmp_path / "store", ranks)
    for part in ("another model or preprocessing", own.preprocessing, other.preprocessing):
        assert part in str(error.value)
    assert default_store_path(own, data) != default_store_path(other, data)


@pytest.mark.parametrize("wrong", [["--batch-size", "0"], ["--num-workers", "-1"]])
def test_tool_refuses_impossible_sizes_at_the_start(records, tmp_path, monkeypatch, wrong):
    tool = load_program(ROOT / "tools" / "extract_features.py")
    monkeypatch.setattr("sys.argv", ["", "--model", "old", "--rec", "a", "--out", str(tmp_path / "store"), *wrong])
    with pytest.raises(UserError, match="--batch-size must be 1 or more and --num-workers 0 or more"):
        tool.main()


def test_tool_on_two_ranks_gives_the_store_of_one(records, tmp_path):
    model = write_run_folder(tmp_path / "old")
    (tmp_path / "extract.py").write_text(TOOL)
    launches = [
        Launch(
            tmp_path / "extract.py",
            ["--model", model, "--rec", records, "--out", tmp_path / f"store{ranks}", "--batch-size", 3,
             "--num-workers", 0, "--device", "cpu"],
            tmp_path / f"logs{ranks}",
            ranks,
        )
        for ranks in (1, 2)
    ]  # fmt: skip
    for launch, ranks in zip(launches, (1, 2)):
        statuses, outputs = launch.wait()
        assert statuses == [0] * ranks, outputs
        assert f"{tmp_path / f'store{ranks}'}: 35 x 8" in outputs[0]
    one, two = (EmbeddingStore.open(tmp_path / f"store{ranks}") for ranks in (1, 2))
    assert np.array_equal(one.features, two.features) and two.labels().tolist() == LABELS and one.info == two.info
    images, _ = RecordDataset(records).batch([34])
    assert np.allclose(load_encoder(model)(images).numpy(), one.features[34:], atol=1e-5)


def test_ranks_beside_one_with_a_bad_image_report_no_error_of_their_own(tmp_path, ranks):
    model, good = write_run_folder(tmp_path / "old"), RecordDataset(write_records(tmp_path / "train", LABELS))
    with RecordWriter(tmp_path / "bad") as writer:
        for row in range(20):
            writer.write(row, 0.0, b"no image" if row == 5 else good.payload(row))
    (tmp_path / "extract.py").write_text(SLOW_FIRST_RANK + TOOL)
    words = ["--model", model, "--rec", tmp_path / "bad", "--out", tmp_path / "store", "--batch-size", 4]
    words += ["--num-workers", 0, "--device", "cpu"]
    statuses, outputs = Launch(tmp_path / "extract.py", words, tmp_path / "logs", ranks=2).wait()
    assert statuses[1] == 2 and "bad.rec: record 5 " in outputs[1].splitlines()[-1], outputs
    assert statuses[0] == 1 and "by peer" in outputs[0] and "error: " not in outputs[0], outputs
    assert not (tmp_path / "store.partial" / "plan.json").exists()
    with pytest.raises(UserError, match=r"bad\.rec: record 5 "):
        extract_embeddings(load_encoder(model), RecordDataset(tmp_path / "bad"), tmp_path / "store", ranks)
    assert not list(tmp_path.glob("store*"))
