"""The index made from a record file alone, against that of its writer, and records found by what users type."""

import errno
import logging
import os
import re

import pytest
from launching import Launch
from record_writers import WRITERS, face2rec2, im2rec, seq_rec_builder, with_header, without_ids

import core.outputs
from core.data.open_dataset import open_dataset
from core.data.record_files import record_prefix
from core.data.record_index import write_index
from core.data.recordio import MAGIC_BYTES, RecordWriter
from core.data.records import RecordDataset
from core.errors import UserError
from core.files import ROOT

LABELS = [0, 0, 1, 2, 2, 2, 3]
PAYLOADS = [b"image %d" % i for i in range(7)]


@pytest.mark.parametrize("writer", WRITERS)
def test_index_is_the_one_that_the_writer_of_the_file_made(tmp_path, writer):
    prefix = writer(tmp_path / "train", LABELS, PAYLOADS)
    index = tmp_path / "train.idx"
    before = index.read_bytes()
    index.unlink()
    assert write_index(prefix) == before.count(b"\n")
    assert index.read_bytes() == before and sorted(p.name for p in tmp_path.iterdir()) == ["train.idx", "train.rec"]


def test_split_payloads_are_one_record(tmp_path):
    with RecordWriter(tmp_path / "a") as writer:
        for i, payload in enumerate((MAGIC_BYTES, b"abcd" + MAGIC_BYTES * 3 + b"e", b"", b"x")):
            writer.write(i + 5, (i, MAGIC_BYTES[0]) if i % 2 else i, payload)
        writer.write(int.from_bytes(MAGIC_BYTES, "little"), 7, b"the id itself is a magic word")
    before = (tmp_path / "a.idx").read_bytes()
    (tmp_path / "a.idx").write_text("")
    write_index(tmp_path / "a")
    assert (tmp_path / "a.idx").read_bytes() == before


def test_what_was_found_is_logged(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    for writer, line in (
        (face2rec2, "train.idx: 12 records: a header, 7 images, 4 class ranges"),
        (im2rec, "train.idx: 7 records, no header record"),
        (without_ids, "the ids in its records are no numbering of the file; the records are counted from 0"),
    ):
        caplog.clear()
        write_index(writer(tmp_path / "train", LABELS, PAYLOADS))
        assert line in caplog.text and "not whole" not in caplog.text
    prefix = with_header(tmp_path / "train", LABELS, PAYLOADS)
    rec = tmp_path / "train.rec"
    last = int((tmp_path / "train.idx").read_text().split()[-1])
    rec.write_bytes(rec.read_bytes()[:last])
    write_index(prefix)
    assert "its header promises 7 images: the file is not whole" in caplog.text


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d, at: d[: at + 20], r"it reaches to byte \d+, but the file ends at \d+"),
        (lambda d, at: d[: at + 4], r"it begins at byte \d+, but the file ends at \d+"),
        (lambda d, at: d[:at] + b"x" + d[at + 1 :], r"no magic word at byte \d+"),
        (lambda d, at: d[: at + 4] + (3).to_bytes(4, "little") + d[at + 8 :], "3 bytes are too few"),
    ],
)
def test_first_damage_is_named_with_its_byte_and_the_index_stays(tmp_path, damage, message):
    prefix = seq_rec_builder(tmp_path / "train", LABELS, PAYLOADS)
    at = int((tmp_path / "train.idx").read_text().split()[9])
    (tmp_path / "train.idx").write_text("old")
    rec = tmp_path / "train.rec"
    rec.write_bytes(damage(rec.read_bytes(), at))
    with pytest.raises(
        UserError, match=rf"train\.rec: record 4, at byte {at}, is damaged: {message}.*truncate -s {at} "
    ):
        write_index(prefix)
    assert (tmp_path / "train.idx").read_text() == "old" and len(list(tmp_path.iterdir())) == 2
    rec.write_bytes(rec.read_bytes()[:at])  # what the line advises
    assert write_index(prefix) == 4 and RecordDataset(prefix).labels().tolist() == LABELS[:4]


def test_read_only_folder_is_one_line_and_a_link_elsewhere_is_indexed(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    face2rec2(tmp_path / "data" / "train", LABELS, PAYLOADS)
    before = (tmp_path / "data" / "train.idx").read_bytes()
    (tmp_path / "data" / "train.idx").unlink()
    temporary_file = core.outputs.TemporaryFile

    def make_file(**options):
        if options["dir"] == tmp_path / "data":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(tmp_path / "data"))
        return temporary_file(**options)

    monkeypatch.setattr(core.outputs, "TemporaryFile", make_file)
    message = r"train\.idx: Read-only file system; .* \(a folder with a link to the \.rec will do\)"
    with pytest.raises(UserError, match=message):
        write_index(tmp_path / "data" / "train")
    (tmp_path / "train.rec").symlink_to(tmp_path / "data" / "train.rec")
    write_index(tmp_path / "train")
    assert (tmp_path / "train.idx").read_bytes() == before and RecordDataset(tmp_path / "train").num_classes == 4


