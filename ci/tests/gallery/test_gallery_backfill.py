"""core/gallery/backfill.py, begin.py and commit.py: what is embedded in which order, and what a gallery comes to."""

import copy
import shutil
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from gallery_helpers import MemoryStore, unit, vectors
from tiny import noise, projection_encoder, write_records

from core.data.records import RecordDataset
from core.errors import UserError
from core.evaluation.calibration import fit_calibration
from core.gallery.backfill import FAILED, BackfillOptions, backfill
from core.gallery.backfill_order import rows_in_order
from core.gallery.begin import begin
from core.gallery.commit import commit, rollback
from core.gallery.documents import read_calibrations, read_upgrade
from core.gallery.folder.store import FolderStore
from core.gallery.planning.plan import Cost, Plan, Road, SampleFacts
from core.gallery.search import search
from core.gallery.store import BLOCK, Store, Version
from core.gallery.upgrade import ROADS
from core.models.maps import Space, fit_map
from core.parallel.ranks import Ranks

ALONE = Ranks(0, 1, torch.device("cpu"))
COUNT, PIXELS, OLD_SIZE = 37, 16, 6
NEW = projection_encoder(1, PIXELS)
OLD = Version("vendor-v1", "vendor-v1", OLD_SIZE)
QUICK = BackfillOptions(num_workers=0, batch_size=5, block=10)


def write_images(folder: Path) -> np.ndarray:
    """`COUNT` images (N, H, W, 3) as the files 0.png, 1.png and so on."""
    folder.mkdir()
    images = noise(np.random.default_rng(0), COUNT, PIXELS)
    for number, image in enumerate(images):
        cv2.imwrite(str(folder / f"{number}.png"), image[..., ::-1])
    return images


def write_plan(folder: Path, road: str = "gallery_map", order: str = "predicted_error", **changes: object) -> Path:
    """A plan for `OLD` and `NEW` whose maps are fitted on noise."""
    new = Version(NEW.fingerprint, NEW.name, NEW.embedding_size)
    old_side, new_side = vectors(200, OLD_SIZE, 1), vectors(200, NEW.embedding_size, 2)
    spaces = Space(OLD.size, OLD.name, OLD.key), Space(new.size, new.name, new.key)
    maps = {
        "gallery_map": fit_map("ridge", old_side, new_side, spaces=spaces),
        "query_map": fit_map("ridge", new_side, old_side, spaces=spaces[::-1]),
    }
    rng = np.random.default_rng(0)
    pairs = ("old/old", "new/new", "query_map/old", "new/gallery_map")
    plan = Plan(
        old=OLD,
        new=new,
        sample=SampleFacts(10, 20, True, 5, 10, ""),
        roads={name: None if name == "direct" else Road(0.5, 0.1, 0.0, 0.0, {}, 0) for name in ROADS},
        impossible={"direct": "the sizes differ"},
        comparisons={},
        recommendation=road,
        reason="it is a test",
        order=order,
        shares=[0.0, 1.0],
        curves={name: {order: {"top1": [0.5, 0.6], "nfr": [0, 0], "pfr": [0, 0], "auc": [0.5]}} for name in ROADS},
        maps={name: {"fingerprint": each.fingerprint} for name, each in maps.items()},
        calibrations={pair: fit_calibration(rng.normal(0, 0.1, 500)) for pair in pairs},
        realised={},
        flips=[],
        cost=Cost(COUNT, None, None, "not measured", {}, {}),
        seed=0,
        **maps,
    )  # fmt: skip
    replace(plan, **changes).save(folder)
    return folder


