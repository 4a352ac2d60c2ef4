"""WebDataset shards as training images, against the package's own reader and writer, and against records."""

import gzip
import io
import json
import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from launching import load_program
from tiny import write_records

import core.data.shards
from core.data.open_dataset import open_dataset
from core.data.records import RecordDataset
from core.data.samplers import TrainSampler
from core.data.shard_index import find_shards, shard_index_of, write_shard_index
from core.data.shards import ShardDataset
from core.engine.trainer import Trainer
from core.errors import UserError
from core.files import ROOT
from core.images.loader import load_batches
from core.settings import load_settings

LABELS = [3, 0, 0, 5, 1, 1, 3, 3, 0, 5, 1]


def write_shards(folder: Path, samples: list[dict], a_shard: int = 4) -> list[Path]:
    """Shards as the package writes them."""
    folder.mkdir()
    with webdataset.ShardWriter(f"{folder}/train-%06d.tar", maxcount=a_shard, verbose=0) as writer:
        for number, sample in enumerate(samples):
            writer.write({"__key__": f"{number:08d}", **sample})
    return find_shards([folder])


def index_of(folder: Path, samples: list[dict], **options: int) -> ShardDataset:
    """The images of shards that are written and indexed."""
    write_shard_index(write_shards(folder, samples, **options), folder / "shards.npz")
    return open_dataset(folder)


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> RecordDataset:
    return RecordDataset(write_records(tmp_path_factory.mktemp("records") / "train", LABELS))


@pytest.fixture
def samples(records) -> list[dict]:
    return [{"jpg": records.payload(row), "cls": label} for row, label in enumerate(LABELS)]