def test_empty_and_missing_record_files_are_errors(tmp_path):
    (tmp_path / "a.rec").touch()
    with pytest.raises(UserError, match=r"a\.rec contains no records"):
        write_index(tmp_path / "a")
    with pytest.raises(UserError, match=r"record file not found: .*b\.rec"):
        write_index(tmp_path / "b")


def test_missing_empty_and_malformed_index_names_the_tool(tmp_path, caplog):
    prefix = seq_rec_builder(tmp_path / "train", LABELS, PAYLOADS)
    advice = rf"python tools/index_records\.py {re.escape(str(tmp_path))}/train\.rec"
    index = tmp_path / "train.idx"
    lines = index.read_text().splitlines(keepends=True)
    index.write_text("".join(lines[:-2]))
    assert len(RecordDataset(prefix)) == 5 and re.search(rf"its last 80 bytes are not in .*{advice}", caplog.text)
    caplog.clear()
    index.write_text("0\t0\nx\n")
    with pytest.raises(UserError, match=advice):
        RecordDataset(prefix)
    index.write_text("")
    with pytest.raises(UserError, match="no images"):
        RecordDataset(prefix)
    assert re.search(advice, caplog.text)
    index.unlink()
    with pytest.raises(UserError, match=rf"not found: .*train\.idx; .*{advice}"):
        RecordDataset(prefix)
    with_header(tmp_path / "train", LABELS, PAYLOADS)
    index.write_text("".join(index.read_text().splitlines(keepends=True)[:-2]))
    with pytest.raises(UserError, match=rf"promises 7 images, but 5 are in .*{advice}"):
        RecordDataset(prefix)


@pytest.mark.parametrize("name", ["train", "train.rec", "train.idx", "", "."])
def test_records_are_found_by_prefix_file_and_folder(tmp_path, name):
    """In InsightFace's layout, beside other records and other files."""
    face2rec2(tmp_path / "train", LABELS, PAYLOADS)
    seq_rec_builder(tmp_path / "other", [0, 0], PAYLOADS[:2])
    (tmp_path / "property").write_text("4,112,112\n")
    (tmp_path / "lfw.bin").write_bytes(b"\x80\x04.")
    data = open_dataset(tmp_path / name if name else f"{tmp_path}/")
    assert data.prefix == str(tmp_path / "train") and data.num_images == 7


def test_names_that_end_like_a_suffix_and_folders_with_one_record_file(tmp_path):
    seq_rec_builder(tmp_path / "train.rec", LABELS, PAYLOADS)  # train.rec.rec
    assert record_prefix(tmp_path / "train.rec") == str(tmp_path / "train.rec")
    (tmp_path / "faces.v2").mkdir()
    seq_rec_builder(tmp_path / "faces.v2" / "emore.112", LABELS, PAYLOADS)
    assert record_prefix(tmp_path / "faces.v2") == str(tmp_path / "faces.v2" / "emore.112")
    assert record_prefix(tmp_path / "faces.v2" / "emore.112") == str(tmp_path / "faces.v2" / "emore.112")


def test_folder_that_does_not_tell_which_records_are_meant_is_an_error(tmp_path):
    with pytest.raises(UserError, match=rf"{tmp_path} is a folder with no record file"):
        open_dataset(tmp_path)
    for name in ("a", "b"):
        seq_rec_builder(tmp_path / name, LABELS, PAYLOADS)
    with pytest.raises(UserError, match=rf"{tmp_path} is a folder with the records a, b; name the prefix"):
        open_dataset(tmp_path)
    with pytest.raises(UserError, match=r"record file not found: .*nowhere\.rec"):
        open_dataset(tmp_path / "nowhere.rec")


def test_tool_writes_the_index_or_ends_with_one_line(tmp_path):
    face2rec2(tmp_path / "train", LABELS, PAYLOADS)
    before = (tmp_path / "train.idx").read_bytes()
    (tmp_path / "train.idx").unlink()
    tool = ROOT / "tools" / "index_records.py"
    (status,), (output,) = Launch(tool, [str(tmp_path / "train.rec")], tmp_path / "logs").wait()
    assert status == 0 and "7 images" in output and (tmp_path / "train.idx").read_bytes() == before
    (status,), (output,) = Launch(tool, [str(tmp_path / "none.rec")], tmp_path / "logs").wait()
    assert status == 2 and re.match(r"error: record file not found: .*none\.rec", output.splitlines()[-1])
