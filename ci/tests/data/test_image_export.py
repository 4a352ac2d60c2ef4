"""Records as image files again: bytes, suffixes, the list to train from, and exports that were stopped."""

import io
import sys

import export_images as tool
import numpy as np
import pytest
from PIL import Image
from tiny import write_records

from core.data import image_export
from core.data.image_export import export_images
from core.data.lists import ListDataset
from core.data.recordio import RecordWriter
from core.data.records import RecordDataset
from core.errors import UserError


def encoded(kind, seed):
    written = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)).save(written, kind)
    return written.getvalue()


def write_plain(prefix, images):
    """Records without a header record, as im2rec writes them, from pairs of label and content."""
    with RecordWriter(prefix) as writer:
        for index, (label, content) in enumerate(images):
            writer.write(index, label, content)
    return prefix


def formats(tmp_path):
    kinds = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
    return write_plain(tmp_path / "formats", [(seed % 2, encoded(kind, seed)) for seed, kind in enumerate(kinds)])


def unsorted(tmp_path):
    return write_plain(tmp_path / "unsorted", [(label, encoded("JPEG", i)) for i, label in enumerate([7, 0, 7, 3, 0])])


def insightface(tmp_path):
    return write_records(tmp_path / "faces", [0, 0, 1, 1, 2])


@pytest.mark.parametrize("make", [insightface, unsorted, formats])
def test_the_list_of_an_export_gives_the_images_labels_and_order_of_the_records(tmp_path, make):
    data = RecordDataset(make(tmp_path))
    written = export_images(data, tmp_path / "new" / "images")
    exported = ListDataset(written)
    rows = range(len(data))
    assert exported.labels().tolist() == data.labels().tolist() and exported.num_classes == data.num_classes
    assert np.array_equal(exported.batch(rows)[0], data.batch(rows)[0])
    paths = [line.rsplit(" ", 1)[0] for line in written.read_text().splitlines()]
    assert [(written.parent / path).read_bytes() for path in paths] == [data.payload(row) for row in rows]
    assert [path.split(".")[0] for path in paths] == [
        f"{label:06d}/{row:06d}" for row, label in enumerate(data.labels())
    ]
    files = {str(p.relative_to(written.parent)) for p in written.parent.rglob("*") if p.is_file()}
    assert files == {*paths, "images.txt", "export.json"}


def test_suffixes_are_those_of_the_content(tmp_path, caplog):
    data = RecordDataset(formats(tmp_path))
    lines = export_images(data, tmp_path / "images").read_text().splitlines()
    assert [line.split(" ")[0].split(".")[1] for line in lines] == ["jpg", "png", "webp", "bmp", "tif", "gif"]
    strange = write_plain(tmp_path / "strange", [(0, b"no image"), (0, encoded("PNG", 0))])
    assert (
        export_images(RecordDataset(strange), tmp_path / "other").read_text().splitlines()[0] == "000000/000000.bin 0"
    )
    assert "1 images are of an unknown format; their suffix is .bin" in caplog.text


def test_last_classes_without_images_are_said(tmp_path, caplog):
    with RecordWriter(tmp_path / "train") as writer:
        writer.write(0, (3, 6), b"")
        for index in (1, 2):
            writer.write(index, index, encoded("PNG", index))
    export_images(RecordDataset(tmp_path / "train"), tmp_path / "images")
    assert "the last 3 classes have no images: the list has 3 classes" in caplog.text


def test_a_stopped_export_goes_on_where_it_was(tmp_path, monkeypatch):
    data, out = RecordDataset(insightface(tmp_path)), tmp_path / "images"
    write, written = image_export._write_missing, []

    def stop_at_the_fourth(file, content):
        if len(written) == 3:
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(content[:10])
            raise KeyboardInterrupt
        written.append(file)
        write(file, content)

    monkeypatch.setattr(image_export, "_write_missing", stop_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        export_images(data, out)
    assert not (out / "images.txt").exists() and not list(out.glob(".*"))
    before = {file: file.stat().st_mtime_ns for file in written}
    monkeypatch.undo()
    exported = ListDataset(export_images(data, out))
    assert np.array_equal(exported.batch(range(5))[0], data.batch(range(5))[0])
    assert {file: file.stat().st_mtime_ns for file in written} == before


def test_folders_with_other_content_are_refused(tmp_path):
    data = RecordDataset(insightface(tmp_path))
    export_images(data, tmp_path / "images")
    with pytest.raises(UserError, match="images has images of other records in it; give another folder"):
        export_images(RecordDataset(unsorted(tmp_path)), tmp_path / "images")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="thesis has other files in it"):
        export_images(data, tmp_path / "thesis")
    assert [p.name for p in (tmp_path / "thesis").iterdir()] == ["thesis.tex"]
    with pytest.raises(UserError, match=r"thesis\.tex is a file: name a folder"):
        export_images(data, tmp_path / "thesis" / "thesis.tex")


def test_the_tool_exports_records_and_refuses_lists(tmp_path, monkeypatch):
    prefix = insightface(tmp_path)
    monkeypatch.setattr(sys, "argv", ["export_images.py", "--rec", str(prefix), "--out", str(tmp_path / "images")])
    tool.main()
    listed = tmp_path / "images" / "images.txt"
    assert len(listed.read_text().splitlines()) == 5
    monkeypatch.setattr(sys, "argv", ["export_images.py", "--rec", str(listed), "--out", str(tmp_path / "again")])
    with pytest.raises(UserError, match="is an image list, whose images are files already"):
        tool.main()
    assert not (tmp_path / "again").exists()
