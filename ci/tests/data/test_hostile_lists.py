"""Every text list and table, filled with what is none: one short line, in bounded time and memory, or what it says."""

import pytest
from limited_child import limited

from core.builtin.gldv2_lists import read_index, read_solution, read_train
from core.data.lists import read_list
from core.errors import UserError
from core.evaluation.ijb_meta import read_identification, read_images, read_pairs
from core.evaluation.retrieval_images import read_image_list
from core.gallery.text_lists import read_ids, read_labels
from core.gallery.text_lists import read_image_list as read_entry_images

CONTENT = {
    "NUL": b"a\0b 1\n",
    "NULs": b"\0" * 1000,
    "Latin-1": b"caf\xe9 1\n",
    "half of a UTF-16": b"\xff\xfea\0b",
    "half of a surrogate": b"\xff\xfe\0\xd8 \0",
    "lone surrogate": b"\xed\xa0\x80 1\n",
    "endless number": b"a.jpg " + b"9" * 60_000 + b"x\n",
    "beyond int64": b"a.jpg 9223372036854775808\n",
    "negative": b"a.jpg -1\n",
    "no number": b"a.jpg nan\n",
    "beyond float64": b"1.jpg " + b"1e999 " * 11 + b"\n",
    "NaN": b"1.jpg " + b"nan " * 11 + b"\n",
    "endless line": b"x" * 2_000_000,
    "endless fields": b"a," * 500_000,
    "endless blanks": b"\t" * 500_000 + b"\n",
    "endless lines": b"\n" * 100_000,
    "open quote": b'id,landmark_id\n"a,1\nb,2\n',
    "quotes": b'"' * 100_001 + b"\n",
    "field of a table": b"path,label\n" + b"a" * 300_000 + b",1\nb,2,3\n",
    "im2rec": b"0\t1e999\ta.jpg\n",
    "InsightFace": b"1\ta.jpg\t" + b"9" * 400 + b"\n",
    "empty": b"",
}
IJB = {
    "name_5pts_score.txt": b"1.jpg 1 2 3 4 5 6 7 8 9 10 1\n",
    "face_tid_mid.txt": b"1.jpg 1 1\n",
    "template_pair_label.txt": b"1 1 1\n",
    "1N_gallery_G1.csv": b"T,S\n1,1\n",
    "1N_gallery_G2.csv": b"T,S\n1,1\n",
    "1N_probe_mixed.csv": b"T,S\n1,1\n",
}


def read_ijb(root):
    images = read_images(root, "IJBC")
    return read_pairs(images), read_identification(images)


def of_ijb(changed):
    def read(path):
        (path.parent / "meta").mkdir()
        for name, content in {**IJB, changed: path.read_bytes()}.items():
            (path.parent / "meta" / f"ijbc_{name}").write_bytes(content)
        return read_ijb(path.parent)

    return read


READERS = {
    "image list": read_list,
    "table": lambda path: read_list(path.rename(path.with_suffix(".csv"))),
    "retrieval list": lambda path: read_image_list(path, path.parent, "list of queries"),
    "train.csv": read_train,
    "index.csv": read_index,
    "solution.csv": read_solution,
    "ids": read_ids,
    "labels": read_labels,
    "images of entries": read_entry_images,
    **{name: of_ijb(name) for name in IJB if name != "1N_gallery_G2.csv"},
}


@pytest.mark.parametrize("reader", READERS)
def test_content_that_is_none_is_one_short_line(tmp_path, reader):
    for number, content in enumerate(CONTENT.values()):
        path = tmp_path / str(number) / "list.txt"
        path.parent.mkdir()
        path.write_bytes(content)
        with limited(3000, 30):
            try:
                READERS[reader](path)
            except UserError as error:
                assert str(path.parent) in str(error) and len(str(error)) < 800, content[:30]


def test_the_files_that_the_damaged_ones_are_made_of_are_read(tmp_path):
    (tmp_path / "list.txt").write_bytes(IJB["face_tid_mid.txt"])
    pairs, lists = of_ijb("face_tid_mid.txt")(tmp_path / "list.txt")
    assert pairs.same.tolist() == [True] and lists.probes.subjects.tolist() == [1]