class Case:
    """A gallery of `COUNT` images, the plan of its upgrade, and what the new model gives for the images."""

    def __init__(self, folder: Path, store: Store | None = None, **plan: object):
        self.folder = folder
        self.images = write_images(folder / "images")
        self.plan = write_plan(folder / "plan", **plan)
        self.ids = [f"person {number}" for number in range(COUNT)]
        self.old = vectors(COUNT, OLD_SIZE, 3).astype(np.float16)
        self.expected = NEW(self.images).numpy()
        self.store = MemoryStore() if store is None else store
        self.store.add_version(OLD)
        paths = [str(folder / "images" / f"{number}.png") for number in range(COUNT)]
        self.store.enrol(self.ids, {OLD.key: self.old}, [f"class {n % 5}" for n in range(COUNT)], paths)
        self.before = contents(self.store) if store is None else None

    def backfill(self, share: float, options: BackfillOptions = QUICK, **more: object):
        return backfill(self.store, self.plan, share, ALONE, options, encoder=NEW, **more)

    def new(self) -> dict[str, np.ndarray]:
        """The new vectors by id."""
        rows = np.array(list(self.store._vectors[NEW.fingerprint]), np.int64)
        return dict(zip(self.store.entries_at(rows).ids, self.store.vectors(NEW.fingerprint, rows)))


def contents(store: MemoryStore) -> tuple:
    """Everything that is in a store, to be compared."""
    held = {
        key: {row: (vector.dtype, vector.tobytes()) for row, vector in of_key.items()}
        for key, of_key in store._vectors.items()
    }
    return copy.deepcopy((store._versions, store._documents, store._entries, held))


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def test_whole_way(case: Case) -> None:
    """A third, then all, then the commit: each entry has the vector of its own image, and the old ones are gone."""
    result = case.backfill(1 / 3)
    assert (result.done, result.total, result.embedded, result.failed) == (13, COUNT, 13, 0)
    assert case.store.counts() == {OLD.key: COUNT, read_upgrade(case.store).mapped: COUNT, NEW.fingerprint: 13}
    assert case.backfill(0.2).embedded == 0
    assert case.backfill(1).embedded == COUNT - 13
    new = case.new()
    np.testing.assert_allclose([new[name] for name in case.ids], case.expected, rtol=1e-5, atol=1e-4)
    queries = case.expected + vectors(COUNT, NEW.embedding_size) * 0.01
    found = search(case.store, queries, NEW.fingerprint, 1).hits
    assert found["id"].to_list() == case.ids
    ended = commit(case.store)
    assert (ended.version, ended.total, ended.deleted) == (NEW.fingerprint, COUNT, 0)
    assert case.store.counts() == {NEW.fingerprint: COUNT}
    assert set(case.store._documents) == {"calibrations"}
    plan = Plan.load(case.plan)
    np.testing.assert_array_equal(read_calibrations(case.store)["old/old"].scores, plan.calibrations["new/new"].scores)
    assert search(case.store, queries, NEW.fingerprint, 1).hits.equals(found)


@pytest.mark.parametrize("share", [0, 0.4, 1])
def test_rollback_restores_the_first_state(case: Case, share: float) -> None:
    case.store.set_documents({"calibrations": {"old/old": {"mean": 0.0}}})
    before = contents(case.store)
    case.backfill(share)
    assert contents(case.store) != before
    assert rollback(case.store).version == OLD.key
    assert contents(case.store) == before


def test_share_zero_embeds_nothing_and_new_queries_search(case: Case) -> None:
    """The mapped vectors are there, the model is not even loaded, and the plan's folder may vanish."""
    backfill(case.store, case.plan, 0, ALONE, QUICK)
    shutil.rmtree(case.plan)
    upgrade = read_upgrade(case.store)
    mapped = case.store.vectors(upgrade.mapped, np.arange(COUNT))
    found = search(case.store, mapped, NEW.fingerprint, 1).hits
    assert found["id"].to_list() == case.ids and set(found["version"]) == {upgrade.mapped}
    assert backfill(case.store, None, 0.5, ALONE, QUICK, encoder=NEW).done == 19


def test_mapped_vectors_are_those_of_the_map(case: Case) -> None:
    case.backfill(0)
    mapping = Plan.load(case.plan).gallery_map
    plain = unit(case.old) @ mapping.module.weight.double().numpy().T + mapping.module.bias.double().numpy()
    mapped = case.store.vectors(read_upgrade(case.store).mapped, np.arange(COUNT))
    np.testing.assert_allclose(mapped, unit(plain), atol=1e-5)


