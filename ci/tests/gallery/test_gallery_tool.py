"""tools/gallery.py: an upgrade's whole story as it is typed, in a folder, with tiny models and images."""

import importlib
import io
import json
import shutil
import sys
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import polars as pl
import pytest
from launching import Launch, launch_with_long_work, load_program
from tiny import noise, write_run_folder
from torch import distributed

from core.errors import UserError
from core.files import ROOT
from core.gallery import Gallery
from core.gallery.planning.sample_images import embed_sample
from core.models.encoder import load_encoder

TOOL = ROOT / "tools" / "gallery.py"
COUNT, PEOPLE, SHOTS, PIXELS = 24, 60, 3, 32
"""Entries, identities of the sample, images of each, pixels of a side."""
IDS = [f"person {number}" for number in range(COUNT)]
PLAN = "--new new --pairs pairs_old.npy pairs_new.npy --labels identities.txt --out plan --device cpu"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, two models, both models' vectors for them, for a sample and for queries, and the plan."""
    folder = tmp_path_factory.mktemp("data") / "story"
    (folder / "images").mkdir(parents=True)
    write_run_folder(folder / "old", seed=0, embedding_size=8, image_size=PIXELS)
    write_run_folder(folder / "new", seed=1, embedding_size=12, image_size=PIXELS)
    rng = np.random.default_rng(0)
    images = noise(rng, COUNT, PIXELS)
    for name, image in zip(IDS, images):
        cv2.imwrite(str(folder / "images" / f"{name}.png"), image[..., ::-1])
    (folder / "ids.txt").write_text("".join(f"{name}\n" for name in IDS))
    (folder / "images.txt").write_text("".join(f"images/{name}.png\t{name}\n" for name in IDS))
    sample, queries = shots(rng, noise(rng, PEOPLE, PIXELS), SHOTS), shots(rng, images, 1)
    (folder / "identities.txt").write_text("".join(f"{row // SHOTS}\n" for row in range(len(sample))))
    for model in ("old", "new"):
        encoder = load_encoder(folder / model)
        for name, of in (("vectors", images), ("pairs", sample), ("queries", queries)):
            np.save(folder / f"{name}_{model}.npy", encoder(of).numpy())
    with pytest.MonkeyPatch.context() as patch:
        story = Story(folder, patch)
        story.create()
        story.plan()
    shutil.rmtree(folder / "G")
    return folder


def shots(rng: np.random.Generator, images: np.ndarray, count: int) -> np.ndarray:
    """`count` noisy images of each."""
    repeated = np.repeat(images, count, axis=0)
    return np.clip(repeated + rng.normal(0, 20, repeated.shape), 0, 255).astype(np.uint8)


