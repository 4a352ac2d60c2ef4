"""A disk that is too small: told before the work with what is missing, and where it fills later nothing is lost.

On a real small disk where one can be mounted (as root), and with a disk that only says that it is small everywhere.
"""

import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from launching import load_program
from tiny import projection_encoder, write_map_run, write_records, write_run_folder

from core.data.image_export import export_images
from core.data.records import RecordDataset
from core.data.split import split_records
from core.embeddings.extraction import extract_embeddings
from core.embeddings.statistics import write_once
from core.engine.checkpoint import TrainingState
from core.engine.run_folder import MetricsLog, RunFolder
from core.engine.trainer import Trainer
from core.errors import UserError
from core.files import ROOT
from core.gallery import Gallery
from core.models.encoder import load_encoder
from core.models.export import export_onnx
from core.models.maps import load_map
from core.room import require_room, reserve
from core.settings import load_settings

sys.path.append(str(ROOT / "ci"))
from full_disk import SmallDisk, run_cases  # noqa: E402

MISSING = r"^cannot write {}[^:]*: it needs .* and its disk has 10 bytes free, .* are missing; make room there, or name"
Usage = namedtuple("Usage", ["total", "used", "free"])


@pytest.fixture
def disk(tmp_path) -> Iterator[SmallDisk]:
    """Of 8 MB; skips where no file system may be mounted."""
    small = SmallDisk(tmp_path / "disk", 8 << 20)
    with ExitStack() as stack:
        try:
            stack.enter_context(small.mounted())
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no file system can be mounted here: {error}")
        small.out.mkdir()
        yield small


def test_line_says_what_is_needed_what_is_there_and_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 1_200_000_000))
    require_room(tmp_path / "a", 1_200_000_000)
    line = f"cannot write {tmp_path}/new/a: it needs 3.1 GB and its disk has 1.2 GB free, 1.9 GB are missing; make room"
    with pytest.raises(UserError, match=f"^{line} there, or name a path on another disk$"):
        require_room(tmp_path / "new" / "a", 3_000_000_001)  # rounded up, or the number would not do


def embed(folder: Path, out: Path, ranks) -> None:
    encoder = projection_encoder()
    try:
        extract_embeddings(encoder, RecordDataset(folder / "train"), out / "store", ranks)
    finally:
        assert encoder.module.calls == 0


def train(folder: Path, out: Path, ranks) -> None:
    tiny = ["network=r18", "network_options.width=8", "network_options.depth=1", "embedding_size=8", "batch_size=16"]
    own = [f"rec={folder / 'train'}", f"output={out / 'run'}", "num_workers=0", "device=cpu", "num_epoch=3", *tiny]
    settings = load_settings(ROOT / "old_model" / "configs" / "glyphs.py", own)
    Trainer(settings, load_program(ROOT / "old_model" / "train.py").OldModel(), "old_model", ranks).train()


def create(folder: Path, out: Path, ranks) -> None:
    Gallery.create(out / "gallery", folder / "vectors.npy", "name:old", folder / "ids.txt").close()


def export(folder: Path, out: Path, ranks, form: str = "npy") -> None:
    with Gallery.open(folder / "gallery") as gallery:
        gallery.export(out / "exported", form)


def write_mapped(folder: Path, out: Path, ranks) -> None:
    tool = load_program(ROOT / "tools" / "map_embeddings.py")
    tool.write_mapped(load_map(folder / "map"), np.load(folder / "vectors.npy"), out / "mapped.npy", plain=False)


PROGRAMS = {
    "extraction": embed,
    "training": train,
    "gallery": create,
    "npy": export,
    "parquet": lambda *places: export(*places, form="parquet"),
    "faiss": lambda *places: export(*places, form="faiss"),
    "map_embeddings": write_mapped,
    "split": lambda folder, out, ranks: split_records(folder / "train", "class", 0.3, out=out),
    "images": lambda folder, out, ranks: export_images(RecordDataset(folder / "train"), out / "images"),
    "onnx": lambda folder, out, ranks: export_onnx(load_encoder(folder / "old"), out / "old.onnx"),
    "statistic": lambda folder, out, ranks: write_once(out / "means.npy", 11, lambda: pytest.fail("it is computed")),
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """Records, models, a map, vectors, and a gallery."""
    folder = tmp_path_factory.mktemp("inputs")
    write_records(folder / "train", sorted([*range(6)] * 12))
    write_run_folder(folder / "old")
    write_run_folder(folder / "new", seed=1)
    write_map_run(folder / "map", folder / "old", folder / "new", "old_to_new")
    np.save(folder / "vectors.npy", np.random.default_rng(0).standard_normal((2000, 8)).astype(np.float32))
    (folder / "ids.txt").write_text("".join(f"person {number}\n" for number in range(2000)))
    create(folder, folder, None)
    return folder


@pytest.mark.parametrize("name", PROGRAMS)
def test_disk_without_room_is_told_before_the_work_and_nothing_is_left(inputs, tmp_path, ranks, monkeypatch, name):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 10))
    with pytest.raises(UserError, match=MISSING.format(tmp_path)):
        PROGRAMS[name](inputs, tmp_path, ranks)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", ["gallery", "npy", "parquet", "faiss", "map_embeddings", "split"])