@pytest.mark.parametrize("order", ["predicted_error", "length", "random", "class_distance"])
def test_order(tmp_path: Path, order: str) -> None:
    """What is embedded first is what the order says, and the rest of an order is the same order."""
    case = Case(tmp_path, order=order)
    upgrade = begin(case.store, case.plan)
    rows = rows_in_order(case.store, upgrade)
    assert sorted(rows) == list(range(COUNT)) and list(rows) != sorted(rows)
    units = unit(case.old)
    if order == "class_distance":
        means = np.stack([units[c::5].mean(0) for c in range(5)])
        expected = np.linalg.norm(units - means[np.arange(COUNT) % 5], axis=1)
    elif order == "length":
        module = Plan.load(case.plan).gallery_map.module
        plain = units @ module.weight.double().numpy().T + module.bias.double().numpy()
        expected = -np.linalg.norm(plain, axis=1)
    elif order == "predicted_error":
        head = Plan.load(case.plan).gallery_map.error_head
        expected = (units @ head.weight.double().numpy().T + head.bias.double().numpy())[:, 0]
    if order != "random":
        np.testing.assert_array_equal(rows, np.argsort(-expected))
    case.backfill(0.5)
    assert set(case.new()) == {case.ids[row] for row in rows[:19]}
    np.testing.assert_array_equal(rows_in_order(case.store, upgrade), rows[19:])


@pytest.mark.parametrize("order", ["predicted_error", "class_distance"])
def test_entries_of_the_new_model_alone_do_not_stop_a_backfill(tmp_path: Path, order: str) -> None:
    """They need no old vector: the others are mapped, ordered and embedded as if they were not there."""
    case = Case(tmp_path, FolderStore.create(tmp_path / "gallery"), order=order)
    case.backfill(0.5)
    upgrade = read_upgrade(case.store)
    rows = rows_in_order(case.store, upgrade)
    given = np.ones((1, NEW.embedding_size), np.float32)
    case.store.enrol(["late"], {NEW.fingerprint: given}, ["class 0"])
    case.store.enrol(["not mapped"], {OLD.key: case.old[:1]}, ["of its own"], [str(case.folder / "images" / "0.png")])
    assert case.backfill(0.5).done == 20
    assert case.store.counts()[upgrade.mapped] == COUNT + 1
    assert [row for row in rows_in_order(case.store, upgrade) if row < COUNT] == rows.tolist()
    assert case.backfill(1).done == COUNT + 2
    np.testing.assert_array_equal(case.store.vectors(NEW.fingerprint, case.store.find(["late"])), given)
    assert commit(case.store).total == COUNT + 2
    case.store.close()


def test_class_distance_where_a_whole_block_has_no_class(tmp_path: Path) -> None:
    """Entries without a class come last."""
    store = FolderStore.create(tmp_path / "gallery")
    store.add_version(OLD)
    ids, labels = [str(n) for n in range(BLOCK + 10)], [None] * BLOCK + ["a"] * 10
    store.enrol(ids, {OLD.key: vectors(BLOCK + 10, OLD_SIZE)}, labels)
    upgrade = begin(store, write_plan(tmp_path / "plan", "query_map", "class_distance"))
    rows = rows_in_order(store, upgrade)
    assert set(rows[:10]) == set(range(BLOCK, BLOCK + 10)) and len(rows) == BLOCK + 10
    store.close()


def test_random_order_is_uniform(tmp_path: Path) -> None:
    """Over 20,000 rows the mean place of each tenth of the rows is the middle, within four deviations."""
    store = MemoryStore()
    store.add_version(OLD)
    store.enrol([str(n) for n in range(20_000)], {OLD.key: np.ones((20_000, OLD_SIZE), np.float32)})
    rows = rows_in_order(store, begin(store, write_plan(tmp_path / "plan", "query_map", "random")))
    places = np.argsort(rows).reshape(10, 2000) / 20_000
    assert np.abs(places.mean(1) - 0.5).max() < 4 * np.sqrt(1 / 12 / 2000)