class Story:
    """Commands that are run in this process, in a copy of the data's folder."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.folder, self.monkeypatch, self.place = folder, monkeypatch, []
        self.tool = load_program(TOOL)
        monkeypatch.setattr(self.tool, "set_up_logging", lambda: None)
        monkeypatch.chdir(folder)
        self.keys = {model: load_encoder(folder / model).fingerprint for model in ("old", "new")}

    def run(self, call: str, *words: object, status: int = 0) -> dict:
        """The JSON that a call prints."""
        return json.loads(self.say(call, *words, "--json", status=status))

    def say(self, call: str, *words: object, status: int = 0) -> str:
        """What a call prints."""
        self.monkeypatch.setattr(sys, "argv", ["gallery.py", call, "G", *map(str, words), *self.place])
        try:
            with pytest.raises(SystemExit) as ended, redirect_stdout(io.StringIO()) as said:
                self.tool.main()
        finally:
            if distributed.is_initialized():  # which a process that ends with an error leaves
                distributed.destroy_process_group()
        assert (ended.value.code or 0) == status
        return said.getvalue()

    def create(self) -> dict:
        words = "--vectors vectors_old.npy --ids ids.txt --images images.txt --model old"
        return self.run("create", *words.split())

    def plan(self, *words: str, status: int = 0) -> dict:
        return self.run("plan", *PLAN.split(), *words, status=status)

    def backfill(self, *words: object) -> dict:
        own = "--plan plan --block 5 --batch-size 4 --num-workers 0 --device cpu"
        return self.run("backfill", *own.split(), "--road", "gallery_map", *words)

    def words_of_ranks(self) -> list[object]:
        """Of the same backfill, for processes of another folder."""
        own = "--road gallery_map --block 5 --batch-size 4 --num-workers 0 --device cpu"
        return ["backfill", self.folder / "G", "--plan", self.folder / "plan", *own.split()]

    def hits(self, *words: str, model: str = "new") -> pl.DataFrame:
        """The first hit of each query."""
        own = f"--queries queries_{model}.npy --model {model} -k 1 --out hits.parquet"
        self.run("search", *own.split(), *words)
        return pl.read_parquet("hits.parquet")

    def exported(self) -> bytes:
        self.run("export", "--out", "out.parquet")
        return Path("out.parquet").read_bytes()

    def new_vectors(self, place: str = "G") -> dict[str, bytes]:
        with Gallery.open(place) as gallery:
            blocks = list(gallery.store.entries())
            lacking = {row for block in gallery.store.entries(lacking=self.keys["new"]) for row in block.rows.tolist()}
            found = {}
            for block in blocks:
                there = [at for at, row in enumerate(block.rows.tolist()) if row not in lacking]
                vectors = gallery.store.vectors(self.keys["new"], block.rows[there])
                found |= {block.ids[at]: vector.tobytes() for at, vector in zip(there, vectors)}
            return found


@pytest.fixture
def story(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Story:
    return Story(shutil.copytree(data, tmp_path / "story"), monkeypatch)


def test_whole_story(story: Story) -> None:
    assert story.create()["versions"] == {story.keys["old"]: COUNT}
    assert story.run("info")["upgrade"] is None
    before = story.exported()
    by_old = story.hits(model="old")
    assert (by_old["id"].to_list() == np.array(IDS)).mean() > 0.8
    plan = story.plan()
    assert set(plan["roads"]) == {"stay", "direct", "query_map", "gallery_map", "side_by_side", "full_backfill"}
    assert plan["roads"]["direct"] is None and "12" in plan["impossible"]["direct"]
    assert plan["cost"]["images"] == COUNT and "<html" in Path("plan/report.html").read_text()

    assert story.backfill("--share", 0)["done"] == 0
    mapped = story.hits()
    versions = story.run("info")["versions"]
    assert set(mapped["version"]) == versions.keys() - set(story.keys.values())
    assert mapped["far"].is_between(0, 1).all()
    assert story.backfill("--share", 0.5)["done"] == COUNT // 2
    assert set(story.hits()["version"]) > {story.keys["new"]}

    np.save("late_old.npy", np.load("vectors_old.npy")[:1] * 2)
    np.save("late_new.npy", np.load("vectors_new.npy")[:1] * 2)
    Path("late.txt").write_text("late\n")
    late = "insert --ids late.txt --vectors late_old.npy --model old --vectors late_new.npy --model new"
    assert story.run(*late.split()) == {"inserted": 1, "failed": {}}
    assert story.run("delete", "person 0", "nobody") == {"deleted": 1}
    info = story.run("info")
    assert (info["vectors"], info["upgrade"]["total"], info["versions"][story.keys["old"]]) == (COUNT, COUNT, COUNT)

    done = story.backfill("--share", 1)
    assert (done["done"], done["total"], done["failed"]) == (COUNT, COUNT, 0)
    by_new = np.load("vectors_new.npy")
    by_id = {name: np.frombuffer(vector, np.float32) for name, vector in story.new_vectors().items()}
    np.testing.assert_allclose([by_id[name] for name in IDS[1:]], by_new[1:], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(by_id["late"], 2 * by_new[0])
    assert story.run("verify") == {"faults": []}
    found = story.hits()
    assert story.run("commit")["version"] == story.keys["new"]
    info = story.run("info")
    assert info["versions"] == {story.keys["new"]: COUNT} and info["upgrade"] is None and info["size"] == 12
    assert story.hits().equals(found)
    assert story.exported() != before


def test_images_are_enrolled_by_the_models_that_the_gallery_needs(story: Story) -> None:
    """Before an upgrade by the old model, during it by both, and after it by the new one: as vectors would be."""
    story.create()
    Path("more.txt").write_text("images/person 3.png\tmore 3\nimages/person 4.png\tmore 4\nno.png\tnone\n")
    Path("classes.txt").write_text("three\n\nnine\n")
    words = "insert --images more.txt --labels classes.txt --num-workers 0 --device cpu".split()
    vectors = {model: np.load(f"vectors_{model}.npy")[3:5] for model in ("old", "new")}

    def stored(model: str) -> np.ndarray:
        with Gallery.open("G") as gallery:
            entries = [entries for entries in gallery.store.entries()]
            ids = [name for block in entries for name in block.ids]
            labels = {name: label for block in entries for name, label in zip(block.ids, block.labels)}
            assert labels["more 3"] == "three" and labels["more 4"] is None and "none" not in ids
            rows = {name: row for block in entries for name, row in zip(block.ids, block.rows.tolist())}
            return gallery.store.vectors(story.keys[model], np.array([rows["more 3"], rows["more 4"]]))

    done = story.run(*words)
    assert done["inserted"] == 2 and list(done["failed"]) == ["none"] and "no.png" in done["failed"]["none"]
    np.testing.assert_allclose(stored("old"), vectors["old"], rtol=1e-4, atol=1e-5)
    story.run("delete", "more 3", "more 4")
    story.backfill("--share", 0.5)
    assert story.run(*words)["inserted"] == 2
    for model in ("old", "new"):
        np.testing.assert_allclose(stored(model), vectors[model], rtol=1e-4, atol=1e-5)
    story.backfill("--share", 1)
    story.run("commit")
    assert "2 entries are in the gallery; 1 images cannot be used" in story.say(*words)
    np.testing.assert_allclose(stored("new"), vectors["new"], rtol=1e-4, atol=1e-5)


def test_a_bare_state_dict_is_a_model_with_its_network(story: Story) -> None:
    shutil.copy("old/model.pt", "bare.pt")
    network = json.loads(Path("old/config.json").read_text())["network"]
    words = "--vectors vectors_old.npy --ids ids.txt --images images.txt --model bare.pt".split()
    with pytest.raises(UserError, match="name it with -net"):
        story.run("create", *words)
    assert story.run("create", *words, "-net", network)["versions"] == {story.keys["old"]: COUNT}
    Path("more.txt").write_text("images/person 3.png\tmore 3\n")
    more = "--images more.txt --model bare.pt --num-workers 0 --device cpu -net".split()
    assert story.run("insert", *more, network)["inserted"] == 1
    assert (
        story.run("search", "--queries", "queries_old.npy", "--model", "bare.pt", "-net", network)["queries"] == COUNT
    )


def test_rollback_gives_the_first_state_back(story: Story) -> None:
    story.create()
    before, hits = story.exported(), story.hits(model="old")
    story.backfill("--share", 0.5)
    assert story.run("rollback")["version"] == story.keys["old"]
    assert story.exported() == before and story.hits(model="old").equals(hits)
    assert story.run("info")["versions"] == {story.keys["old"]: COUNT}


def test_story_in_milvus(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a milvus-lite file: half a backfill, taken back, then the whole one gives what a folder gives."""
    pytest.importorskip("pymilvus", reason="pymilvus is not installed")
    pytest.importorskip("milvus_lite", reason="milvus-lite is not installed")
    story.create()
    story.backfill("--share", 0.5)
    half, by_folder = story.hits(), story.new_vectors()
    monkeypatch.setattr(story, "place", ["--store", "milvus", "--uri", "faces.db"])
    story.create()
    assert story.backfill("--share", 0.5)["done"] == COUNT // 2
    assert story.new_vectors("faces.db/G") == by_folder
    found = story.hits()
    assert found["id"].equals(half["id"]) and found["version"].equals(half["version"])
    assert story.run("rollback")["version"] == story.keys["old"]
    assert story.run("info")["versions"] == {story.keys["old"]: COUNT}
    assert story.backfill()["done"] == COUNT
    assert story.run("verify") == {"faults": []}
    assert story.run("commit")["version"] == story.keys["new"]
    assert story.run("info")["versions"] == {story.keys["new"]: COUNT}