def test_disk_that_fills_under_the_work_is_one_line_and_nothing_is_left(inputs, disk, ranks, monkeypatch, name):
    monkeypatch.setattr(require_room, "__code__", (lambda path, needed: None).__code__)
    disk.leave(8192)
    with pytest.raises(UserError, match=f"^cannot write {disk.out}.*make room there"):
        PROGRAMS[name](inputs, disk.out, ranks)
    assert not [path for path in disk.out.rglob("*") if path.is_file()]
    disk.make_room()
    PROGRAMS[name](inputs, disk.out, ranks)


class ManyImages:
    """A source of 1000 images that are all alike; `during` is called when some are read."""

    name, num_images, fingerprint = "many", 1000, "f" * 64

    def __init__(self, during: Callable[[], None]):
        self._during = during

    def labels(self) -> None:
        return None

    def image_name(self, row: int) -> str:
        return f"image {row}"

    def read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        self._during()
        return {"image": np.ones((len(rows), 16, 16, 3), np.uint8)}


def test_disk_that_others_fill_during_an_extraction_is_of_no_consequence(disk, ranks):
    seen = []
    source = ManyImages(lambda: seen.append((disk.leave(0), disk.free())))
    store = extract_embeddings(projection_encoder(), source, disk.out / "store", ranks)
    assert {free for _, free in seen} == {0} and len(store.features) == 1000 and store.features.any(axis=1).all()


def test_reserved_room_stays_when_others_fill_the_disk(disk):
    path = disk.out / "a.npy"
    array = np.lib.format.open_memmap(path, "w+", np.float32, (100, 1000))
    reserve(path, path.stat().st_size)
    disk.leave(0)
    array[:] = 1  # through the map: a bus error without the room
    array.flush()
    assert np.load(path).sum() == 100_000
    with pytest.raises(OSError, match="No space left"):
        reserve(path, 1 << 24)


def test_checkpoints_survive_a_disk_that_fills_and_the_run_goes_on(inputs, tmp_path, disk, ranks, monkeypatch):
    train(inputs, tmp_path, ranks)
    save = TrainingState.save

    def save_without_room(self, folder, position):
        if position.step > 4:
            disk.leave(100_000)
        return save(self, folder, position)

    with monkeypatch.context() as filling:
        filling.setattr(TrainingState, "save", save_without_room)
        with pytest.raises(UserError, match=rf"^cannot write {disk.out}/run/checkpoints/step_8: .*make room there"):
            train(inputs, disk.out, ranks)
    assert [path.name for path in (disk.out / "run" / "checkpoints").iterdir()] == ["step_4"]
    assert disk.free() >= 100_000 - 8192
    disk.make_room()
    train(inputs, disk.out, ranks)
    first, second = (load_encoder(place / "run").fingerprint for place in (tmp_path, disk.out))
    assert first == second


def test_room_that_a_run_asks_for_is_what_it_takes(inputs, tmp_path, ranks, monkeypatch):
    asked = []
    monkeypatch.setattr(RunFolder, "require_room", lambda self, needed: asked.append(needed))
    train(inputs, tmp_path, ranks)
    taken = sum(file.stat().st_size for file in (tmp_path / "run").rglob("*") if file.is_file())
    newest = sum(file.stat().st_size for file in (tmp_path / "run" / "checkpoints" / "step_12").iterdir())
    assert 0.9 * (taken + newest) < asked[0] < 1.1 * (taken + newest)


def test_metrics_on_a_full_disk_are_one_line_and_keep_whole_lines(disk):
    folder = RunFolder(disk.out / "run")
    folder.prepare(resume=True)
    log = MetricsLog(folder, 0)
    log.write(1, {"loss": 1.0})
    disk.leave(0)
    with pytest.raises(UserError, match=rf"^cannot write {folder.path}/(metrics\.jsonl|tensorboard): .*make room"):
        for step in range(2, 2000):
            log.write(step, {"loss": 1.0})
    text = folder.path.joinpath("metrics.jsonl").read_text()
    assert text.endswith("}\n") and text.startswith('{"step": 1, "loss": 1.0}\n')


@pytest.mark.usefixtures("disk")
def test_programs_on_a_small_disk_end_as_they_should(tmp_path):
    """Whole programs in processes of their own; `ci/full_disk.py` runs all of them."""
    assert run_cases(tmp_path / "work", ["gallery create", "old_model on 2 ranks"], [60]) == []