def test_bad_images_are_listed_and_tried_again(case: Case) -> None:
    rows = rows_in_order(case.store, begin(case.store, case.plan))
    damaged, missing = (case.folder / "images" / f"{row}.png" for row in rows[[0, 4]])
    kept = damaged.read_bytes(), missing.read_bytes()
    damaged.write_bytes(kept[0][:100])
    missing.unlink()
    result = case.backfill(0.5)
    assert (result.done, result.embedded, result.failed) == (19, 19, 2)
    assert set(result.reasons) == {case.ids[rows[0]], case.ids[rows[4]]}
    assert "No such file" in result.reasons[case.ids[rows[4]]]
    assert case.store.document(FAILED) == result.reasons and read_upgrade(case.store).failed == 2
    query = unit(case.store.vectors(read_upgrade(case.store).mapped, rows[:1])).astype(np.float32)
    assert search(case.store, query, NEW.fingerprint, 1).hits["id"].to_list() == [case.ids[rows[0]]]
    result = case.backfill(1)
    assert (result.done, result.failed) == (COUNT - 2, 2)
    with pytest.raises(UserError, match=f"2 of {COUNT} entries have no vector of {NEW.fingerprint} yet .*person"):
        commit(case.store)
    missing.write_bytes(kept[1])
    assert case.backfill(1).reasons.keys() == {case.ids[rows[0]]}
    ended = commit(case.store, delete_missing=True)
    assert (ended.total, ended.deleted) == (COUNT - 1, 1)
    assert case.store.find([case.ids[rows[0]]]) == [-1] and case.store.verify() == []


def test_failures_that_are_mended_are_not_listed_any_more(case: Case) -> None:
    (case.folder / "images" / "3.png").rename(case.folder / "3.png")
    case.backfill(1)
    (case.folder / "3.png").rename(case.folder / "images" / "3.png")
    assert case.backfill(1).failed == 0
    assert read_upgrade(case.store).failed == 0 and case.store.document(FAILED) is None


def test_no_image_at_all_ends_with_one_line(case: Case) -> None:
    shutil.rmtree(case.folder / "images")
    with pytest.raises(
        UserError, match="none of the first 10 entries can be embedded; person .*No such file.*--images"
    ):
        case.backfill(1)
    assert read_upgrade(case.store).failed == 10 and case.store.counts()[OLD.key] == COUNT


def test_images_from_a_list_a_folder_records_and_a_function(case: Case, tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for number in range(COUNT):
        shutil.copy(case.folder / "images" / f"{number}.png", folder / f"person {number}.png")
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"images/{number}.png\tperson {number}\n" for number in range(COUNT)))
    by_id = dict(zip(case.ids, case.images))
    case.store._entries = {row: (name, label, None) for row, (name, label, _) in case.store._entries.items()}
    for images in (folder, listed, lambda ids: [by_id[name] for name in ids]):
        case.backfill(1, replace(QUICK, images=images))
        new = case.new()
        np.testing.assert_allclose([new[name] for name in case.ids], case.expected, rtol=1e-5, atol=1e-4)
        rollback(case.store)
    records = write_records(tmp_path / "records", list(range(COUNT)), PIXELS)
    case.store._entries = {row: (str(row + 1), None, None) for row in case.store._entries}
    result = case.backfill(1, replace(QUICK, images=records))
    assert result.reasons.keys() == {str(COUNT)} and f"only 0 to {COUNT - 1}" in result.reasons[str(COUNT)]
    expected = NEW(RecordDataset(records).batch(np.arange(1, COUNT))[0]).numpy()
    new = case.new()
    np.testing.assert_allclose([new[str(n)] for n in range(1, COUNT)], expected, rtol=1e-5, atol=1e-4)


def test_function_without_some_images(case: Case) -> None:
    by_id = dict(zip(case.ids[1:], case.images[1:]))
    by_id[case.ids[2]] = case.images[2][..., 0]
    result = case.backfill(1, replace(QUICK, images=lambda ids: [by_id.get(name) for name in ids]))
    assert result.reasons.keys() == {case.ids[0], case.ids[2]}


@pytest.mark.parametrize(
    "line, message",
    [("a.png", "line 2: 'a.png' is not a path, a blank and an id"), ("b.png\tx", "line 2: the id 'x' is that of")],
)
def test_wrong_list(case: Case, tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "list.txt").write_text(f"a.png\tx\n{line}\n")
    with pytest.raises(UserError, match=message):
        case.backfill(1, replace(QUICK, images=tmp_path / "list.txt"))


class Killed(BaseException):
    """In place of a kill."""


