"""What `verify` of a gallery folder finds: every damage that is done here on purpose, and where it is."""

import shutil
import sqlite3

import numpy as np
import pytest

from core.errors import UserError
from core.gallery.folder.database import FILE
from core.gallery.folder.store import FolderStore
from core.gallery.store import Version

COUNT = 9000


def vectors(count, seed=0):
    return np.random.default_rng(seed).standard_normal((count, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    path = tmp_path_factory.mktemp("sound") / "gallery"
    with FolderStore.creating(path) as store:
        for key in ("old", "new"):
            store.add_version(Version(key, f"the {key} model", 4))
        ids = [f"person-{number}" for number in range(COUNT)]
        images = [f"image-{number}.jpg" for number in range(COUNT)]
        store.enrol(ids, {"old": vectors(COUNT)}, [f"class-{number // 3}" for number in range(COUNT)], images)
        store.add_vectors("new", np.arange(100), vectors(100))
        store.set_documents({"plan": {"road": "query_map"}})
    return path


@pytest.fixture
def path(sound, tmp_path):
    shutil.copytree(sound, tmp_path / "gallery")
    return tmp_path / "gallery"


def faults(path):
    store = FolderStore.open(path)
    found = store.verify()
    store.close()
    assert all("\n" not in line for line in found)
    return found


def flip(file, place):
    with open(file, "r+b") as handle:
        handle.seek(place)
        byte = handle.read(1)[0]
        handle.seek(place)
        handle.write(bytes([byte ^ 1]))


def test_a_sound_gallery_has_no_faults(path):
    assert faults(path) == []


@pytest.mark.parametrize("slot", [0, 4095, 4096, 8999])
def test_a_flipped_bit_of_a_vector_is_found_with_its_block_and_ids(path, slot):
    flip(path / "vectors-0.bin", slot * 16 + 7)
    (line,) = faults(path)
    block = slot // 4096
    assert (
        line.startswith("vectors of the old model (old): block ") and f"block {block} of vectors-0.bin differs" in line
    )
    assert f"entries 'person-{block * 4096}', 'person-{block * 4096 + 1}', " in line
    assert f" and {min(4096, COUNT - block * 4096) - 10} more" in line


def test_a_fault_is_still_found_after_more_was_written(path):
    flip(path / "vectors-0.bin", 8500 * 16)
    store = FolderStore.open(path)
    store.enrol(["one more"], {"old": vectors(1)})
    store.delete(["person-8500"])
    store.close()
    (line,) = faults(path)
    assert "block 2 of vectors-0.bin differs" in line


def test_damaged_vectors_are_not_written_anew_under_a_right_checksum(path, caplog):
    flip(path / "vectors-0.bin", 8500 * 16)
    store = FolderStore.open(path)
    assert store.delete([f"person-{number}" for number in range(7000)]) == 7000
    store.close()
    assert "vectors-0.bin is damaged" in caplog.text
    (line,) = faults(path)
    assert "block 2 of vectors-0.bin differs" in line


@pytest.mark.parametrize(
    "text", [b"person-4711", b"class-1499class", b"image-8000.jpg", b'{"road": "query_map"}', np.arange(3000, 3999)]
)
def test_a_flipped_bit_of_the_database_is_found(path, text):
    """Each copy of an id, class, image path, document, block of slots."""
    needle = (
        text.replace(b"class-1499class", b"class-1499") if isinstance(text, bytes) else text.astype("<i4").tobytes()
    )
    data = (path / FILE).read_bytes()
    place, copies = data.find(needle), 0
    while place >= 0:
        flip(path / FILE, place + len(needle) - 2)
        assert faults(path), f"copy {copies} at {place}"
        flip(path / FILE, place + len(needle) - 2)
        place, copies = data.find(needle, place + 1), copies + 1
    assert copies


def test_flips_anywhere_in_the_database_are_found_or_without_consequence(path):
    rng = np.random.default_rng(0)
    sound = shutil.copytree(path, path.with_name("sound"))
    expected = contents(sound)
    size = (path / FILE).stat().st_size
    for place in rng.integers(100, size, 40).tolist():
        flip(path / FILE, place)
        try:
            assert faults(path) or contents(path) == expected
        except UserError as error:
            assert "\n" not in str(error) and str(path) in str(error)
        flip(path / FILE, place)


def contents(path):
    store = FolderStore.open(path)
    blocks = [(block.rows.tolist(), block.ids, block.labels, block.images) for block in store.entries()]
    found = blocks, store.counts(), store.versions(), store.document("plan")
    store.close()
    return found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("DELETE FROM entries WHERE row = 5", "vectors of the new model (new): 1 of them have no entry"),
        ("UPDATE versions SET live = 7 WHERE key = 'new'", "100 are there, 7 were counted"),
        ("UPDATE versions SET slots = 50 WHERE key = 'new'", "50 lie behind the end, the first that of row 50"),
        ("UPDATE slots SET version = 1, block = 9 WHERE version = 2", "some belong to several entries"),
        ("UPDATE counters SET next_row = 8000", "row 8999 would be given to another entry"),
        ("DELETE FROM vector_checksums WHERE block = 1", "block 1 of vectors-0.bin differs from its checksum"),
        ("DROP INDEX entry_of_id; UPDATE entries SET id = 'person-2' WHERE row = 7", "rows 0 to 999 differ"),
    ],
)
def test_what_does_not_fit_together_is_found(path, change, message):
    with sqlite3.connect(path / FILE) as db:
        db.executescript(change)
    db.close()
    assert any(message in line for line in faults(path)), faults(path)


def test_a_vector_file_that_goes_while_the_gallery_is_open_is_told(path):
    store = FolderStore.open(path)
    (path / "vectors-1.bin").unlink()
    (line,) = store.verify()
    assert line == "vectors of the new model (new): vectors-1.bin cannot be read (No such file or directory)"
    with pytest.raises(UserError, match="vectors-1.bin is missing"):
        store.search("new", vectors(1), 1)
    (path / "vectors-0.bin").write_bytes(b"")
    for call in (
        lambda: store.search("old", vectors(1), 1),
        lambda: store.enrol(["another"], {"old": vectors(1)}),
    ):
        with pytest.raises(UserError, match="0 bytes in place of 144000"):
            call()
    assert sum("vectors-0.bin is not all there" in line for line in store.verify()) == 3
    store.close()