def test_export_and_import_answer_the_same(story: Story) -> None:
    story.create()
    hits = story.hits(model="old")
    story.run("export", "--out", "out.parquet")
    shutil.rmtree("G")
    story.run("create", "--vectors", "out.parquet", "--model", "old")
    assert story.hits(model="old").equals(hits)


def test_two_ranks_give_the_same_vectors(story: Story) -> None:
    story.create()
    story.backfill()
    alone = story.new_vectors()
    story.run("rollback")
    statuses, logs = Launch(TOOL, story.words_of_ranks(), story.folder / "logs", ranks=2).wait()
    assert statuses == [0, 0], logs
    assert f"{COUNT} of {COUNT} entries have new vectors" in logs[0] and "entries" not in logs[1]
    assert story.new_vectors() == alone


def test_ranks_wait_for_hours_while_the_first_one_orders_the_gallery(story: Story) -> None:
    story.create()
    words = story.words_of_ranks()
    statuses, logs = launch_with_long_work(TOOL, "core.gallery.backfill.begin", words, story.folder).wait()
    assert statuses == [0, 0], logs
    assert f"{COUNT} of {COUNT} entries have new vectors" in logs[0]


def test_second_backfill_is_refused_at_once(story: Story) -> None:
    story.create()
    with Gallery.open("G") as gallery, gallery.store.claimed("backfill"), pytest.raises(UserError, match="holds G"):
        story.backfill()


