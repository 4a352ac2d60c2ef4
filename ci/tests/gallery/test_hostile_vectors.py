"""Files of vectors, and a gallery's own, that promise more than they hold: a line, in little memory."""

import os
import sqlite3

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gallery_helpers import vectors
from limited_child import line_of

from core.errors import UserError
from core.gallery.faiss_files import read_faiss_file
from core.gallery.gallery import Gallery
from core.gallery.vector_files import open_vectors


def written(path, index, given):
    if not index.is_trained:
        index.train(given)
    index.add(given)
    faiss.write_index(index, str(path))
    return path


CENTRES = [faiss.IndexHNSWFlat(8, 4), faiss.IndexFlatIP(8), faiss.IndexFlatL2(8)]
"""Indexes refer to theirs without keeping it."""


def make(kind):
    if kind == "flat":
        return faiss.IndexFlatIP(8)
    if kind == "hnsw centres":
        return faiss.IndexIVFFlat(CENTRES[0], 8, 5)
    if kind == "many empty lists":
        return faiss.IndexIVFFlat(CENTRES[1], 8, 64)
    index = faiss.IndexIVFFlat(CENTRES[2], 8, 3)
    if kind in ("array map", "hash map"):
        index.set_direct_map_type(faiss.DirectMap.Array if kind == "array map" else faiss.DirectMap.Hashtable)
    return index


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw centres", "array map", "hash map", "many empty lists"])
@pytest.mark.filterwarnings("ignore")
def test_faiss_files_hold_what_faiss_reads_from_them(tmp_path, kind):
    given, index = vectors(100), make(kind)
    if kind == "many empty lists":
        index.train(given)
        given = given[:9]
    path = written(tmp_path / "index", index, given)
    found = read_faiss_file(path)
    again = faiss.read_index(str(path))
    if kind != "flat":
        again.make_direct_map()
    for size in (1, 7, 100):
        rows = np.concatenate([found.read(at, min(size, len(found) - at)) for at in range(0, len(found), size)])
        expected = np.stack([again.reconstruct(int(number)) for number in found.numbers])
        np.testing.assert_array_equal(rows, expected)
    assert sorted(found.numbers.tolist()) == list(range(len(given)))


def test_mutated_faiss_files_are_read_or_are_a_line(tmp_path):
    rng = np.random.default_rng(0)
    given = vectors(60)
    wholes = [written(tmp_path / kind, make(kind), given).read_bytes() for kind in ("flat", "ivf", "hnsw centres")]
    outer = faiss.IndexIDMap2(make("flat"))
    outer.add_with_ids(given, np.arange(60) * 3)
    faiss.write_index(outer, str(tmp_path / "map"))
    wholes.append((tmp_path / "map").read_bytes())
    special = [0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**61, 2**62, 2**63, 2**64 - 1]

    def read_all():
        read = 0
        for turn in range(800):
            data = bytearray(wholes[turn % len(wholes)])
            for _ in range(int(rng.integers(1, 4))):
                at, kind = int(rng.integers(0, min(len(data), 400))), rng.integers(4)
                if kind == 0:
                    data[at] = int(rng.integers(256))
                elif kind == 1:
                    data[at : at + 8] = special[int(rng.integers(len(special)))].to_bytes(8, "little")
                elif kind == 2:
                    data[at : at + 4] = (special[int(rng.integers(len(special)))] % 2**32).to_bytes(4, "little")
                else:
                    del data[int(rng.integers(len(data))) :]
                data = data or bytearray(b"I")
            (tmp_path / "m").write_bytes(data)
            try:
                list(open_vectors(tmp_path / "m").blocks())
                read += 1
            except UserError as error:
                assert "\n" not in str(error) and str(tmp_path / "m") in str(error)
        raise UserError(f"{read} of 800 were read")

    assert line_of(read_all, extra=1 << 28).endswith("of 800 were read")


def parquet(path, ids, column, **options):
    pq.write_table(pa.table({"id": ids, "vector": column}), path, **options)
    return path