@pytest.mark.parametrize("at", range(1, 5))
def test_killed_run_repeats_one_block_at_most(case: Case, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Killed when block `at` is about to be written: what was written stays, and the next run embeds the rest alone."""
    calls, write = 0, case.store.add_vectors

    def add_vectors(key: str, rows: np.ndarray, block: np.ndarray) -> int:
        nonlocal calls
        calls += key == NEW.fingerprint
        if calls == at:
            raise Killed
        return write(key, rows, block)

    monkeypatch.setattr(case.store, "add_vectors", add_vectors)
    with pytest.raises(Killed):
        case.backfill(1)
    monkeypatch.undo()
    assert len(case.new()) == 10 * (at - 1)
    NEW.module.images = 0
    assert case.backfill(1).done == COUNT
    assert NEW.module.images == COUNT - 10 * (at - 1)


def test_entries_that_change_meanwhile(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deleted, and enrolled again with both vectors, between reading and writing: neither is overwritten or revived."""
    rows = rows_in_order(case.store, begin(case.store, case.plan))
    deleted, again = case.ids[rows[1]], case.ids[rows[2]]
    own = np.full((1, NEW.embedding_size), 3, np.float32)
    write = case.store.add_vectors

    def add_vectors(key: str, rows: np.ndarray, block: np.ndarray) -> int:
        case.store.delete([deleted])
        if case.store.find([again])[0] < COUNT:
            case.store.enrol([again], {OLD.key: np.ones((1, OLD_SIZE), np.float16), NEW.fingerprint: own})
        return write(key, rows, block)

    monkeypatch.setattr(case.store, "add_vectors", add_vectors)
    result = case.backfill(1)
    assert (result.done, result.total, result.failed) == (COUNT - 1, COUNT - 1, 0)
    new = case.new()
    assert deleted not in new
    np.testing.assert_array_equal(new[again], own[0])


def test_second_backfill_is_refused(case: Case) -> None:
    with case.store.claimed("backfill"):
        for call in (lambda: case.backfill(1), lambda: commit(case.store), lambda: rollback(case.store)):
            with pytest.raises(UserError, match="another work holds memory"):
                call()
    assert contents(case.store) == case.before


def test_plan_of_another_gallery_or_under_way(case: Case, tmp_path: Path) -> None:
    other = write_plan(tmp_path / "other", "query_map", old=Version("vendor-v2", "vendor-v2", OLD_SIZE))
    with pytest.raises(UserError, match="the plan is for a gallery of vendor-v2 .*holds vectors of vendor-v1"):
        backfill(case.store, other, 0, ALONE)
    with pytest.raises(UserError, match="no upgrade is under way: name the folder of its plan"):
        backfill(case.store, None, 0, ALONE)
    with pytest.raises(UserError, match=r"no road direct in this plan \(the sizes differ\): choose one of query_map"):
        case.backfill(0, road="direct")
    assert contents(case.store) == case.before
    case.backfill(0)
    second = write_plan(tmp_path / "second", "query_map")
    with pytest.raises(UserError, match="another upgrade is under way, to .* by the road gallery_map"):
        backfill(case.store, second, 0, ALONE)
    with pytest.raises(UserError, match="is not the new one of the upgrade"):
        backfill(case.store, case.plan, 1, ALONE, QUICK, encoder=projection_encoder(2, PIXELS))
    with pytest.raises(UserError, match="the model projection1 is not at hand"):
        backfill(case.store, case.plan, 1, ALONE, QUICK)


def test_advice_to_stay_needs_a_road(tmp_path: Path) -> None:
    case = Case(tmp_path, road="stay")
    with pytest.raises(UserError, match=r"advises to stay with the old model \(it is a test\): name a road"):
        case.backfill(0)
    case.backfill(0, road="query_map")
    assert read_upgrade(case.store).road == "query_map" and read_upgrade(case.store).mapped is None


def test_beginning_that_was_killed(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the vectors are mapped the gallery is as before; another plan, or a rollback, removes what is left."""

    def killed(documents: dict) -> None:
        raise Killed

    monkeypatch.setattr(case.store, "set_documents", killed)
    with pytest.raises(Killed):
        case.backfill(0)
    monkeypatch.undo()
    assert read_upgrade(case.store) is None and len(case.store.versions()) == 3
    killed_there = copy.deepcopy(case.store)
    rollback(case.store)
    assert contents(case.store) == case.before
    case.store = killed_there
    backfill(case.store, write_plan(tmp_path / "second", "query_map"), 0, ALONE)
    assert list(case.store.versions()) == [OLD.key, NEW.fingerprint]


@pytest.mark.parametrize("end", [commit, rollback])
@pytest.mark.parametrize("at", [1, 2])
def test_ends_that_were_killed_are_repeated(case: Case, monkeypatch: pytest.MonkeyPatch, end, at: int) -> None:
    case.backfill(1)
    unbroken = copy.deepcopy(case.store)
    end(unbroken)
    calls, drop = 0, case.store.drop_version

    def drop_version(*arguments: object) -> None:
        nonlocal calls
        calls += 1
        if calls == at:
            raise Killed
        drop(*arguments)

    monkeypatch.setattr(case.store, "drop_version", drop_version)
    with pytest.raises(Killed):
        end(case.store)
    monkeypatch.undo()
    end(case.store)
    assert contents(case.store) == contents(unbroken)
    with pytest.raises(UserError, match="no upgrade is under way"):
        end(case.store)


def test_commit_refuses_a_damaged_store(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    case.backfill(1)
    monkeypatch.setattr(case.store, "verify", lambda: ["block 3 is damaged"])
    with pytest.raises(UserError, match="1 faults, nothing is freed: block 3 is damaged"):
        commit(case.store)
    assert case.store.counts()[OLD.key] == COUNT


@pytest.mark.parametrize("end", [commit, rollback])
def test_an_entry_that_is_enrolled_during_the_end_keeps_its_vector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end
) -> None:
    """With the vector that is to be freed alone, after the entries without another one were looked for."""
    case = Case(tmp_path, FolderStore.create(tmp_path / "gallery"), road="query_map")
    case.backfill(1)
    key, size = (OLD.key, OLD_SIZE) if end is commit else (NEW.fingerprint, NEW.embedding_size)
    drop = case.store.drop_version

    def drop_version(*arguments: object) -> None:
        if case.store.find(["late"])[0] < 0:
            case.store.enrol(["late"], {key: np.ones((1, size), np.float32)})
        drop(*arguments)

    monkeypatch.setattr(case.store, "drop_version", drop_version)
    with pytest.raises(UserError, match=rf"1 entries have a vector of {key} alone, the first 'late'.*: repeat the"):
        end(case.store)
    assert case.store.counts()[key] == COUNT + 1 and read_upgrade(case.store) is not None
    with pytest.raises(UserError, match=r"entries have no vector of .*\(late\)"):
        end(case.store)
    monkeypatch.undo()
    case.store.delete(["late"])
    assert end(case.store).total == COUNT and case.store.verify() == []
    case.store.close()


def test_rollback_refuses_entries_without_an_old_vector(case: Case) -> None:
    case.backfill(0.5)
    case.store.enrol(["late"], {NEW.fingerprint: np.ones((1, NEW.embedding_size), np.float32)})
    with pytest.raises(UserError, match=r"1 entries have no vector of vendor-v1 \(late\)"):
        rollback(case.store)
    case.store.delete(["late"])
    rollback(case.store)
    assert contents(case.store)[2:] == case.before[2:]


def test_rate_limits_the_load(case: Case) -> None:
    """At 100 images a second the 37th begins 0.36 seconds after the first; a tenth of the rate is allowed at once."""
    started = time.monotonic()
    case.backfill(1, replace(QUICK, rate=100.0))
    assert time.monotonic() - started >= 0.3


class SmallDevice(torch.nn.Module):
    """Has room for three images."""

    def __init__(self, module: torch.nn.Module):
        super().__init__()
        self.module, self.sizes = module, []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if len(images) > 3:
            raise torch.OutOfMemoryError("no room")
        self.sizes.append(len(images))
        return self.module(images)


def test_batches_are_halved_until_they_fit(case: Case) -> None:
    module = SmallDevice(NEW.module)
    encoder = replace(NEW, module=module)
    result = backfill(case.store, case.plan, 1, ALONE, replace(QUICK, batch_size=10), encoder=encoder)
    assert result.done == COUNT and max(module.sizes) == 2