def test_failed_images_are_told(story: Story) -> None:
    story.create()
    Path("images/person 3.png").unlink()
    done = story.backfill("--failed", "failed.txt")
    assert (done["done"], done["failed"]) == (COUNT - 1, 1)
    name, reason = Path("failed.txt").read_text().rstrip("\n").split("\t")
    assert name == "person 3" and "No such file" in reason
    assert story.run("info")["failed"] == {name: reason}
    with pytest.raises(UserError, match=r"1 of 24 entries have no vector .*\(person 3\)"):
        story.run("commit")
    assert story.run("commit", "--delete-missing")["deleted"] == 1


def test_a_list_of_failed_images_that_is_cut_says_so(
    story: Story, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("core.gallery.backfill.MOST_LISTED", 1)
    story.create()
    for number in (3, 4, 5):
        Path(f"images/person {number}.png").unlink()
    assert story.backfill("--failed", "failed.txt")["failed"] == 3
    assert len(Path("failed.txt").read_text().splitlines()) == 1
    assert "failed.txt lists the first 1 images that cannot be used; 2 more are not in it" in caplog.text


def test_require_that_is_not_met(story: Story) -> None:
    story.create()
    assert "gallery_map" in story.say("plan", *PLAN.split(), "--require", "top1=0")
    story.plan("--require", "top1=1", status=1)
    with pytest.raises(UserError, match="top9"):
        story.plan("--require", "top9=1")


def test_plan_on_images_with_identities(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sample embedded by both models gives the roads that its vectors give."""
    cached = partial(embed_sample, cache=story.folder / "cache")
    monkeypatch.setattr("core.gallery.planning.plan_upgrade.embed_sample", cached)
    story.create()
    rng = np.random.default_rng(1)
    sample = shots(rng, noise(rng, PEOPLE, PIXELS), SHOTS)
    lines = []
    for row, image in enumerate(sample):
        cv2.imwrite(f"images/shot{row}.png", image[..., ::-1])
        lines.append(f"images/shot{row}.png {row // SHOTS}\n")
    Path("sample.txt").write_text("".join(lines))
    words = "--new new --sample sample.txt --out plan --num-workers 0 --device cpu --batch-size 50"
    measured = story.run("plan", *words.split())
    for model in ("old", "new"):
        np.save(f"pairs_{model}.npy", load_encoder(model)(sample).numpy())
    assert "data:image/jpeg" in Path("plan/report.html").read_text()
    given = story.plan()
    for road, facts in given["roads"].items():
        assert (facts is None) == (measured["roads"][road] is None)
        if facts is not None:
            assert measured["roads"][road]["top1"] == pytest.approx(facts["top1"], abs=0.01)
    assert measured["cost"]["images_per_second"] > 0


def test_damage_is_found(story: Story) -> None:
    story.create()
    path = max(Path("G").glob("vectors-*.bin"))
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    assert len(story.run("verify", status=1)["faults"]) >= 1


@pytest.mark.parametrize(
    "words, message",
    [
        ("info --store milvus", "--store milvus needs --uri"),
        ("insert --vectors a.npy --vectors b.npy --model old", "2 times --vectors and 1 times --model"),
        ("insert --ids ids.txt", "give --vectors with their --ids, or --images alone"),
        ("insert --images images.txt --labels late.txt", "late.txt has 1 classes and images.txt 24 images"),
        ("insert --images images.txt --model new", "takes entries by old, not by new"),
        ("insert --images images.txt --model old -net r18", "1 times -net and 0 times a .pt state dict"),
        ("delete", "no entry is named"),
        ("plan --new new --out plan", "give --sample, images with identities, or --pairs"),
        ("plan --new new --sample s.txt --out plan --far 0", "--far must be from 1e-12 to 1, got 0"),
        ("plan --new new --sample s.txt --out plan --far nan", "--far must be from 1e-12 to 1, got nan"),
        ("plan --new new --sample s.txt --out plan --seed -1", "--seed must be 0 or more, got -1"),
        ("search --queries queries_old.npy --model old -k 9999999", "k = 9999999 hits cannot be found: ask for 1 to"),
        ("plan --new name:v2 --sample s.txt --out plan", "name:v2 is not at hand and embeds no images"),
        ("backfill --share 2", "a share of 2.0"),
        ("backfill --rate 0", "a rate of 0.0 images"),
        ("backfill -net r18", "are of the model --new, which is not given"),
        ("backfill", "no upgrade is under way: name the folder of its plan"),
        ("commit", "no upgrade is under way, so there is nothing to commit"),
        ("rollback", "no upgrade is under way, so there is nothing to take back"),
        ("search --queries ids.txt --model old", "ids.txt is not a readable .npy file"),
    ],
)
def test_mistakes_are_one_line(story: Story, words: str, message: str) -> None:
    story.create()
    Path("late.txt").write_text("late\n")
    with pytest.raises(UserError, match=message):
        story.run(*words.split())


def test_texts_for_people(story: Story) -> None:
    """Without --json each call says in words what came of it."""
    story.create()
    assert f"{COUNT} entries" in story.say("info")
    words = "--plan plan --road query_map --share 0.5 --num-workers 0 --device cpu"
    assert f"12 of {COUNT} entries have new vectors" in story.say("backfill", *words.split())
    said = story.say("info")
    assert "upgrade from old to new by the road query_map" in said and f"12 of {COUNT} embedded" in said
    assert "person 3" in story.say("search", *"--queries queries_new.npy --model new -k 2".split())
    assert story.say("verify") == "G: no faults\n"


def test_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short run of the script that kills a gallery's programs."""
    monkeypatch.syspath_prepend(ROOT / "ci")
    kill_gallery = importlib.import_module("kill_gallery")
    faults, killed = kill_gallery.kill_and_compare(tmp_path, entries=100, kills=4, seed=0)
    assert faults == [] and killed.total() == 4