def test_parquet_files_that_unpack_to_any_size_are_a_line(tmp_path):
    long = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(1 << 24, np.float32)), 1 << 24)  # 64 MB from a few
    path = parquet(tmp_path / "v", ["a"], long, compression="zstd")
    assert path.stat().st_size < 1 << 20
    assert "more than any model's" in line_of(lambda: list(open_vectors(path).blocks()), extra=1 << 25)
    many = parquet(tmp_path / "w", pa.array(np.zeros(1 << 20, np.int64)),
                   pa.FixedSizeListArray.from_arrays(pa.array(np.ones(1 << 21, np.float16)), 2))  # fmt: skip
    assert "the id '0' is that of" in line_of(lambda: list(open_vectors(many).blocks()), extra=2 << 30)


def test_mutated_parquet_files_are_read_or_are_a_line(tmp_path):
    rng = np.random.default_rng(0)
    names = [f"n{row}" for row in range(40)]
    given = pa.FixedSizeListArray.from_arrays(pa.array(vectors(40).ravel()), 8)
    whole = parquet(tmp_path / "v", names, given, row_group_size=16).read_bytes()

    def read_all():
        for _ in range(400):
            data = bytearray(whole)
            for _ in range(int(rng.integers(1, 4))):
                data[int(rng.integers(4, len(data)))] = int(rng.integers(256))
            (tmp_path / "m").write_bytes(data)
            try:
                list(open_vectors(tmp_path / "m").blocks())
            except UserError as error:
                assert str(tmp_path / "m") in str(error)
        raise UserError("all read")

    assert line_of(read_all, extra=3 << 30) == "all read"


@pytest.fixture
def gallery(tmp_path):
    np.save(tmp_path / "v.npy", vectors(50))
    (tmp_path / "ids").write_text("\n".join(f"n{row}" for row in range(50)))
    Gallery.create(tmp_path / "g", tmp_path / "v.npy", "name:old", ids=tmp_path / "ids").close()
    return tmp_path / "g"


DAMAGES = {
    "size": "UPDATE versions SET size = 1000000000000",
    "negative": "UPDATE versions SET size = -8",
    "text": "UPDATE versions SET size = 'many'",
    "dtype": "UPDATE versions SET dtype = '(1000000000,)f8'",
    "slots": "UPDATE versions SET slots = 1000000000000",
    "fewer slots": "UPDATE versions SET slots = 3",
    "blob": "UPDATE slots SET slots = x'00112233'",
    "rows": "UPDATE entries SET row = row + 1000000",
    "view": "CREATE VIEW more AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i FROM n) SELECT i FROM n",
    "trigger": "CREATE TRIGGER t BEFORE INSERT ON entries BEGIN SELECT RAISE(ABORT, 'no'); END",
    "virtual": "CREATE VIRTUAL TABLE words USING fts5(word)",
    "no blob": "UPDATE slots SET slots = 'text'",
    "behind": "UPDATE slots SET slots = x'ffffff7f' || substr(slots, 5)",
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_gallery_whose_tables_are_damaged_is_a_line(gallery, name):
    with sqlite3.connect(gallery / "gallery.sqlite") as db:
        db.execute(DAMAGES[name].replace("|| substr(slots, 5)", "|| CAST(substr(slots, 5) AS BLOB)"))
        db.execute("UPDATE slots SET slots = CAST(slots AS BLOB) WHERE typeof(slots) = 'text' AND length(slots) > 9")
    db.close()

    def search():
        with Gallery.open(gallery) as opened:
            opened.search(vectors(3), "name:old", 5)

    assert "damaged" in line_of(search, extra=1 << 28)


def test_rows_beyond_those_of_sqlite_are_a_line(gallery):
    with sqlite3.connect(gallery / "gallery.sqlite") as db:
        db.execute("UPDATE entries SET row = 9223372036854775807 WHERE row = 49")
    db.close()

    with Gallery.open(gallery) as opened:
        checksum, number = opened.verify()
    assert "rows 0 to 999 differ from their checksum" in checksum
    assert "is damaged: gallery.sqlite: its rows have numbers that no entry has" in number


def test_a_gallery_s_vectors_that_become_shorter_are_a_line(gallery):
    def search():
        with Gallery.open(gallery) as opened, opened.store._opened(next(iter(opened.store.versions()))) as (_, _, rows):
            os.truncate(gallery / "vectors-0.bin", 100)
            np.array(rows[40:])

    assert "has changed while it was used: 100 bytes are left of 1600" in line_of(search)