def write_tar(path: Path, members: list[tuple[str, bytes]], kind: int = tarfile.PAX_FORMAT) -> Path:
    """A tar by Python's own module."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w", format=kind) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def test_rows_are_the_samples_that_the_package_reads_in_its_order(tmp_path, samples):
    data = index_of(tmp_path / "a", samples)
    urls = str(tmp_path / "a" / "train-{000000..000002}.tar")
    expected = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert isinstance(data, ShardDataset) and len(data) == data.num_images == len(expected) == 11
    assert [data.payload(row) for row in range(11)] == [sample["jpg"] for sample in expected]
    assert data.labels().tolist() == [int(sample["cls"]) for sample in expected] == LABELS
    assert data.labels().dtype == np.int64 and data.num_classes == 6
    assert data.image_name(5) == f"{tmp_path}/a/train-000001.tar, 00000005.jpg"


def test_images_and_labels_are_those_of_the_records(tmp_path, samples, records):
    data = index_of(tmp_path / "a", samples)
    rows = np.random.default_rng(0).integers(0, 11, 40)
    for ours, theirs in zip(data.batch(rows), records.batch(rows)):
        assert np.array_equal(ours, theirs) and ours.dtype == theirs.dtype
    small, expected = ShardDataset(data.prefix, 8).batch(rows)[0], RecordDataset(records.prefix, 8).batch(rows)[0]
    assert small.shape == expected.shape == (40, 8, 8, 3)


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_any_kind_of_tar_and_layout_of_samples_is_read(tmp_path, records, kind):
    image, other = records.payload(0), records.payload(1)
    deep = "/".join(["folder"] * 12)
    members = [
        ("__meta__/about.json", b"{}"), ("./a/1.cls", b" 7\n"), ("./a/1.JPG", image), ("a/1.txt", b"words"),
        (f"{deep}/2.json", json.dumps({"Class_ID": 2, "url": "x"}).encode()), (f"{deep}/2.face.jpg", other),
        ("3.jpg", image), ("3.json", b'{"label": "4"}'), ("4.cls", b"3.0"), ("4.json", b"not read"), ("4.jpeg", other),
    ]  # fmt: skip
    write_shard_index(
        [write_tar(tmp_path / "x.tar", [m for m in members if m[0] != "a/1.txt"], kind)], tmp_path / "x.npz"
    )
    data = open_dataset(tmp_path / "x.npz")
    assert data.labels().tolist() == [7, 2, 4, 3] and data.num_classes == 8
    assert [data.payload(row) for row in range(4)] == [image, other, image, other]


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ([("1.jpg", b"x")], "the sample 1 has no label: neither a .cls nor a .json"),
        ([("1.cls", b"1"), ("2.jpg", b"x"), ("2.cls", b"1")], "the sample 1 has no image"),
        ([("1.cls", b"1"), ("1.jpg", b"x"), ("1.left.png", b"y")], r"several images \(jpg, left.png\)"),
        ([("1.cls", b"-1"), ("1.jpg", b"x")], "the label of the sample 1 is '-1'; labels are whole numbers"),
        ([("1.cls", b"1.5"), ("1.jpg", b"x")], "the label of the sample 1 is '1.5'"),
        ([("1.cls", b"\xff" * 99), ("1.jpg", b"x")], "the label of the sample 1 is "),
        ([("1.json", b"{"), ("1.jpg", b"x")], "1.json is no JSON"),
        ([("1.json", b"[" * 10000), ("1.jpg", b"x")], "1.json is no JSON"),
        ([("1.json", b'{"name": 1}'), ("1.jpg", b"x")], "1.json has no field that is the label"),
        ([("1.json", b"[1]"), ("1.jpg", b"x")], "1.json has no field that is the label"),
        ([("1.json", b'{"label": 1, "id_": 2, "class": 1}'), ("1.jpg", b"x")], r"several fields .*\(label, class\)"),
        ([("1.json", b'{"label": null}'), ("1.jpg", b"x")], "the label of the sample 1 is 'None'"),
        ([("1.jpg", b"x"), ("1.cls", b"1"), ("1.jpg", b"y")], "is not a shard: 1.jpg: duplicate file name in tar file"),
        ([], "contain no images"),
    ],
)  # fmt: skip
def test_sample_without_one_image_and_one_label_is_an_error(tmp_path, members, told):
    path = write_tar(tmp_path / "a" / "x.tar", members)
    with pytest.raises(UserError, match=told) as error:
        write_shard_index([path], tmp_path / "x.npz")
    assert str(tmp_path / "a") in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "x.npz").exists()


def cut(content: bytes, last: int) -> bytes:
    return content[: last + 200]


def without_end(content: bytes, last: int) -> bytes:
    return content[:last]


def overwritten(content: bytes, last: int) -> bytes:
    return content[:last] + b"\x01" * 512 + content[last + 512 :]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (cut, "truncated|unexpected end of data"),
        (without_end, "ends without the mark of a tar's end"),
        (overwritten, "is damaged at byte"),
        (lambda content, last: gzip.compress(content), r"is compressed \(gzip\)"),
        (lambda content, last: b"", "empty"),
        (lambda content, last: b"no tar" * 1000, "is not a readable shard"),
    ],
)
def test_damaged_shard_is_an_error_that_names_it(tmp_path, samples, change, told):
    shards = write_shards(tmp_path / "a", samples)
    with tarfile.open(shards[1]) as tar:
        last = tar.getmembers()[-1]
        begin = last.offset_data + (-(-last.size // 512)) * 512  # a header may stand here, the end mark does
    shards[1].write_bytes(change(shards[1].read_bytes(), begin if change is not cut else last.offset_data))
    with pytest.raises(UserError, match=told) as error:
        write_shard_index(shards, tmp_path / "a" / "shards.npz")
    assert "train-000001.tar" in str(error.value)


def test_shards_that_are_not_those_of_the_index_are_an_error(tmp_path, samples):
    data = index_of(tmp_path / "a", samples)
    data.batch([5])
    path = tmp_path / "a" / "train-000001.tar"
    content = path.read_bytes()
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))
    with pytest.raises(UserError, match=r"train-000001\.tar has changed since .*shards\.npz was opened"):
        data.batch([5])
    path.write_bytes(content[:-512])
    with pytest.raises(UserError, match=f"train-000001.tar has {len(content) - 512} bytes, not the {len(content)} of"):
        open_dataset(tmp_path / "a")
    path.unlink()
    with pytest.raises(UserError, match=r"shard not found: .*train-000001\.tar, which"):
        open_dataset(tmp_path / "a")


def test_damaged_index_is_an_error(tmp_path, samples):
    index = Path(index_of(tmp_path / "a", samples).prefix)
    with np.load(index) as content:
        whole = dict(content)
    changes = {
        "offsets": whole["offsets"] + 10**9, "labels": -whole["labels"], "counts": whole["counts"][:-1],
        "lengths": whole["lengths"][1:], "sizes": whole["sizes"].astype(object),
        "shards": np.array([f"a\0{name}" for name in whole["shards"].tolist()]),
    }  # fmt: skip
    for name, changed in changes.items():
        np.savez(index, **{**whole, name: changed})
        with pytest.raises(UserError, match=r"shards\.npz is not a readable index of shards: .*index_shards"):
            open_dataset(index)
    lying = io.BytesIO()
    np.lib.format.write_array_header_1_0(lying, {"descr": "<i8", "fortran_order": False, "shape": (2**50,)})
    np.savez(index, **whole)
    with zipfile.ZipFile(index) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(index, "w") as archive:
        for name, content in {**members, "labels.npy": lying.getvalue()}.items():
            archive.writestr(name, content)
    with pytest.raises(UserError, match="labels has not as many numbers as it says"):
        open_dataset(index)
    np.savez(index, **whole)
    content = bytearray(index.read_bytes())
    described = content.rfind(b"PK\1\2", 0, content.rfind(b"labels.npy"))
    content[described + 20 : described + 24] = b"\xff\xff\xff\xf0"  # the size as it is stored, 4 GB
    index.write_bytes(content)
    with pytest.raises(UserError, match="labels is larger than the file"):
        open_dataset(index)
    index.write_bytes(b"PK")
    with pytest.raises(UserError, match="is not a readable index of shards"):
        open_dataset(index)


def test_bad_image_is_an_error_with_its_name_or_replaced_by_one_of_its_class(tmp_path, samples, records):
    samples[6]["jpg"] = samples[6]["jpg"][:300]
    data = index_of(tmp_path / "a", samples)
    with pytest.raises(UserError, match=r"train-000001\.tar, 00000006\.jpg is not an image that can be decoded"):
        data.batch([2, 6])
    skipping = open_dataset(tmp_path / "a", skip_bad=True)
    images, labels = skipping.batch([2, 6])
    assert labels.tolist() == [0, 3] and np.array_equal(images, records.batch([2, 0])[0])


def test_fingerprint_depends_on_content_alone(tmp_path, samples):
    first = index_of(tmp_path / "a", samples).fingerprint
    shards = find_shards([tmp_path / "a"])
    (tmp_path / "b").mkdir()
    moved = [shard.rename(tmp_path / "b" / f"other{shard.name}") for shard in shards]
    write_shard_index(moved, tmp_path / "x.npz", num_workers=2)
    data = open_dataset(tmp_path / "x.npz", image_size=8)
    assert data.fingerprint == first and pickle.loads(pickle.dumps(data)).fingerprint == first
    samples[4]["cls"] = 2
    assert index_of(tmp_path / "c", samples).fingerprint != first
    samples[4] = {"jpg": samples[0]["jpg"], "cls": 1}
    assert index_of(tmp_path / "d", samples).fingerprint != first


def test_workers_and_few_open_shards_read_the_same_images(tmp_path, samples, monkeypatch):
    monkeypatch.setattr(core.data.shards, "MOST_OPEN", 2)
    data = index_of(tmp_path / "a", samples)
    expected = data.batch([0, 10, 5])
    copy = pickle.loads(pickle.dumps(data))
    for source, num_workers in ((data, 2), (copy, 0)):
        (batch,) = load_batches(source, [[0, 10, 5]], num_workers)
        assert np.array_equal(batch["image"], expected[0]) and batch["label"].tolist() == [3, 1, 1]
    assert len(data._opened) == len(copy._opened) == 2


def test_resume_in_the_middle_of_an_epoch_gives_the_batches_of_an_unbroken_one(tmp_path, samples):
    data = index_of(tmp_path / "a", samples)
    for world_size in (1, 2):
        for rank in range(world_size):
            sampler = TrainSampler(len(data), 2, rank, world_size, seed=1)
            whole = list(load_batches(data, sampler.epoch(3), num_workers=1))
            resumed = list(load_batches(data, sampler.epoch(3, first_step=1), num_workers=0))
            assert len(resumed) == len(whole) - 1 >= 1
            for ours, theirs in zip(resumed, whole[1:]):
                assert all(torch.equal(ours[name], theirs[name]) for name in ("image", "label", "row"))


def test_training_on_shards_killed_and_resumed_ends_as_one_on_records(
    tmp_path, tiny_records, tiny_settings, ranks, monkeypatch
):
    records = RecordDataset(tiny_records)
    labels = records.labels().tolist()
    index_of(
        tmp_path / "a", [{"jpg": records.payload(row), "cls": labels[row]} for row in range(len(labels))], a_shard=17
    )
    (tmp_path / "config.py").write_text("from easydict import EasyDict\nconfig = EasyDict()\n")
    old_model = load_program(ROOT / "old_model" / "train.py")

    def train(rec: Path, output: str, steps: int) -> dict:
        overrides = [*tiny_settings, f"rec={rec}", f"output={tmp_path / output}", "checkpoint_steps=3"]
        trainer = Trainer(load_settings(tmp_path / "config.py", overrides), old_model.OldModel(), "old_model", ranks)
        step = trainer._train_step

        def count(batches):
            if trainer.step == steps:
                raise KeyboardInterrupt
            step(batches)

        trainer._train_step = count
        trainer.train()
        return torch.load(tmp_path / output / "model.pt", weights_only=True)

    expected = train(tiny_records, "records", steps=99)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "a", "shards", steps=6)
    resumed = train(tmp_path / "a", "shards", steps=99)
    assert resumed.keys() == expected.keys() and all(torch.equal(resumed[name], expected[name]) for name in expected)


def test_names_of_shards(tmp_path, samples):
    assert shard_index_of(tmp_path / "train") is None and shard_index_of(tmp_path) is None
    write_shards(tmp_path / "a", samples)
    for rec in (tmp_path / "a", tmp_path / "a" / "train-000000.tar", "a/train-{000000..000002}.tar"):
        with pytest.raises(UserError, match="shards are read by an index, which is not there; make it: python tools"):
            open_dataset(rec)
    with pytest.raises(UserError, match="no shard"):
        find_shards([tmp_path])


def test_shard_that_is_named_twice_is_refused_and_like_names_in_other_folders_are_not(tmp_path, samples):
    shards = write_shards(tmp_path / "a", samples)
    others = write_shards(tmp_path / "b", samples)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert find_shards([tmp_path / "a", *others]) == shards + others
    for names in (
        [tmp_path / "a", shards[1]],
        [shards[1], tmp_path / "a"],
        [tmp_path / "b", shards[1], shards[1]],
        [shards[1], tmp_path / "link"],
    ):
        with pytest.raises(UserError, match=r"a/train-000001\.tar is named [23] times: name a shard, or the folder"):
            find_shards(names)


def test_index_in_a_folder_behind_a_link_finds_its_shards(tmp_path, samples):
    write_shards(tmp_path / "shards", samples)
    (tmp_path / "far" / "disk").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "disk")
    (tmp_path / "shards link").symlink_to(tmp_path / "shards")
    for folder in ("shards", "shards link"):
        index = tmp_path / "link" / f"{folder}.npz"
        write_shard_index(find_shards([tmp_path / folder]), index)
        assert open_dataset(index).num_images == len(samples)


def test_link_in_a_circle_is_a_line(tmp_path):
    link = tmp_path / "train-000000.tar"
    link.symlink_to(link)
    with pytest.raises(UserError, match="shard cannot be read: .*correct the links, which lead in a circle"):
        write_shard_index(find_shards([link]), tmp_path / "shards.npz")


def test_tool_writes_the_index(tmp_path, samples, monkeypatch):
    shards = write_shards(tmp_path / "a", samples)
    tool = load_program(ROOT / "tools" / "index_shards.py")
    monkeypatch.setattr("sys.argv", ["index_shards.py", str(tmp_path / "a"), "--num-workers", "1"])
    tool.main()
    assert open_dataset(tmp_path / "a").labels().tolist() == LABELS
    part = [str(shards[2]), str(shards[0]), "--out", str(tmp_path / "part.npz"), "--num-workers", "1"]
    monkeypatch.setattr("sys.argv", ["index_shards.py", *part])
    tool.main()
    assert open_dataset(tmp_path / "part.npz").labels().tolist() == LABELS[8:] + LABELS[:4]
    monkeypatch.setattr("sys.argv", ["index_shards.py", str(tmp_path / "a"), "--num-workers", "0"])
    with pytest.raises(UserError, match="--num-workers must be 1 or more"):
        tool.main()


def test_missing_package_is_one_line(tmp_path, samples, monkeypatch):
    shards = write_shards(tmp_path / "a", samples)
    monkeypatch.setattr("core.data.shard_index.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install webdataset"):
        write_shard_index(shards, tmp_path / "shards.npz")
